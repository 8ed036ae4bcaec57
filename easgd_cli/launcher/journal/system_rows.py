"""When the record gets a row of the run as a whole."""

from __future__ import annotations

from typing import Any

_ROWS_PER_DOUBLING = 64


class SystemRows:
    """A row every so many seconds, the first one at the second `first` or later; `doubling`: ever fewer rows, for a run
    of unknown length. `seconds`, `exchanges`: those of a resumed run at its beginning.
    """

    def __init__(
        self, every: float, *, first: float = 0.0, doubling: bool = False, seconds: float = 0.0, exchanges: int = 0
    ):
        self._every, self._next, self._doubling = every, first, doubling
        self._before = (seconds, exchanges)  # at the last row
        self._rows = 0

    def due(self, seconds: float) -> bool:
        """Returns whether a row is due at this second."""
        return seconds >= self._next and seconds > self._before[0]

    def rate(self, seconds: float, exchanges: int) -> float | None:
        """Returns the exchanges a second since the last row, if a row is due, and begins the next; else None."""
        before, had = self._before
        if not self.due(seconds):
            return None
        self._before = (seconds, exchanges)
        self._rows += 1
        if self._doubling and self._rows % _ROWS_PER_DOUBLING == 0:
            self._every *= 2
        self._next = seconds + self._every
        return (exchanges - had) / (seconds - before)

    def state(self) -> list[Any]:
        """Returns everything that changes, as plain numbers."""
        return [self._next, list(self._before)]

    def restore(self, state: list[Any]) -> None:
        """Takes over what `state` has returned."""
        self._next, (seconds, exchanges) = state
        self._before = (seconds, exchanges)
