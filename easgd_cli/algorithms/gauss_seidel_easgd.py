"""Gauss-Seidel EASGD: synchronous EASGD (paper p. 2) with the center first. One round of all workers:

    x~  <- x~ + beta ((1/p) sum_i x^i - x~)                  beta = p alpha
    x^i <- x^i - eta g^i(x^i) + alpha (x~ - x^i)             the NEW x~, the gradient at the OLD x^i

It differs from equations 5 and 6 in which center pulls the workers, and from the pull-then-step form in where the
gradient is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Vectors, Worker

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GaussSeidelEASGD(Method):
    """Elastic averaging SGD in rounds, toward the center after its update. `alpha`: moving rate."""

    alpha: float

    gathers = "round"

    def step(self, w: Worker) -> Rule:
        g, center = yield Gradient(w.x), Exchange(w.x) if w.due else None
        if center is not None:
            w.x.lerp_(center, self.alpha)
        w.x.sub_(g, alpha=w.eta)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.lerp_(m, n * self.alpha)
        reply.copy_(center.x)
