"""The transport of rounds by an all-reduce: every worker keeps a replica of the center and gives its message to a sum
that all get, so no message passes through one process.

Requests and replies are those of `shared.py`: a worker says in 16 bytes that it takes part, the master gathers the
round, and its reply ends the round. Vectors go another way. With `post` a worker begins the all-reduce with the others
of its *group*, while it differentiates. The group's first member, the *lead*, puts the sum where the master reads it
and says so (SUMMED). The master updates its center by the center's rule, as ever, and replies. The workers update their
replicas by the same rule and the same bits: an all-reduce gives all members the same sum.

The reply makes a round whole: no worker goes on before it. So if a member dies before its end, the others begin the
round once more. They form the next *generation* of the group, which the master numbers; sums of an older generation are
left where they are. It may be that a worker has the reply and its sum does not come, since another died while it passed
the sum on. Such a worker asks the master for replica and reply as they are now (STATE).
"""

from __future__ import annotations

import datetime
import select
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, distributed

from easgd_cli.algorithms.base import CENTER, WHOLE
from easgd_cli.transport.base import Kind, Mark, Reply, Request, SessionEnded, Withdrawn
from easgd_cli.transport.meeting import BoardStore, Meeting
from easgd_cli.transport.replica import Replica
from easgd_cli.transport.shared import REPLY, Elsewhere, Link, SharedMasterEnd, SharedWorkerEnd

_CONNECTING = datetime.timedelta(minutes=1)  # for connections to the members that have come
_MEETING = datetime.timedelta(minutes=30)  # for all members to come: at the start some read their data for long
_EVER = datetime.timedelta(days=30)  # a sum takes as long as the slowest member's steps; a death is noticed otherwise
_SLICE = 0.05  # seconds of waiting for a sum after which a worker listens to the master
_KNOWN_BY = 20.0  # seconds after which a master has noticed that a worker has died
_LOOK = 0.2  # seconds of waiting for the lead after which the master asks whether to give up


class Word(IntEnum):
    """What a master says besides replies, with one of these in the place of their mark."""

    REGROUP = 10  # with generation, number of members, your rank: begin the sum once more
    BROKEN = 11  # with the generation: a member has died
    STATE = 12  # replica and reply are written


class SumLost(Exception):
    """This sum will not come: a member of the group has died."""


def gloo_group(store: Any, rank: int, size: int, address: str, timeout: datetime.timedelta) -> Any:
    """Makes a group of gloo's once all have met in `store`. Its connections use `address` and a free port. Raises
    RuntimeError.
    """
    gloo: Any = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._devices, options._timeout = [gloo.create_device(hostname=address)], timeout
    return gloo(store, rank, size, options)


class Group:
    """Members that sum, of one generation. The group is made in a thread, so that a worker that waits for the others to
    come hears meanwhile if one of them dies.

    `vectors` [d]: used in turn, each for what is given and then for the sum. No other group uses them, since a group
    that has been left may still write there.
    """

    def __init__(self, meeting: Meeting, generation: int, rank: int, size: int, vectors: Sequence[Tensor]):
        self.generation, self.rank, self.size = generation, rank, size
        self._vectors, self._current = vectors, 0
        self.broken = False  # whether the master has said so
        self._meeting, self._store, self._left = meeting, None, False
        self._made: Any = None
        self._work: Any = None
        self._failed: Exception | None = None
        self._given, self._lock = False, threading.Lock()
        self._options = distributed.AllreduceOptions()
        self._options.timeout = _EVER
        self._thread = threading.Thread(target=self._make, daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            self._store = store = self._meeting.store()
            if self._left:
                raise SumLost
            named = distributed.PrefixStore(str(self.generation), store)
            own, keys = self._meeting.own, [f"at {rank}" for rank in range(self.size)]
            named.set(keys[self.rank], own)
            # only then do members connect: all are there, so one that is not reached in a minute cannot be reached
            named.wait(keys, _MEETING)
            try:
                made = gloo_group(named, self.rank, self.size, own, _CONNECTING)
            except RuntimeError as e:
                there = ", ".join(sorted({named.get(key).decode() for key in keys} - {own}))
                text = f"the worker at {own} and those at {there or own} do not all reach each other ({e})"
                raise SumLost(text) from e
            with self._lock:
                self._made = made
                if self._given:
                    self._start()
        except Exception as e:
            self._failed = e
        finally:
            self.leave()

    def leave(self) -> None:
        """Ends the meeting: the group waits for no member any more."""
        self._left = True
        if isinstance(self._store, BoardStore):
            self._store.close()

    def begin(self, message: Tensor) -> None:
        """Gives `message` [d] to the sum, and returns at once."""
        self._current = (self._current + 1) % len(self._vectors)
        self.vector.copy_(message)
        with self._lock:
            self._work, self._given = None, True
            if self._made is not None:
                self._start()

    @property
    def vector(self) -> Tensor:
        """The vector whose turn it is [d]."""
        return self._vectors[self._current]

    def sum_all(self, vectors: Sequence[Tensor]) -> None:
        """Sums each of these vectors over the members, and waits for all sums."""
        for work in [self._made.allreduce([v], self._options) for v in vectors]:
            work.wait()

    def ready(self, seconds: float | None) -> bool:
        """Whether the members have met; waits at most `seconds` for that, None: for ever. Raises SumLost."""
        self._thread.join(seconds)
        if self._failed is not None:
            raise SumLost(str(self._failed)) from self._failed
        return not self._thread.is_alive()

    def done(self, seconds: float) -> bool:
        """Whether the sum is there; waits at most `seconds` for it. Raises SumLost."""
        if self._work is None and not self.ready(seconds):
            return False
        try:
            if not self._work.is_completed():
                self._work.wait(datetime.timedelta(seconds=seconds))
        except RuntimeError:  # the time is over, or a member has died
            if not self._work.is_completed():
                return False
        try:
            self._work.wait()
        except RuntimeError as e:
            raise SumLost(str(e)) from e
        return True

    def _start(self) -> None:
        self._work = self._made.allreduce([self.vector], self._options)


class _Sum(IntEnum):
    """The state of the sum of an exchange."""

    NONE = 0  # not begun
    BEGUN = 1
    DONE = 2
    LOST = 3  # as this worker sees; the master has not said so yet


class CollectiveWorkerEnd(SharedWorkerEnd):
    """A worker's session whose messages go into a sum. `update(sum, reply, n, clock)` updates the worker's replica by
    the mean of `n` messages, as the center's rule does; afterwards the center's clock is `clock`.

    The constructor waits until all workers have come, and raises SumLost if they do not. A worker that `returns`, since
    it was lost, does not wait: it will be in the next group.
    """

    def __init__(
        self,
        link: Link,
        replica: Replica,
        update: Callable[[Tensor, Tensor, int, int], None],
        elsewhere: Elsewhere | None = None,
        returns: bool = False,
    ):
        super().__init__(link, elsewhere)
        self._replica, self._update = replica, update
        self._message: Tensor | None = None
        self._sum = _Sum.NONE
        self._said = False  # whether this worker, as the lead, has said that the sum is there
        self._places, self._current = replica.sums[:2], 0  # where the lead puts the sum
        self._left: list[Group] = []  # groups whose sums have not come; to end a group would wait for its sum
        self._group: Group | None = None if returns else self._in_group(0, replica.workers, link.worker)
        if self._group is not None:
            self._group.ready(None)

    def _in_group(self, generation: int, size: int, rank: int) -> Group:
        first = generation == rank == 0  # its lead sums in the places that the master reads
        vectors = self._places if first else [torch.empty_like(self._memory["reply"])]
        return Group(self._replica.meeting, generation, rank, size, vectors)

    def post(
        self, message: Tensor | None, t: int, to: str = CENTER, kind: Kind = Kind.EXCHANGE, *, fragment: int = WHOLE
    ) -> None:
        super().post(message, t, to, kind, fragment=fragment)
        assert message is not None, "a method that pulls has no sums"
        self._message = self._memory[self._names[self._index[message.data_ptr()]]]
        self._sum = _Sum.NONE
        if self._elsewhere is None:
            self._begin()

    def join(self, t: int) -> None:
        super().join(t)
        self._sum = _Sum.DONE  # the master writes replica and reply

    def collect(self) -> Reply:
        if self._elsewhere is not None and self._untold is not None:
            self._elsewhere.sent()
            self._send(*self._untold)
            self._untold = None
            self._begin()
        told: tuple[int, int, int, int] | None = None
        while told is None or self._sum is not _Sum.DONE:
            if told is not None and self._sum is not _Sum.BEGUN:
                self._restore()
                break
            word = self._word(0 if self._wait_for_sum(told is not None) else self._patience())
            if word is not None and not self._regroup(*word):
                told = word
        clock, served, t, mark = told
        group = self._group
        if self._sum is _Sum.DONE and group is not None:
            self._update(group.vector, self._memory["reply"], group.size, clock)
        assert self._reply is not None
        if self._elsewhere is not None:
            self._elsewhere.receive()
        return Reply(self._reply, clock, served, Mark(mark), t)

    def _begin(self) -> None:
        if self._group is not None and not self._group.broken and self._message is not None:
            self._group.begin(self._message)
            self._sum, self._said = _Sum.BEGUN, False

    def _wait_for_sum(self, answered: bool) -> bool:
        """Waits a moment for the sum, if that comes next, and returns whether it does. The lead passes it on."""
        group = self._group
        if group is None or self._sum is not _Sum.BEGUN or not (answered or group.rank == 0):
            return False
        try:
            if group.done(_SLICE):
                self._sum = _Sum.DONE
        except SumLost:
            self._sum = _Sum.LOST
        if self._sum is _Sum.DONE and group.rank == 0 and not self._said:
            self._current = (self._current + 1) % 2
            place = self._places[self._current]
            if place.data_ptr() != group.vector.data_ptr():
                place.copy_(group.vector)
            self._send(Kind.SUMMED, group.generation, self._replica.number(place))
            self._said = True
        return True

    def _patience(self) -> float | None:
        """Returns the seconds to wait for the master's word: limited once this worker sees that a member has died."""
        return _KNOWN_BY if self._sum is _Sum.LOST else None

    def _word(self, seconds: float | None) -> tuple[int, int, int, int] | None:
        """Returns the master's next word; waits at most `seconds`, and returns None if there is none yet. Raises
        SessionEnded, and SumLost if a sum was lost and the master knows of no death.
        """
        if not select.select([self._lines[0].socket], [], [], seconds)[0]:
            if seconds:
                raise SumLost("the sum with the other workers failed, though all of them are there")
            return None
        data = self._lines[0].received()
        if len(data) < REPLY.size:
            raise SessionEnded("the master has ended")
        clock, served, t, mark = REPLY.unpack(data)
        return clock, served, t, mark

    def _regroup(self, generation: int, size: int, rank: int, word: int) -> bool:
        """Obeys a word that is not a reply; returns False for a reply. Raises Withdrawn."""
        group = self._group
        if word == Mark.WITHDRAWN:
            self._leave()  # the others' next sum is without this message
            raise Withdrawn
        if word == Word.BROKEN:
            if group is not None and group.generation == generation:
                group.broken = True
                if self._sum is not _Sum.DONE:
                    self._sum = _Sum.NONE  # until all live members are there to begin it once more
        elif word == Word.REGROUP:
            self._leave()
            self._group = self._in_group(generation, size, rank)
            self._begin()
        return word in list(Word)

    def _leave(self) -> None:
        if (group := self._group) is not None:
            group.leave()
            self._left.append(group)
            clean = [v for v in self._places if v.data_ptr() != group.vector.data_ptr()]
            self._places = [*clean, self._replica.sums[2]][:2]
        self._group, self._sum = None, _Sum.NONE

    def _restore(self) -> None:
        """Has the master write replica and reply."""
        self._send(Kind.STATE, 0, 0)
        while (word := self._word(None)) is not None and word[3] != Word.STATE:
            assert word[3] == Word.BROKEN, "a round without this worker"
        self._leave()


class CollectiveMasterEnd(SharedMasterEnd):
    """A master's sessions whose messages come as sums. `center`: the center's vectors; `gives_up`: asked a few times a
    second, while a sum is awaited, whether to give the round back.
    """

    sums = True

    def __init__(self, links: Sequence[Link], center: dict[str, Tensor], gives_up: Callable[[], bool]):
        super().__init__(links)
        self._replicas = {link.worker: link.replica for link in links if link.replica is not None}
        self._center, self._gives_up = center, gives_up
        self._sums = next(iter(self._replicas.values())).sums
        self._sum = self._sums[0]
        self._reply = torch.empty_like(self._sum)
        self._group = sorted(self._replicas)  # by rank
        self._generation, self._broken = 0, False
        self._summed = -1  # the generation whose sum is there
        self._found: list[Request] = []  # that came while a sum was awaited

    def requests(self, timeout: float | None) -> list[Request]:
        found, self._found = self._found, []
        return found or self._heard(timeout)

    def rest(self, worker: int) -> list[Request]:
        found = [request for request in self._found if request.worker == worker]
        self._found = [request for request in self._found if request.worker != worker]
        return found + [request for request in super().rest(worker) if not self._takes(request)]

    def lent(self, request: Request) -> tuple[Tensor | None, Tensor]:
        if request.kind is Kind.JOIN:  # others may still ask for the last round's reply
            return None, self._memory[request.worker]["reply"]
        return self._sum, self._reply

    def reply(self, request: Request, clock: int, served: int, mark: Mark = Mark.NONE, t: int | None = None) -> None:
        if mark is Mark.WITHDRAWN:
            self._broken = True  # the worker may have begun a sum
        elif request.kind is Kind.JOIN:
            self._replicas[request.worker].begin(self._center)
        super().reply(request, clock, served, mark, t)

    def summed(self, members: Sequence[Request]) -> Sequence[Request]:
        sessions = [(request, self._sockets.get(request.worker)) for request in members]  # one that is back has another
        while there := [request for request, of in sessions if of and self._sockets.get(request.worker) is of]:
            group = [request.worker for request in there]
            if self._broken or group != self._group:
                self._regroup(group)
            while self._summed == self._generation or not self._broken:
                if self._summed == self._generation:
                    self._summed = -1
                    return there
                found = self._heard(_LOOK)
                self._found += found
                if not found and self._gives_up():
                    return []
        return []

    def _heard(self, timeout: float | None) -> list[Request]:
        return [request for request in super().requests(timeout) if not self._takes(request)]

    def _takes(self, request: Request) -> bool:
        """Whether the request concerns the sums alone, and is dealt with here. A member's loss is noted, too."""
        if request.kind is Kind.SUMMED:
            self._summed, self._sum = request.t, self._sums[request.vector]
        elif request.kind is Kind.STATE:
            self._replicas[request.worker].begin(self._center)
            self._memory[request.worker]["reply"].copy_(self._reply)
            self._word(request.worker, (0, 0, 0), Word.STATE)
            self._broken = True  # the worker has left the group
        elif request.kind is Kind.LOST and request.worker in self._group and not self._broken:
            self._broken = True
            for worker in self._group:
                self._word(worker, (self._generation, 0, 0), Word.BROKEN)
        return request.kind in (Kind.SUMMED, Kind.STATE)

    def _regroup(self, group: list[int]) -> None:
        self._generation, self._group, self._broken = self._generation + 1, group, False
        for rank, worker in enumerate(group):
            self._word(worker, (self._generation, len(group), rank), Word.REGROUP)

    def _word(self, worker: int, numbers: tuple[int, int, int], word: Word) -> None:
        self.say(worker, REPLY.pack(*numbers, word))
