"""The transport of one machine: vectors in anonymous shared memory, a socket per worker for a few bytes.

An exchange sends no vector. The worker writes 16 bytes that say which of its vectors it lends, the master reads that
vector where it lies, updates the center and writes the reply into the worker's memory, and sends 32 bytes back. Latency
is two wake-ups; the worker spends them on its gradient.

Where several masters own a slice of the center each (masters=k), a worker has a socket to each of them: it tells every
master of its message, and each reads and writes its slice of the same vectors.
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
    """What a session is made of; the launcher makes it and hands each side its end. `None`: the other side's socket."""

    worker: int
    memory: SharedTensors
    worker_socket: socket.socket | None
    master_socket: socket.socket | None
    variables: tuple[str, ...] = (CENTER,)
    home: str = CENTER  # the variable from which the worker begins again after it was lost
    packing: Packing = field(default=Packing(0))  # for a network between the two sides, if there is one
    # where slices have a master each, the worker's and the master's sockets of the sessions with masters 1, 2, ...
    further: tuple[tuple[socket.socket | None, socket.socket | None], ...] = ()
    entries: slice = field(default_factory=lambda: slice(None))  # of the vectors, those that this master serves
    replica: Replica | None = None  # where messages go into a sum (collective.py)

    @classmethod
    def new(
        cls, worker: int, method: Method, size: int, dtype: torch.dtype, *, average: bool = False, masters: int = 1
    ) -> Link:
        """Allocates the worker's vectors [size], its reply, and an `average` if asked. Raises MemoryError."""
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
        """The worker's and the master's socket of the session with each master."""
        return [(self.worker_socket, self.master_socket), *self.further]

    def with_sockets(
        self, worker: socket.socket | None = None, master: socket.socket | None = None,
        further: Sequence[socket.socket | None] = (),
    ) -> Link:  # fmt: skip
        """Returns this link with these sockets; `further`: the worker's sockets to further masters."""
        return replace(
            self, worker_socket=worker, master_socket=master, further=tuple((sock, None) for sock in further)
        )

    def for_worker(self) -> Link:
        return self.with_sockets(self.worker_socket, further=[worker for worker, _ in self.further])

    def for_master(self, place: int = 0, entries: slice = slice(None)) -> Link:
        """Returns the end of the master that serves these entries, at that place among the masters."""
        return replace(self.with_sockets(master=self.sockets[place][1]), entries=entries)

    def close_memory(self) -> None:
        """Gives the descriptors of its memory back."""
        self.memory.close()
        if self.replica is not None:
            self.replica.close()

    def close_sockets(self) -> None:
        """Closes the launcher's copies: while one is open, neither side sees that the other has ended."""
        for pair in self.sockets:
            for s in pair:
                if s is not None:
                    s.close()


class Elsewhere(Protocol):
    """A worker's vectors that lie not in shared memory, but on a device that works on its own."""

    vectors: dict[str, Tensor]

    def send(self, name: str) -> None:
        """Begins to make that vector readable for the master."""

    def sent(self) -> None:
        """Waits until the master can read it."""

    def receive(self) -> None:
        """Has the reply in its place before anything that is asked of the device from here on."""


class _Line:
    """A worker's socket to one master. `renew`: see `SharedWorkerEnd`."""

    def __init__(self, sock: socket.socket, renew: Callable[[], socket.socket] | None):
        self.socket, self._renew = sock, renew
        self._asked = b""  # the last request

    def ask(self, data: bytes) -> None:
        self._asked = data
        self._repeat()

    def answer(self) -> bytes:
        """Returns the reply to the last request. Raises SessionEnded."""
        while len(data := self.received()) < REPLY.size:
            self._next_master()
            self._repeat()
        return data

    def received(self) -> bytes:
        """Returns a reply, or fewer bytes if the master has ended."""
        try:
            return self.socket.recv(REPLY.size, socket.MSG_WAITALL)
        except ConnectionResetError:
            return b""

    def _repeat(self) -> None:
        """Sends the last request, to the next master if this one has ended."""
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

    `renew` waits for the socket of a session with the next master when the master of this place has ended, and raises
    SessionEnded if none follows; a request without reply is repeated there. With several masters a reply has come when
    all have answered: its clock is the first one's, and `served` counts the exchanges of all of them.
    """

    def __init__(
        self, link: Link, elsewhere: Elsewhere | None = None, renew: Callable[[int], socket.socket] | None = None
    ):
        self._lines: list[_Line] = []
        for place, (sock, _) in enumerate(link.sockets):
            assert sock is not None
            self._lines.append(_Line(sock, None if renew is None else partial(renew, place)))
        self._memory = link.memory  # its tensors are lent
        self._names = list(link.memory.tensors)
        self._elsewhere = elsewhere
        # a request posted, of which the master is yet to be told: kind, clock, message, variable and fragment
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
            # a worker that comes back goes on from the latest clock that any master has heard of it
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
        """Ends the session without a word, as a killed worker does."""
        for line in self._lines:
            with suppress(OSError):
                line.socket.shutdown(socket.SHUT_RDWR)

    def _send(self, kind: Kind, t: int, vector: int, to: int = 0, fragment: int = WHOLE) -> None:
        data = REQUEST.pack(kind, vector, to, fragment, t)
        for line in self._lines:
            line.ask(data)


def send(sock: socket.socket, data: bytes) -> None:
    """Sends to a worker. If it was killed after posting, its exchange has happened, and the next poll says LOST."""
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


class SharedMasterEnd:
    """A master's sessions, served in the order in which their requests are found.

    `handed`: each worker's vectors on the center's device (`on_device.hand_out`); None: they lie in shared memory.
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
        self._watched, self.called = -1, False  # a further descriptor; whether it has something to read
        for link in links:
            if link.master_socket is not None:  # a worker that is away has none
                self.admit(link.worker, link.master_socket)

    @property
    def open(self) -> Collection[int]:
        """The workers whose sessions are open."""
        return self._sockets.keys()

    def requests(self, timeout: float | None) -> list[Request]:
        """Returns the next requests, or none; waits at most `timeout` seconds for them (None: for ever)."""
        found: list[Request] = []
        self.called = False
        for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000):
            if fd == self._watched:
                self.called = True
            else:
                found.append(self._request(self._worker_of[fd]))
        return found

    def watch(self, fd: int) -> None:
        """Lets `requests` end its wait, too, when there is something to read on this descriptor, and set `called`."""
        self._watched = fd
        self._poll.register(fd, select.POLLIN)

    def rest(self, worker: int) -> list[Request]:
        """Returns the last requests in the session of a worker whose process has ended, up to LOST or CLOSE."""
        found: list[Request] = []
        while worker in self._sockets:
            found.append(self._request(worker))
        return found

    def admit(self, worker: int, sock: socket.socket) -> None:
        """Begins a session of a worker; a worker that has had one before has its vectors where they were."""
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
        # no socket: a poll has found the session's end beside the last message of the round; LOST is yet to be told
        if request.worker in self._sockets:
            if self._device is not None:
                self._device.synchronize()  # the device may not have applied the rule yet
            self.say(request.worker, REPLY.pack(clock, served, request.t if t is None else t, mark))

    def say(self, worker: int, data: bytes) -> None:
        """Sends a worker data of the size of a reply, unless the worker has gone."""
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
    """Returns the part of the worker's vectors that this master serves."""
    if link.entries == slice(None):
        return link.memory.tensors
    return {name: v[link.entries] for name, v in link.memory.tensors.items()}
