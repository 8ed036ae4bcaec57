"""A link that all messages share, on a virtual clock, as TCP shares it.

Of those on their way each gets a part of the link, and all of it is used. The parts are uneven, by up to four to one,
in a fixed sequence: connections are not fair to each other for as long as a message takes, and with equal parts
messages that have once left together would do so for ever, each at a fraction of the speed, which was not found to be
so.

A message of weight w is there when the link has given to a weight of 1, since it left, as many bytes as it has over w:
one number that grows, and a heap of where it ends for each.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

_ROUNDING = 1e-9
_GOLDEN = 0.6180339887498949  # its multiples fill [0, 1) evenly


class SharedLink:
    """`capacity`: bytes a second of the link; `each`: at most of one message, None where its own cable is no limit.
    `due`: when the next one is there, None where there is none.
    """

    def __init__(self, capacity: float, each: float | None):
        self._capacity, self._each = capacity, each
        self._given = self._now = 0.0  # bytes to a weight of 1 up to this second
        self._weights = 0.0  # of all that are on their way
        # What has been given when it is through, a number, of whom, its weight, and when its own cable has carried it
        self._sending: list[tuple[float, int, int, float, float]] = []
        self._there: list[tuple[float, int, int]] = []  # those through: when they are there, a number, of whom
        self._free = 0.0  # when all that go one after another are through
        self._numbers = 0
        self._through: float | None = None  # when the next is

    @property
    def due(self) -> float | None:
        times = [*(() if self._through is None else (self._through,)), *(one[0] for one in self._there[:1])]
        return min(times, default=None)

    def add(self, now: float, nbytes: float, of: int, in_turn: bool = False) -> None:
        """A message of `of` leaves now; `in_turn`: after all before it that are so, with the whole link."""
        self._advance(now)
        self._numbers += 1
        own = now + (0.0 if self._each is None else nbytes / self._each)
        if in_turn:
            self._free = max(now, self._free) + nbytes / self._capacity
            heapq.heappush(self._there, (max(self._free, own), self._numbers, of))
            return
        weight = 4.0 ** (self._numbers * _GOLDEN % 1.0)
        self._weights += weight
        heapq.heappush(self._sending, (self._given + nbytes / weight, self._numbers, of, weight, own))
        self._look()

    def arrived(self, now: float) -> list[int]:
        """Whose messages are there by now."""
        self._advance(now)
        if self._through is not None and now >= self._through:  # whatever has been lost in rounding
            self._given = max(self._given, self._sending[0][0])
        while self._sending and self._sending[0][0] <= self._given * (1 + _ROUNDING):
            _, number, of, weight, own = heapq.heappop(self._sending)
            self._weights -= weight
            heapq.heappush(self._there, (max(now, own), number, of))
        if not self._sending:
            self._given = self._weights = 0.0
        self._look()
        found = []
        while self._there and self._there[0][0] <= now:
            found.append(heapq.heappop(self._there)[-1])
        return found

    def _advance(self, now: float) -> None:
        if self._sending:
            self._given += self._capacity / self._weights * (now - self._now)
        self._now = now

    def _look(self) -> None:
        left = max(0.0, self._sending[0][0] - self._given) if self._sending else 0.0
        self._through = self._now + left * self._weights / self._capacity if self._sending else None

    def state(self) -> dict[str, Any]:
        """Everything, as plain numbers."""
        kept = {name: value for name, value in vars(self).items() if name not in ("_capacity", "_each")}
        return {**kept, "_sending": list(self._sending), "_there": list(self._there)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it where it was."""
        vars(self).update(state)
        self._sending = [(float(a), int(b), int(c), float(d), float(e)) for a, b, c, d, e in self._sending]
        self._there = [(float(a), int(b), int(c)) for a, b, c in self._there]
