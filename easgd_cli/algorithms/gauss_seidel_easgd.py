"""Gauss-Seidel EASGD: synchronous EASGD (paper p. 2) with the center first. One round of all workers:

    x~  <- x~ + beta ((1/p) sum_i x^i - x~)                  beta = p alpha
    x^i <- x^i - eta g^i(x^i) + alpha (x~ - x^i)             the NEW x~, the gradient at the OLD x^i

The workers' rule is EASGD's, line for line; the center's rule decides that they are pulled toward the new x~. The
pull-then-step form differs in where the gradient is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Rule, Vectors, WithLocalStep, Worker, check_moving_rate
from easgd_cli.algorithms.easgd import EASGD
from easgd_cli.algorithms.local import PLAIN, LocalStep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GaussSeidelEASGD(WithLocalStep):
    """Elastic averaging SGD in rounds, toward the center after its update. `alpha`: moving rate; `local`: how x moves
    by g.
    """

    alpha: float
    local: LocalStep = PLAIN

    gathers = "round"

    def __post_init__(self) -> None:
        check_moving_rate(self.alpha)

    def step(self, w: Worker) -> Rule:
        return EASGD(self.alpha, self.local).step(w)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.lerp_(m, n * self.alpha)
        reply.copy_(center.x)
