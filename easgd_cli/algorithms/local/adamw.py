"""Adam with decoupled weight decay (Kingma, Ba 2015, Algorithm 1; Loshchilov, Hutter 2019, Algorithm 2).

    x <- x - eta lambda x                                    the decay is in none of g, m and s
    m <- beta1 m + (1 - beta1) g
    s <- beta2 s + (1 - beta2) g^2
    x <- x - eta (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + eps)        t: this worker's steps, this one included

lambda scales with eta, as in torch.optim.AdamW. With lambda = 0 it is torch.optim.Adam; l2 then acts through g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.local.base import LocalStep, check_fraction, check_not_negative

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.base import Worker


@dataclass(frozen=True)
class AdamW(LocalStep):
    """`weight_decay`: lambda; `beta1`, `beta2`: how slowly m and s forget; `eps` keeps the divisor from 0."""

    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    state = ("m", "s")
    scratch = ("u",)

    def __post_init__(self) -> None:
        check_fraction("beta1", self.beta1)
        check_fraction("beta2", self.beta2)
        check_not_negative("weight_decay", self.weight_decay)
        check_not_negative("eps", self.eps)

    def move(self, w: Worker, g: Tensor) -> None:
        t = w.t + 1
        if self.weight_decay:
            w.x.mul_(1 - w.eta * self.weight_decay)
        w.m.lerp_(g, 1 - self.beta1)
        w.s.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        w.u.copy_(w.s).sqrt_().div_((1 - self.beta2**t) ** 0.5).add_(self.eps)
        w.x.addcdiv_(w.m, w.u, value=-(w.eta / (1 - self.beta1**t)))
