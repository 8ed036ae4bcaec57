"""Which messages make the next update of a center: each by itself, those of all live workers, or as a recorded run had
them.

Owners ask the same of all three: a message `arrives`, a worker is `lost`, what is served `next`. None of them knows
time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from easgd_cli.algorithms.base import Variable


class Gathering(Protocol):
    """Messages by the numbers of their workers."""

    over: bool  # whether no update will be complete any more: messages that arrive now are given back

    @property
    def awaited(self) -> Collection[int]:
        """The workers without whose messages there is no next update."""

    def arrive(self, worker: int) -> None:
        """That worker's message is there."""

    def lose(self, worker: int) -> None:
        """The worker is gone, and its message with it."""

    def join(self, worker: int) -> None:
        """It is back, and takes part in what comes after the last update."""

    def finish(self) -> list[int]:
        """A worker has finished, or all are told to. Returns those whose messages are given back."""

    def closing(self, waiting: Collection[int], everybody: bool) -> list[int]:
        """Whose closing messages, of those `waiting`, are served now, in this order; `everybody`: whether all workers
        that are there have sent theirs.
        """

    def back(self) -> tuple[int, int] | None:
        """A worker that comes back now, as a recorded one did, and its clock."""

    def next(self) -> list[int]:
        """Whose messages make the next update, in the order of their sum; empty while they have not all arrived."""

    def state(self) -> dict[str, object]:
        """Everything, as plain numbers and lists."""

    def restore(self, state: dict[str, list[int]]) -> None:
        """Puts it where it was."""


def gathering_of(variable: Variable, workers: Iterable[int]) -> Gathering:
    """How this variable takes messages of those workers, whichever of them it takes messages of."""
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
    """The messages of all live workers together are an update; one of the variable's `owner` is another, by itself. The
    first that finishes ends the rounds.
    """

    def __init__(self, workers: Iterable[int], owner: int | None = None):
        self._live = set(workers)
        self._arrived: set[int] = set()
        self._owner, self._owners = owner, False  # whether a message of the owner's is there
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
        self._owners = any(state.get("owners", []))  # which checkpoints of before do not say


class Recorded:
    """The order of a recorded run, whatever arrives first; of one `in_rounds`, a round's members are in rising order,
    and the variable's `owner` is by itself.

    `returns`: workers that came back after so many exchanges, and at which clock: what they have sent since is not
    served, since those that were killed have not sent it.
    """

    def __init__(
        self, order: Sequence[int], in_rounds: bool, returns: Iterable[tuple[int, int, int]] = (),
        owner: int | None = None,
    ):  # fmt: skip
        self._order, self._in_rounds, self._owner = deque(order), in_rounds, owner
        self._served = 0
        # Of several returns with no exchange of the worker in between, the last counts; of none after it, none does.
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
        """Those that end the recorded order: nothing else is left of it then."""
        left = list(self._order)
        if not set(left) <= set(waiting):
            return []
        self._order.clear()
        return left

    def back(self) -> tuple[int, int] | None:
        """The worker that comes back now, and its clock: its message has arrived, and is not served."""
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
        self._served = state.get("served", 0)  # which checkpoints of before do not say, and do not need
        self._returns = deque((at, worker, t) for at, worker, t in state.get("returns", []))
