"""The owner of a variable on the virtual clock: serves messages one after another, each service taking virtual time.

A message, or a round, is applied at the end of its service, when a real master would have received it as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from easgd_cli.algorithms.base import WHOLE
from easgd_cli.training.center import Center
from easgd_cli.training.gathering import Gathering
from easgd_cli.transport.base import PULL, Kind, Mark, Request
from easgd_cli.transport.simulated import Events, SimulatedMasterEnd

SERVE: Final = "serve"  # the event of a service that ends; its `worker` is the variable's place


@dataclass
class Served:
    """Exchanges so far, with all variables, and the vectors that they took over the network."""

    exchanges: int = 0
    vectors: float = 0


@dataclass
class Queueing:
    """What the master has seen of its queue, summed since the start."""

    waited: float = 0.0  # seconds that all messages together waited before their service
    longest: float = 0.0
    busy: float = 0.0  # seconds in service
    served: int = 0
    # how often there were so many updates by others between two exchanges of a worker
    staleness: Counter[int] = field(default_factory=Counter)

    def add(self, waited: Sequence[float], service: float) -> None:
        """Counts messages that have been served together, each after it has waited so long."""
        self.waited += sum(waited)
        self.longest = max(self.longest, *waited)
        self.busy += service
        self.served += len(waited)

    def figures(self, seconds: float) -> dict[str, Any]:
        """Returns the staleness, the seconds that messages waited, and the percentage of `seconds`, all that have
        passed, in which the master was busy.
        """
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

    @classmethod
    def of_all(cls, queues: Sequence[Queueing]) -> Queueing:
        """Returns the figures of several variables together: sums over all messages, and `busy` of the busiest."""
        staleness: Counter[int] = Counter()
        for queue in queues:
            staleness.update(queue.staleness)
        return cls(
            sum(q.waited for q in queues), max(q.longest for q in queues), max(q.busy for q in queues),
            sum(q.served for q in queues), staleness,
        )  # fmt: skip


class VirtualMaster:
    """The only writer of the variable at this `place` and of its replies. `service`: virtual seconds for each message;
    `served`: what all variables together have served; `dies`: the numbers of exchanges after which the variable is
    lost, in rising order; `round_seconds`: returns the seconds of a round, by its number of messages and the share of a
    vector that each moves; None: the `service` of each message.
    """

    def __init__(
        self, center: Center, sessions: SimulatedMasterEnd, gathering: Gathering, events: Events, service: float,
        come_back: Callable[[int, int], None] = lambda worker, t: None, place: int = 0, served: Served | None = None,
        dies: Sequence[int] = (), round_seconds: Callable[[int, float], float] | None = None,
    ):  # fmt: skip
        self.center = center
        self._sessions, self._gathering, self._events = sessions, gathering, events
        self._service, self._place = service, place
        self._all = served if served is not None else Served()
        self._round_seconds = round_seconds
        self._joining: dict[int, Request] = {}  # workers that are back, and wait for the variable
        self._clocks: dict[int, int] = {}  # of each worker, in its last request
        self._reached: dict[int, int] = {}  # each worker's clock at its last message that has reached the variable
        # the workers that have been given the variable and are yet to be reported: number, clock, steps lost and missed
        self.returned: list[tuple[int, int, int, int]] = []
        self._waiting: dict[int, tuple[Request, float]] = {}  # messages without a reply, and when they arrived
        self._come_back = come_back  # in a replay: has a worker begin again at that clock, with the variable as it is
        self.closing: set[int] = set()  # the workers whose waiting message is the closing one
        self._in_service: list[int] = []
        self._began = 0.0  # when that service began
        self._told: dict[int, int] = {}  # the variable's clock in the last reply to each worker
        self._dies, self.away = list(dies), False  # away: whether the variable is lost
        self.queueing = Queueing()

    @property
    def served(self) -> int:
        """Exchanges so far, with all variables."""
        return self._all.exchanges

    @property
    def rounds_are_over(self) -> bool:
        """True if a message that arrives could only wait for ever: its round lacks a worker that has finished."""
        return self._gathering.over

    def listen(self) -> list[int]:
        """Takes the requests that have arrived. Returns the workers whose messages are given back."""
        given_back: list[int] = []
        for request in self._sessions.requests(0):
            if request.kind not in (Kind.LOST, Kind.JOIN):
                self._clocks[request.worker] = request.t
            if request.kind is Kind.EXCHANGE and self.away:
                self._sessions.reply(request, self.center.clock, self.served, Mark.AWAY)
            elif request.kind is Kind.EXCHANGE:
                self._reached[request.worker] = request.t
                self._waiting[request.worker] = (request, self._events.now)
                self._gathering.arrive(request.worker)
            elif request.kind is Kind.CLOSING:
                self._waiting[request.worker] = (request, self._events.now)
                self.closing.add(request.worker)
                given_back += self._gathering.finish()
            elif request.kind is Kind.LOST:
                # a message in service has been received as a whole, and its update is made
                if request.worker not in self._in_service:
                    self._waiting.pop(request.worker, None)
                    self.closing.discard(request.worker)
                self._joining.pop(request.worker, None)
                self._gathering.lose(request.worker)
            elif request.kind is Kind.JOIN:
                self._joining[request.worker] = request
                self._gathering.lose(request.worker)  # until it has the center, no round waits for it
            elif request.kind is Kind.CLOSE and self.center.variable.takes(request.worker):
                given_back += self._gathering.finish()
        for worker in given_back:
            self._sessions.reply(self._waiting.pop(worker)[0], self.center.clock, self.served, Mark.WITHDRAWN)
        self._begin()
        if self._gathering.over:  # workers that join could only wait for ever
            given_back += self._joining
            self._joining.clear()
        elif self._joining and not self._gathering.awaited and not self._in_service and not self.away:
            self._welcome(max(self._clocks.values(), default=0) if self.center.variable.in_rounds else 0)
        return given_back

    def _welcome(self, t: int) -> None:
        """Gives the variable as it is to the workers that have joined, which is no exchange. They go on at the clock
        `t` or, where there are no rounds, at their own if that is later.
        """
        for worker, request in self._joining.items():
            _, reply = self._sessions.lent(request)
            self.center.pull(reply)
            died = max(request.t, self._clocks.get(worker, 0))
            back = t if self.center.variable.in_rounds else max(t, died)
            self.returned.append((worker, back, died - self._reached.get(worker, 0), back - died))
            self._clocks[worker] = self._reached[worker] = back
            self._gathering.join(worker)
            self._sessions.reply(request, self.center.clock, self.served, t=back)
        self._joining.clear()

    def serve(self) -> list[Request]:
        """Ends the service of a message, or of a round: applies the rule and sends the replies. Returns the requests
        that have been served.
        """
        served = [self._waiting.pop(worker) for worker in self._in_service]
        self._in_service = []
        members = [request for request, _ in served]
        self.queueing.add([self._began - arrived for _, arrived in served], self._events.now - self._began)
        lent = [(request.worker, *self._sessions.lent(request)) for request in members]
        self._all.vectors += self._sessions.slice * self.center.serve(lent, fragment=members[0].fragment)
        self._all.exchanges += len(members)
        for request in members:
            if request.vector != PULL:
                own = self.center.variable.fragments if request.fragment == WHOLE else 1
                self.queueing.staleness[self.center.clock - own - self._told.get(request.worker, 0)] += 1
            self._told[request.worker] = self.center.clock
            self._sessions.reply(request, self.center.clock, self.served)
        if self._dies and self.queueing.served >= self._dies[0]:
            self._die()
            return members
        in_rounds = self.center.variable.in_rounds
        if self._joining and (in_rounds or not self._gathering.awaited):
            self._welcome(members[0].t + 1 if in_rounds else 0)
        self._begin()
        return members

    def _die(self) -> None:
        """Loses the variable. Workers that wait for it, or ask for it until it is back, go on without a reply."""
        self._dies.pop(0)
        self.away = True
        for worker, (request, _) in self._waiting.items():
            self._gathering.lose(worker)
            self._sessions.reply(request, self.center.clock, self.served, Mark.AWAY)
        self._waiting.clear()

    def begin_again(self, x: Tensor) -> None:
        """Takes the lost variable back, with this x [d] and 0 in all other vectors."""
        for v in self.center.vectors.values():
            v.zero_()
        self.center.vectors["x"].copy_(x)
        self.away = False
        if self._joining:
            self._welcome(0)

    def close(self, everybody: bool) -> None:
        """Takes closing messages into service, if it is time for them; `everybody`: whether all workers that are there
        have sent theirs.
        """
        if self.closing and not self._in_service:
            members = self._gathering.closing(self.closing, everybody)
            self.closing.difference_update(members)
            self._take(members)

    def _begin(self) -> None:
        """Takes the next message or round into service, if the master is free and one is there."""
        if self._in_service:
            return
        while (back := self._gathering.back()) is not None:
            worker, t = back
            del self._waiting[worker]
            self._come_back(worker, t)
        self._take(self._gathering.next())

    def _take(self, members: list[int]) -> None:
        if members:
            self._in_service, self._began = members, self._events.now
            share = self._sessions.share(self._waiting[members[0]][0])
            of = self._round_seconds
            seconds = self._service * len(members) * share if of is None else of(len(members), share)
            self._events.add(self._events.now + seconds, SERVE, self._place)

    def state(self) -> dict[str, Any]:
        """Returns everything but the vectors."""
        return {
            "waiting": [(worker, request.t, request.vector, arrived, request.fragment) for worker,
            (request, arrived) in self._waiting.items()],
            "in_service": self._in_service, "began": self._began, "told": self._told, "served": self.served,
            "vectors": self._all.vectors,
            "queueing": self.queueing.state(), "gathering": self._gathering.state(),
            "joining": {worker: request.t for worker, request in self._joining.items()}, "clock": self.center.clock,
            "fragments": self.center.clocks, "away": self.away,
            "closing": sorted(self.closing),
            "clocks": self._clocks, "reached": self._reached, "open": list(self._sessions.open),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` has returned."""
        self._waiting = {
            worker: (Request(worker, Kind.EXCHANGE, t, vector, self._place, *of), arrived)
            for worker, t, vector, arrived, *of in state["waiting"]  # older checkpoints name no fragment
        }
        self.closing, self.away = set(state.get("closing", ())), state.get("away", False)
        self._in_service, self._began = list(state["in_service"]), state["began"]
        self._told, self._all.exchanges = dict(state["told"]), state["served"]
        self._all.vectors = state.get("vectors", 2 * self.served)
        self.center.clock = state.get("clock", self.center.clock)  # which older checkpoints have elsewhere
        self.center.clocks = list(state.get("fragments", ()))
        self.queueing = Queueing.of(state["queueing"])
        self._gathering.restore(state["gathering"])
        self._dies = [n for n in self._dies if n > self.queueing.served]
        if "clocks" in state:  # which older checkpoints lack
            self._clocks, self._reached = dict(state["clocks"]), dict(state["reached"])
            self._joining = {
                worker: Request(worker, Kind.JOIN, t, 0, self._place) for worker, t in state["joining"].items()
            }
            self._sessions.restore(state["open"])


def _distribution(counts: Mapping[int, int]) -> Iterator[float]:
    """Yields mean, median, 90th and 99th percentile and maximum of numbers, by how often each occurs."""
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
