"""The transport of a virtual cluster: messages take virtual time on their way, and a master serves them one after another.

Everything is in one process and nothing waits. What happens is a heap of events, taken in the order of their virtual time,
at equal times in the order in which they were made. A message is lent, as on one machine: a worker does not change it
before it has its reply, so it need not be copied for its way. It is applied at the end of its service, when it would have
been received as a whole.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from easgd_cli.training.center import Center, Lent


class Event(NamedTuple):
    """At virtual second `time` something of kind `kind` happens to `worker`; `number` is the order among equal times."""

    time: float
    number: int
    kind: str
    worker: int


class Events:
    """What is still to happen."""

    def __init__(self) -> None:
        self._heap: list[Event] = []
        self._numbers = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, time: float, kind: str, worker: int) -> None:
        self._numbers += 1
        heapq.heappush(self._heap, Event(time, self._numbers, kind, worker))

    def again(self, event: Event) -> None:
        """Puts an event back that has been taken: it is the next again."""
        heapq.heappush(self._heap, event)

    def next(self) -> Event:
        return heapq.heappop(self._heap)

    def state(self) -> dict[str, Any]:
        return {"events": [tuple(event) for event in self._heap], "numbers": self._numbers}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._heap = [Event(*event) for event in state["events"]]
        heapq.heapify(self._heap)
        self._numbers = state["numbers"]


@dataclass(frozen=True)
class Network:
    """What a message costs, in seconds and bytes a second; a bandwidth of None takes no time. `service`: of the master, for each message."""

    latency: tuple[float, float]  # up, down
    bandwidth: tuple[float | None, float | None]
    service: float

    def up(self, nbytes: int) -> float:
        """Seconds from a worker to the master."""
        return self.latency[0] + (nbytes / self.bandwidth[0] if self.bandwidth[0] is not None else 0.0)

    def down(self, nbytes: int) -> float:
        """Seconds back."""
        return self.latency[1] + (nbytes / self.bandwidth[1] if self.bandwidth[1] is not None else 0.0)


@dataclass
class Session:
    """One worker's connection: what it lends now, and what its last reply said (transport/base.py)."""

    reply: Tensor
    message: Tensor | None = None
    t: int = 0  # the worker's clock when it posted
    arrived: float = 0.0  # when its message reached the master
    center_clock: int = 0
    served: int = 0
    staleness: int = 0
    exchanges: int = 0


@dataclass
class Queueing:
    """What the master has seen of its queue, summed since the start."""

    waited: float = 0.0  # seconds that messages waited before their service, of all messages
    longest: float = 0.0
    busy: float = 0.0  # seconds in service
    served: int = 0
    staleness: Counter[int] = field(default_factory=Counter)  # updates by others between two exchanges of a worker: how often

    def add(self, waited: Sequence[float], service: float) -> None:
        """Messages have been served together, having waited so long each."""
        self.waited += sum(waited)
        self.longest = max(self.longest, *waited)
        self.busy += service
        self.served += len(waited)

    def figures(self, seconds: float) -> dict[str, Any]:
        """Staleness, seconds that a message waited, and for what share of `seconds`, all that have passed, the master was busy, in percent."""
        return {
            "staleness": dict(zip(("mean", "median", "p90", "p99", "max"), _distribution(self.staleness), strict=True)),
            "queue_seconds": {"mean": self.waited / self.served if self.served else 0.0, "max": self.longest},
            "master_busy": 100 * self.busy / seconds if seconds else 0.0,
        }

    def state(self) -> dict[str, Any]:
        return vars(self) | {"staleness": dict(self.staleness)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Queueing:
        return cls(**{**state, "staleness": Counter(state["staleness"])})


class SimulatedMaster:
    """The owner of the center on the virtual clock: the only writer of the center and the replies.

    `order`: the worker numbers of a recorded run, whose exchanges are then served in that order whatever arrives first.
    """

    def __init__(self, center: Center, sessions: list[Session], network: Network, events: Events, nbytes: int, order: Iterable[int] | None = None):
        self._center, self._sessions, self._network, self._events, self._nbytes = center, sessions, network, events, nbytes
        self._in_rounds = center.method.gathers == "round"
        self._order = None if order is None else deque(order)
        self._arrived: dict[int, None] = {}  # workers whose messages wait, in the order of arrival
        self._in_service: list[int] = []
        self._began = 0.0  # when their service did
        self._live = set(range(len(sessions)))
        self._lent: dict[tuple[int, int], Lent] = {}
        self.served = 0
        self.queueing = Queueing()

    def post(self, worker: int, message: Tensor, t: int, now: float) -> None:
        """The worker sends `message` [d] at its clock t; it arrives later."""
        session = self._sessions[worker]
        session.message, session.t = message, t
        self._events.add(now + self._network.up(self._nbytes), "arrive", worker)

    def arrive(self, worker: int, now: float) -> None:
        """A message has reached the master."""
        self._sessions[worker].arrived = now
        self._arrived[worker] = None
        self._begin(now)

    def serve(self, now: float) -> list[int]:
        """The service of a message, or of a round, ends: the rule is applied and the replies leave. Returns whose exchanges they were."""
        members, self._in_service = self._in_service, []
        lent = [self._lend(worker) for worker in members]
        self.queueing.add([self._began - self._sessions[worker].arrived for worker in members], now - self._began)
        if self._in_rounds:
            self._center.receive_round(lent)
        else:
            self._center.receive(lent[0])
        self.served += len(members)
        for worker in members:
            session = self._sessions[worker]
            session.staleness = self._center.clock - 1 - session.center_clock
            session.center_clock, session.served, session.message = self._center.clock, self.served, None
            session.exchanges += 1
            self.queueing.staleness[session.staleness] += 1
            self._events.add(now + self._network.down(self._nbytes), "reply", worker)
        self._begin(now)
        return members

    def leave(self, worker: int) -> list[int]:
        """The worker has finished. Returns those whose messages are given back, since their round will not be complete any more."""
        self._live.discard(worker)
        if not self._in_rounds:
            return []
        given_back = list(self._arrived)
        self._arrived.clear()
        return given_back

    @property
    def rounds_are_over(self) -> bool:
        """Whether a message that arrives could only wait for ever: its round lacks a worker that has finished."""
        return self._in_rounds and len(self._live) < len(self._sessions)

    def _begin(self, now: float) -> None:
        """Takes what is next into service, if the master is free and it is there."""
        if self._in_service or not (members := self._next()):
            return
        self._in_service = members
        for worker in members:
            del self._arrived[worker]
        self._began = now
        self._events.add(now + self._network.service * len(members), "serve", members[0])

    def _next(self) -> list[int]:
        """Whose messages are served next; empty while they have not all arrived."""
        if self._order is not None:
            members = self._recorded()
            if not members or not self._arrived.keys() >= set(members):
                return []
            return [self._order.popleft() for _ in members]
        if self._in_rounds:
            return sorted(self._arrived) if self._arrived.keys() >= self._live else []
        return [next(iter(self._arrived))] if self._arrived else []

    def _recorded(self) -> list[int]:
        """Whose exchanges came next in the recorded run: one, or the members of a round, which are in rising order."""
        members: list[int] = []
        for worker in self._order or ():
            if members and (not self._in_rounds or worker <= members[-1]):
                break
            members.append(worker)
        return members

    def _lend(self, worker: int) -> Lent:
        session = self._sessions[worker]
        assert session.message is not None
        key = (worker, session.message.data_ptr())
        if key not in self._lent:
            self._lent[key] = self._center.lend(session.message, session.reply)
        return self._lent[key]

    def state(self) -> dict[str, Any]:
        """Everything but the vectors."""
        return {
            "arrived": list(self._arrived), "in_service": self._in_service, "began": self._began, "live": sorted(self._live), "served": self.served,
            "queueing": self.queueing.state(), "order": None if self._order is None else list(self._order),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self._arrived = dict.fromkeys(state["arrived"])
        self._in_service, self._began = list(state["in_service"]), state["began"]
        self._live, self.served = set(state["live"]), state["served"]
        self.queueing = Queueing.of(state["queueing"])
        self._order = None if state["order"] is None else deque(state["order"])


def _distribution(counts: Mapping[int, int]) -> Iterator[float]:
    """Mean, median, 90th and 99th percentile and maximum of numbers counted."""
    total = sum(counts.values())
    ordered = sorted(counts.items())
    yield sum(number * count for number, count in ordered) / total if total else 0.0
    for share in (0.5, 0.9, 0.99, 1.0):
        seen, value = 0, 0
        for number, count in ordered:
            seen, value = seen + count, number
            if seen >= share * total:
                break
        yield float(value)
