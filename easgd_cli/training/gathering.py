"""Which messages make the next update of a variable: each by itself, those of all live workers, or those that a
recorded run had.

The owner of the variable asks all three the same: a message `arrives`, a worker is `lost`, what is served `next`. None
of the three knows time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from easgd_cli.algorithms.base import Variable


class Gathering(Protocol):
    """How a variable takes messages; a message is known by its worker's number."""

    over: bool  # whether no further update can be complete; messages that arrive then are given back

    @property
    def awaited(self) -> Collection[int]:
        """The workers without whose messages there is no next update."""

    def arrive(self, worker: int) -> None:
        """Notes that the worker's message has arrived."""

    def lose(self, worker: int) -> None:
        """Drops the worker: no update waits for it, and its message no longer counts."""

    def join(self, worker: int) -> None:
        """Takes a lost worker back, from the next update on."""

    def finish(self) -> list[int]:
        """Notes that a worker has finished, or that all are to. Returns the workers whose messages are given back."""

    def closing(self, waiting: Collection[int], everybody: bool) -> list[int]:
        """Returns the workers, of those `waiting`, whose closing messages are served now, in this order. `everybody`:
        whether all live workers have sent their closing messages.
        """

    def back(self) -> tuple[int, int] | None:
        """Returns the worker that comes back now, as in the recorded run, and its clock; None if none does."""

    def next(self) -> list[int]:
        """Returns the workers of the next update, in the order of the sum; empty until all messages have arrived."""

    def state(self) -> dict[str, object]:
        """Returns everything as plain numbers and lists."""

    def restore(self, state: dict[str, list[int]]) -> None:
        """Takes over what `state` returned."""


def gathering_of(variable: Variable, workers: Iterable[int]) -> Gathering:
    """Returns how this variable gathers the messages of those `workers` from whom it takes any."""
    if variable.in_rounds:
        return Round([worker for worker in workers if variable.takes(worker)], variable.owner)
    return Each()


class Each:
    """Every message is an update, in the order of arrival."""

    over = False
    awaited: Collection[int] = ()

    def __init__(self) -> None:
        self._arrived: dict[int, None] = {}

    def arrive(self, worker: int) -> None:
        self._arrived[worker] = None

    def lose(self, worker: int) -> None:
        self._arrived.pop(worker, None)

    def join(self, worker: int) -> None:
        pass

    def finish(self) -> list[int]:
        return []

    def closing(self, waiting: Collection[int], everybody: bool) -> list[int]:
        return sorted(waiting) if everybody else []

    def back(self) -> None:
        return None

    def next(self) -> list[int]:
        for worker in self._arrived:
            del self._arrived[worker]
            return [worker]
        return []

    def state(self) -> dict[str, object]:
        return {"arrived": list(self._arrived)}

    def restore(self, state: dict[str, list[int]]) -> None:
        self._arrived = dict.fromkeys(state["arrived"])


class Round:
    """The messages of all live workers together make an update; a message of the variable's `owner` makes one by
    itself. The first worker that finishes ends the rounds.
    """

    def __init__(self, workers: Iterable[int], owner: int | None = None):
        self._live = set(workers)
        self._arrived: set[int] = set()
        self._owner, self._owners = owner, False  # whether the owner's message has arrived
        self.over = False

    @property
    def awaited(self) -> Collection[int]:
        return self._live

    def arrive(self, worker: int) -> None:
        if worker == self._owner:
            self._owners = True
        else:
            self._arrived.add(worker)

    def lose(self, worker: int) -> None:
        self._live.discard(worker)
        self._arrived.discard(worker)

    def join(self, worker: int) -> None:
        self._live.add(worker)

    def finish(self) -> list[int]:
        self.over = True
        given_back = sorted(self._arrived)
        self._arrived.clear()
        return given_back

    def closing(self, waiting: Collection[int], everybody: bool) -> list[int]:
        return sorted(waiting) if everybody else []

    def back(self) -> None:
        return None

    def next(self) -> list[int]:
        if self._owners:
            self._owners = False
            return [] if self._owner is None else [self._owner]
        if self.over or not self._arrived or not self._arrived >= self._live:
            return []
        members = sorted(self._arrived)
        self._arrived.clear()
        return members

    def state(self) -> dict[str, object]:
        owners = [] if self._owner is None else [int(self._owners)]
        return {"arrived": sorted(self._arrived), "live": sorted(self._live), "over": self.over, "owners": owners}

    def restore(self, state: dict[str, list[int]]) -> None:
        self._arrived, self._live, self.over = set(state["arrived"]), set(state["live"]), bool(state["over"])
        self._owners = any(state.get("owners", []))  # earlier versions' checkpoints lack it


class Recorded:
    """The order of a recorded run, in whatever order messages arrive. With `in_rounds` a round is the longest run of
    rising workers' numbers, and the variable's `owner` is always by itself.

    `returns`: for each worker that came back, the exchanges served before, its number and its clock. A message of such
    a worker that waits then is not served: in the recorded run the worker was killed before it sent that message.
    """

    def __init__(
        self, order: Sequence[int], in_rounds: bool, returns: Iterable[tuple[int, int, int]] = (),
        owner: int | None = None,
    ):  # fmt: skip
        self._order, self._in_rounds, self._owner = deque(order), in_rounds, owner
        self._served = 0
        # Only a worker's last return before its next exchange counts; without an exchange after it, none does.
        last = {
            (worker, next((n for n in range(at, len(order)) if order[n] == worker), None)): (at, worker, t)
            for at, worker, t in returns
        }
        self._returns = deque(sorted(entry for (_, then), entry in last.items() if then is not None))
        self._arrived: set[int] = set()
        self.over = False

    @property
    def awaited(self) -> Collection[int]:
        return set(self._order)

    def arrive(self, worker: int) -> None:
        self._arrived.add(worker)

    def lose(self, worker: int) -> None:
        self._arrived.discard(worker)

    def join(self, worker: int) -> None:
        pass

    def finish(self) -> list[int]:
        if not self._in_rounds:
            return []
        self.over = True
        given_back = sorted(self._arrived)
        self._arrived.clear()
        return given_back

    def closing(self, waiting: Collection[int], everybody: bool) -> list[int]:
        """Returns the rest of the recorded order, once all workers in it wait with closing messages."""
        left = list(self._order)
        if not set(left) <= set(waiting):
            return []
        self._order.clear()
        return left

    def back(self) -> tuple[int, int] | None:
        """Returns the worker that comes back now, and its clock, if its message has arrived; drops the message."""
        if not self._returns or self._returns[0][0] > self._served or self._returns[0][1] not in self._arrived:
            return None
        _, worker, t = self._returns.popleft()
        self._arrived.discard(worker)
        return worker, t

    def next(self) -> list[int]:
        if self._returns and self._returns[0][0] <= self._served:
            return []
        members: list[int] = []
        for worker in self._order:
            if members and (not self._in_rounds or worker <= members[-1] or self._owner in (worker, *members)):
                break
            members.append(worker)
        if self.over or not members or not self._arrived >= set(members):
            return []
        for worker in members:
            self._order.popleft()
            self._arrived.discard(worker)
        self._served += len(members)
        return members

    def state(self) -> dict[str, object]:
        return {
            "arrived": sorted(self._arrived), "order": list(self._order), "over": self.over, "served": self._served,
            "returns": [list(entry) for entry in self._returns],
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self._arrived, self._order, self.over = set(state["arrived"]), deque(state["order"]), bool(state["over"])
        self._served = state.get("served", 0)  # earlier versions' checkpoints lack it, and need none
        self._returns = deque((at, worker, t) for at, worker, t in state.get("returns", []))
