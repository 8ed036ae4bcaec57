"""Heavy-ball momentum as torch.optim.SGD(momentum=delta) has it (Polyak 1964; Sutskever et al. 2013, section 2).

    v <- delta v + g(x)
    x <- x - eta v

eta stands in the second line, so a rate that falls also scales what v has gathered; in equation 7 of the paper it does
not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.local.base import LocalStep

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.base import Worker


@dataclass(frozen=True)
class Momentum(LocalStep):
    """`delta`: momentum."""

    delta: float

    state = ("v",)

    @property
    def torch_sgd(self) -> dict[str, Any]:
        return {"momentum": self.delta}

    def move(self, w: Worker, g: Tensor) -> None:
        w.v.mul_(self.delta).add_(g)
        w.x.sub_(w.v, alpha=w.eta)
