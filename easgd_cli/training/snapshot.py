"""Snapshots: copies of a vector that its owner makes between two changes, and when they are due.

The owner (a master; the worker itself in a method without exchange) copies its vectors into fresh anonymous memory and
posts it to the launcher, so a snapshot never changes and nobody waits for its evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from easgd_cli.settings.schema import Interval
from easgd_cli.system.channel import Channel
from easgd_cli.system.shared_memory import SharedTensors

# the vectors that are measured, each with the name of its result in the record
EVALUATED = {"x": "center", "average": "average"}


@dataclass(frozen=True)
class Moment:
    """When a snapshot was taken: training seconds, mean local step of the workers, exchanges, and the workers' clocks
    as the owner has seen them.
    """

    seconds: float
    step: float
    exchanges: int
    clocks: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, posted: Mapping[str, Any]) -> Moment:
        """Returns the moment whose `asdict` went through JSON, which has made texts of the workers' numbers."""
        return cls(**{**posted, "clocks": {int(worker): t for worker, t in posted["clocks"].items()}})


@dataclass
class Pace:
    """When the next snapshot is due, by the interval the user gave; `None`: only on request."""

    interval: Interval | None
    next_step: float = 0.0
    next_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.interval is not None and not self.next_step and not self.next_seconds:
            self._after(0.0, 0.0)

    def due(self, step: float, seconds: float) -> bool:
        """True once for every point reached; a jump over several points counts as one."""
        if self.interval is None:
            return False
        reached = step >= self.next_step if self.interval.steps is not None else seconds >= self.next_seconds
        if reached:
            self._after(step, seconds)
        return reached

    def _after(self, step: float, seconds: float) -> None:
        assert self.interval is not None
        if self.interval.steps is not None:
            self.next_step = (step // self.interval.steps + 1) * self.interval.steps
        elif self.interval.seconds is not None:
            self.next_seconds = (seconds // self.interval.seconds + 1) * self.interval.seconds


class Kept(Protocol):
    """The vectors of an owner, for its snapshots."""

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """All vectors from which the owner goes on, by name, each [d]."""

    def evaluated(self) -> Mapping[str, Tensor]:
        """Returns the vectors to be measured [d]: x, and its average where one is kept."""

    def spread(self) -> float | None:
        """Returns how far the vectors whose mean is x are from it; None where x is no mean."""


@dataclass(frozen=True)
class OfOneWorker:
    """The vectors of a worker whose own x is evaluated."""

    vectors: Mapping[str, Tensor]

    def evaluated(self) -> Mapping[str, Tensor]:
        return {name: v for name, v in self.vectors.items() if name in EVALUATED}

    def spread(self) -> None:
        return None


class Snapshots:
    """Takes an owner's snapshots of the vectors `kept`, and posts them."""

    def __init__(
        self,
        channel: Channel,
        kept: Kept,
        interval: Interval | None,
        began: float,
        pace: Sequence[float] | None,
        before: Callable[[], None] | None = None,
    ):
        self._channel, self._kept, self._began = channel, kept, began
        self._before = before  # called before each snapshot is posted
        # of a run that goes on: the point that was next when it stopped
        self._pace = Pace(interval, *(pace or (0.0, 0.0)))

    def seconds(self) -> float:
        """Training seconds now."""
        return time.monotonic() - self._began

    def changed(self, step: float, exchanges: int, clocks: Mapping[int, int]) -> None:
        """To be called after every change: takes a snapshot when one is due."""
        seconds = self.seconds()
        if self._pace.due(step, seconds):
            self.take("evaluate", Moment(seconds, step, exchanges, clocks))

    def take(self, purpose: str, moment: Moment, **more: Any) -> None:
        """Posts a copy of x and its average (to evaluate) or of all vectors (`checkpoint`, `final`) with what else is
        to be kept.
        """
        vectors = dict(self._kept.evaluated())
        if purpose != "evaluate":
            vectors |= self._kept.vectors
        if self._before is not None:
            self._before()
        spread = self._kept.spread() if purpose in ("evaluate", "final") else None
        self._channel.post(
            {
                "kind": "snapshot",
                "purpose": purpose,
                "moment": asdict(moment),
                "pace": [self._pace.next_step, self._pace.next_seconds],
                **({} if spread is None else {"spread": spread}),
                **more,
            },
            SharedTensors.of(vectors),
        )
