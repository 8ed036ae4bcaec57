"""launcher=local: one machine, a process for the master, for every worker and for the evaluator.

The launcher itself computes nothing. It starts the others, listens to them, is the only one that writes the run
directory, and ends everything: on success, failure, Ctrl-C and SIGTERM. It is single-threaded, one loop over sockets.
What follows from what is heard is the supervisor's affair.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher import driver, fork_server
from easgd_cli.launcher.initial_state import InitialState
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal import Journal, log
from easgd_cli.launcher.parties import (
    EVALUATOR,
    MASTER,
    Begin,
    Command,
    GiveUpWorker,
    Kill,
    Measure,
    Party,
    Patience,
    StartEvaluator,
    StartMaster,
    StartWorker,
    Stop,
    TakeCheckpoint,
    TakeSnapshot,
    Wake,
)  # fmt: skip
from easgd_cli.launcher.processes import Child
from easgd_cli.launcher.snapshot_queue import SnapshotQueue
from easgd_cli.launcher.standstill import Standstill, state_of
from easgd_cli.launcher.supervisor import Plan, Supervisor
from easgd_cli.launcher.system_rows import SystemRows
from easgd_cli.record.checkpoint import OwnerState, WorkerState
from easgd_cli.record.metrics import worker_name
from easgd_cli.settings.schema import Interval
from easgd_cli.system.channel import ChannelClosed
from easgd_cli.system.devices import evaluator_threads
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.evaluator import Evaluator, EvaluatorStart
from easgd_cli.training.ledger import Ledger
from easgd_cli.training.master import Master
from easgd_cli.training.snapshot import Moment, Pace
from easgd_cli.training.worker import WorkerLoop
from easgd_cli.transport.shared import Link

_PATIENCE = Patience()
_LOOK_UP_SECONDS = 0.1  # how long nothing may happen before signals are looked at
_CLOSING_SECONDS = 2.0  # for processes to end by themselves after a run that was not broken off
_ABORTING_SECONDS = 0.2  # and after one that was


def launch(job: Job, experiment: Experiment) -> Outcome:
    """Runs the job to its end. Raises RunError when it could not be started."""
    return driver.run(job, experiment, lambda journal: Processes(job, experiment, journal))


class Processes:
    """The processes of a run, and their supervisor's ears and hands."""

    def __init__(self, job: Job, experiment: Experiment, journal: Journal):
        self._job, self._experiment, self._journal = job, experiment, journal
        s, resumed, method = experiment.settings, journal.resumed, experiment.method
        self._initial = InitialState(job, experiment, resumed)
        moment = self._initial.moment
        pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        if resumed is not None:
            pace.due(moment.step, moment.seconds)
        plan = Plan(
            has_master=not method.alone, in_rounds=method.in_rounds,
            asks_for_snapshots=s.eval.every is None and s.eval.when == "running", deferred=s.eval.when == "deferred",
            checkpoint_pace=pace,
            system_rows=SystemRows(1.0, doubling=True, seconds=moment.seconds, exchanges=moment.exchanges),
            patience=_PATIENCE, max_restarts=s.max_restarts if self._initial.survives else 0,
            rejoins=s.max_restarts,
        )  # fmt: skip
        self._queue = SnapshotQueue(job.run_dir / "snapshots")
        self.supervisor = Supervisor(plan, journal, self._queue, moment)
        self._selector = selectors.DefaultSelector()
        self._children: dict[Party, Child] = {}
        self._began: float | None = None  # the monotonic second of training second 0
        # What outlives a process that is started again: its vectors, and the workers' last rows.
        self._links: dict[int, Link] = {}
        self._rows: dict[int, dict[str, Any]] = {}
        self._order_heard = moment.exchanges  # exchanges whose order has been said
        self._starts: dict[Party, Callable[[], None]] = {}  # of processes that are to be started when they can be
        self._standstill = Standstill()
        self._silent: set[Party] = set()
        self._asleep: dict[Party, float] = {}  # stopped by a fault on purpose, and when they are to be woken
        self._vectors = 2.0  # of an exchange, on the average
        self._waiting: list[int] = []  # workers whose messages the master keeps until a round is complete

    # ---------------------------------------------------------------- start

    def start(self) -> None:
        """Starts master, workers and evaluator, where their run begins. Raises RunError, MemoryError or OSError."""
        s, initial, resumed = self._experiment.settings, self._initial, self._journal.resumed
        recipe = self._recipe = self._experiment.recipe.shared()
        links = initial.links()
        clocks = {}
        for link in links:
            start = initial.worker(link, recipe)
            clocks[link.worker] = start.t
            self._start(link.worker, worker_name(link.worker), WorkerLoop, start)
            self.supervisor.advanced(link.worker, start.t)
        if self.supervisor.plan.has_master:
            self._owner = initial.master(links, clocks)
            self._start(MASTER, MASTER, Master, self._owner)
            if not self.supervisor.plan.max_restarts:
                self._owner.center.close()
        for link in links:
            link.close_sockets()  # or no end would ever be seen by the other
            if self.supervisor.plan.max_restarts:
                self._links[link.worker] = link
            else:
                link.memory.close()
        self._evaluator_start = EvaluatorStart(recipe, evaluator_threads(s))
        self._journal.open()
        if s.eval.when == "running":
            self.supervisor.evaluation.start()
        if resumed is None:
            self._queue.add_copies(initial.moment, initial.evaluated())
        else:
            self._queue.restore(resumed.pending)
        self._obey()

    def _start(self, party: Party, name: str, maker: Any, start: Any) -> None:
        if (before := self._children.get(party)) is not None:
            self._leave(before)
        child = Child(name, maker, start, self._job.run_dir / "logs" / f"{name}.log")
        self._children[party] = child
        self._selector.register(child.channel, selectors.EVENT_READ, party)
        self._selector.register(child.process.sentinel, selectors.EVENT_READ, party)
        log.info("%s: process %d", name, child.process.pid)
        if self._began is not None:
            self._tell(party, {"kind": "start", "began": self._began})

    def _start_worker(self, worker: int, t: int) -> None:
        """A worker that was lost, to come back in a session of its own, with the memory it had."""
        ours, theirs = socket.socketpair()
        link = self._links[worker].with_sockets(worker=ours)
        start = self._initial.returning(link, self._recipe, t, self._rows.get(worker))
        self._start(worker, worker_name(worker), WorkerLoop, start)
        ours.close()
        self._tell(MASTER, {"kind": "session", "worker": worker}, theirs)

    def _start_master(self, stopped: bool) -> None:
        """The next master, with the center as the last one has left it, and sessions of its own with all that train."""
        supervisor, links = self.supervisor, []
        assert self._owner.ledger is not None
        ledger = Ledger(self._owner.ledger, len(self._links))
        try:
            self._served(ledger.order(self._order_heard))
        except ValueError as e:  # the launcher has not listened for tens of thousands of exchanges
            supervisor.fail(f"the master died, and {e}: the order of exchanges is not whole any more")
            return
        for worker, member in supervisor.members.items():
            end = None
            if member.live or member.away or not self._children[worker].done:  # the last may wait for its closing
                ours, end = socket.socketpair()
                self._tell(worker, {"kind": "session"}, ours)
            links.append(self._links[worker].with_sockets(master=end))
        clocks = {worker: member.t for worker, member in supervisor.members.items()}
        lost = list(supervisor.members.lost)
        closing = supervisor.before is not None
        self._owner = self._initial.next_master(self._owner, links, clocks, lost, supervisor.moment, closing)
        self._start(MASTER, MASTER, Master, self._owner)
        for link in links:
            link.close_sockets()
        if stopped:
            self._tell(MASTER, {"kind": "stop" if supervisor.stopping else "over"})

    # ---------------------------------------------------------------- the loop

    def turn(self) -> None:
        """Waits for the next event, at most a moment, and does what it asks for."""
        heard = dict.fromkeys(key.data for key, _ in self._selector.select(_LOOK_UP_SECONDS) if key.data is not None)
        self.supervisor.now = self._seconds()
        for party in heard:
            self._hear(party)
        self._look_for_silence(time.monotonic())
        for party, until in self._asleep.items():
            if time.monotonic() >= until:  # again and again until it speaks: it may stop a moment after it said so
                self._children[party].process.send_signal(signal.SIGCONT)
        if (said := fork_server.gone()) is not None:
            self._journal.note(f"{said}; the run goes on without it")
            fork_server.begin()  # of the next evaluator
        self._start_due()
        self.supervisor.tick(self._seconds())
        self._obey()
        self.supervisor.now = self._seconds()  # a process may have been started, and a signal comes now

    def _look_for_silence(self, now: float) -> None:
        if not self._standstill.due(now):
            return
        there = {party: state_of(child.process.pid) for party, child in self._children.items() if not child.done}
        waiting: list[Party] = [*self._waiting, *(() if self._queue.busy else (EVALUATOR,))]
        silent = self._standstill.look(there, waiting if self._began is not None else list(there), now)
        for party in self._silent - silent.keys():
            self.supervisor.goes_on(party)
        for party, (seconds, stopped) in silent.items():
            self.supervisor.silent(party, seconds, stopped=stopped)
        self._silent = set(silent)

    def _seconds(self) -> float:
        return self._initial.moment.seconds if self._began is None else time.monotonic() - self._began

    def _hear(self, party: Party) -> None:
        child = self._children[party]
        # asked before listening: what a child said last has all arrived then
        ended = child.process.ended
        try:
            while messages := child.channel.receive():
                for message, tensors in messages:
                    self._handle(party, child, message, tensors)
                if not ended:
                    break  # the others' turn; of an ended child this is the last look
            child.channel.flush()
        except ChannelClosed:
            self._forget(child.channel)
        if ended:
            self._forget(child.process.sentinel)
            self._forget(child.channel)
            if not child.done:
                child.done = True
                self._tell_end(party, child)

    def _tell_end(self, party: Party, child: Child) -> None:
        master = self._children.get(MASTER)
        if isinstance(party, int) and master is not None and master.process.ended and not master.done:
            self._hear(MASTER)  # if the worker ended because the master did, that is the news
            if self.supervisor.over:
                return
        self.supervisor.ended(
            party, child.how, refused=child.refused, raised=child.error is not None, log_file=str(child.log)
        )

    def _forget(self, what: Any) -> None:
        if what in self._selector.get_map():
            self._selector.unregister(what)

    def _handle(self, party: Party, child: Child, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        kind, supervisor = message["kind"], self.supervisor
        self._asleep.pop(party, None)
        if self._began is not None:
            self._standstill.heard(party, time.monotonic())
        if kind == "ready":
            supervisor.ready(party)
        elif kind == "done":
            child.done = True
            if isinstance(party, int) and self.supervisor.plan.has_master:
                self._tell(MASTER, {"kind": "gone", "worker": party})  # the next master may not have heard its end
        elif kind == "error":
            child.error, child.refused = message["text"], message["refused"]
        elif kind == "news":
            supervisor.advanced(_worker(party), message["t"])
            for row in message["rows"]:
                self._rows[_worker(party)] = row
                supervisor.row(row)
        elif kind == "served":
            self._served(message["workers"])
            moment = Moment(message["seconds"], message["step"], message["exchanges"])
            supervisor.owner_at(moment)
            self._waiting, self._vectors = message["waiting"], message["vectors"]
            supervisor.system(moment, master_cpu_seconds=message["cpu"])
        elif kind == "lost":
            log.info("master: the session of worker %d has ended", message["worker"])
        elif kind == "joined":
            supervisor.joined(_worker(party), message["t"])
        elif kind == "returned":
            supervisor.returned(message["worker"], message["t"], message["lost"], message["missed"])
        elif kind == "rejoins":
            supervisor.rejoins(_worker(party), message["t"], message["why"])
        elif kind == "fault":
            log.info("%s: a fault on purpose, %s", child.name, message["what"])
            if message["what"] == "stop":
                self._asleep[party] = time.monotonic() + message["seconds"]
        elif kind == "state":
            supervisor.worker_state(
                _worker(party), WorkerState(vectors=_taken(tensors), **message["state"]), message["purpose"] == "final"
            )
        elif kind == "snapshot":
            self._snapshot(message, tensors)
        elif kind == "evaluated":
            supervisor.evaluated(message["number"], message["metrics"])
        else:
            raise AssertionError(f"{child.name} sent {kind}")

    def _served(self, entries: list[int]) -> None:
        self._order_heard += len(entries)
        self.supervisor.served(entries)

    def _snapshot(self, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        moment = Moment.read(message["moment"])
        if "spread" in message:
            self.supervisor.measured(moment, spread=message["spread"])
        if message["purpose"] == "evaluate":
            assert tensors is not None
            self.supervisor.snapshot(moment, tensors)
        else:
            owner = OwnerState(
                moment, message["clock"], _taken(tensors), message["cpu"], message["pace"],
                message.get("variables", {}), message.get("couriers", {}),
            )  # fmt: skip
            if message["purpose"] == "last":
                self.supervisor.closing(owner)
            else:
                self.supervisor.owner_state(owner, message["purpose"] == "final")

    # ---------------------------------------------------------------- what the supervisor asks for

    def _obey(self) -> None:
        while commands := self.supervisor.commands():
            for command in commands:
                self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Begin):
            self._began = time.monotonic() - self._initial.moment.seconds
            for party in self._children:
                self._tell(party, {"kind": "start", "began": self._began})
        elif isinstance(command, StartEvaluator):
            self._starts[EVALUATOR] = lambda: self._start(EVALUATOR, EVALUATOR, Evaluator, self._evaluator_start)
            self._start_due()
        elif isinstance(command, StartWorker):
            self._starts[command.worker] = partial(self._start_worker, command.worker, command.t)
            self._start_due()
        elif isinstance(command, GiveUpWorker):
            self._starts.pop(command.worker, None)
            self._tell(MASTER, {"kind": "gone", "worker": command.worker})
        elif isinstance(command, StartMaster):
            self._starts[MASTER] = partial(self._start_master, command.stopped)
            self._start_due()
        elif isinstance(command, Measure):
            snapshot = command.snapshot
            self._tell(EVALUATOR, {"kind": "evaluate", "number": snapshot.number}, snapshot.shared())
        elif isinstance(command, TakeSnapshot):
            self._tell(MASTER if self.supervisor.plan.has_master else 0, {"kind": "snapshot"})
        elif isinstance(command, TakeCheckpoint):
            if command.lead is None:
                self._tell(MASTER, {"kind": "checkpoint"})  # which tells the workers, in its next reply to all of them
            else:
                for worker in command.workers:
                    self._tell(worker, {"kind": "checkpoint", "lead": worker == command.lead})
        elif isinstance(command, Stop):
            if MASTER in self._starts:
                self._starts[MASTER] = partial(self._start_master, stopped=True)
            elif self.supervisor.plan.has_master:
                # or a worker that is silent would keep all others in its round, and those that have ended would close
                self._tell(MASTER, {"kind": "stop"})
            for worker in command.workers:
                self._tell(worker, {"kind": "stop"})
        elif isinstance(command, Wake):
            for child in self._children.values():
                child.process.send_signal(signal.SIGCONT)
        elif isinstance(command, Kill):
            self._children[command.party].kill()

    def _start_due(self) -> None:
        """Those that are to be started, if they can be forked at once: nobody waits for a server that imports torch."""
        while self._starts and fork_server.ready():
            # the master first: a worker that comes back has its session with it
            party = MASTER if MASTER in self._starts else next(iter(self._starts))
            self._starts.pop(party)()

    def _tell(
        self, party: Party, message: Mapping[str, Any], enclosed: SharedTensors | socket.socket | None = None
    ) -> None:
        with suppress(ChannelClosed):  # its end is on its way to us and says more
            self._children[party].channel.post(dict(message), enclosed)

    # ---------------------------------------------------------------- closing

    def end(self) -> None:
        """Leaves no process behind, whatever happened."""
        evaluator = self._children.get(EVALUATOR)
        if evaluator is not None and not evaluator.process.ended:
            self._tell(EVALUATOR, {"kind": "stop"})
        broken_off = self._journal.status == "failed" or self._journal.signal is not None
        ends = time.monotonic() + (_ABORTING_SECONDS if broken_off else _CLOSING_SECONDS)
        for child in self._children.values():
            if not child.process.join(ends - time.monotonic()):
                child.kill()
            self._leave(child)
        for link in self._links.values():
            link.memory.close()
        self._selector.close()

    def _leave(self, child: Child) -> None:
        """Has done with it: it has ended, or is about to."""
        self._forget(child.channel)
        self._forget(child.process.sentinel)
        child.close()

    def show_stacks(self) -> None:
        """Has every process write where it is into its log."""
        for child in list(self._children.values()):
            child.process.send_signal(signal.SIGQUIT)

    def facts(self) -> dict[str, Any]:
        """What else the summary says."""
        return {"threads": self._initial.threads, "vectors_per_exchange": self._vectors}

    def release(self) -> None:
        """Leaves no snapshot on the disk."""
        self._queue.clear()


def _worker(party: Party) -> int:
    assert isinstance(party, int), f"{party} is no worker"
    return party


def _taken(tensors: SharedTensors | None) -> dict[str, Any]:
    """The vectors that came with a message, by name; the memory lives as long as they do."""
    assert tensors is not None
    vectors = dict(tensors.tensors)
    tensors.close()
    return vectors
