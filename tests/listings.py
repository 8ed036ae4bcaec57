"""The papers' listings transcribed to the letter, in plain float64 tensors: no in-place tricks, no generators, no
blocks.

An independent second implementation. `gradient(i, t, x)` is worker i's stochastic gradient at its local step t.
Every function takes one whole local step of worker i and says whether it exchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NU, MU = 0.6, 0.7  # outer rate and momentum

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
        self.outer_gradients = torch.zeros_like(start)
        self.pulled = list(self.x)  # the center as each worker last saw it
        self.updates = 0
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

    def async_diloco(self, i: int) -> bool:
        """arXiv 2401.09135, Algorithm 3 with its c = 0: the outer momentum at every N-th pseudo-gradient, N = 2."""
        due = self.t[i] % self.tau == 0
        if due:
            self.receive_delayed(self.pulled[i] - self.x[i])
            self.x[i] = self.pulled[i] = self.center
        self.x[i] = self.x[i] - self.eta * self.gradient(i, self.t[i], self.x[i])
        self.t[i] += 1
        return due

    def receive_delayed(self, pseudo_gradient: Tensor) -> None:
        self.updates += 1
        self.outer_gradients = self.outer_gradients + pseudo_gradient
        if self.updates % 2 == 0:
            self.master_v = MU * self.master_v + self.outer_gradients / 2
            self.center = self.center - NU * (MU * self.master_v + pseudo_gradient / 2)
            self.outer_gradients = torch.zeros_like(self.center)
        else:
            self.center = self.center - NU * pseudo_gradient / 2

    def close_async_diloco(self) -> None:
        for pulled, x in zip(self.pulled, self.x, strict=True):
            self.receive_delayed(pulled - x)

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

    def model_averaging(self) -> None:
        """arXiv 1507.01239: every tau steps all continue from the mean."""
        if self.t[0] % self.tau == 0:
            self.close_model_averaging()
            self.x = [self.center for _ in self.x]
        self.plain_steps()

    def close_model_averaging(self) -> None:
        self.center = sum(self.x[1:], self.x[0]) / len(self.x)

    def diloco(self) -> None:
        """arXiv 2311.08105, Algorithm 1: the outer step is Nesterov's, on the mean of the displacements."""
        if self.t[0] % self.tau == 0:
            self.close_diloco()
            self.x = [self.center for _ in self.x]
        self.plain_steps()

    def close_diloco(self) -> None:
        outer = sum((self.center - x for x in self.x), torch.zeros_like(self.center)) / len(self.x)
        self.master_v = MU * self.master_v + outer
        self.center = self.center - NU * (outer + MU * self.master_v)

    def streaming_diloco(self) -> None:
        """arXiv 2501.18512 with one fragment, a delay of a step and a mix of 0.3."""
        t, sent = self.t[0], list(self.x)
        if t > self.tau and t % self.tau == 1:
            sent = self.x = [0.3 * x + 0.7 * center for x, center in zip(self.x, self.pulled, strict=True)]
        if t and t % self.tau == 0:
            self.close_diloco()
            self.pulled = [self.center for _ in sent]
        self.plain_steps()

    def close_streaming_diloco(self) -> None:
        self.close_diloco()

    def allreduce(self) -> None:
        """Gradients averaged, then Nesterov's momentum as torch.optim.SGD has it, the rate within the velocity."""
        step = self.eta * sum(self.gradient(i, t, x) for i, (t, x) in enumerate(zip(self.t, self.x, strict=True)))
        step = step / len(self.x)
        self.master_v = self.delta * self.master_v + step
        self.center = self.center - (step + self.delta * self.master_v)
        self.x = [self.center for _ in self.x]
        self.t = [t + 1 for t in self.t]

    def plain_steps(self) -> None:
        self.x = [x - self.eta * self.gradient(i, self.t[i], x) for i, x in enumerate(self.x)]
        self.t = [t + 1 for t in self.t]
