"""Synchronous EAMSGD: equation 7 of Zhang, Choromanska, LeCun (2015), p. 3, with equation 6. One round of all workers:

    v^i <- delta v^i - eta g^i(x^i + delta v^i)
    x^i <- x^i + v^i - alpha (x^i - x~)                      alpha = eta rho
    x~  <- (1 - beta) x~ + beta (1/p) sum_i x^i              beta = p alpha

The x^i and x~ on the right are those before the round, so the two rules are the asynchronous method's. With delta = 0
it is synchronous EASGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from easgd_cli.algorithms.base import CENTER, Method, Rule, Variable, Worker, check_moving_rate
from easgd_cli.algorithms.eamsgd import EAMSGD


@dataclass(frozen=True)
class SyncEAMSGD(Method):
    """Elastic averaging SGD with Nesterov momentum, in rounds. `alpha`: moving rate; `delta`: momentum."""

    alpha: float
    delta: float

    state = EAMSGD.state
    scratch = EAMSGD.scratch

    def __post_init__(self) -> None:
        check_moving_rate(self.alpha)

    def step(self, w: Worker) -> Rule:
        return EAMSGD(self.alpha, self.delta).step(w)

    @property
    def variables(self) -> Mapping[str, Variable]:
        return {CENTER: EAMSGD(self.alpha, self.delta).variables[CENTER].synchronous()}
