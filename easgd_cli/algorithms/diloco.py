"""DiLoCo, of Douillard et al. (2023, arXiv 2311.08105), Algorithm 1. One round of all workers:

    if tau divides t:
        d   <- x~ - (1/p) sum_i x^i             the outer gradient
        u   <- mu u + d                         the outer step: Nesterov's, as torch.optim.SGD(nesterov=True) has it
        x~  <- x~ - nu (d + mu u)
        x^i <- x~
    x^i <- the local step at x^i                AdamW unless told otherwise (local=)
    t   <- t + 1

nu is the outer learning rate and mu the outer momentum; with nu = 1 and mu = 0 it is model averaging. What AdamW keeps
stays with its worker from round to round. At t = 0 all x^i are x~, so d = 0 and nothing moves. The center would lack
the steps since the last exchange, so there is a closing exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Rule, Vectors, WithLocalStep, Worker, check_outer_step
from easgd_cli.algorithms.local import PLAIN, LocalStep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DiLoCo(WithLocalStep):
    """Local steps, then an outer step. `nu`: outer rate; `mu`: outer momentum; `local`: how x moves by g in between."""

    local: LocalStep = PLAIN
    nu: float = 0.7
    mu: float = 0.9

    center = ("x", "u")
    gathers = "round"

    def __post_init__(self) -> None:
        check_outer_step(self.nu, self.mu)

    def step(self, w: Worker) -> Rule:
        x = (yield Exchange(w.x)) if w.due else None
        yield from self.local_step(w, x)

    def closing(self, w: Worker) -> Exchange:
        return Exchange(w.x)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        d = reply.copy_(center.x).sub_(m)  # d lies in the reply, which is overwritten below
        center.u.mul_(self.mu).add_(d)
        center.x.sub_(d, alpha=self.nu).sub_(center.u, alpha=self.nu * self.mu)
        reply.copy_(center.x)
