"""Synchronous EASGD, Jacobi: equations 5 and 6 of Zhang, Choromanska, LeCun (2015), p. 2. One round of all workers:

    x^i <- x^i - eta g^i(x^i) - alpha (x^i - x~)
    x~  <- (1 - beta) x~ + beta (1/p) sum_i x^i              beta = p alpha

Both lines use the values before the round, so the two rules are the asynchronous method's, line for line: what differs
is that the center takes the mean of all messages at once. With tau > 1 only every tau-th step has the elastic terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from easgd_cli.algorithms.base import CENTER, Rule, Variable, WithLocalStep, Worker, check_moving_rate
from easgd_cli.algorithms.easgd import EASGD
from easgd_cli.algorithms.local import PLAIN, LocalStep


@dataclass(frozen=True)
class SyncEASGD(WithLocalStep):
    """Elastic averaging SGD in rounds. `alpha`: moving rate; `local`: how x moves by g."""

    alpha: float
    local: LocalStep = PLAIN

    def __post_init__(self) -> None:
        check_moving_rate(self.alpha)

    def step(self, w: Worker) -> Rule:
        return EASGD(self.alpha, self.local).step(w)

    @property
    def variables(self) -> Mapping[str, Variable]:
        return {CENTER: EASGD(self.alpha).variables[CENTER].synchronous()}
