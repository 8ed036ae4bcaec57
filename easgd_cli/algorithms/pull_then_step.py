"""The pull-then-step form of synchronous elastic averaging. One round of all workers:

    x~  <- x~ + beta ((1/p) sum_i x^i - x~)
    y^i  = x^i + alpha (x~ - x^i)                            the NEW x~
    x^i <- y^i - eta g^i(y^i)                                the gradient at the point pulled to

A family in two rates: alpha = 1, beta = p is synchronous DOWNPOUR (tau = 1), alpha = 1, beta = 1 is model averaging.
The rates are not bound to [0, 1]: on a quadratic the best alpha may be negative (docs/theory.md). The gradient must
wait for the exchange; in Gauss-Seidel EASGD the gradient is taken at x^i and need not wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Vectors, Worker

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PullThenStep(Method):
    """Elastic averaging in rounds, gradient after the pull. `alpha`: the workers' rate; `beta`: the center's, by
    default p alpha.
    """

    alpha: float
    beta: float
    workers: int

    scratch = ("y",)
    gathers = "round"

    def step(self, w: Worker) -> Rule:
        center = (yield Exchange(w.x)) if w.due else None
        if center is not None:
            w.y.copy_(w.x).lerp_(center, self.alpha)
        else:
            w.y.copy_(w.x)
        g = yield Gradient(w.y)
        w.x.copy_(w.y).sub_(g, alpha=w.eta)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.lerp_(m, n * self.beta / self.workers)
        reply.copy_(center.x)
