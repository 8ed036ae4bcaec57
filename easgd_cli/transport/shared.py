"""The transport of one machine: vectors in anonymous shared memory, a socket per worker for a few bytes.

An exchange sends no vector. The worker writes 16 bytes that say which of its vectors it lends, the master reads that
vector where it lies, updates the center and writes the reply into the worker's memory, and sends 32 bytes back. Latency
is two wake-ups; the worker spends them on its gradient.

Where several masters own a slice of the center each (masters=k), a worker has a socket to each of them: it tells all of
its message, and each reads and writes its slice of the same vectors.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from easgd_cli.algorithms.base import CENTER, WHOLE, Method
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.transport.base import PULL, Kind, Mark, Reply, Request, SessionEnded, Withdrawn, index_of
from easgd_cli.transport.packing import Packing
from easgd_cli.transport.replica import Replica

REQUEST = struct.Struct("<HhHhq")  # kind, vector, variable, fragment, t
REPLY = struct.Struct("<qqqBxxxxxxx")  # clock, served, t, mark


@dataclass
class Link:
    """What a session is made of; the launcher makes it and hands each side its end. `None`: not this side's."""

    worker: int
    memory: SharedTensors
    worker_socket: socket.socket | None
    master_socket: socket.socket | None
    variables: tuple[str, ...] = (CENTER,)
    home: str = CENTER  # the variable from which it begins again once it was lost
    packing: Packing = field(default=Packing(0))  # for the network, where one lies between
    # the worker's socket and the master's of its sessions with masters 1, 2, ..., where slices have a master each
    further: tuple[tuple[socket.socket | None, socket.socket | None], ...] = ()
    entries: slice = field(default_factory=lambda: slice(None))  # of the vectors, those of the master of this side
    replica: Replica | None = None  # where messages go into a sum (collective.py)

    @classmethod
    def new(
        cls, worker: int, method: Method, size: int, dtype: torch.dtype, *, average: bool = False, masters: int = 1
    ) -> Link:
        """Allocates the worker's vectors [size], its reply, and an average of its own to keep where asked. Raises
        MemoryError.
        """
        names = (
            *method.state,
            *method.scratch,
            *(("reply",) if method.variables else ()),
            *(("average",) if average else ()),
        )
        a, b = socket.socketpair()
        memory = SharedTensors.allocate({name: ((size,), dtype) for name in names})
        packing, further = Packing.of(method, worker), tuple(socket.socketpair() for _ in range(masters - 1))
        return cls(worker, memory, a, b, tuple(method.variables), method.home(worker), packing, further)

    @property
    def sockets(self) -> list[tuple[socket.socket | None, socket.socket | None]]:
        """The worker's and the master's of its session with each master."""
        return [(self.worker_socket, self.master_socket), *self.further]

    def with_sockets(
        self, worker: socket.socket | None = None, master: socket.socket | None = None,
        further: Sequence[socket.socket | None] = (),
    ) -> Link:  # fmt: skip
        """The same session of the worker, with these; `further`: the worker's of those with further masters."""
        return replace(
            self, worker_socket=worker, master_socket=master, further=tuple((sock, None) for sock in further)
        )

    def for_worker(self) -> Link:
        return self.with_sockets(self.worker_socket, further=[worker for worker, _ in self.further])

    def for_master(self, place: int = 0, entries: slice = slice(None)) -> Link:
        """For that of these entries, at that place among the masters."""
        return replace(self.with_sockets(master=self.sockets[place][1]), entries=entries)

    def close_memory(self) -> None:
        """Gives the descriptors of its memory back."""
        self.memory.close()
        if self.replica is not None:
            self.replica.close()

    def close_sockets(self) -> None:
        """The launcher's copies: while one is open, no side ever sees the other's end."""
        for pair in self.sockets:
            for s in pair:
                if s is not None:
                    s.close()


class Elsewhere(Protocol):
    """A worker's vectors where they are not the shared ones, but on a device that works on its own."""

    vectors: dict[str, Tensor]

    def send(self, name: str) -> None:
        """Begins to make that vector a message."""

    def sent(self) -> None:
        """Waits until it can be read by the master."""

    def receive(self) -> None:
        """Has the reply in its place for whatever is asked of the device from here on."""


class _Line:
    """A worker's socket to one master. `renew`: see `SharedWorkerEnd`."""

    def __init__(self, sock: socket.socket, renew: Callable[[], socket.socket] | None):
        self.socket, self._renew = sock, renew
        self._asked = b""  # the last request

    def ask(self, data: bytes) -> None:
        self._asked = data
        self._repeat()

    def answer(self) -> bytes:
        """The reply to what was asked last. Raises SessionEnded."""
        while len(data := self.received()) < REPLY.size:
            self._next_master()
            self._repeat()
        return data

    def received(self) -> bytes:
        """A reply, or less of one: the master has ended."""
        try:
            return self.socket.recv(REPLY.size, socket.MSG_WAITALL)
        except ConnectionResetError:
            return b""

    def _repeat(self) -> None:
        """Asks, until it has been heard."""
        while True:
            try:
                self.socket.sendall(self._asked)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._next_master()

    def _next_master(self) -> None:
        self.socket.close()
        if self._renew is None:
            raise SessionEnded("the master has ended")
        self.socket = self._renew()


class SharedWorkerEnd:
    """A worker's session. Its vectors are the shared ones, or lie `elsewhere`: then the master is told of a message in
    `collect`.

    `renew` waits for the socket of a session with the next master when the one of this place has ended, and raises
    SessionEnded where none follows; what had no reply is asked for there once more. With several masters a reply has
    come when all have answered: its clock is that of the first, and `served` counts the exchanges of all of them.
    """

    def __init__(
        self, link: Link, elsewhere: Elsewhere | None = None, renew: Callable[[int], socket.socket] | None = None
    ):
        self._lines: list[_Line] = []
        for place, (sock, _) in enumerate(link.sockets):
            assert sock is not None
            self._lines.append(_Line(sock, None if renew is None else partial(renew, place)))
        self._memory = link.memory  # whose tensors are lent
        self._names = list(link.memory.tensors)
        self._elsewhere = elsewhere
        # what is posted, of which the master is yet to be told: kind, clock, message, variable and fragment
        self._untold: tuple[Kind, int, int, int, int] | None = None
        self._variables = {name: i for i, name in enumerate(link.variables)}
        self._home = self._variables.get(link.home, 0)
        own = dict(link.memory.tensors if elsewhere is None else elsewhere.vectors)
        self._reply = own.pop("reply", None)
        self.vectors: dict[str, Tensor] = own
        self._index = {v.data_ptr(): self._names.index(name) for name, v in self.vectors.items()}

    @property
    def reply(self) -> Tensor | None:
        return self._reply

    def post(
        self, message: Tensor | None, t: int, to: str = CENTER, kind: Kind = Kind.EXCHANGE, *, fragment: int = WHOLE
    ) -> None:
        index = PULL if message is None else index_of(message, self._index)
        if self._elsewhere is None or message is None:
            self._send(kind, t, index, self._variables[to], fragment)
        else:
            self._elsewhere.send(self._names[index])
            self._untold = (kind, t, index, self._variables[to], fragment)

    def collect(self) -> Reply:
        if self._elsewhere is not None and self._untold is not None:
            self._elsewhere.sent()
            self._send(*self._untold)
            self._untold = None
        said = [REPLY.unpack(line.answer()) for line in self._lines]
        clock, served, t, mark = said[0]
        for _, by_another, at, how in said[1:]:
            # who comes back goes on from the latest clock that one of the masters has heard of it
            served, t, mark = served + by_another, max(t, at), max(mark, how)
        if mark == Mark.WITHDRAWN:
            raise Withdrawn
        assert self._reply is not None
        if self._elsewhere is not None:
            self._elsewhere.receive()
        return Reply(self._reply, clock, served, Mark(mark), t)

    def join(self, t: int) -> None:
        self._send(Kind.JOIN, t, 0, self._home)

    def checkpoint(self, t: int) -> None:
        self._send(Kind.CHECKPOINT, t, 0)

    def close(self, t: int) -> None:
        self._send(Kind.CLOSE, t, 0)
        for line in self._lines:
            line.socket.close()

    def lose(self) -> None:
        """Ends without a word, as whoever is killed does."""
        for line in self._lines:
            with suppress(OSError):
                line.socket.shutdown(socket.SHUT_RDWR)

    def _send(self, kind: Kind, t: int, vector: int, to: int = 0, fragment: int = WHOLE) -> None:
        data = REQUEST.pack(kind, vector, to, fragment, t)
        for line in self._lines:
            line.ask(data)


def send(sock: socket.socket, data: bytes) -> None:
    """To a worker; of one that was killed after posting the exchange has happened, and the next poll says LOST."""
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


class SharedMasterEnd:
    """A master's sessions, served in the order in which their requests are found.

    `handed`: the vectors of each worker where they lie on the center's device (`on_device.hand_out`), else those of the
    shared memory.
    """

    sums = False

    def __init__(self, links: Sequence[Link], handed: Mapping[int, Mapping[str, Tensor]] | None = None):
        replies = [vectors["reply"] for vectors in (handed or {}).values()]
        self._device = torch.get_device_module(replies[0].device) if replies else None
        self._memory = handed if handed is not None else {link.worker: _own_part(link) for link in links}
        self._names = {link.worker: list(link.memory.tensors) for link in links}
        self._sockets: dict[int, socket.socket] = {}
        self._worker_of: dict[int, int] = {}
        self._poll = select.poll()
        self._watched, self.called = -1, False  # whether there is something to read where it watches, too
        for link in links:
            if link.master_socket is not None:  # a worker that is away has none
                self.admit(link.worker, link.master_socket)

    @property
    def open(self) -> Collection[int]:
        """The workers whose sessions are."""
        return self._sockets.keys()

    def requests(self, timeout: float | None) -> list[Request]:
        """Waits at most `timeout` seconds (None: for ever) for the next requests; may return none."""
        found: list[Request] = []
        self.called = False
        for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000):
            if fd == self._watched:
                self.called = True
            else:
                found.append(self._request(self._worker_of[fd]))
        return found

    def watch(self, fd: int) -> None:
        """Waits for what comes on this descriptor as for requests, and leaves it to the caller."""
        self._watched = fd
        self._poll.register(fd, select.POLLIN)

    def rest(self, worker: int) -> list[Request]:
        """What a worker has still said in the session it had, whose process is known to have ended: LOST at last."""
        found: list[Request] = []
        while worker in self._sockets:
            found.append(self._request(worker))
        return found

    def admit(self, worker: int, sock: socket.socket) -> None:
        """A new session of a worker that has had one, and has its vectors where they were."""
        self._sockets[worker] = sock
        self._worker_of[sock.fileno()] = worker
        self._poll.register(sock, select.POLLIN)

    def summed(self, members: Sequence[Request]) -> Sequence[Request]:
        return members

    def lent(self, request: Request) -> tuple[Tensor | None, Tensor]:
        memory = self._memory[request.worker]
        message = None if request.vector == PULL else memory[self._names[request.worker][request.vector]]
        return message, memory["reply"]

    def reply(self, request: Request, clock: int, served: int, mark: Mark = Mark.NONE, t: int | None = None) -> None:
        # None: its end has been found beside the message that completed its round, and is yet to be told
        if request.worker in self._sockets:
            if self._device is not None:
                self._device.synchronize()  # the rule has been asked for, but is it done?
            self.say(request.worker, REPLY.pack(clock, served, request.t if t is None else t, mark))

    def say(self, worker: int, data: bytes) -> None:
        """What has the size of a reply, to a worker that may have gone."""
        if (sock := self._sockets.get(worker)) is not None:
            send(sock, data)

    def _request(self, worker: int) -> Request:
        sock = self._sockets[worker]
        try:
            data = sock.recv(REQUEST.size, socket.MSG_WAITALL)
        except ConnectionResetError:
            data = b""
        if len(data) == REQUEST.size:
            kind, vector, to, fragment, t = REQUEST.unpack(data)
            request = Request(worker, Kind(kind), t, vector, to, fragment)
        else:
            request = Request(worker, Kind.LOST, -1, 0)
        if request.kind in (Kind.CLOSE, Kind.LOST):
            self._poll.unregister(sock)
            del self._sockets[worker], self._worker_of[sock.fileno()]
            sock.close()
        return request


def _own_part(link: Link) -> Mapping[str, Tensor]:
    """Of the worker's vectors what this master serves."""
    if link.entries == slice(None):
        return link.memory.tensors
    return {name: v[link.entries] for name, v in link.memory.tensors.items()}
