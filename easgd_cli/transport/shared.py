"""The transport of one machine: vectors in anonymous shared memory, a socket per worker for a few bytes.

An exchange sends no vector. The worker writes 16 bytes that say which of its vectors it lends, the master reads that
vector where it lies, updates the center and writes the reply into the worker's memory, and sends 24 bytes back. Latency
is two wake-ups; the worker spends them on its gradient.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from easgd_cli.algorithms.base import CENTER, WHOLE, Method
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.transport.base import PULL, Kind, Mark, Reply, Request, SessionEnded, Withdrawn, index_of
from easgd_cli.transport.packing import Packing
from easgd_cli.transport.replica import Replica

_REQUEST = struct.Struct("<HhHhq")  # kind, vector, variable, fragment, t
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
    replica: Replica | None = None  # where messages go into a sum (collective.py)

    @classmethod
    def new(cls, worker: int, method: Method, size: int, dtype: torch.dtype, *, average: bool = False) -> Link:
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
        packing = Packing.of(method, worker)
        return cls(worker, memory, a, b, tuple(method.variables), method.home(worker), packing)

    def with_sockets(self, worker: socket.socket | None = None, master: socket.socket | None = None) -> Link:
        """The same session of the worker, with these."""
        return replace(self, worker_socket=worker, master_socket=master)

    def for_worker(self) -> Link:
        return self.with_sockets(worker=self.worker_socket)

    def for_master(self) -> Link:
        return self.with_sockets(master=self.master_socket)

    def close_memory(self) -> None:
        """Gives the descriptors of its memory back."""
        self.memory.close()
        if self.replica is not None:
            self.replica.close()

    def close_sockets(self) -> None:
        """The launcher's copies: while one is open, no side ever sees the other's end."""
        for s in (self.worker_socket, self.master_socket):
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


class SharedWorkerEnd:
    """A worker's session. Its vectors are the shared ones, or lie `elsewhere`: then the master is told of a message in
    `collect`.

    `renew` waits for the socket of a session with the next master when this one has ended, and raises SessionEnded
    where none follows; what had no reply is asked for there once more.
    """

    def __init__(
        self, link: Link, elsewhere: Elsewhere | None = None, renew: Callable[[], socket.socket] | None = None
    ):
        assert link.worker_socket is not None
        self._socket, self._renew = link.worker_socket, renew
        self._asked = b""  # the last request
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
        data = self._received()
        while len(data) < REPLY.size:
            self._next_master()
            self._repeat()
            data = self._received()
        clock, served, t, mark = REPLY.unpack(data)
        if mark == Mark.WITHDRAWN:
            raise Withdrawn
        assert self._reply is not None
        if self._elsewhere is not None:
            self._elsewhere.receive()
        return Reply(self._reply, clock, served, Mark(mark), t)

    def join(self, t: int) -> None:
        self._send(Kind.JOIN, t, 0, self._home)

    def _received(self) -> bytes:
        """A reply, or less of one: the master has ended."""
        try:
            return self._socket.recv(REPLY.size, socket.MSG_WAITALL)
        except ConnectionResetError:
            return b""

    def checkpoint(self, t: int) -> None:
        self._send(Kind.CHECKPOINT, t, 0)

    def close(self, t: int) -> None:
        self._send(Kind.CLOSE, t, 0)
        self._socket.close()

    def lose(self) -> None:
        """Ends without a word, as whoever is killed does."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, kind: Kind, t: int, vector: int, to: int = 0, fragment: int = WHOLE) -> None:
        self._asked = _REQUEST.pack(kind, vector, to, fragment, t)
        self._repeat()

    def _repeat(self) -> None:
        """Asks, until it has been heard."""
        while True:
            try:
                self._socket.sendall(self._asked)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._next_master()

    def _next_master(self) -> None:
        self._socket.close()
        if self._renew is None:
            raise SessionEnded("the master has ended")
        self._socket = self._renew()


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
        self._memory = handed if handed is not None else {link.worker: link.memory.tensors for link in links}
        self._names = {link.worker: list(link.memory.tensors) for link in links}
        self._sockets: dict[int, socket.socket] = {}
        self._worker_of: dict[int, int] = {}
        self._poll = select.poll()
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
        for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000):
            found.append(self._request(self._worker_of[fd]))
        return found

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
        sock = self._sockets.get(request.worker)
        if sock is not None:
            if self._device is not None:
                self._device.synchronize()  # the rule has been asked for, but is it done?
            send(sock, REPLY.pack(clock, served, request.t if t is None else t, mark))

    def _request(self, worker: int) -> Request:
        sock = self._sockets[worker]
        try:
            data = sock.recv(_REQUEST.size, socket.MSG_WAITALL)
        except ConnectionResetError:
            data = b""
        if len(data) == _REQUEST.size:
            kind, vector, to, fragment, t = _REQUEST.unpack(data)
            request = Request(worker, Kind(kind), t, vector, to, fragment)
        else:
            request = Request(worker, Kind.LOST, -1, 0)
        if request.kind in (Kind.CLOSE, Kind.LOST):
            self._poll.unregister(sock)
            del self._sockets[worker], self._worker_of[sock.fileno()]
            sock.close()
        return request
