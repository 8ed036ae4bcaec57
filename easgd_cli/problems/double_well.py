"""f(x) = sum_i (1 - x_i^2)^2 / 4 with noisy gradients: two minima a coordinate, at +1 and -1, and a hill at 0.

Workers in different wells can hold the center on the hill: with p = 2, d = 1, the state x = (+s, -s), s = sqrt(1 -
rho), center 0 is a local minimum of the elastic objective (paper p. 2) if and only if rho = alpha / eta < 2/3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from easgd_cli.problems.metric import Metric
from easgd_cli.problems.noisy import NoisyFunction, Point


class DoubleWell(NoisyFunction):
    """A double well in every coordinate; the minima are the points whose coordinates are all +1 or -1."""

    metrics = (
        *NoisyFunction.metrics,
        Metric(
            "well",
            description="Mean sign of the center's coordinates on a double well: 1 with all in the wells at +1, -1 "
            "with all in those at -1.",
        ),
    )

    def __init__(
        self, dimension: int = 1, noise: float = 0.1, start: Point = 0.5, starts: list[Point] | None = None, *,
        seed: int, workers: int, l2: float, device: torch.device,
    ):  # fmt: skip
        super().__init__(dimension, noise, start, starts, seed=seed, workers=workers, l2=l2, device=device)

    def value(self, x: Tensor) -> Tensor:
        """sum_i (1 - x_i^2)^2 / 4, 0-d."""
        return (1 - x.square()).square().sum() / 4

    def slope(self, x: Tensor, out: Tensor) -> None:
        """x^3 - x [d]."""
        torch.mul(x, x, out=out).sub_(1).mul_(x)

    def position(self, x: Tensor) -> dict[str, float]:
        """Returns the distance to the nearest minimum, and the mean sign of the coordinates (`well`): 1 with all in the
        wells at +1.
        """
        return {"distance_to_optimum": float((x.abs() - 1).norm()), "well": float(x.sign().mean())}
