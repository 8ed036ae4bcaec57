"""Model averaging, of Su, Chen, Xu (2015, arXiv 1507.01239). One round of all workers:

    if tau divides t:
        x~  <- (1/p) sum_i x^i
        x^i <- x~                               all continue from the mean
    x^i <- x^i - eta g^i(x^i)                   the local step, at the x^i continued from
    t   <- t + 1

With tau = 1 and the plain step it is averaging gradients, with the center one step behind until the closing exchange:
the mean of steps from one point is the step of the mean gradient. What a local step keeps beside x (a velocity, Adam's
moments) stays with its worker and is not averaged. The center would lack the steps since the last exchange, so there is
a closing exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Rule, Vectors, WithLocalStep, Worker
from easgd_cli.algorithms.local import PLAIN, LocalStep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModelAveraging(WithLocalStep):
    """All workers continue from their mean. `local`: how x moves by g in between."""

    local: LocalStep = PLAIN

    gathers = "round"

    def step(self, w: Worker) -> Rule:
        mean = (yield Exchange(w.x)) if w.due else None
        yield from self.local_step(w, mean)

    def closing(self, w: Worker) -> Exchange:
        return Exchange(w.x)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.copy_(m)
        reply.copy_(m)
