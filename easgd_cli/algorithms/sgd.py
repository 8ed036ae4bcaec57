"""SGD, the sequential baseline (paper p. 6): one worker, no exchange.

x <- x - eta g(x)
t <- t + 1
"""

from __future__ import annotations

from dataclasses import dataclass

from easgd_cli.algorithms.base import Gradient, Method, Rule, Worker


@dataclass(frozen=True)
class SGD(Method):
    """Stochastic gradient descent."""

    center = ()

    def step(self, w: Worker) -> Rule:
        g = yield Gradient(w.x)
        w.x.sub_(g, alpha=w.eta)
