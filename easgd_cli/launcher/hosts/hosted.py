"""The workers and masters of a run that are on a host which has joined: their processes, what passes between these and
their stand-ins on the first host, and their sessions with one another.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from easgd_cli.algorithms.base import CENTER, Seen
from easgd_cli.algorithms.slices import of_slice
from easgd_cli.errors import RunError
from easgd_cli.experiment.build import Experiment, Recipe
from easgd_cli.launcher import kinds
from easgd_cli.launcher.hosts.door import CONNECT_SECONDS, MASTER, WORKER, called_patiently, met_by_call
from easgd_cli.launcher.hosts.far_sessions import IncomingSession, OutgoingSession
from easgd_cli.launcher.hosts.first_host import entries_here, masters_elsewhere
from easgd_cli.launcher.hosts.stand_in import OF_CENTER
from easgd_cli.launcher.processes.child import Child
from easgd_cli.launcher.processes.standstill import state_of
from easgd_cli.launcher.supervisor.parties import Process, master_at
from easgd_cli.record.metrics import worker_name
from easgd_cli.settings.schema import Interval
from easgd_cli.system.channel import ChannelClosed
from easgd_cli.system.devices import deal_devices, worker_threads
from easgd_cli.system.shared_memory import AnonymousFile, SharedTensors
from easgd_cli.system.terminal import tell
from easgd_cli.training import messages
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.training.variables import Variables
from easgd_cli.training.worker import WorkerLoop, WorkerStart
from easgd_cli.transport.connection import Connection, ConnectionEnded, Refused, RulesBroken, Sort
from easgd_cli.transport.packing import Packing
from easgd_cli.transport.relay import MasterRelay, SummedMasterRelay
from easgd_cli.transport.replica import Replica
from easgd_cli.transport.shared import Link, SharedMasterEnd
from easgd_cli.transport.turn import SendTurn, turns

_LOOK_UP_SECONDS = 0.5
_STATE_SECONDS = 1.0  # between two words on what its process does

Carried = tuple[int, int, int, float | None]


class Workplace:
    """What the workers and masters of one host share. `cannot`: says of the one with a ticket why it does not come."""

    def __init__(
        self, address: tuple[str, int], secret: bytes, silence: float,
        experiment: Experiment, recipe: Recipe, places: int, cannot: Callable[[int, str], None],
    ):  # fmt: skip
        self.address, self.secret, self.silence, self.experiment, self.recipe = (
            address, secret, silence, experiment, recipe,
        )  # fmt: skip
        here = replace(experiment.settings, workers=max(1, places))
        self.threads, self.devices = worker_threads(here), deal_devices(here.device, max(1, places))
        self.masters_elsewhere = masters_elsewhere(experiment.settings)
        self.turns, self.cannot = turns(), cannot
        self._forking = threading.Lock()

    def start(self, party: Process, maker: Any, start: Any, log: Path) -> Child:
        """Its process. Raises RunError and OSError."""
        with self._forking:
            return Child(worker_name(party) if isinstance(party, int) else party, maker, start, log)


class HostedWorker:
    """A worker, its session with the masters of the first host by its place's connection, and those with masters of
    other hosts, or of this, by one each.
    """

    def __init__(self, host: Workplace, worker: int, slot: int):
        self._host, self.party, self.slot, self.name = host, worker, slot, f"worker {worker}"
        self.role = (WORKER, worker)
        self._sessions: dict[int, OutgoingSession] = {}  # by the places of the masters

    def prepare(self) -> int:
        """Allocates its vectors; how many bytes of them are said to it at once at most. Raises MemoryError."""
        e, masters = self._host.experiment, 1 + self._host.masters_elsewhere
        average = e.method.alone and e.average is not None
        self._link = Link.new(self.party, e.method, e.size, e.dtype, average=average, masters=masters)
        most = self._link.memory.nbytes()
        if kinds.summed(e.settings):
            [replica] = Replica.new(e.method.variables[CENTER].state, e.size, e.dtype, 1)
            self._link.replica, most = replica, most + replica.center.nbytes()
        return most

    def begin(self, place: Place, begin: Mapping[str, Any], vectors: SharedTensors | None) -> tuple[Any, WorkerStart]:
        """What its process runs, and begins with. Raises Refused and OSError."""
        host, link, e = self._host, self._link, self._host.experiment
        mine, own = dict(link.memory.tensors), SharedMasterEnd([link.for_master(0, entries_here(e))])
        if (replica := link.replica) is not None:
            mine |= {OF_CENTER + name: v for name, v in replica.center.tensors.items()}
            replica.meeting = met_by_call(host.address, host.secret, place.connection.own_address)
            replica.workers = e.settings.workers
            self._says: MasterRelay = SummedMasterRelay(own, link, place.connection)
        else:
            self._says = MasterRelay(own, link.packing, place.connection)
        for name, v in vectors.tensors.items() if vectors is not None else ():
            mine[name].copy_(v)
        elsewhere = list(enumerate(e.slices))[len(e.slices) - host.masters_elsewhere :]
        for line, ((of, entries), (name, port)) in enumerate(zip(elsewhere, begin["masters"], strict=True), 1):
            end = link.for_master(line, entries)
            there = (str(name), int(port))
            self._sessions[of] = OutgoingSession(
                there, host.secret, host.silence, of, end, place.session_lost, begin["life"]
            )
        steps = None if begin["interval"] is None else Interval(*begin["interval"])
        start = WorkerStart(host.recipe, link.for_worker(), host.devices[self.slot], host.threads, steps)
        start.t, start.seen, start.meter, start.pace = begin["t"], Seen(*begin["seen"]), begin["meter"], begin["pace"]
        start.returns, start.new, start.spared = begin["returns"], begin["new"], begin["spared"]
        return WorkerLoop, start

    def begun(self) -> None:
        """Its process has them now."""
        for mine, _ in self._link.sockets:
            assert mine is not None
            mine.close()

    def reply(self, text: bytes, count: int) -> None:
        """A reply of the first host's masters has come. Raises ConnectionEnded."""
        self._says.reply(text, count)

    def told(self, message: Mapping[str, Any]) -> bool:
        """Whether its process is to be told this."""
        return True

    def ended(self) -> None:
        """Its process has ended: what it has asked for is sent."""
        self._says.join()
        for session in self._sessions.values():
            session.end()

    def carried(self) -> list[Carried]:
        """Of each session with a master elsewhere: its place, bytes of vectors that went and came, and the rate."""
        links = [(of, session.connection) for of, session in self._sessions.items()]
        return [(of, link.sent, link.received, link.rate()) for of, link in links]

    def close(self) -> None:
        """It leaves at once."""
        for session in self._sessions.values():
            session.connection.close()


class HostedMaster:
    """A master, and the sessions of all workers with it, which come in by the host's door."""

    slot = -1

    def __init__(self, host: Workplace, place: int):
        self._host, self._place, self.party = host, place, master_at(place)
        self.name, self.role = str(self.party), (MASTER, place)
        self._admitting, self._begun, self._over = threading.Lock(), threading.Event(), False
        self._links: dict[int, Link] = {}
        self._lives: dict[int, int] = {}  # of each worker: in which of its lives it came last, or is to come first
        self._sessions: dict[int, IncomingSession | None] = {}  # None: its first, which is yet to come
        self._ended: dict[int, int] = {}  # up to which of them all are known to have ended

    def prepare(self) -> int:
        """Allocates its slice; how many bytes of it are said to it at once at most. Raises MemoryError."""
        e = self._host.experiment
        entries, names = e.slices[self._place], Variables.names(e.method, average=e.average is not None)
        self._size, self._method = entries.stop - entries.start, of_slice(e.method, entries, e.size)
        self._center = SharedTensors.allocate({name: ((self._size,), e.dtype) for name in names})
        return self._center.nbytes()

    def begin(self, place: Place, begin: Mapping[str, Any], vectors: SharedTensors | None) -> tuple[Any, MasterStart]:
        """What its process runs, and begins with. Raises MemoryError."""
        e, self._post = self._host.experiment, place.post
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
        start = MasterStart(self._method, e.average, self._center, ends, every, clocks=clocks)
        start.variables, start.served, start.step = begin["variables"], begin["served"], begin["step"]
        start.pace, start.returns, start.cpu_seconds = begin["pace"], begin["returns"], begin["cpu"]
        start.lost = begin["lost"]
        start.several, start.tau, start.steps = True, e.settings.tau, e.steps
        start.schedule = e.parts.schedule
        return Master, start

    def begun(self) -> None:
        """Its process has them now."""
        for link in self._links.values():
            assert link.master_socket is not None
            link.master_socket.close()
        self._begun.set()

    def admit(self, worker: int, life: int, sock: socket.socket) -> None:
        """A session of this worker has come: of its first life, or of one after it was lost."""
        turn = SendTurn(self._host.turns)
        connection = Connection(sock, self._host.silence, 0, turn)  # it is heard while the slice is yet to come
        self._begun.wait()
        with self._admitting:
            if self._over or worker not in self._links or life <= self._ended[worker] or life < self._lives[worker]:
                connection.close()
                turn.close()
                return
            link, theirs = self._links[worker].for_worker(), None
            if life > 1 or self._sessions.get(worker, self) is not None:  # it is not its first
                self._finish(worker)
                mine, theirs = socket.socketpair()
                link = link.with_sockets(mine)
            self._lives[worker], self._sessions[worker] = life, IncomingSession(connection, turn, link)
            if theirs is not None:
                self._post({"kind": "session", "worker": worker}, theirs)

    def reply(self, text: bytes, count: int) -> None:
        """Raises ConnectionEnded: it asks for nothing."""
        raise RulesBroken

    def told(self, message: Mapping[str, Any]) -> bool:
        """Of a worker that is gone for good the master reads on to the end: what it has said is to have come. One that
        is started again elsewhere has ended a life, perhaps without ever having come in it, or only after the next.
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
        """Its process has ended; so have its sessions."""

    def carried(self) -> list[Carried]:
        """Of each worker's session: its number, and as of a worker's."""
        # not while nobody admits: a session's end is waited for there, and what its master says may not wait for that
        of = self._sessions.copy()
        links = [(worker, session.connection) for worker, session in of.items() if session is not None]
        return [(worker, link.sent, link.received, link.rate()) for worker, link in links]

    def close(self) -> None:
        """It leaves at once."""
        self._over = True
        self._begun.set()
        with self._admitting:
            for session in self._sessions.values():
                if session is not None:
                    session.end(0.0)


class Place(threading.Thread):
    """A worker or master, from the call for it to its end, in a thread of its own."""

    def __init__(self, host: Workplace, of: HostedWorker | HostedMaster, ticket: int):
        super().__init__(daemon=True)
        self._host, self.of, self._ticket = host, of, ticket
        self._leaves = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._posting = threading.Lock()
        self._child: Child | None = None
        self.start()

    def leave(self) -> None:
        """It is to be gone, and nothing more said of it."""
        self._leaves.set()
        with suppress(OSError):
            self._wake.send(b"x")

    def run(self) -> None:
        host = self._host
        try:
            log, most = AnonymousFile(), self.of.prepare()
            sock = called_patiently(
                host.address, host.secret, CONNECT_SECONDS, host.silence, self._leaves, *self.of.role, self._ticket
            )
        except (Refused, OSError, MemoryError) as e:
            if not self._leaves.is_set():
                tell(f"{self.of.name} cannot begin here: {e}")
                host.cannot(self._ticket, str(e))
            self.of.close()
        else:
            self.connection = Connection(sock, host.silence, most)
            try:
                self._work(log)
            except (ConnectionEnded, Refused, RunError, OSError, MemoryError) as e:
                if not self._leaves.is_set():
                    tell(f"{self.of.name}: {e}")
                    if self._child is None:  # which the first host is to know, and gives it to another
                        self.connection.say(messages.Cannot(kind="cannot", text=str(e)))
                        self.connection.finish(host.silence)
            finally:
                self._leaves.set()
                self.of.close()
                self.connection.close()
                log.close()
        for end in (self._wake, self._woken):
            end.close()

    def _work(self, log: AnonymousFile) -> None:
        """`log`: its process's, in memory, since what is said there is for the first host."""
        connection = self.connection
        _, text, _ = connection.next()
        begin, vectors = connection.message(text)
        maker, start = self.of.begin(self, begin, vectors)
        child = self._child = self._host.start(self.of.party, maker, start, Path(f"/proc/{os.getpid()}/fd/{log.fd}"))
        self.of.begun()
        tell(f"{self.of.name} runs here, process {child.process.pid}")
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()
        try:
            done = self._pass_on(child, log)
            if not self._leaves.is_set():
                self.of.ended()  # what it asked for comes before the news of its end
                number = child.process.killed_by
                connection.say(messages.Ended(kind="ended", done=done, signal=number, how=child.process.how))
                connection.finish(self._host.silence)
        finally:
            with self._posting:
                self._leaves.set()
                child.kill()
                child.close()

    def _pass_on(self, child: Child, log: AnonymousFile) -> bool:
        """Says what the process says, until it has ended; whether it has said all it had to."""
        connection, done, read, looked = self.connection, False, 0, 0.0
        while not self._leaves.is_set():
            ended = child.process.ended
            try:
                while heard := child.channel.receive():
                    for message, enclosed in heard:
                        done = done or message["kind"] == "done"
                        if message["kind"] in ("state", "snapshot"):  # it may be its last word that is listened to
                            self._say_carried()
                        connection.say(message, enclosed)
            except ChannelClosed:
                pass
            read = _say_log(connection, log, read)
            if ended:
                break
            if time.monotonic() - looked >= _STATE_SECONDS and (state := state_of(child.process.pid)) is not None:
                looked = time.monotonic()
                connection.say(
                    messages.Process(kind="process", rate=connection.rate(), letter=state.letter, ticks=state.ticks)
                )
                self._say_carried()
            with suppress(ChannelClosed):
                child.channel.flush()
            watched: list[Any] = [child.process.sentinel, self._woken, *([] if done else [child.channel])]
            wait(watched, _LOOK_UP_SECONDS)
        return done

    def _say_carried(self) -> None:
        """What its sessions with other hosts than the first have carried."""
        if carried := self.of.carried():
            self.connection.say(messages.Carried(kind="carried", links=carried))

    def _listen(self, child: Child) -> None:
        """Does what is said on the other side."""
        try:
            while True:
                sort, text, count = self.connection.next()
                if sort is Sort.REPLY:
                    self.of.reply(text, count)
                    continue
                message, _ = self.connection.message(text)
                if not self.of.told(message):
                    continue
                if message["kind"] == "signal":
                    child.process.send_signal(int(message["number"]))
                    continue
                if message["kind"] == "start":
                    message = {"kind": "start", "began": time.monotonic() - float(message["elapsed"])}
                self.post(message)
        except (ConnectionEnded, KeyError, ValueError, TypeError):
            self.leave()

    def post(self, message: dict[str, Any], enclosed: socket.socket | None = None) -> None:
        """To the process; one that has ended hears nothing."""
        with self._posting, suppress(ChannelClosed):
            if self._child is not None and not self._leaves.is_set():
                self._child.channel.post(message, enclosed)

    def session_lost(self, how: str) -> None:
        """Its worker is to come back, in sessions with all masters."""
        if self._child is None:
            self.leave()
        elif not self._leaves.is_set():
            text = f"its session with a master on another host is lost: {how}"
            self.connection.say(messages.Error(kind="error", text=text, refused=False))
            self._child.kill()


def _say_log(connection: Connection, log: AnonymousFile, read: int) -> int:
    """Says what the log has from there on; returns up to where."""
    if data := os.pread(log.fd, 1 << 20, read):
        connection.say(messages.Log(kind="log", text=data.decode("utf-8", "replace")))
    return read + len(data)
