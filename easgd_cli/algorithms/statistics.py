"""Any method on vectors whose last entries are no parameters but statistics of the batches, such as batch norm's
running means.

Statistics r are not descended: a step moves them to what its batch shows, and the center's are the average of the
workers'. Were they left to the method's own lines, momentum, sums over workers and look-ahead would each make another
step of the same gradient.

    worker i:  r^i <- r^i - g_r                 the gradient's last entries, which are minus the change that the batch
    makes of r^i
    center:    r~  <- r~ + (n/p) (r - r~)       at every exchange, r the mean of the n workers' that come with it, p
    workers in all

The parameters follow the method's own rules, to the bit. A worker's statistics stay its own; only where a round's
gradient is taken at the reply do they go on from the round's mean, which everybody gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.base import Exchange, Gradient, Rule, Variable, Vectors, Worker
from easgd_cli.algorithms.wrapped import Wrapped, relayed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WithStatistics(Wrapped):
    """`method` on vectors [d + statistics] of `workers` workers. r goes with every message and to wherever a gradient
    is taken.
    """

    statistics: int
    workers: int

    @property
    def variables(self) -> Mapping[str, Variable]:
        tail = (self.statistics, self.receive)
        return {name: replace(variable, tail=tail) for name, variable in self.method.variables.items()}

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.lerp_(m, n / self.workers)
        reply.copy_(m)  # so that a gradient at the reply begins from the worker's own

    def closing(self, w: Worker) -> Exchange | None:
        ask = self.method.closing(w)
        if ask is not None and ask.message is not None and ask.message is not w.x:
            d = w.x.numel() - self.statistics
            ask.message[d:].copy_(w.x[d:])
        return ask

    def step(self, w: Worker) -> Rule:
        d = w.x.numel() - self.statistics
        r = w.x[d:]
        own = {name: getattr(w, name) for name in (*self.state, *self.scratch)}
        # by where it begins, which is where its parameters do
        whole: dict[int, Tensor] = {v.data_ptr(): v for v in own.values()}
        reply: Tensor | None = None
        moved: Tensor | None = None

        def carrying(parameters: Tensor) -> Tensor:
            """The vector [d + statistics] that begins with these, with r behind them; a reply brings what
            is behind it.
            """
            v = whole.get(parameters.data_ptr())
            if v is None:  # a rule may differentiate at a vector that it has just made
                v = w.x.clone()
                v[:d].copy_(parameters)
            if v is not w.x and v is not reply:
                v[d:].copy_(r)
            return v

        rule = self.method.step(
            Worker({name: v[:d] for name, v in own.items()}, w.tau, w.schedule, w.t, w.number, w.seen)
        )

        def ask(asked: Any) -> Any:
            if isinstance(asked, Gradient):
                return Gradient(carrying(asked.at))
            return asked if asked.message is None else Exchange(carrying(asked.message), asked.to)

        def answer(asked: Any, given: Any) -> Any:
            nonlocal moved, reply
            if given is None:
                return None
            if isinstance(asked, Gradient):
                moved = asked.at[d:] - given[d:]
            else:
                reply = whole[given.data_ptr()] = given
            return given[:d]

        yield from relayed(rule, ask, answer)
        if moved is not None:
            r.copy_(moved)
