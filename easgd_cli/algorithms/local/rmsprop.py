"""RMSprop (Tieleman, Hinton 2012, lecture 6.5), as torch.optim.RMSprop has it.

s <- rho s + (1 - rho) g^2
x <- x - eta g / (sqrt(s) + eps)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.local.base import LocalStep, check_fraction, check_not_negative

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.base import Worker


@dataclass(frozen=True)
class RMSprop(LocalStep):
    """`rho`: how slowly s forgets, torch's alpha; `eps` keeps the divisor from 0."""

    rho: float = 0.99
    eps: float = 1e-8

    state = ("s",)
    scratch = ("u",)

    def __post_init__(self) -> None:
        check_fraction("rho", self.rho)
        check_not_negative("eps", self.eps)

    def move(self, w: Worker, g: Tensor) -> None:
        w.s.mul_(self.rho).addcmul_(g, g, value=1 - self.rho)
        w.u.copy_(w.s).sqrt_().add_(self.eps)
        w.x.addcdiv_(g, w.u, value=-w.eta)
