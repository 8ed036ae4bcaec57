"""A link that all messages share on a virtual clock, as TCP connections would share it.

Each message on its way gets a part of the link, and together they use all of it. The parts are uneven, by up to four to
one, in a fixed sequence: in the time that a message takes, connections are not fair to each other. With equal parts,
messages that once left together would do so for ever, each at a fraction of the speed; real messages do not.

One number grows: the bytes that the link has given to a weight of 1. A message of n bytes and weight w is through when
that number has grown by n / w since it left. A heap holds the value at which each message is through.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

_ROUNDING = 1e-9
_GOLDEN = 0.6180339887498949  # its multiples fill [0, 1) evenly


class SharedLink:
    """`capacity`: bytes a second of the link; `each`: those of one message at most, None if its own cable sets no
    limit. `due`: the second at which the next message is through or there; None without messages.
    """

    def __init__(self, capacity: float, each: float | None):
        self._capacity, self._each = capacity, each
        self._given = self._now = 0.0  # bytes given to a weight of 1 up to the second _now
        self._weights = 0.0  # the sum over all messages on their way
        # _given when a message is through, a number, whose it is, its weight, when its own cable has carried it
        self._sending: list[tuple[float, int, int, float, float]] = []
        self._there: list[tuple[float, int, int]] = []  # messages through: when they are there, a number, whose
        self._free = 0.0  # when all messages in turn are through
        self._numbers = 0
        self._through: float | None = None  # when the next message is through

    @property
    def due(self) -> float | None:
        times = [*(() if self._through is None else (self._through,)), *(one[0] for one in self._there[:1])]
        return min(times, default=None)

    def add(self, now: float, nbytes: float, of: int, in_turn: bool = False) -> None:
        """Sends a message of `of` now; `in_turn`: after all earlier ones in turn, with the whole link."""
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
        """Returns whose messages are there by now."""
        self._advance(now)
        if self._through is not None and now >= self._through:  # makes up for what was lost in rounding
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
        """Returns everything as plain numbers."""
        kept = {name: value for name, value in vars(self).items() if name not in ("_capacity", "_each")}
        return {**kept, "_sending": list(self._sending), "_there": list(self._there)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        vars(self).update(state)
        self._sending = [(float(a), int(b), int(c), float(d), float(e)) for a, b, c, d, e in self._sending]
        self._there = [(float(a), int(b), int(c)) for a, b, c in self._there]
