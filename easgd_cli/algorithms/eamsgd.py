"""Asynchronous EAMSGD: Algorithm 2 of Zhang, Choromanska, LeCun (2015), p. 3.

    x <- x^i                                             the old local value
    if tau divides t^i:
        a) x^i <- x^i - alpha (x - x~)
        b) x~  <- x~  + alpha (x - x~)                   the same difference, with x~ as it was before b)
    v^i <- delta v^i - eta g^i(x + delta v^i)            look-ahead from the OLD x
    x^i <- x^i + v^i
    t^i <- t^i + 1

The elastic force never enters the velocity, v stays with the worker, and the center has no momentum. With delta = 0 it
is EASGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Variable, Worker, check_moving_rate
from easgd_cli.algorithms.easgd import EASGD


@dataclass(frozen=True)
class EAMSGD(Method):
    """Elastic averaging SGD with Nesterov momentum. `alpha`: moving rate; `delta`: momentum."""

    alpha: float
    delta: float

    state = ("x", "v")
    scratch = ("y",)  # the look-ahead point x + delta v: undoing it by subtraction would change bits of x

    def __post_init__(self) -> None:
        check_moving_rate(self.alpha)

    def step(self, w: Worker) -> Rule:
        w.y.copy_(w.x).add_(w.v, alpha=self.delta)
        g, center = yield Gradient(w.y), Exchange(w.x) if w.due else None
        if center is not None:
            w.x.lerp_(center, self.alpha)  # a)
        w.v.mul_(self.delta).sub_(g, alpha=w.eta)
        w.x.add_(w.v)

    @property
    def variables(self) -> Mapping[str, Variable]:
        return EASGD(self.alpha).variables  # b) the center's line is that of Algorithm 1
