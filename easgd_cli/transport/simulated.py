"""The transport of a virtual cluster: messages take virtual time on their way.

Everything is in one process and nothing waits. A heap holds the events to come. They are taken in the order of their
virtual time, at equal times in the order in which they were made. A message is lent, as on one machine: a worker does
not change it before it has its reply, so it need not be copied for its way.

The caller takes the events and hands those of the transport back to it (`Wire.deliver`); then a message is among the
master's requests, or a reply can be collected. Marks, ends of sessions and messages given back take no time.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from torch import Tensor

from easgd_cli.algorithms.base import CENTER, WHOLE, Variable
from easgd_cli.order_entry import entry_of, entry_worker
from easgd_cli.transport.base import PULL, Kind, Mark, Reply, Request, Withdrawn, index_of
from easgd_cli.transport.shared_link import SharedLink
from easgd_cli.transport.turn import LARGE

ARRIVE: Final = "arrive"  # a message reaches the master
ENTER: Final = "enter"  # a message leaves its worker, for a link that all share
SHARED: Final = "shared"  # messages are through a link that all share; the event's worker is the number of that link
REPLY: Final = "reply"  # a reply reaches its worker


class Event(NamedTuple):
    """At virtual second `time` something of kind `kind` happens to `worker`; `number` is the order among
    equal times.
    """

    time: float
    number: int
    kind: str
    worker: int


class Events:
    """The events that are still to happen. `now`: the virtual second of the event that was taken last."""

    def __init__(self) -> None:
        self._heap: list[Event] = []
        self._numbers = 0
        self.now = 0.0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, time: float, kind: str, worker: int) -> None:
        self._numbers += 1
        heapq.heappush(self._heap, Event(time, self._numbers, kind, worker))

    def again(self, event: Event) -> None:
        """Puts back an event that has been taken: it is the next one again."""
        heapq.heappush(self._heap, event)

    def peek(self) -> Event:
        """Returns the next event, and leaves it there."""
        return self._heap[0]

    def next(self) -> Event:
        """Takes the next event."""
        event = heapq.heappop(self._heap)
        self.now = event.time
        return event

    def drop(self) -> None:
        """Removes the next event as if it had never been; `now` stays."""
        heapq.heappop(self._heap)

    def state(self) -> dict[str, Any]:
        return {"events": [tuple(event) for event in self._heap], "numbers": self._numbers, "now": self.now}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._heap = [Event(*event) for event in state["events"]]
        heapq.heapify(self._heap)
        self._numbers, self.now = state["numbers"], state["now"]


@dataclass(frozen=True)
class Network:
    """The costs of a message of `nbytes` on its way, in seconds and bytes a second; a bandwidth of None takes no time.

    `overhead`: the worker's own seconds before its message leaves; `shared`: the bandwidths of the master's link, which
    all messages share, none faster than on its worker's own link; `here`: how many workers are on the master's host and
    use no network; `ring`: rounds are all-reduced among their members, and not through a master.
    """

    nbytes: int
    latency: tuple[float, float] = (0.0, 0.0)  # up, down
    bandwidth: tuple[float | None, float | None] = (None, None)
    overhead: float = 0.0
    shared: tuple[float | None, float | None] = (None, None)
    here: int = 0
    ring: bool = False

    def ring_seconds(self, members: int, share: float = 1.0) -> float:
        """Returns the seconds of an all-reduce on a ring: 2 (p - 1) messages of a p-th of the vector, one by one."""
        slowest = min((b for b in self.bandwidth if b is not None), default=None)
        part = 0.0 if slowest is None else share * self.nbytes / members / slowest
        return 2 * (members - 1) * (sum(self.latency) / 2 + part)

    def up(self, share: float = 1.0) -> float:
        """Returns the seconds from a worker to the master, for that share of a message."""
        return self.latency[0] + (share * self.nbytes / self.bandwidth[0] if self.bandwidth[0] is not None else 0.0)

    def down(self, share: float = 1.0) -> float:
        """Returns the seconds from the master to a worker, for that share of a reply."""
        return self.latency[1] + (share * self.nbytes / self.bandwidth[1] if self.bandwidth[1] is not None else 0.0)


class SimulatedWorkerEnd:
    """A worker's session (transport/base.py)."""

    def __init__(
        self, number: int, vectors: Mapping[str, Tensor], reply: Tensor | None, wire: Wire, home: int, shard: int = 0
    ):
        self.vectors, self.reply = dict(vectors), reply
        self._number, self._wire, self._home, self._shard = number, wire, home, shard
        self._names = list(vectors)
        self._index = {v.data_ptr(): i for i, v in enumerate(vectors.values())}
        self._posted: Request | None = None  # until its reply has been written
        self._reply: Reply | None = None  # written, though it may still be on its way
        self.awaits = False  # whether a reply is yet to come

    def post(
        self, message: Tensor | None, t: int, to: str = CENTER, kind: Kind = Kind.EXCHANGE, *, fragment: int = WHOLE
    ) -> None:
        index = PULL if message is None else index_of(message, self._index)
        self._posted = Request(self._number, kind, t, index, self._wire.place(to) + self._shard, fragment)
        self.awaits = True
        self._wire.up(self._posted)

    def takes_way(self, to: str) -> bool:
        """Whether a message to that variable goes over the network."""
        return self._wire.takes_way(self._number, to)

    def collect(self) -> Reply:
        assert self._reply is not None, "nothing waits on a virtual clock: the reply is collected when it is there"
        if self._reply.mark is Mark.WITHDRAWN:
            raise Withdrawn
        return self._reply

    def join(self, t: int) -> None:
        self._posted = Request(self._number, Kind.JOIN, t, 0, self._home)
        self.awaits = True
        self._wire.up(self._posted)

    def checkpoint(self, t: int) -> None:
        self._wire.at_once(Request(self._number, Kind.CHECKPOINT, t, 0))

    def close(self, t: int) -> None:
        self._wire.to_all(Request(self._number, Kind.CLOSE, t, 0))

    def lose(self) -> None:
        """Ends the session of a killed worker: what is still on its way no longer counts."""
        self._posted = None
        self._wire.to_all(Request(self._number, Kind.LOST, -1, 0))

    def withdraw(self) -> None:
        """Drops the message that was posted last: it no longer counts."""
        self._posted = None

    def take(self) -> Request | None:
        """Returns the message that was posted last; None once its reply has been written."""
        return self._posted

    def message(self, request: Request) -> Tensor | None:
        """Returns the vector that this request lends [d]; None for a pull."""
        return None if request.vector == PULL else self.vectors[self._names[request.vector]]

    def answer(self, clock: int, served: int, mark: Mark, t: int) -> None:
        """Notes that the reply has been written, or that the variable is away."""
        assert self.reply is not None
        self._posted, self._reply = None, Reply(self.reply, clock, served, mark, t)

    def state(self) -> dict[str, Any]:
        """Returns what is under way, as plain numbers."""
        of, reply = self._posted, self._reply
        return {
            "posted": None if of is None else [int(of.kind), of.t, of.vector, of.to, of.fragment],
            "reply": None if reply is None else [reply.clock, reply.served, int(reply.mark), reply.t],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        if (posted := state["posted"]) is not None:
            # earlier versions' checkpoints lack the kind: only exchanges were posted
            kind, t, vector, *of = posted if len(posted) > 2 else [Kind.EXCHANGE, *posted]
            self._posted = Request(self._number, Kind(kind), t, vector, *of)
        if state["reply"] is not None:  # there may be a later message beside it
            assert self.reply is not None
            clock, served, mark, *t = state["reply"]
            self._reply = Reply(self.reply, clock, served, Mark(mark), *t)


class ShardedWorkerEnd:
    """A worker's sessions with several masters, each for a slice of its vectors, as one session. `ends`: by the
    masters' places. Its methods are those of `SimulatedWorkerEnd`; a reply's clock is the first master's, and `served`
    counts the exchanges of all.
    """

    def __init__(self, vectors: Mapping[str, Tensor], reply: Tensor, ends: Sequence[SimulatedWorkerEnd]):
        self.vectors, self.reply = dict(vectors), reply
        self._ends = list(ends)
        self._names = {v.data_ptr(): name for name, v in vectors.items()}

    def post(
        self, message: Tensor | None, t: int, to: str = CENTER, kind: Kind = Kind.EXCHANGE, *, fragment: int = WHOLE
    ) -> None:
        name = None if message is None else self._names.get(message.data_ptr(), "")
        for end in self._ends:
            end.post(message if not name else end.vectors[name], t, to, kind, fragment=fragment)

    def takes_way(self, to: str) -> bool:
        return self._ends[0].takes_way(to)

    def collect(self) -> Reply:
        replies = [end.collect() for end in self._ends]
        served, t = sum(reply.served for reply in replies), max(reply.t for reply in replies)
        return replace(replies[0], vector=self.reply, served=served, t=t)

    def join(self, t: int) -> None:
        for end in self._ends:
            end.join(t)

    def close(self, t: int) -> None:
        self._ends[0].close(t)  # which tells all masters

    def lose(self) -> None:
        self.withdraw()
        self._ends[0].lose()

    def withdraw(self) -> None:
        for end in self._ends:
            end.withdraw()

    def state(self) -> dict[str, Any]:
        return {"ends": [{**end.state(), "awaits": end.awaits} for end in self._ends]}

    def restore(self, state: Mapping[str, Any]) -> None:
        for end, stood in zip(self._ends, state["ends"], strict=True):
            end.restore(stood)
            end.awaits = stood["awaits"]


class Wire:
    """What lies between the ends: the network, and the events of messages on their way. `variables`: a center alone
    unless given; `shares`: with several masters, the share of a vector that each one's slice is.
    """

    def __init__(
        self, network: Network, events: Events, variables: Mapping[str, Variable] | None = None,
        shares: Sequence[float] = (1.0,),
    ):  # fmt: skip
        self._network, self._events = network, events
        self._places = {name: i for i, name in enumerate(variables or (CENTER,))}
        self._shares = shares
        found = list(variables.values()) * len(shares) if variables else []
        self._beside = [of.owner for of in found] or [None] * len(shares)
        self._answers = [of.answers for of in found] or [True] * len(shares)
        self._fragments = [of.fragments for of in found] or [1] * len(shares)
        self._in_rounds = [of.in_rounds for of in found] or [False] * len(shares)
        self._links = [
            None if b is None else SharedLink(b, own)
            for _ in shares
            for b, own in zip(network.shared, network.bandwidth, strict=True)
        ]  # up and down
        self._ends: dict[int, SimulatedWorkerEnd] = {}
        self._inboxes: list[list[Request]] = [[] for _ in self._beside]
        self.arrived: dict[int, None] = {}  # the places of variables with something in their inbox
        self.open: dict[int, None] = {}  # the workers whose sessions are open

    def place(self, variable: str) -> int:
        """Returns the place of a variable among all."""
        return self._places[variable]

    def end(
        self, number: int, vectors: Mapping[str, Tensor], reply: Tensor | None, home: str = CENTER, shard: int = 0
    ) -> SimulatedWorkerEnd:
        """Returns a new session of the worker `number`, whose `vectors` [d] the caller has allocated; `shard`: the
        master, of several, whose slice they are.
        """
        place = self._places.get(home, 0) + shard
        end = self._ends[self._key(number, place)] = SimulatedWorkerEnd(number, vectors, reply, self, place, shard)
        self.open[number] = None
        return end

    def ends(
        self, number: int, vectors: Mapping[str, Tensor], reply: Tensor, slices: Sequence[slice]
    ) -> ShardedWorkerEnd:
        """Returns new sessions of the worker with the masters of all `slices`, as one."""
        parts = [{name: v[entries] for name, v in vectors.items()} for entries in slices]
        ends = [
            self.end(number, of, reply[entries], shard=i)
            for i, (of, entries) in enumerate(zip(parts, slices, strict=True))
        ]
        return ShardedWorkerEnd(vectors, reply, ends)

    def master(self, place: int = 0) -> SimulatedMasterEnd:
        """Returns the other end of all sessions made so far, for the variable at this place."""
        return SimulatedMasterEnd(self, place)

    def deliver(self, event: Event) -> None:
        """Carries out an event of the transport that has been taken: a message goes on or arrives. A reply has only to
        be collected.
        """
        if event.kind == SHARED:
            self._through(event.worker)
        elif (request := self._ends[event.worker].take()) is None:
            return
        elif event.kind == ENTER:
            self._share(self._link(0, request), request)
        elif event.kind == ARRIVE:
            self.at_once(request)

    def replied(self, event: Event) -> Event | None:
        """Notes that a reply has come. Returns the event once it can be collected, as one of the worker: with several
        masters, when all their replies have come.
        """
        self._ends[event.worker].awaits = False
        worker = entry_worker(event.worker)
        awaited = any(self._ends[entry_of(worker, shard)].awaits for shard in range(len(self._shares)))
        return None if awaited else event._replace(worker=worker)

    def _key(self, worker: int, to: int) -> int:
        return worker if len(self._shares) == 1 else entry_of(worker, to)

    def end_of(self, request: Request) -> SimulatedWorkerEnd:
        """Returns the session of this request."""
        return self._ends[self._key(request.worker, request.to)]

    def is_stale(self, event: Event) -> bool:
        """Whether a later message has changed the second for which this event of a shared link was made."""
        link = self._links[event.worker] if event.kind == SHARED else None
        return link is not None and link.due != event.time

    def _link(self, way: int, request: Request) -> int:
        """Returns the number of the shared link that a request takes; `way`: 0 up, 1 down. Each master has two."""
        return way if len(self._shares) == 1 else way + 2 * request.to

    def _share(self, number: int, request: Request) -> None:
        """Puts a message on the link of this number."""
        link, nbytes = self._links[number], self.share(request) * self._network.nbytes
        assert link is not None
        in_turn = number % 2 == 1 and nbytes >= LARGE
        link.add(self._events.now, nbytes, self._key(request.worker, request.to), in_turn=in_turn)
        self._wait_for(number, link)

    def _through(self, number: int) -> None:
        link, latency = self._links[number], self._network.latency[number % 2]
        assert link is not None
        for end in link.arrived(self._events.now):
            self._events.add(self._events.now + latency, REPLY if number % 2 else ARRIVE, end)
        self._wait_for(number, link)

    def _wait_for(self, number: int, link: SharedLink) -> None:
        if link.due is not None:
            self._events.add(link.due, SHARED, number)

    def on_its_way(self, worker: int) -> Request | None:
        """Returns the last message of that worker, unless its reply has been written."""
        return self._ends[worker].take()

    def takes_way(self, worker: int, to: str) -> bool:
        """Whether a message of the worker to that variable goes over the network."""
        return self._beside[self._places[to]] != worker

    def share(self, request: Request) -> float:
        """Returns how much of a vector the request moves."""
        if len(self._shares) > 1:
            return self._shares[request.to]
        return 1.0 if request.fragment == WHOLE else 1 / self._fragments[request.to]

    def slice(self, place: int) -> float:
        """Returns how much of a vector the master at that place has."""
        return self._shares[place] if len(self._shares) > 1 else 1.0

    def up(self, request: Request) -> None:
        """Sends a message, now."""
        network, carries, end = self._network, request.vector != PULL, self._key(request.worker, request.to)
        overhead = 0.0 if self._beside[request.to] == request.worker else network.overhead
        if self._is_here(request):
            self._events.add(self._events.now + overhead, ARRIVE, end)
        elif carries and network.shared[0] is not None and overhead == 0:
            self._share(self._link(0, request), request)
        elif carries and network.shared[0] is not None:
            self._events.add(self._events.now + overhead, ENTER, end)
        else:
            way = network.up(self.share(request)) if carries else network.latency[0]
            self._events.add(self._events.now + overhead + way, ARRIVE, end)

    def down(self, request: Request) -> None:
        """Sends a reply, now."""
        network, carries, end = self._network, self._answers[request.to], self._key(request.worker, request.to)
        if self._is_here(request):
            self._events.add(self._events.now, REPLY, end)
        elif carries and network.shared[1] is not None:
            self._share(self._link(1, request), request)
        else:
            way = network.down(self.share(request)) if carries else network.latency[1]
            self._events.add(self._events.now + way, REPLY, end)

    def _is_here(self, request: Request) -> bool:
        """Whether a message spends no time on its way: beside its owner, on the master's host, or in a ring's round."""
        on_ring = self._network.ring and self._in_rounds[request.to]
        return self._beside[request.to] == request.worker or request.worker < self._network.here or on_ring

    def state(self) -> dict[str, Any]:
        """Returns the state of the shared links, as plain numbers."""
        if self._network.shared == (None, None):
            return {}
        return {"shared": [None if link is None else link.state() for link in self._links]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        for link, stood in zip(self._links, state.get("shared", ()), strict=False):
            if link is not None:
                link.restore(stood)

    def at_once(self, request: Request) -> None:
        """Delivers a request that takes no time."""
        self._inboxes[request.to].append(request)
        self.arrived[request.to] = None

    def to_all(self, request: Request) -> None:
        """Delivers it at once to all variables."""
        for place in range(len(self._inboxes)):
            self.at_once(replace(request, to=place))

    def taken(self, place: int) -> list[Request]:
        """Returns what has reached the variable at this place since the last call."""
        found, self._inboxes[place] = self._inboxes[place], []
        self.arrived.pop(place, None)
        return found


class SimulatedMasterEnd:
    """The master's end of all sessions, for one variable (transport/base.py)."""

    sums = False

    def __init__(self, wire: Wire, place: int):
        self._wire, self._place = wire, place

    @property
    def open(self) -> Collection[int]:
        return self._wire.open.keys()

    def restore(self, workers: Collection[int]) -> None:
        """Opens the sessions of these workers alone."""
        self._wire.open = dict.fromkeys(workers)

    def requests(self, timeout: float | None) -> list[Request]:
        found = self._wire.taken(self._place)
        for request in found:
            if request.kind in (Kind.CLOSE, Kind.LOST):
                self._wire.open.pop(request.worker, None)
            elif request.kind is Kind.JOIN:
                self._wire.open[request.worker] = None
        return found

    def share(self, request: Request) -> float:
        """Returns how much of a vector this request moves."""
        return self._wire.share(request)

    @property
    def slice(self) -> float:
        """How much of a vector this master has."""
        return self._wire.slice(self._place)

    def summed(self, members: Sequence[Request]) -> Sequence[Request]:
        return members

    def lent(self, request: Request) -> tuple[Tensor | None, Tensor]:
        end = self._wire.end_of(request)
        assert end.reply is not None
        return end.message(request), end.reply

    def reply(self, request: Request, clock: int, served: int, mark: Mark = Mark.NONE, t: int | None = None) -> None:
        if request.worker in self._wire.open:
            self._wire.end_of(request).answer(clock, served, mark, request.t if t is None else t)
            if mark is not Mark.WITHDRAWN:
                self._wire.down(request)
