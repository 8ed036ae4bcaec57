"""Any method with messages and replies of fewer bits: wire=bf16, fp16 or int8.

A vector is rounded when it is sent; variables and workers keep full precision. A number becomes one of the two nearest
numbers that can be sent, at random, the nearer one more often, so that the expectation is the number itself:

    round(x) = ulp floor(x / ulp + u),   u uniform in [0, 1)      ulp: the difference of the two nearest numbers

u depends on (seed, worker, t), the variable and the direction alone: a resumed run, a replay and a run on another
launcher round alike. The reply of a round is rounded alike for all workers, so that workers with equal x stay equal.
Messages between a variable and its owner cross no network and are not rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.base import Courier, Exchange, Rule, Worker, entries_of
from easgd_cli.algorithms.wrapped import Wrapped, relayed
from easgd_cli.randomness import WIRE, key

if TYPE_CHECKING:
    from torch import Generator, Tensor

SHARING = 1024  # entries of int8 that share one power of two
_BLOCK = 64 * SHARING  # entries rounded at a time, few enough to stay in the cache
_FLOAT32 = 24  # significant bits of float32; x / ulp and u together have no more, so that their sum is exact
_LEAST_ULP = 2.0**-126  # the least power of two that is a normal number of 16 bits
_TYPES = {"bf16": "bfloat16", "fp16": "float16"}  # names of torch's types
_ALL = 1 << 40  # in place of a worker's number, where all workers draw the same numbers


@dataclass(frozen=True)
class Wire:
    """The numbers that can be sent. `bits`: their significant bits, the leading one included; None: whole numbers from
    -127 to 127, times a power of two that `SHARING` entries share. `least`: the least exponent. `largest`: sent in
    place of any greater number; None: no number is too great.
    """

    name: str
    bits: int | None = None
    least: int = 0
    largest: float | None = None

    def nbytes(self, size: int) -> int:
        """Returns the bytes of a vector [size] as it is sent."""
        return 2 * size if self.bits is not None else size + 2 * -(-size // SHARING)

    def room(self, x: Tensor) -> list[Tensor]:
        """Returns new tensors with room for x [d] as it is sent."""
        import torch

        if self.bits is not None:
            return [torch.empty(x.shape, dtype=getattr(torch, _TYPES[self.name]))]
        shared = torch.empty(-(-x.numel() // SHARING), dtype=torch.bfloat16)
        return [shared, torch.empty(x.shape, dtype=torch.int8)]

    def encoded(self, x: Tensor) -> list[Tensor]:
        """Returns x [d], which has been rounded before, as it is sent."""
        into = self.room(x)
        if self.bits is None:
            ulp = self._shared_ulp(x)
            into[0].copy_(ulp[::SHARING])
            into[1].copy_(x / ulp)
        else:
            into[0].copy_(x)
        return into

    def decode(self, sent: Sequence[Tensor], out: Tensor) -> None:
        """Writes the vector that was sent as `sent` into `out` [d]."""
        out.copy_(sent[-1])
        if self.bits is None:
            out.mul_(sent[0].to(out.dtype).repeat_interleave(SHARING)[: out.numel()])

    def round(self, x: Tensor, out: Tensor, generator: Generator, before: int = 0) -> None:
        """Writes x [d], rounded, into `out` [d]. x is part of a vector with so many entries `before` it, a multiple of
        SHARING. A CPU works in blocks; on a GPU their launches would cost more than the arithmetic.
        """
        drawn = _FLOAT32 - (self.bits or 8)  # bits of u
        block = _BLOCK if x.device.type == "cpu" else max(1, x.numel())
        for at in range(0, before, block):  # skips the random numbers of these entries
            x.new_empty(min(block, before - at)).random_(0, 1 << drawn, generator=generator)
        for part, into in zip(x.split(block), out.split(block), strict=True):
            ulp = self._shared_ulp(part) if self.bits is None else self._ulp(part, self.bits)
            u = into.random_(0, 1 << drawn, generator=generator).mul_(2.0**-drawn)
            u.add_(part / ulp).floor_().mul_(ulp)
            if self.largest is not None:
                into.clamp_(-self.largest, self.largest)

    def _ulp(self, x: Tensor, bits: int) -> Tensor:
        return _power_below(x).clamp_(min=2.0**self.least).mul_(2.0 ** (1 - bits))

    def _shared_ulp(self, x: Tensor) -> Tensor:
        """Returns the ulp of each entry [n]: the least power of two that, times 127, reaches the largest absolute value
        among the entries that share the ulp.
        """
        together = x.new_zeros(-(-x.numel() // SHARING), SHARING)
        together.view(-1)[: x.numel()] = x.abs()
        needed = together.amax(1).div_(127)
        below = _power_below(needed)
        ulp = below.mul_(1 + (needed > below)).clamp_(min=_LEAST_ULP)
        return ulp[:, None].expand(-1, SHARING).reshape(-1)[: x.numel()]


def _power_below(x: Tensor) -> Tensor:
    """Returns the greatest power of two <= |x|, exactly; 0 where that is no normal number, infinity for infinity."""
    import torch

    whole, mask = (torch.int32, 0x7F80_0000) if x.dtype == torch.float32 else (torch.int64, 0x7FF0_0000_0000_0000)
    return x.view(whole).bitwise_and(mask).view(x.dtype)


WIRES: Mapping[str, Wire | None] = {
    "fp32": None,
    "bf16": Wire("bf16", 8, -126),
    "fp16": Wire("fp16", 11, -14, 65504.0),
    "int8": Wire("int8"),
}


@dataclass(frozen=True)
class Rounding:
    """Rounds what workers and variables send. For each variable, by its place: `rounds`, whether it takes rounds;
    `owners`, its owner.
    """

    wire: Wire
    seed: int
    rounds: tuple[bool, ...]
    owners: tuple[int | None, ...]

    def beside(self, worker: int, place: int) -> bool:
        """Returns whether that worker owns the variable at `place`, so that their messages cross no network."""
        return self.owners[place] == worker

    def round(self, x: Tensor, out: Tensor, worker: int, t: int, place: int, *, way: int, before: int = 0) -> None:
        """Writes x [d], rounded, into `out` [d]: a message of the worker at its clock t to the variable at `place`
        (`way` 0) or the reply to it (`way` 1). `before`: entries of the vector before those of x.
        """
        import torch

        drawn = _ALL if way and self.rounds[place] else worker
        z = key(self.seed, WIRE, drawn, (t * len(self.rounds) + place) * 2 + way)
        self.wire.round(x, out, torch.Generator(x.device).manual_seed(z), before)


@dataclass(frozen=True)
class OnTheWire(Wrapped):
    """`method` with messages and replies rounded to the numbers of `wire`. `seed`: that of the run."""

    wire: Wire
    seed: int

    @property
    def scratch(self) -> tuple[str, ...]:
        return (*self.method.scratch, "sent", "arrived")

    @property
    def couriers(self) -> Mapping[str, Courier]:
        return {
            name: Courier(lambda w, step=of.step: self._carried(step(w), w), (*of.vectors, "sent", "arrived"))  # type: ignore[misc]
            for name, of in self.method.couriers.items()
        }

    def step(self, w: Worker) -> Rule:
        return self._carried(self.method.step(w), w)

    def closing(self, w: Worker) -> Exchange | None:
        ask = self.method.closing(w)
        return None if ask is None else self._sent(w, ask)

    def _carried(self, rule: Rule, w: Worker) -> Rule:
        return relayed(rule, lambda ask: self._sent(w, ask), lambda ask, given: self._arrived(w, ask, given))

    @cached_property
    def rounding(self) -> Rounding:
        """How messages and replies are rounded."""
        variables = self.variables.values()
        return Rounding(self.wire, self.seed, tuple(v.in_rounds for v in variables), tuple(v.owner for v in variables))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.variables)}

    def _sent(self, w: Worker, ask: Any) -> Any:
        if not isinstance(ask, Exchange) or ask.message is None:
            return ask
        return Exchange(w.sent, ask.to, ask.fragment) if self._rounded(w, ask, ask.message, w.sent, 0) else ask

    def _arrived(self, w: Worker, ask: Any, given: Tensor | None) -> Tensor | None:
        if not isinstance(ask, Exchange) or given is None:
            return given
        return w.arrived if self._rounded(w, ask, given, w.arrived, 1) else given

    def _rounded(self, w: Worker, ask: Exchange, x: Tensor, out: Tensor, way: int) -> bool:
        """Rounds the exchanged entries of x [d] into `out`. Returns False, and does nothing, where they cross no
        network.
        """
        place = self._places[ask.to]
        if self.rounding.beside(w.number, place):
            return False
        entries = entries_of(x.numel(), self.variables[ask.to].fragments, ask.fragment)
        self.rounding.round(x[entries], out[entries], w.number, w.t, place, way=way)
        return True
