"""A worker on a host that has joined: what its process begins with, and its sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.base import CENTER, Seen
from easgd_cli.launcher import kinds
from easgd_cli.launcher.hosts.door import Role, meeting_at
from easgd_cli.launcher.hosts.far_sessions import OutgoingSession
from easgd_cli.launcher.hosts.first_host import entries_here
from easgd_cli.launcher.hosts.stand_in import OF_CENTER
from easgd_cli.launcher.hosts.workplace import LinkFigures, Workplace
from easgd_cli.settings.schema import Interval
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.worker import WorkerLoop, WorkerStart
from easgd_cli.transport.relay import MasterRelay, SummedMasterRelay
from easgd_cli.transport.replica import Replica
from easgd_cli.transport.shared import Link, SharedMasterEnd

if TYPE_CHECKING:
    from easgd_cli.launcher.hosts.party_thread import PartyThread


class HostedWorker:
    """A worker on this host, and its sessions: one with the masters of the first host, by the worker's own connection,
    and one with each master of another host or of this one, by a connection each.
    """

    def __init__(self, host: Workplace, worker: int, slot: int):
        self._host, self.party, self.slot = host, worker, slot
        self.role = (Role.WORKER, worker)
        self._sessions: dict[int, OutgoingSession] = {}  # with masters that are not on the first host, by their places

    def prepare(self) -> int:
        """Allocates the worker's vectors. Returns the most bytes of vectors in one message. Raises MemoryError."""
        e, masters = self._host.experiment, 1 + self._host.masters_elsewhere
        average = e.method.alone and e.average is not None
        self._link = Link.new(self.party, e.method, e.size, e.dtype, average=average, masters=masters)
        most = self._link.memory.nbytes()
        if kinds.summed(e.settings):
            [replica] = Replica.new(e.method.variables[CENTER].state, e.size, e.dtype, 1)
            self._link.replica, most = replica, most + replica.center.nbytes()
        return most

    def begin(
        self, thread: PartyThread, begin: Mapping[str, Any], vectors: SharedTensors | None
    ) -> tuple[Any, WorkerStart]:
        """Returns what the worker's process runs, and its start; calls the masters that are not on the first host.
        `begin`: what the stand-in has said; `vectors`: those of the worker that are not zero. Raises Refused and
        OSError.
        """
        host, link, e = self._host, self._link, self._host.experiment
        mine, own = dict(link.memory.tensors), SharedMasterEnd([link.for_master(0, entries_here(e))])
        if (replica := link.replica) is not None:
            mine |= {OF_CENTER + name: v for name, v in replica.center.tensors.items()}
            replica.meeting = meeting_at(host.address, host.secret, thread.connection.own_address)
            replica.workers = e.settings.workers
            self._says: MasterRelay = SummedMasterRelay(own, link, thread.connection)
        else:
            self._says = MasterRelay(own, link.packing, thread.connection)
        for name, v in vectors.tensors.items() if vectors is not None else ():
            mine[name].copy_(v)
        elsewhere = list(enumerate(e.slices))[len(e.slices) - host.masters_elsewhere :]
        for line, ((of, entries), (name, port)) in enumerate(zip(elsewhere, begin["masters"], strict=True), 1):
            end = link.for_master(line, entries)
            there = (str(name), int(port))
            self._sessions[of] = OutgoingSession(
                there, host.secret, host.silence, of, end, thread.session_lost, begin["life"]
            )
        steps = None if begin["interval"] is None else Interval(*begin["interval"])
        start = WorkerStart(
            host.recipe, link.for_worker(), host.devices[self.slot], host.threads, steps, seen=Seen(*begin["seen"]),
            **{name: begin[name] for name in WorkerStart.plain},
        )  # fmt: skip
        return WorkerLoop, start

    def begun(self) -> None:
        """Closes the sockets that the worker's process has now."""
        for mine, _ in self._link.sockets:
            assert mine is not None
            mine.close()

    def reply(self, text: bytes, count: int) -> None:
        """Passes on a reply of the first host's masters. Raises ConnectionEnded."""
        self._says.reply(text, count)

    def told(self, message: Mapping[str, Any]) -> bool:
        """Returns whether the worker's process is to be told this: always."""
        return True

    def ended(self) -> None:
        """Waits until all is sent that the worker, whose process has ended, has asked for."""
        self._says.join()
        for session in self._sessions.values():
            session.end()

    def carried(self) -> list[LinkFigures]:
        """Returns the figures of each session with a master that is not on the first host, by the master's place."""
        links = [(of, session.connection) for of, session in self._sessions.items()]
        return [(of, link.sent, link.received, link.rate()) for of, link in links]

    def close(self) -> None:
        """Closes the connections of these sessions at once."""
        for session in self._sessions.values():
            session.connection.close()
