"""The mean local step of a run's workers, counted in the same way by its master and by its supervisor."""

from __future__ import annotations

from collections.abc import Collection


class MeanClock:
    """The mean of the live workers' clocks. `workers`: how many are live; `step`: the mean, which does not step back
    when a worker is lost, nor when one comes back with its old clock.

    The step is noted after every change: its value must not depend on when somebody asks.
    """

    def __init__(self, clocks: Collection[int], step: float):
        self._sum, self.workers, self.step = sum(clocks), len(clocks), step
        self._note()

    def advance(self, steps: int) -> None:
        """Counts so many further steps of one worker."""
        self._sum += steps
        self._note()

    def join(self, t: int) -> None:
        """Adds a worker with the clock t."""
        self._sum, self.workers = self._sum + t, self.workers + 1
        self._note()

    def leave(self, t: int) -> None:
        """Removes a lost worker, whose clock is t."""
        self._sum, self.workers = self._sum - t, self.workers - 1
        self._note()

    def _note(self) -> None:
        if self.workers:
            self.step = max(self.step, self._sum / self.workers)
