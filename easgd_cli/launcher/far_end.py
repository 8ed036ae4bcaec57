"""The other end of a link that is measured: takes and gives vectors, and exchanges as a worker does."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import torch

from easgd_cli.launcher.door import ROLE, WORKER
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.transport.base import SessionEnded
from easgd_cli.transport.connection import Connection, ConnectionEnded, Refused, Sort, call
from easgd_cli.transport.relay import MasterStandIn
from easgd_cli.transport.shared import Link, SharedMasterEnd, SharedWorkerEnd

_SECONDS = 10.0  # to connect
_SILENCE = 60.0


def link_of(worker: int, size: int) -> Link:
    """A session of one vector [size] and its replies; both ends of a link have the same."""
    memory = SharedTensors.allocate({name: ((size,), torch.float32) for name in ("x", "reply")})
    for v in memory.tensors.values():
        v.uniform_()
    return Link(worker, memory, *socket.socketpair())


class FarEnd(threading.Thread):
    """One session, in a thread of its own, until the other side ends it."""

    def __init__(self, address: tuple[str, int], secret: bytes, session: int, size: int):
        super().__init__(daemon=True)
        self._address, self._secret, self._session, self._size = address, secret, session, size
        self.start()

    def run(self) -> None:
        with suppress(Refused, OSError, ConnectionEnded, SessionEnded):
            sock = call(self._address, self._secret, _SECONDS)
            sock.sendall(ROLE.pack(WORKER, self._session, 0))
            link = link_of(self._session, self._size)
            connection = Connection(sock, _SILENCE, link.memory.nbytes())
            try:
                self._serve(connection, link)
            finally:
                connection.close()

    def end(self) -> None:
        """Waits for its end, which the other side makes, at most so long as one connects."""
        self.join(_SECONDS)

    def _serve(self, connection: Connection, link: Link) -> None:
        says = MasterStandIn(SharedMasterEnd([link.for_master()]), link.packing, connection)
        worker, x = SharedWorkerEnd(link.for_worker()), link.memory["x"]
        while True:
            sort, text, count = connection.next()
            if sort is Sort.REPLY:
                says.reply(text, count)
                continue
            if count:
                connection.fill([link.memory["reply"]])
            if text == b"give":
                connection.post(Sort.MESSAGE, b"", [x])
            elif text.startswith(b"exchange "):
                threading.Thread(target=_exchange, args=(connection, worker, int(text[9:])), daemon=True).start()
            else:
                connection.post(Sort.MESSAGE, b"")


def _exchange(connection: Connection, worker: SharedWorkerEnd, times: int) -> None:
    with suppress(SessionEnded):
        began = time.perf_counter()
        for t in range(times):
            worker.post(worker.vectors["x"], t)
            worker.collect()
        connection.post(Sort.MESSAGE, str(time.perf_counter() - began).encode())
