"""f(x) = 1/2 sum_i h_i x_i^2 with noisy gradients: the model on which the paper analyses EASGD (p. 10).

With dimension 1, h = 1, noise 10 and start 1 it is the function of Figure 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from easgd_cli.problems.noisy import NoisyFunction, Point, point, written


class Quadratic(NoisyFunction):
    """A quadratic with its minimum at 0 and curvatures h [dimension] given by `spectrum`.

    `spectrum`: one number for all coordinates; two numbers, between which the curvatures rise in equal ratios; or
    `dimension` numbers. For dimension 2 the last two forms are the same. Raises ValueError for another count and for
    curvatures that are not positive.
    """

    def __init__(
        self, dimension: int = 1, spectrum: Point = 1.0, noise: float = 1.0, start: Point = 1.0,
        starts: list[Point] | None = None, *, seed: int, workers: int, l2: float, device: torch.device,
    ):  # fmt: skip
        super().__init__(dimension, noise, start, starts, seed=seed, workers=workers, l2=l2, device=device)
        self._h = _curvatures(spectrum, dimension).to(device)

    def value(self, x: Tensor) -> Tensor:
        """1/2 sum_i h_i x_i^2, 0-d."""
        return 0.5 * (self._h * x).dot(x)

    def slope(self, x: Tensor, out: Tensor) -> None:
        """h x [d]."""
        torch.mul(self._h, x, out=out)

    def position(self, x: Tensor) -> dict[str, float]:
        """Returns the distance ||x|| from the minimum."""
        return {"distance_to_optimum": float(x.norm())}


def _curvatures(spectrum: Point, dimension: int) -> Tensor:
    ends = isinstance(spectrum, list) and len(spectrum) == 2 < dimension
    given = point("problem.spectrum", spectrum, 2 if ends else dimension)
    if bool((given <= 0).any()):
        raise ValueError(
            f"problem.spectrum={written(spectrum)}: holds the curvatures h of 1/2 h x^2, which are greater than 0."
        )
    if not ends:
        return given
    low, high = given.tolist()
    return low * (high / low) ** torch.linspace(0, 1, dimension, dtype=torch.float64)
