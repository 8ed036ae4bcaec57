"""Any method with messages and replies of fewer bits: wire=bf16, fp16 or int8.

Each vector is rounded where it enters the wire, and every variable and every worker stays as it is. A number becomes
one of its two neighbours that can be sent, the nearer one more often, so that its expectation is the number itself:

    round(x) = ulp floor(x / ulp + u),   u uniform in [0, 1)      ulp: what two neighbours there differ by

u follows from (seed, worker, t), and which way the vector goes: a run that goes on, or is gone through again, or takes
place on another launcher, rounds the same. In rounds the reply is rounded alike for all, so that workers who were equal
stay equal. What lies beside its owner takes no way and is not rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.base import WHOLE, Courier, Exchange, Rule, Worker, fragment_ends
from easgd_cli.algorithms.wrapped import Wrapped, relayed
from easgd_cli.randomness import WIRE, key

if TYPE_CHECKING:
    from torch import Generator, Tensor

SHARING = 1024  # entries of int8 that share one power of two
_BLOCK = 64 * SHARING  # entries at a time, which stay in the cache
_FLOAT32 = 24  # significant bits; x / ulp and u together have no more, so that their sum is exact
_ALL = 1 << 40  # in place of a worker's number, where what is drawn is the same for all


@dataclass(frozen=True)
class Wire:
    """Numbers of so many significant bits, the leading one included, and the least exponent; None: whole numbers from
    -127 to 127, times a power of two that `SHARING` entries share. `largest`: more than that is sent as that.
    """

    name: str
    bits: int | None = None
    least: int = 0
    largest: float | None = None

    def nbytes(self, size: int) -> int:
        """Of a vector of that many entries, on the wire."""
        return 2 * size if self.bits is not None else size + -(-size // SHARING)

    def round(self, x: Tensor, out: Tensor, generator: Generator) -> None:
        """`out` [d] is x [d] rounded. On a CPU in blocks; a GPU's launches would cost more than its arithmetic."""
        drawn = _FLOAT32 - (self.bits or 8)  # bits of u
        block = _BLOCK if x.device.type == "cpu" else max(1, x.numel())
        for part, into in zip(x.split(block), out.split(block), strict=True):
            ulp = self._shared_ulp(part) if self.bits is None else self._ulp(part, self.bits)
            u = into.random_(0, 1 << drawn, generator=generator).mul_(2.0**-drawn)
            u.add_(part / ulp).floor_().mul_(ulp)
            if self.largest is not None:
                into.clamp_(-self.largest, self.largest)

    def _ulp(self, x: Tensor, bits: int) -> Tensor:
        return _power_below(x).clamp_(min=2.0**self.least).mul_(2.0 ** (1 - bits))

    def _shared_ulp(self, x: Tensor) -> Tensor:
        """Of each entry [n]: the least power of two of which 127 reach the largest beside it."""
        together = x.new_zeros(-(-x.numel() // SHARING), SHARING)
        together.view(-1)[: x.numel()] = x.abs()
        needed = together.amax(1).div_(127)
        below = _power_below(needed)
        ulp = below.mul_(1 + (needed > below)).masked_fill_(needed == 0, 1.0)
        return ulp[:, None].expand(-1, SHARING).reshape(-1)[: x.numel()]


def _power_below(x: Tensor) -> Tensor:
    """The greatest power of two at most |x|, exactly; 0 where that is no normal number; infinity stays."""
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
class OnTheWire(Wrapped):
    """`method` on `wire`. `seed`: that of the run."""

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

    def _sent(self, w: Worker, ask: Any) -> Any:
        if not isinstance(ask, Exchange) or ask.message is None or self._beside(w, ask.to):
            return ask
        entries = self._entries(ask, ask.message.numel())
        self.wire.round(ask.message[entries], w.sent[entries], self._drawn(w, ask.to, 0, w.number))
        return Exchange(w.sent, ask.to, ask.fragment)

    def _arrived(self, w: Worker, ask: Any, given: Tensor | None) -> Tensor | None:
        if not isinstance(ask, Exchange) or given is None or self._beside(w, ask.to):
            return given
        drawn = _ALL if self.variables[ask.to].in_rounds else w.number
        entries = self._entries(ask, given.numel())
        self.wire.round(given[entries], w.arrived[entries], self._drawn(w, ask.to, 1, drawn))
        arrived: Tensor = w.arrived
        return arrived

    def _entries(self, ask: Exchange, size: int) -> slice:
        """Those of a vector [size] that are sent."""
        if ask.fragment == WHOLE:
            return slice(None)
        ends = (0, *fragment_ends(size, self.variables[ask.to].fragments))
        return slice(ends[ask.fragment], ends[ask.fragment + 1])

    def _beside(self, w: Worker, variable: str) -> bool:
        return self.variables[variable].owner == w.number

    def _drawn(self, w: Worker, variable: str, way: int, worker: int) -> Generator:
        import torch

        place = list(self.variables).index(variable)
        z = key(self.seed, WIRE, worker, (w.t * len(self.variables) + place) * 2 + way)
        return torch.Generator(w.x.device).manual_seed(z)
