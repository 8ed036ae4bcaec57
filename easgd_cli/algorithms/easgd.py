"""Asynchronous EASGD: Algorithm 1 of Zhang, Choromanska, LeCun (2015), p. 3.

    x <- x^i                                    the old local value
    if tau divides t^i:
        a) x^i <- x^i - alpha (x - x~)
        b) x~  <- x~  + alpha (x - x~)          the same difference, with x~ as it was before b)
    x^i <- x^i - eta g^i(x)                     gradient at the OLD x, applied to the pulled x^i: the local step
    t^i <- t^i + 1

Since the gradient is taken at the old x, fetching x~ and differentiating overlap without changing a number. Not to be
confused with pulling first and differentiating at the pulled x, nor with the Gauss-Seidel form, in which a) uses the
center after b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Rule, Vectors, WithLocalStep, Worker, check_moving_rate
from easgd_cli.algorithms.local import PLAIN, LocalStep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EASGD(WithLocalStep):
    """Elastic averaging SGD. `alpha`: moving rate, the same for every tau; `local`: how x moves by g."""

    alpha: float
    local: LocalStep = PLAIN

    def __post_init__(self) -> None:
        check_moving_rate(self.alpha)

    def step(self, w: Worker) -> Rule:
        g, center = yield Gradient(self.local.at(w)), Exchange(w.x) if w.due else None
        if center is not None:
            w.x.lerp_(center, self.alpha)  # a)
        self.local.move(w, g)  # x^i <- x^i - eta g^i(x)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        reply.copy_(center.x)  # a) takes the center as it is before b)
        center.x.lerp_(m, n * self.alpha)  # b)
