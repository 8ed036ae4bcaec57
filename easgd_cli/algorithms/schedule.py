"""The learning rate on a worker's clock. alpha never follows it (paper p. 23, Figure 9)."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """eta_t from the worker's clock t (its local steps, from 0)."""

    def __call__(self, t: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """eta at every step."""

    eta: float

    def __call__(self, t: int) -> float:
        return self.eta


@dataclass(frozen=True)
class Decay:
    """eta / (1 + gamma t)^0.5 (paper Figure 9); gamma = 0 is constant."""

    eta: float
    gamma: float

    def __call__(self, t: int) -> float:
        return self.eta / (1 + self.gamma * t) ** 0.5


@dataclass(frozen=True)
class Stepwise:
    """eta times `factor` for every milestone (in local steps) that is reached; a list has one factor per milestone.

    Raises ValueError for milestones out of order, another number of factors, or factors that are not positive.
    """

    eta: float
    milestones: list[int]
    factor: float | list[float] = 0.1

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:], strict=False)) or any(
            m < 1 for m in self.milestones
        ):
            raise ValueError(
                f"schedule.milestones={self.milestones}: local steps in rising order, each at least 1, such as "
                "schedule.milestones=[500,1000]."
            )
        factors = self.factor if isinstance(self.factor, list) else [self.factor] * len(self.milestones)
        if len(factors) != len(self.milestones):
            raise ValueError(
                f"schedule.factor={self.factor}: give one factor, or one for each of {len(self.milestones)} milestones."
            )
        if not all(factor > 0 for factor in factors):
            raise ValueError(f"schedule.factor={self.factor}: must be greater than 0.")

    def __call__(self, t: int) -> float:
        reached = bisect_right(self.milestones, t)
        if isinstance(self.factor, list):
            return self.eta * math.prod(self.factor[:reached])
        return self.eta * self.factor**reached


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from eta down to `final` eta over the `steps` of the run that follow `warmup`.

    Loshchilov, Hutter 2017, equation 5, without restarts: eta (final + (1 - final) (1 + cos(pi k / K)) / 2), k of K
    such steps taken. Raises ValueError for a `final` outside [0, 1].
    """

    eta: float
    steps: int
    warmup: int
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise ValueError(
                f"schedule.final={self.final:g}: is the share of eta that is left at the end; it lies in [0, 1]."
            )

    def __call__(self, t: int) -> float:
        taken = min(max(t - self.warmup, 0) / (self.steps - self.warmup), 1.0)
        return self.eta * (self.final + (1 - self.final) * (1 + math.cos(math.pi * taken)) / 2)


@dataclass(frozen=True)
class Warmup:
    """`schedule` with a linear rise in its first `warmup` steps, where the rate is (t + 1) / (warmup + 1) times that of
    `schedule`.
    """

    schedule: Schedule
    warmup: int

    def __call__(self, t: int) -> float:
        return self.schedule(t) * min((t + 1) / (self.warmup + 1), 1.0)
