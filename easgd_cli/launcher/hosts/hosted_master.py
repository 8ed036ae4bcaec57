"""A master on a host that has joined: what its process begins with, and its sessions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.slices import of_slice
from easgd_cli.launcher.hosts.door import Role
from easgd_cli.launcher.hosts.far_sessions import IncomingSession
from easgd_cli.launcher.hosts.workplace import LinkFigures, Workplace
from easgd_cli.launcher.supervisor.parties import master_at
from easgd_cli.settings.schema import Interval
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.training.variables import Variables
from easgd_cli.transport.connection import Connection, RulesBroken
from easgd_cli.transport.packing import Packing
from easgd_cli.transport.shared import Link
from easgd_cli.transport.turn import SendTurn

if TYPE_CHECKING:
    from easgd_cli.launcher.hosts.party_thread import PartyThread


class HostedMaster:
    """A master on this host, and the sessions of all workers with it, which come in by the host's door."""

    slot = -1

    def __init__(self, host: Workplace, place: int):
        self._host, self._place, self.party = host, place, master_at(place)
        self.role = (Role.MASTER, place)
        self._admitting, self._begun, self._over = threading.Lock(), threading.Event(), False
        self._links: dict[int, Link] = {}
        self._lives: dict[int, int] = {}  # of each worker: the life of its last session, 1 before its first
        self._sessions: dict[int, IncomingSession | None] = {}  # None: the worker's first session is yet to come
        self._ended: dict[int, int] = {}  # of each worker: its last life that is known to have ended

    def prepare(self) -> int:
        """Allocates the slice's vectors. Returns the most bytes of vectors in one message. Raises MemoryError."""
        e = self._host.experiment
        entries, names = e.slices[self._place], Variables.names(e.method, average=e.average is not None)
        self._size, self._method = entries.stop - entries.start, of_slice(e.method, entries, e.size)
        self._center = SharedTensors.allocate({name: ((self._size,), e.dtype) for name in names})
        return self._center.nbytes()

    def begin(
        self, thread: PartyThread, begin: Mapping[str, Any], vectors: SharedTensors | None
    ) -> tuple[Any, MasterStart]:
        """Returns what the master's process runs, and its start. `begin`: what the stand-in has said; `vectors`: those
        of the slice that are not zero. Raises MemoryError.
        """
        e, self._post = self._host.experiment, thread.post
        for name, v in vectors.tensors.items() if vectors is not None else ():
            self._center[name].copy_(v)
        clocks = {int(worker): int(t) for worker, t in begin["clocks"].items()}
        before = e.slices[self._place].start
        self._links = {
            worker: replace(link, packing=Packing.of(e.method, worker, before))
            for worker in clocks
            for link in [Link.new(worker, self._method, self._size, e.dtype)]
        }
        self._lives, self._ended = dict.fromkeys(clocks, 1), dict.fromkeys(clocks, 0)
        self._sessions = dict.fromkeys(clocks)
        ends = [link.for_master() for link in self._links.values()]
        every = Interval.parse("eval.every", e.settings.eval.every)
        start = MasterStart(
            self._method, e.average, self._center, ends, every, clocks=clocks, several=True, tau=e.settings.tau,
            steps=e.steps, schedule=e.parts.schedule, **{name: begin[name] for name in MasterStart.plain},
        )  # fmt: skip
        return Master, start

    def begun(self) -> None:
        """Closes the sockets that the master's process has now, and lets sessions in."""
        for link in self._links.values():
            assert link.master_socket is not None
            link.master_socket.close()
        self._begun.set()

    def admit(self, worker: int, life: int, sock: socket.socket) -> None:
        """Takes in a session of this worker, in its `life`, once the master's process has begun."""
        turn = SendTurn(self._host.turns)
        connection = Connection(sock, self._host.silence, 0, turn)  # sends its beats while the slice is yet to come
        self._begun.wait()
        with self._admitting:
            if self._over or worker not in self._links or life <= self._ended[worker] or life < self._lives[worker]:
                connection.close()
                turn.close()
                return
            link, theirs = self._links[worker].for_worker(), None
            if life > 1 or self._sessions.get(worker, self) is not None:  # not its first, whose socket the master has
                self._finish(worker)
                mine, theirs = socket.socketpair()
                link = link.with_sockets(mine)
            self._lives[worker], self._sessions[worker] = life, IncomingSession(connection, turn, link)
            if theirs is not None:
                self._post({"kind": "session", "worker": worker}, theirs)

    def reply(self, text: bytes, count: int) -> None:
        """Raises ConnectionEnded: a master asks for nothing, so no reply can come."""
        raise RulesBroken

    def told(self, message: Mapping[str, Any]) -> bool:
        """Returns whether the master's process is to be told this. At the news that a worker is gone for good, or that
        one of its lives has ended, the worker's session ends first, so that the master reads all that the worker has
        said. The worker may have had no session in that life, and may be back already in its next.
        """
        if (kind := message["kind"]) in ("gone", "again"):
            with self._admitting:
                worker = int(message["worker"])
                if kind == "again":
                    self._ended[worker] = int(message["life"])
                if kind == "gone" or self._lives[worker] <= self._ended[worker]:
                    self._finish(worker)
        return kind != "again"

    def _finish(self, worker: int) -> None:
        if worker in self._sessions:
            if (before := self._sessions.pop(worker)) is not None:
                before.end(self._host.silence)
            elif (mine := self._links[worker].worker_socket) is not None:
                mine.close()

    def ended(self) -> None:
        """Does nothing: the sessions end with the master's process."""

    def carried(self) -> list[LinkFigures]:
        """Returns the figures of each worker's session, by the worker's number."""
        # without the lock: who holds it may wait for a session's end, and the master's messages may not wait for that
        of = self._sessions.copy()
        links = [(worker, session.connection) for worker, session in of.items() if session is not None]
        return [(worker, link.sent, link.received, link.rate()) for worker, link in links]

    def close(self) -> None:
        """Ends all sessions at once."""
        self._over = True
        self._begun.set()
        with self._admitting:
            for session in self._sessions.values():
                if session is not None:
                    session.end(0.0)
