"""The paper's listings transcribed to the letter, in plain float64 tensors: no in-place tricks, no generators, no
blocks.

An independent second implementation. `gradient(i, t, x)` is worker i's stochastic gradient at its local step t.
Every function takes one whole local step of worker i and says whether it exchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GradientOf = Callable[[int, int, Tensor], Tensor]


class Listing:
    """State of all parties by the paper's names: x[i], v[i], t[i], center."""

    def __init__(
        self,
        start: Tensor,
        p: int,
        eta: float,
        tau: int,
        gradient: GradientOf,
        alpha: float = 0.0,
        delta: float = 0.0,
        starts: list[Tensor] | None = None,
        beta: float | None = None,
    ):
        self.x = [s.clone() for s in starts] if starts else [start.clone() for _ in range(p)]
        self.v = [torch.zeros_like(start) for _ in range(p)]
        self.t = [0] * p
        self.center = start.clone()
        self.master_v = torch.zeros_like(start)
        self.eta, self.tau, self.alpha, self.delta, self.gradient = eta, tau, alpha, delta, gradient
        self.beta = p * alpha if beta is None else beta

    def easgd(self, i: int) -> bool:
        """Algorithm 1, p. 3."""
        x = self.x[i]
        due = self.t[i] % self.tau == 0
        if due:
            difference = self.alpha * (x - self.center)
            self.x[i] = self.x[i] - difference
            self.center = self.center + difference
        self.x[i] = self.x[i] - self.eta * self.gradient(i, self.t[i], x)
        self.t[i] += 1
        return due

    def eamsgd(self, i: int) -> bool:
        """Algorithm 2, p. 3."""
        x = self.x[i]
        due = self.t[i] % self.tau == 0
        if due:
            difference = self.alpha * (x - self.center)
            self.x[i] = self.x[i] - difference
            self.center = self.center + difference
        self.v[i] = self.delta * self.v[i] - self.eta * self.gradient(i, self.t[i], x + self.delta * self.v[i])
        self.x[i] = self.x[i] + self.v[i]
        self.t[i] += 1
        return due

    def downpour(self, i: int) -> bool:
        """Algorithm 3, p. 20."""
        due = self.t[i] % self.tau == 0
        if due:
            self.center = self.center + self.v[i]
            self.x[i] = self.center
            self.v[i] = torch.zeros_like(self.v[i])
        g = self.gradient(i, self.t[i], self.x[i])
        self.x[i] = self.x[i] - self.eta * g
        self.v[i] = self.v[i] - self.eta * g
        self.t[i] += 1
        return due

    def mdownpour(self, i: int) -> bool:
        """Algorithms 4 and 5, p. 20; the turn ends with the reply to its own push."""
        g = self.gradient(i, self.t[i], self.x[i])
        self.master_v = self.delta * self.master_v - self.eta * g
        self.center = self.center + self.delta * self.master_v
        self.x[i] = self.center
        self.t[i] += 1
        return True

    def sgd(self, i: int) -> bool:
        self.x[i] = self.x[i] - self.eta * self.gradient(i, self.t[i], self.x[i])
        self.t[i] += 1
        return False

    def msgd(self, i: int) -> bool:
        """Nesterov's velocity as in equation 7, p. 3, without the elastic term."""
        self.v[i] = self.delta * self.v[i] - self.eta * self.gradient(i, self.t[i], self.x[i] + self.delta * self.v[i])
        self.x[i] = self.x[i] + self.v[i]
        self.t[i] += 1
        return False

    # Rounds: one local step of all workers, written with the values before (old) and after.

    def sync_easgd(self) -> None:
        """Equations 5 and 6, p. 2."""
        old, center = list(self.x), self.center
        if due := self.t[0] % self.tau == 0:
            self.center = (1 - len(old) * self.alpha) * center + len(old) * self.alpha * sum(old) / len(old)
        for i, x in enumerate(old):
            self.x[i] = x - self.eta * self.gradient(i, self.t[i], x) - (self.alpha * (x - center) if due else 0)
            self.t[i] += 1

    def sync_eamsgd(self) -> None:
        """Equation 7, p. 3, with eta rho = alpha."""
        old, center = list(self.x), self.center
        if due := self.t[0] % self.tau == 0:
            self.center = (1 - len(old) * self.alpha) * center + len(old) * self.alpha * sum(old) / len(old)
        for i, x in enumerate(old):
            self.v[i] = self.delta * self.v[i] - self.eta * self.gradient(i, self.t[i], x + self.delta * self.v[i])
            self.x[i] = x + self.v[i] - (self.alpha * (x - center) if due else 0)
            self.t[i] += 1

    def gauss_seidel_easgd(self) -> None:
        old = list(self.x)
        if due := self.t[0] % self.tau == 0:
            self.center = self.center + len(old) * self.alpha * (sum(old) / len(old) - self.center)
        for i, x in enumerate(old):
            self.x[i] = x - self.eta * self.gradient(i, self.t[i], x) + (self.alpha * (self.center - x) if due else 0)
            self.t[i] += 1

    def pull_then_step(self) -> None:
        old = list(self.x)
        if due := self.t[0] % self.tau == 0:
            self.center = self.center + self.beta * (sum(old) / len(old) - self.center)
        for i, x in enumerate(old):
            y = x + self.alpha * (self.center - x) if due else x
            self.x[i] = y - self.eta * self.gradient(i, self.t[i], y)
            self.t[i] += 1
