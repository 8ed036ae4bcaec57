"""Averages z of the center x~ over time (paper p. 6 and p. 20), kept by the process that owns x~:

    z <- (1 - a_t) z + a_t x~          at every update t = 1, 2, ... of x~;  z_0 = x~_0

z is evaluated and saved beside x~ and never fed back. t is the center's clock, which counts the updates by all workers;
in a method without exchange x~ is the single worker's x and t its clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Average(Protocol):
    """a_t, the weight of x~ as it is after update t, 0 < a_t <= 1; 1 makes z equal to x~."""

    def __call__(self, t: int) -> float: ...


def none(start: int = 0) -> None:
    """Keeps no average. `start` is accepted and ignored, since an experiment may set it for all of its methods."""


@dataclass(frozen=True)
class Polyak:
    """a_t = 1 / (t + 1): z is the mean of x~_0 .. x~_t (Polyak and Juditsky 1992). ADOWNPOUR and ASGD are made with it.

    With `start` = k, z is the mean of x~_k .. x~_t, and x~ before update k. Raises ValueError for a negative start.
    """

    start: int = 0

    def __post_init__(self) -> None:
        _check_start(self.start)

    def __call__(self, t: int) -> float:
        return 1.0 / (max(t - self.start, 0) + 1)


@dataclass(frozen=True)
class Moving:
    """a_t = rate, a moving average. MVADOWNPOUR is made with it, at the rate 0.001, and MVASGD.

    With `start` = k, z is x~ until update k. Raises ValueError for a rate outside (0, 1] or a negative start.
    """

    rate: float = 0.001
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(
                f"average.rate={self.rate:g}: is the weight of the newest center, greater than 0 and at most 1; "
                "the paper's is 0.001."
            )
        _check_start(self.start)

    def __call__(self, t: int) -> float:
        return self.rate if t > self.start else 1.0


def _check_start(start: int) -> None:
    if start < 0:
        raise ValueError(
            f"average.start={start}: counts updates of the center before the average begins, and is not negative."
        )
