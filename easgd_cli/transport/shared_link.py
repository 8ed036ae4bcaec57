"""A link that all messages share, on a virtual clock.

Those that leave at the same moment share it, each as fast as any other, and are there together: a round's replies, say.
Whoever comes later is through after those before it, since a connection that has just begun to send takes little from
one that is at full speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any


@dataclass
class _Together:
    """Messages that have left at the same second: their bytes in all, of the largest, and whose they are."""

    left: float
    nbytes: float
    largest: float
    of: list[int]


class SharedLink:
    """`capacity`: bytes a second of the link; `each`: at most of one message, None where its own cable is no limit.
    `due`: when the next messages are there, None where there are none.
    """

    def __init__(self, capacity: float, each: float | None):
        self._capacity, self._each = capacity, each
        self._free = 0.0  # when those before the first of these have left it
        self._waiting: list[_Together] = []

    def add(self, now: float, nbytes: float, of: int, in_turn: bool = False) -> None:
        """A message of `of` leaves now; `in_turn`: after all that have left before, also at this moment."""
        if self._waiting and self._waiting[-1].left == now and not in_turn:
            last = self._waiting[-1]
            last.nbytes, last.largest = last.nbytes + nbytes, max(last.largest, nbytes)
            last.of.append(of)
        else:
            self._waiting.append(_Together(now, nbytes, nbytes, [of]))

    @property
    def due(self) -> float | None:
        if not self._waiting:
            return None
        first = self._waiting[0]
        own = 0.0 if self._each is None else first.largest / self._each
        return max(self._leaves(first), first.left + own)

    def _leaves(self, first: _Together) -> float:
        return max(self._free, first.left) + first.nbytes / self._capacity

    def arrived(self) -> list[int]:
        """Whose messages are there when it is `due`."""
        first = self._waiting.pop(0)
        self._free = self._leaves(first)
        return first.of

    def state(self) -> dict[str, Any]:
        """Everything, as plain numbers."""
        return {"free": self._free, "waiting": [astuple(one) for one in self._waiting]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it where it was."""
        self._free = state["free"]
        self._waiting = [_Together(left, nbytes, largest, list(of)) for left, nbytes, largest, of in state["waiting"]]
