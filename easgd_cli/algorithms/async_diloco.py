"""Asynchronous DiLoCo with delayed Nesterov momentum, of Liu et al. (2024, arXiv 2401.09135), Algorithm 3.

    worker i, whenever tau divides t^i:         the center, at its update k = 1, 2, ...: d comes from one worker
        send d^i                                    s  <- s + d
        x^i <- x~, d^i <- 0                         if N divides k:
    x^i <- the local step at x^i                        u  <- mu u + s / N,  s <- 0
    d^i <- d^i + (x^i after - x^i before)               x~ <- x~ + nu (d / N + mu u)
    t^i <- t^i + 1                                  else:
                                                        x~ <- x~ + nu d / N

d is the worker's displacement since its last exchange, the negative of the paper's pseudo-gradient. Between two
momentum steps there are plain ones; after N updates x~ has moved by nu (s / N + mu u), as by one step of DiLoCo with
the mean of the N messages. By default N is the number of workers. The paper's constant c, which spreads the momentum
over the N updates, is 0. The paper's other half, a tau for each worker by its speed, is not implemented. This file was
written from descriptions of the algorithm and not compared with the paper's own listing.

No worker waits for another. A worker's first message, at t = 0, is 0 and counts as an update. The center would lack the
steps since each worker's last exchange, so there is a closing exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Rule, Vectors, WithLocalStep, Worker, check_outer_step
from easgd_cli.algorithms.local import PLAIN, LocalStep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AsyncDiLoCo(WithLocalStep):
    """`nu`: outer rate; `mu`: outer momentum; `period`: N, the updates from one momentum step to the next, by default
    the number of workers; `local`: how x moves by g in between.
    """

    workers: int
    local: LocalStep = PLAIN
    nu: float = 0.7
    mu: float = 0.9
    period: int | None = None

    center = ("x", "u", "s")

    def __post_init__(self) -> None:
        check_outer_step(self.nu, self.mu)
        if self.period is not None and self.period < 1:
            raise ValueError(f"algo.period={self.period}: counts updates, 1 or more; without it as many as workers.")

    @property
    def state(self) -> tuple[str, ...]:
        return (*super().state, "d")

    def step(self, w: Worker) -> Rule:
        x = (yield Exchange(w.d)) if w.due else None
        g = yield Gradient(self.local.at(w if x is None else w.at(x)))
        if x is not None:
            w.x.copy_(x)
            w.d.zero_()
        w.d.sub_(w.x)
        self.local.move(w, g)
        w.d.add_(w.x)

    def closing(self, w: Worker) -> Exchange:
        return Exchange(w.d)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        every = self.period or self.workers
        center.s.add_(m)
        center.x.add_(m, alpha=self.nu / every)
        if (center.t + 1) % every == 0:
            center.u.mul_(self.mu).add_(center.s, alpha=1 / every)
            center.x.add_(center.u, alpha=self.nu * self.mu)
            center.s.zero_()
        reply.copy_(center.x)
