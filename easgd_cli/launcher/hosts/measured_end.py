"""The ends of measured links on a host that has joined: `FarEnd` gives and takes vectors, and exchanges as a worker
does; `FarMaster` is a master of a slice.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch

from easgd_cli.algorithms.base import CENTER
from easgd_cli.launcher.hosts.door import Door, Role, connect
from easgd_cli.launcher.hosts.far_sessions import IncomingSession, OutgoingSession
from easgd_cli.launcher.processes.child import Child
from easgd_cli.settings import targets
from easgd_cli.system import network
from easgd_cli.system.channel import ChannelClosed
from easgd_cli.system.files import scratch_directory
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.transport.base import SessionEnded
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind, Refused
from easgd_cli.transport.relay import MasterRelay
from easgd_cli.transport.shared import Link, SharedMasterEnd, SharedWorkerEnd
from easgd_cli.transport.turn import SendTurn, turns

_SECONDS = 10.0  # to connect
SILENCE = 60.0


def memory_of(size: int) -> SharedTensors:
    """Allocates the vectors of a session: x [size] and reply [size], both random."""
    memory = SharedTensors.allocate({name: ((size,), torch.float32) for name in ("x", "reply")})
    for v in memory.tensors.values():
        v.uniform_()
    return memory


def link_of(worker: int, memory: SharedTensors, masters: int = 1) -> Link:
    """Returns a session with so many masters; the hosts at both ends of a measured link make theirs by this."""
    further = tuple(socket.socketpair() for _ in range(masters - 1))
    return Link(worker, memory, *socket.socketpair(), further=further)


class FarEnd(threading.Thread):
    """One session, in a thread of its own, until the other side ends it. `memory`: its vectors [size]. `asked`: its
    `number`; `here`, the entry before which the first host's slices end; and `masters`, of each master elsewhere its
    place, the first entry of its slice, the entry before which the slice ends, and its address.
    """

    def __init__(self, address: tuple[str, int], secret: bytes, memory: SharedTensors, asked: Mapping[str, Any]):
        super().__init__(daemon=True)
        self._address, self._secret, self._asked = address, secret, asked
        self._link = link_of(int(asked["number"]), memory, 1 + len(asked["masters"]))
        self.start()

    def run(self) -> None:
        with suppress(Refused, OSError, ConnectionEnded, SessionEnded), ExitStack() as stack:
            sock = connect(self._address, self._secret, _SECONDS, Role.WORKER, self._link.worker)
            connection = Connection(sock, SILENCE, self._link.memory.nbytes())
            stack.callback(connection.close)
            for line, (place, first, last, host, port) in enumerate(self._asked["masters"], 1):
                end, there = self._link.for_master(line, slice(int(first), int(last))), (str(host), int(port))
                out = OutgoingSession(there, self._secret, SILENCE, int(place), end, lambda how: connection.close())
                stack.callback(out.connection.close)
            self._serve(connection, self._link)

    def end(self) -> None:
        """Waits until the other side has ended the session, for `_SECONDS` at most."""
        self.join(_SECONDS)

    def _serve(self, connection: Connection, link: Link) -> None:
        here = link.for_master(0, slice(0, int(self._asked["here"])))
        says = MasterRelay(SharedMasterEnd([here]), link.packing, connection)
        worker, x = SharedWorkerEnd(link.for_worker()), link.memory["x"]
        while True:
            kind, text, count = connection.next()
            if kind is FrameKind.REPLY:
                says.reply(text, count)
                continue
            if count:
                connection.fill([link.memory["reply"]])
            if text == b"give":
                connection.post(FrameKind.MESSAGE, b"", [x])
            elif text.startswith(b"exchange "):
                threading.Thread(target=_exchange, args=(connection, worker, int(text[9:])), daemon=True).start()
            else:
                connection.post(FrameKind.MESSAGE, b"")


def _exchange(connection: Connection, worker: SharedWorkerEnd, times: int) -> None:
    with suppress(SessionEnded):
        began = time.perf_counter()
        exchange(worker, times)
        connection.post(FrameKind.MESSAGE, str(time.perf_counter() - began).encode())


def exchange(worker: SharedWorkerEnd, times: int) -> None:
    """Makes so many exchanges, one after another. Raises SessionEnded."""
    for t in range(times):
        worker.post(worker.vectors["x"], t)
        worker.collect()


class MasterProcess:
    """A master in a process of its own, with these sessions and a center [size]. `algo`: target and parameters of its
    method. Raises ChannelClosed where the process cannot begin.
    """

    def __init__(self, links: Sequence[Link], size: int, algo: Mapping[str, Any]):
        self._stack = ExitStack()
        logs = self._stack.enter_context(scratch_directory())
        method = targets.make("algo", dict(algo), {})
        center = SharedTensors.of({name: torch.rand(size) for name in method.variables[CENTER].state})
        self._master = Child("master", Master, MasterStart(method, None, center, list(links), None), logs / "log")
        for link in links:
            assert link.master_socket is not None
            link.master_socket.close()
        try:
            while self._master.channel.wait()[0]["kind"] != "ready":
                pass
        except ChannelClosed:
            self.close()
            raise
        self._master.channel.post({"kind": "start", "began": time.monotonic()})

    def close(self) -> None:
        self._master.kill()
        self._master.close()
        self._stack.close()


class FarMaster:
    """A master of a slice [size] on this host, which has joined. The sessions of so many `workers` come in by its
    `port` at the address `own`.
    """

    def __init__(self, own: str, secret: bytes, size: int, workers: int, algo: Mapping[str, Any]):
        self._links, self._turns = [link_of(worker, memory_of(size)) for worker in range(workers)], turns()
        self._sessions: list[IncomingSession] = []
        self._master = MasterProcess([link.for_master() for link in self._links], size, algo)
        listener = network.listener("join", own, 0)
        self._door, self.port = Door(listener, secret, self._enters), int(listener.getsockname()[1])

    def _enters(self, sock: socket.socket, address: str, role: int, worker: int, place: int) -> None:
        if role == Role.SESSION and worker < len(self._links):
            link, turn = self._links[worker].for_worker(), SendTurn(self._turns)
            self._sessions.append(IncomingSession(Connection(sock, SILENCE, link.memory.nbytes(), turn), turn, link))
        else:
            sock.close()

    def end(self) -> None:
        """Ends the master and its sessions."""
        self._door.close()
        self._master.close()
        for session in self._sessions:
            session.end(0.0)
