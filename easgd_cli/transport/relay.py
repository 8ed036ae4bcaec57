"""The transport of many machines: a session over a network is two sessions with a connection in between.

    worker  <- shared memory ->  MasterRelay  <- network ->  WorkerRelay  <- shared memory ->  master
    on the worker's machine                                    on the master's machine

Neither worker nor master knows of the network: each has a session of its own machine, by `shared.py`. The message that
the worker lends is read where it lies and received whole into the master's machine's copy of that vector; only then is
the master asked. The reply goes the other way, from the copy's memory into the worker's. So a death in the middle
leaves an exchange that has not happened, and a next master finds the message where it was.

Where messages go into a sum (`collective.py`) both halves have a form of their own. Words cross whenever they are said.
Two kinds of vectors cross: the lead's sum, if the lead is not on the master's machine, and what a worker restores.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from torch import Tensor

from easgd_cli.algorithms.base import WHOLE
from easgd_cli.transport.base import NEW, PULL, Kind, Mark, Request, SessionEnded, Withdrawn
from easgd_cli.transport.collective import Word
from easgd_cli.transport.connection import Connection, FrameKind, RulesBroken
from easgd_cli.transport.packing import Packing
from easgd_cli.transport.shared import REPLY, REQUEST, Link, SharedMasterEnd, SharedWorkerEnd

_EXCHANGES = (Kind.EXCHANGE, Kind.CLOSING)
_ASKING = (*_EXCHANGES, Kind.JOIN)
_MOST_STEPS = 1 << 53  # a clock below that is exact in the record, whatever reads it


class MasterRelay:
    """On the worker's machine, in the master's place: passes on what the one worker of this `end` asks for."""

    def __init__(self, end: SharedMasterEnd, packing: Packing, connection: Connection):
        self._end, self._connection, self._packing = end, connection, packing
        self._asked: Request | None = None  # the request that has no reply yet
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._end.open:
            for request in self._end.requests(None):
                if request.kind in _ASKING:
                    self._asked = request
                text = REQUEST.pack(request.kind, request.vector, request.to, request.fragment, request.t)
                self._connection.post(FrameKind.REQUEST, text, self._sent(request))

    def _sent(self, request: Request) -> Sequence[Tensor]:
        """Returns the vectors that go with the request."""
        if request.kind in _EXCHANGES and (message := self._end.lent(request)[0]) is not None:
            return self._packing.packed(message, request)
        return ()

    def reply(self, text: bytes, count: int) -> None:
        """Passes on a reply that has come; `count`: bytes of its vector. Raises ConnectionEnded."""
        request, self._asked = self._asked, None
        if request is None or len(text) != REPLY.size:
            raise RulesBroken
        clock, served, t, mark = REPLY.unpack(text)
        if count:
            _receive(self._connection, self._packing, self._end.lent(request)[1], request)
        self._end.reply(request, clock, served, Mark(mark), t)

    def join(self) -> None:
        """Waits until all requests of the worker, which has ended, have been posted."""
        self._thread.join()


class SummedMasterRelay(MasterRelay):
    """A MasterRelay where messages go into a sum."""

    def __init__(self, end: SharedMasterEnd, link: Link, connection: Connection):
        assert link.replica is not None
        self._worker, self._sums, self._restored = link.worker, link.replica.sums, _restored(link)
        super().__init__(end, link.packing, connection)

    def _sent(self, request: Request) -> Sequence[Tensor]:
        return [self._sums[request.vector]] if request.kind is Kind.SUMMED else ()

    def reply(self, text: bytes, count: int) -> None:
        if len(text) != REPLY.size:
            raise RulesBroken
        if count:
            self._connection.fill(self._restored)
        self._end.say(self._worker, text)


class Relay(Protocol):
    """On the master's machine, in the worker's place."""

    def request(self, text: bytes, count: int) -> Kind:
        """Takes a request of the worker, whose `count` bytes of vectors follow, and returns its kind. Raises
        ConnectionEnded.
        """

    def lost(self) -> None:
        """Tells the master that the worker is lost: nothing comes any more."""

    def join(self, seconds: float | None = None) -> None:
        """Waits until the master has been told of a worker's last request, for at most `seconds`."""


class WorkerRelay:
    """On the master's machine, in the worker's place: asks the master for what comes on the connection.

    `vectors`: the worker's, by name and in its order, as they lie on this machine: whole, or the entries of the masters
    here; `variables`: the names of the method's.
    """

    def __init__(
        self, end: SharedWorkerEnd, vectors: Mapping[str, Tensor], variables: Sequence[str], packing: Packing,
        connection: Connection,
    ):  # fmt: skip
        self._end, self._connection, self._variables, self._packing = end, connection, variables, packing
        self._vectors, self._replies = list(vectors.values()), vectors.get("reply")
        self._asked: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._free = threading.Event()  # whether no reply is awaited
        self._free.set()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def request(self, text: bytes, count: int) -> Kind:
        """Takes a request of the worker, followed by `count` bytes of the vector that it lends, and returns its kind.
        Raises ConnectionEnded.
        """
        try:
            kind, vector, to, fragment, t = REQUEST.unpack(text)
            request = Request(-1, Kind(kind), t, vector, to, fragment)
        except (struct.error, ValueError) as e:
            raise RulesBroken from e
        if not self._may_come(request):
            raise RulesBroken
        if vector != PULL and kind in _EXCHANGES:
            # the message is whole before the master hears of it
            _receive(self._connection, self._packing, self._vectors[vector], request)
        else:
            self._connection.fill([])
        if kind in _ASKING:
            self._free.clear()
        self._asked.put(request)
        return request.kind

    def _may_come(self, request: Request) -> bool:
        if request.kind is Kind.LOST:  # it may die while it waits, and also where there is no variable
            return True
        return (
            self._free.is_set()
            and NEW <= request.t < _MOST_STEPS
            and PULL <= request.vector < len(self._vectors)
            and 0 <= request.to < len(self._variables)
            and WHOLE <= request.fragment < self._packing.fragments[request.to]
        )

    def lost(self) -> None:
        """Tells the master that the worker is lost: nothing comes any more."""
        self._asked.put(Request(-1, Kind.LOST, -1, 0))

    def _ask(self) -> None:
        ended = False
        while not ended:
            request = self._asked.get()
            ended = request.kind in (Kind.CLOSE, Kind.LOST)
            try:
                self._pass_on(request)
            except SessionEnded:
                return

    def _pass_on(self, request: Request) -> None:
        kind, t, end = request.kind, request.t, self._end
        if kind is Kind.CHECKPOINT:
            end.checkpoint(t)
        elif kind is Kind.CLOSE:
            end.close(t)
        elif kind is Kind.LOST:
            end.lose()
        else:
            if kind is Kind.JOIN:
                end.join(t)
            else:
                lent = None if request.vector == PULL else self._vectors[request.vector]
                end.post(lent, t, self._variables[request.to], kind, fragment=request.fragment)
            self._reply(request)

    def _reply(self, request: Request) -> None:
        try:
            reply = self._end.collect()
            text = REPLY.pack(reply.clock, reply.served, reply.t, reply.mark)
            assert self._replies is not None
            vectors = [] if reply.mark is Mark.AWAY else self._packing.packed(self._replies, request, reply=True)
        except Withdrawn:
            text, vectors = REPLY.pack(0, 0, 0, Mark.WITHDRAWN), []
        self._free.set()  # before it is sent: the next request is the answer to it
        self._connection.post(FrameKind.REPLY, text, vectors)

    def join(self, seconds: float | None = None) -> None:
        """Waits until the master has been told of a worker's last request, for at most `seconds`."""
        self._thread.join(seconds)


class SummedWorkerRelay:
    """A WorkerRelay where messages go into a sum. Words are passed on as they are, since no master follows another."""

    def __init__(self, link: Link, connection: Connection):
        assert link.worker_socket is not None and link.replica is not None
        self._socket, self._connection, self._sums = link.worker_socket, connection, link.replica.sums
        self._restored, self._joins = _restored(link), False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(ConnectionResetError):
            while len(text := self._socket.recv(REPLY.size, socket.MSG_WAITALL)) == REPLY.size:
                mark = REPLY.unpack(text)[-1]
                joined = self._joins and mark == Mark.NONE
                self._joins = self._joins and mark in set(Word)
                self._connection.post(FrameKind.REPLY, text, self._restored if joined or mark == Word.STATE else ())

    def request(self, text: bytes, count: int) -> Kind:
        try:
            number, vector, to, fragment, _ = REQUEST.unpack(text)
            kind = Kind(number)
        except (struct.error, ValueError) as e:
            raise RulesBroken from e
        summed = kind is Kind.SUMMED
        if (to, fragment) != (0, WHOLE) or (summed and not 0 <= vector < len(self._sums)):
            raise RulesBroken
        self._connection.fill([self._sums[vector]] if summed else [])
        self._joins = self._joins or kind is Kind.JOIN
        if kind is Kind.LOST:
            self.lost()
        else:
            with suppress(OSError):  # the master has ended, and the launcher hears of it
                self._socket.sendall(text)
        return kind

    def lost(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def join(self, seconds: float | None = None) -> None:
        """Does nothing: a request is passed on at once."""


def _restored(link: Link) -> list[Tensor]:
    """Returns the vectors that a worker gets that comes back, or has lost a sum: replica and reply."""
    assert link.replica is not None
    return [*link.replica.center.tensors.values(), link.memory["reply"]]


def _receive(connection: Connection, packing: Packing, v: Tensor, request: Request) -> None:
    """Reads what has been sent of a vector [d] into it. Raises ConnectionEnded."""
    room = packing.room(v, request)
    connection.fill(room)
    packing.unpack(room, v, request)
