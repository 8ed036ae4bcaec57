"""The part of a vector that crosses a network: the fragment that is exchanged, in as few bits as wire= says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from easgd_cli.algorithms.base import Method, entries_of
from easgd_cli.algorithms.wire import OnTheWire, Rounding
from easgd_cli.transport.base import Kind, Request


@dataclass(frozen=True)
class Packing:
    """How the vectors of `worker` cross. `fragments`: how many each variable's vectors have; `rounding`: None where
    vectors cross as they are; `before`: where a machine has one master's slice alone, how many entries the worker's
    vectors have before that slice.
    """

    worker: int
    fragments: tuple[int, ...] = (1,)
    rounding: Rounding | None = None
    before: int = 0

    @classmethod
    def of(cls, method: Method, worker: int, before: int = 0) -> Packing:
        fragments = tuple(variable.fragments for variable in method.variables.values())
        return cls(worker, fragments, method.rounding if isinstance(method, OnTheWire) else None, before)

    def entries(self, v: Tensor, request: Request) -> Tensor:
        """Returns the entries of the vector [d] that cross."""
        return v[entries_of(v.numel(), self.fragments[request.to] if self.fragments else 1, request.fragment)]

    def packed(self, v: Tensor, request: Request, *, reply: bool = False) -> list[Tensor]:
        """Returns what is sent of the vector [d]. A message has been rounded by its worker. A `reply` is rounded here
        as the worker will round it, which then leaves the reply as it is.
        """
        x, rounding = self.entries(v, request), self._rounding(request)
        if rounding is None:
            return [x]
        if reply:
            rounded, at = x.new_empty(x.shape), (self.worker, request.t, request.to)
            rounding.round(x, rounded, *at, way=1, before=self.before)
            x = rounded
        return rounding.wire.encoded(x)

    def room(self, v: Tensor, request: Request) -> list[Tensor]:
        """Returns tensors for what is received of such a vector [d]; `unpack` makes the vector of them."""
        x, rounding = self.entries(v, request), self._rounding(request)
        return [x] if rounding is None else rounding.wire.room(x)

    def unpack(self, received: Sequence[Tensor], v: Tensor, request: Request) -> None:
        """Writes into the vector [d] what has been received in its `room`."""
        rounding = self._rounding(request)
        if rounding is not None:
            rounding.wire.decode(received, self.entries(v, request))

    def _rounding(self, request: Request) -> Rounding | None:
        """Returns the rounding; None for the center of a worker that comes back, and for the variable's owner."""
        if self.rounding is None or request.kind is Kind.JOIN or self.rounding.beside(self.worker, request.to):
            return None
        return self.rounding
