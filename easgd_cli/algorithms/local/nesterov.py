"""Nesterov's momentum in the look-ahead form: the velocity of equation 7 of Zhang, Choromanska, LeCun (2015), p. 3.

    v <- delta v - eta g(x + delta v)
    x <- x + v

torch.optim.SGD(nesterov=True) is the same iteration seen from the look-ahead point, as long as eta does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.local.base import LocalStep

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.base import Worker


@dataclass(frozen=True)
class Nesterov(LocalStep):
    """`delta`: momentum. With delta = 0 it is the plain step."""

    delta: float

    state = ("v",)
    scratch = ("y",)  # the look-ahead point: undoing it by subtraction would change bits of x

    def at(self, w: Worker) -> Tensor:
        return w.y.copy_(w.x).add_(w.v, alpha=self.delta)

    @property
    def torch_sgd(self) -> dict[str, Any]:
        return {"momentum": self.delta, "nesterov": self.delta > 0}

    def move(self, w: Worker, g: Tensor) -> None:
        w.v.mul_(self.delta).sub_(g, alpha=w.eta)
        w.x.add_(w.v)
