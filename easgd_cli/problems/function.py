"""A function that is given by its gradient: tests compare a method with its printed listing on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class FunctionProblem:
    """A function of which only the gradient is known, in float64 (see problems/base.py).

    `gradient(x, worker, t, out)` writes the gradient [d] at `x` [d] for the worker's step t into `out` [d].
    """

    batch_size = 1

    def __init__(self, start: Tensor, gradient: Callable[[Tensor, int, int, Tensor], object]):
        self._start = start.detach().to(torch.float64)
        self.loss = torch.zeros((), dtype=torch.float64)
        self._gradient, self._worker, self._t = gradient, 0, 0
        self._out = torch.zeros_like(self._start)

    def start(self, worker: int | None = None) -> Tensor:
        """Returns the given vector [d], for center and workers alike."""
        return self._start.clone()

    def load(self, worker: int, t: int) -> None:
        """Makes the next gradients those of that worker's step `t`."""
        self._worker, self._t = worker, t

    def gradient(self, x: Tensor) -> Tensor:
        """Returns the gradient [d] at `x` [d], valid until the next call."""
        self._gradient(x, self._worker, self._t, self._out)
        return self._out

    def evaluate(self, x: Tensor) -> dict[str, float]:
        """Returns no figures: nothing is known of the function but its gradient."""
        return {}

    def state_dict(self, x: Tensor) -> dict[str, Tensor]:
        """Returns `x` [d] under the name x."""
        return {"x": x.detach().clone()}
