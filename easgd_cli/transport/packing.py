"""What of a vector crosses a network: the fragment that is exchanged, in as few bits as wire= says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from easgd_cli.algorithms.base import Method, entries_of
from easgd_cli.algorithms.wire import OnTheWire, Rounding
from easgd_cli.transport.base import Kind, Request


@dataclass(frozen=True)
class Packing:
    """Of the session of `worker`. `fragments`: how many each variable's vectors are exchanged in; `rounding`: None
    where vectors cross as they are; `before`: how many entries the worker's vectors have before those of a master
    whose machine has its slice alone.
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
        """Those of the vector [d] that cross."""
        return v[entries_of(v.numel(), self.fragments[request.to] if self.fragments else 1, request.fragment)]

    def packed(self, v: Tensor, request: Request, *, reply: bool = False) -> list[Tensor]:
        """What is sent of the vector [d]. A message has been rounded by its worker; a `reply` is rounded here, as the
        worker will round it, to which it is then a number that can be sent.
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
        """Where what is sent of such a vector [d] is to be received; `unpack` then makes the vector of it."""
        x, rounding = self.entries(v, request), self._rounding(request)
        return [x] if rounding is None else rounding.wire.room(x)

    def unpack(self, received: Sequence[Tensor], v: Tensor, request: Request) -> None:
        """Writes into the vector [d] what its `room` has received."""
        rounding = self._rounding(request)
        if rounding is not None:
            rounding.wire.decode(received, self.entries(v, request))

    def _rounding(self, request: Request) -> Rounding | None:
        """None for what is not rounded: the center of one that comes back, and what takes no way."""
        if self.rounding is None or request.kind is Kind.JOIN or self.rounding.beside(self.worker, request.to):
            return None
        return self.rounding
