"""Adagrad (Duchi, Hazan, Singer 2011), the step that the DOWNPOUR of Dean et al. (2012) had; as torch.optim.Adagrad.

s <- s + g^2
x <- x - eta g / (sqrt(s) + eps)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.local.base import LocalStep, check_not_negative

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.base import Worker


@dataclass(frozen=True)
class Adagrad(LocalStep):
    """`eps` keeps the divisor from 0."""

    eps: float = 1e-10

    state = ("s",)
    scratch = ("u",)

    def __post_init__(self) -> None:
        check_not_negative("eps", self.eps)

    def move(self, w: Worker, g: Tensor) -> None:
        w.s.addcmul_(g, g)
        w.u.copy_(w.s).sqrt_().add_(self.eps)
        w.x.addcdiv_(g, w.u, value=-w.eta)
