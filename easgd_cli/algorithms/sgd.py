"""SGD, the sequential baseline (paper p. 6): one worker, no exchange.

x <- x - eta g(x)
t <- t + 1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easgd_cli.algorithms.base import Gradient, Rule, WithLocalStep, Worker
from easgd_cli.algorithms.local import PLAIN, LocalStep


@dataclass(frozen=True)
class SGD(WithLocalStep):
    """Stochastic gradient descent, or whatever `local` makes of g: an optimizer alone."""

    local: LocalStep = PLAIN

    center = ()

    @property
    def torch_sgd(self) -> Mapping[str, Any] | None:
        return self.local.torch_sgd

    def step(self, w: Worker) -> Rule:
        g = yield Gradient(self.local.at(w))
        self.local.move(w, g)  # x <- x - eta g(x)
