"""Any method on vectors whose last entries are no parameters but statistics of the batches, such as batch norm's
running means.

Nothing is minimised over the statistics r: a worker's step moves its r to what the batch shows, and the center's r~ is
an average of the workers'. The method's own lines would treat r as parameters, and momentum, sums over workers and
look-ahead would each move r by something else than the batch's change.

    worker i:  r^i <- r^i - g_r                 g_r: the gradient's last entries, minus the change that the batch makes
    center:    r~  <- r~ + (n/p) (r - r~)       at every exchange; r: the mean over its n messages, p: all workers

The parameters follow the method's own rules, to the bit. A worker's statistics stay its own, with one exception: where
a round's gradient is taken at the reply, they continue from the round's mean, which is the same for all workers.
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
    """`method` on vectors [d + statistics] of `workers` workers; its rules see the first d entries. r is put behind
    every message and behind every vector at which a gradient is taken.
    """

    statistics: int
    workers: int

    @property
    def variables(self) -> Mapping[str, Variable]:
        tail = (self.statistics, self.receive)
        return {name: replace(variable, tail=tail) for name, variable in self.method.variables.items()}

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.lerp_(m, n / self.workers)
        reply.copy_(m)  # so that a gradient at the reply begins from the statistics that were sent

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
        # by the address of the first entry, which is also that of the parameters
        whole: dict[int, Tensor] = {v.data_ptr(): v for v in own.values()}
        reply: Tensor | None = None
        moved: Tensor | None = None

        def carrying(parameters: Tensor) -> Tensor:
            """Returns the vector [d + statistics] that begins with these parameters, with r behind them; a reply keeps
            its own statistics.
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
