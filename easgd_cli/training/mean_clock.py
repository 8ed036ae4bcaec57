"""The mean local step of a run's workers, as its master counts it and as its supervisor does."""

from __future__ import annotations

from collections.abc import Collection


class MeanClock:
    """Of the clocks of those that are there. `workers`: how many; `step`: their mean, which does not step back when one
    is lost, nor when one has come back with its old clock.

    The step is noted after every change: what is told must not depend on when somebody asks.
    """

    def __init__(self, clocks: Collection[int], step: float):
        self._sum, self.workers, self.step = sum(clocks), len(clocks), step
        self._note()

    def advance(self, steps: int) -> None:
        """One of them has taken so many."""
        self._sum += steps
        self._note()

    def join(self, t: int) -> None:
        """One more is there, with this clock."""
        self._sum, self.workers = self._sum + t, self.workers + 1
        self._note()

    def leave(self, t: int) -> None:
        """One with this clock is gone."""
        self._sum, self.workers = self._sum - t, self.workers - 1
        self._note()

    def _note(self) -> None:
        if self.workers:
            self.step = max(self.step, self._sum / self.workers)
