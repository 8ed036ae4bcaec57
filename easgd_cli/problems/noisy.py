"""The base of problems that are known functions of a few numbers: gradient noise, starting points, what is measured."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from easgd_cli.data.conversion import sent
from easgd_cli.problems.metric import Metric
from easgd_cli.randomness import NOISE, key

_SHOWN = 8  # an evaluation has the center's coordinates where there are no more than these

Point = float | list[float]  # one number for all coordinates, or one for each


class NoisyFunction(ABC):
    """A function f of x [dimension], in float64, whose gradients are noisy (see problems/base.py).

    The loss of worker i's step t is f(x) - <xi, x>, so its gradient is f'(x) - xi, with xi ~ N(0, noise^2) independent
    for each coordinate, worker and step (paper p. 10): a function of (seed, i, t), drawn on the CPU on any device.
    `start`: where the center begins; `starts`: where each worker begins, None: all at `start`.
    Raises ValueError for a dimension below 1, negative noise, and points of another size.
    """

    batch_size = 1
    metrics: tuple[Metric, ...] = (
        Metric(
            "distance_to_optimum",
            description="Euclidean distance between the center and the nearest minimum of the problem's function.",
        ),
    )

    def __init__(
        self, dimension: int, noise: float, start: Point, starts: list[Point] | None, *, seed: int, workers: int,
        l2: float, device: torch.device,
    ):  # fmt: skip
        if dimension < 1:
            raise ValueError(f"problem.dimension={dimension}: must be a whole number of at least 1.")
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(
                f"problem.noise={noise:g}: is the standard deviation of the gradient's noise, a number of at least 0."
            )
        if starts is not None and len(starts) != workers:
            raise ValueError(
                f"problem.starts={written(starts)}: is a list of {len(starts)}; it must have an entry for each of "
                f"workers={workers}."
            )
        self._start = point("problem.start", start, dimension)
        own = [point(f"problem.starts[{i}]", given, dimension) for i, given in enumerate(starts or ())]
        self._starts = None if starts is None else own
        self._noise, self._seed, self._l2, self._device = noise, seed, l2, device
        self._generator = torch.Generator()
        self._xi = torch.zeros(dimension, dtype=torch.float64, device=device)
        self._gradient = torch.zeros_like(self._xi)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Returns f(x), 0-d, at `x` [d]."""

    @abstractmethod
    def slope(self, x: Tensor, out: Tensor) -> None:
        """Writes f'(x) [d] at `x` [d] into `out` [d]."""

    @abstractmethod
    def position(self, x: Tensor) -> dict[str, float]:
        """Returns where `x` [d] lies relative to the minima of f: distance_to_optimum, and any other figures."""

    def start(self, worker: int | None = None) -> Tensor:
        """Returns where that worker begins [d], None: where the center does."""
        return (self._start if worker is None or self._starts is None else self._starts[worker]).clone()

    def load(self, worker: int, t: int) -> None:
        """Draws xi for that worker's step `t`."""
        if self._noise:
            self._generator.manual_seed(key(self._seed, NOISE, worker, t))
            drawn = torch.randn(self._xi.shape, dtype=torch.float64, generator=self._generator)
            self._xi.copy_(sent(drawn, self._xi.device)).mul_(self._noise)

    def gradient(self, x: Tensor) -> Tensor:
        """Returns f'(x) - xi + l2 x [d] at `x` [d], valid until the next call."""
        g = self._gradient
        self.slope(x, g)
        self.loss = self.value(x)
        if self._noise:
            g.sub_(self._xi)
            self.loss -= self._xi.dot(x)
        if self._l2:
            g.add_(x, alpha=self._l2)
        return g

    def evaluate(self, x: Tensor) -> dict[str, float]:
        """Returns train_loss = f(x), without noise, and where `x` [d] lies; its coordinates too, where they are few."""
        figures = {"train_loss": float(self.value(x)), **self.position(x)}
        if x.numel() <= _SHOWN:
            figures |= {f"coordinate_{i}": value for i, value in enumerate(x.tolist())}
        return figures

    def state_dict(self, x: Tensor) -> dict[str, Tensor]:
        """Returns `x` [d] under the name x."""
        return {"x": x.detach().to("cpu", copy=True)}


def point(key: str, given: Point, dimension: int) -> Tensor:
    """Returns a vector [dimension] of one number or of `dimension` numbers. Raises ValueError, which names `key`."""
    if isinstance(given, list) and len(given) != dimension:
        raise ValueError(
            f"{key}={written(given)}: is a list of {len(given)}; it must be one number, or a list of "
            f"problem.dimension={dimension}."
        )
    x = torch.tensor(given, dtype=torch.float64).expand(dimension).clone()
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{key}={written(given)}: must be finite.")
    return x


def written(value: object) -> str:
    """Returns a number or a list as it is written on the command line."""
    return f"[{','.join(written(v) for v in value)}]" if isinstance(value, list) else f"{value:g}"
