"""A link that many messages share, on a virtual clock: as TCP shares it, each as much as any other, or one after
another.

Of n messages on their way each gets an n-th of the link, and no more than its own cable carries. All get the same, so a
message is there when the link has given to one, since it came, as many bytes as it has: one number that grows, and a
heap of where it ends for each.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

_ROUNDING = 1e-9  # of a message's bytes


class SharedLink:
    """`capacity`: bytes a second of the link; `each`: at most of one message, None where its own cable is no limit."""

    def __init__(self, capacity: float, each: float | None):
        self._capacity, self._each = capacity, each
        self._given = self._now = 0.0  # bytes to one that has always been there, up to this second
        self._ends: list[tuple[float, int, int, bool]] = []  # what has been given when it is there, a number, of whom
        self._numbers = 0
        self._last = 0.0  # where the last of those ends that go one after another
        self._in_turn = 0  # how many of these there are
        self.due: float | None = None  # when the next one is there

    def add(self, now: float, nbytes: float, of: int, in_turn: bool = False) -> None:
        """A message of `of` leaves now; `in_turn`: after those before it that are so, too."""
        self._advance(now)
        begins = max(self._given, self._last) if in_turn else self._given
        self._numbers += 1
        heapq.heappush(self._ends, (begins + nbytes, self._numbers, of, in_turn))
        if in_turn:
            self._last, self._in_turn = begins + nbytes, self._in_turn + 1
        self._set_due()

    def arrived(self, now: float) -> list[int]:
        """Whose messages are there by now."""
        self._advance(now)
        if self.due is not None and now >= self.due:  # whatever has been lost in rounding
            self._given = max(self._given, self._ends[0][0])
        found = []
        while self._ends and self._ends[0][0] <= self._given + _ROUNDING * max(1.0, self._given):
            _, _, of, in_turn = heapq.heappop(self._ends)
            self._in_turn -= in_turn
            found.append(of)
        if not self._ends:
            self._given = self._last = 0.0
        self._set_due()
        return found

    def _rate(self) -> float:
        sending = len(self._ends) - max(0, self._in_turn - 1)
        share = self._capacity / max(1, sending)
        return share if self._each is None else min(share, self._each)

    def _advance(self, now: float) -> None:
        if self._ends:
            self._given += self._rate() * (now - self._now)
        self._now = now

    def _set_due(self) -> None:
        self.due = self._now + max(0.0, self._ends[0][0] - self._given) / self._rate() if self._ends else None

    def state(self) -> dict[str, Any]:
        """Everything, as plain numbers."""
        return {name.lstrip("_"): value for name, value in vars(self).items() if name not in ("_capacity", "_each")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it where it was."""
        self._given, self._now, self._numbers = state["given"], state["now"], state["numbers"]
        self._last, self._in_turn, self.due = state["last"], state["in_turn"], state["due"]
        self._ends = [tuple(end) for end in state["ends"]]
