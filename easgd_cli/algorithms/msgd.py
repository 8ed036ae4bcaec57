"""MSGD, the sequential baseline with Nesterov's momentum (paper p. 6, the velocity of eq. 7): one worker, no exchange.

    v <- delta v - eta g(x + delta v)
    x <- x + v
    t <- t + 1

torch.optim.SGD(nesterov=True) is the same iteration seen from the look-ahead point x + delta v; here x is what is
evaluated and saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from easgd_cli.algorithms.base import Gradient, Method, Rule, Worker


@dataclass(frozen=True)
class MSGD(Method):
    """Nesterov's accelerated gradient with a constant momentum `delta`."""

    delta: float

    state = ("x", "v")
    scratch = ("y",)  # the look-ahead point x + delta v
    center = ()

    @property
    def torch_sgd(self) -> dict[str, Any]:
        return {"momentum": self.delta, "nesterov": self.delta > 0}

    def step(self, w: Worker) -> Rule:
        w.y.copy_(w.x).add_(w.v, alpha=self.delta)
        g = yield Gradient(w.y)
        w.v.mul_(self.delta).sub_(g, alpha=w.eta)
        w.x.add_(w.v)
