"""Nets of a user's own, as `model=nets:double` would name them, and a function."""

from __future__ import annotations

import math
import multiprocessing
import os
from time import sleep

import torch
from torch import Tensor, nn

from easgd_cli.models.convnet_digits import ConvNetDigits
from easgd_cli.models.mlp import MLP
from easgd_cli.problems.quadratic import Quadratic


def double(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A net in float64. ReLU turns a last bit in float32 into a visible difference some steps later; not so here."""
    return MLP(input_shape, num_classes, hidden=(24,)).double()


def double_residual(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A net with batch norm in float64."""
    return Residual(input_shape, num_classes).double()


class Gate:
    """Where a worker waits, at each `at` steps of its process, until there is a file `gate`, or for the k-th time
    `gate.k`: nobody is past it before a test says so, however late that looks. Without `at` it is open.
    """

    def __init__(self, gate: str, at: int):
        self._gate, self._at, self._steps = gate, at, 0

    def __call__(self) -> None:
        time, step = divmod(self._steps, self._at) if self._at else (0, 0)
        self._steps += 1
        while time and not step and not any(map(os.path.exists, (self._gate, f"{self._gate}.{time}"))):
            sleep(0.002)


class Unhurried(nn.Module):
    """A net that costs little, and in a worker's process takes at least 4 ms over a step, or so many seconds: whoever
    watches or measures the run finds a core to do so. It may have a gate.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, seconds: float = 0.004, gate: str = "", at: int = 0
    ):
        super().__init__()
        self._seconds, self._gate = seconds, Gate(gate, at)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(input_shape), 16), nn.ReLU(), nn.Linear(16, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training and multiprocessing.parent_process() is not None:
            sleep(self._seconds)
            self._gate()
        return self.net(x)


class Gated(ConvNetDigits):
    """The small net, with a gate before its gradient."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, gate: str, at: int):
        super().__init__(input_shape, num_classes)
        self._gate = Gate(gate, at)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and multiprocessing.parent_process() is not None:
            self._gate()
        return super().forward(x)


class Residual(nn.Module):
    """A residual net in small: a convolution, two blocks of two with batch norm, the mean over all pixels, a linear
    layer.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int = 8):
        super().__init__()
        self.stem = self._normalised(input_shape[0], width)
        self.blocks = nn.ModuleList(
            nn.Sequential(self._normalised(width, width), nn.ReLU(), self._normalised(width, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, num_classes)

    @staticmethod
    def _normalised(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


class RaisesAt(Quadratic):
    """A function that one worker's process cannot go on with at one step, however often it is started."""

    def __init__(self, worker: int, step: int, *, seed: int, workers: int, l2: float, device: torch.device):
        super().__init__(seed=seed, workers=workers, l2=l2, device=device)
        self._at = (worker, step)

    def load(self, worker: int, t: int) -> None:
        if (worker, t) == self._at and multiprocessing.parent_process() is not None:
            raise ValueError(f"worker {worker} at step {t}")
        super().load(worker, t)


class TakesItsTime(Quadratic):
    """A function whose gradients take a while in a worker's process, so that a run of few steps is long enough for its
    launcher to look. It may have a gate.
    """

    def __init__(
        self, seconds: float, dimension: int = 1, noise: float = 1.0, gate: str = "", at: int = 0, *, seed: int,
        workers: int, l2: float, device: torch.device,
    ):  # fmt: skip
        super().__init__(dimension, noise=noise, seed=seed, workers=workers, l2=l2, device=device)
        self._seconds, self._gate = seconds, Gate(gate, at)

    def slope(self, x: Tensor, out: Tensor) -> None:
        if multiprocessing.parent_process() is not None:
            sleep(self._seconds)
            self._gate()
        super().slope(x, out)


class RaisesInThird(ConvNetDigits):
    """The small net, of which the third worker's process cannot take a later step."""

    def forward(self, x: Tensor) -> Tensor:
        own = torch.distributed.is_initialized() and torch.distributed.get_rank() == 2
        self.steps = getattr(self, "steps", 0) + (self.training and own)
        if self.steps > 20:
            raise RuntimeError("on purpose")
        return super().forward(x)
