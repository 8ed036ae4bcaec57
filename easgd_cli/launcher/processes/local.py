"""launcher=local: one machine, a process for the master, for every worker and for the evaluator.

The launcher itself computes nothing. It starts the others, listens to them, is the only one that writes the record, and
ends everything: on success, failure, Ctrl-C and SIGTERM. It is single-threaded, one loop over sockets. The supervisor
decides what follows from what the launcher hears.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher import driver
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.journal.snapshot_queue import SnapshotQueue
from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.launcher.processes import fork_server
from easgd_cli.launcher.processes.child import Child
from easgd_cli.launcher.processes.children import Children
from easgd_cli.launcher.processes.command_runner import CommandRunner
from easgd_cli.launcher.processes.initial_state import InitialState
from easgd_cli.launcher.processes.masters import Masters, Said
from easgd_cli.launcher.processes.recovery import Recovery
from easgd_cli.launcher.processes.watch import Watch
from easgd_cli.launcher.supervisor.course import Patience
from easgd_cli.launcher.supervisor.parties import EVALUATOR, MASTER, Party, ProcessName, party_of
from easgd_cli.launcher.supervisor.supervisor import Plan, Supervisor
from easgd_cli.record.checkpoint import OwnerState, WorkerState
from easgd_cli.settings import faults
from easgd_cli.settings.schema import Interval
from easgd_cli.system.devices import evaluator_threads
from easgd_cli.system.shared_memory import AnonymousFile, SharedTensors
from easgd_cli.training.evaluator import EvaluatorStart
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.training.snapshot import Moment, Pace
from easgd_cli.training.worker import WorkerLoop, WorkerStart
from easgd_cli.transport.meeting import Meeting

_PATIENCE = Patience()
_LOOK_UP_SECONDS = 0.1  # the longest wait for a message before signals are looked at


def launch(job: Job, experiment: Experiment, collective: bool = False) -> Outcome:
    """Runs the job to its end. `collective`: True if the messages of rounds go into a sum. Raises RunError when the job
    could not be started.
    """
    meeting = Meeting(AnonymousFile()) if collective else None
    return driver.run(job, experiment, lambda journal: Processes(job, experiment, journal, meeting=meeting))


class Processes:
    """The processes of a run: tells the supervisor what they say, and carries out its commands. `children`: makes the
    collection of processes, with their logs in a directory; `meeting`: where workers find each other whose messages go
    into a sum.
    """

    def __init__(
        self, job: Job, experiment: Experiment, journal: Journal, children: Callable[[Path], Children] = Children,
        meeting: Meeting | None = None,
    ):  # fmt: skip
        self._experiment, self._journal = experiment, journal
        s, resumed, method = experiment.settings, journal.resumed, experiment.method
        self._initial = InitialState(job, experiment, resumed, meeting)
        moment = self._initial.moment
        pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        if resumed is not None:
            pace.due(moment.step, moment.seconds)
        plan = Plan(
            has_master=not method.alone, in_rounds=method.in_rounds,
            asks_for_snapshots=s.eval.every is None and s.eval.when == "running", deferred=s.eval.when == "deferred",
            checkpoint_pace=pace,
            system_rows=SystemRows(1.0, doubling=True, seconds=moment.seconds, exchanges=moment.exchanges),
            patience=_PATIENCE, max_restarts=s.max_restarts if self._initial.returns else 0,
            master_returns=self._initial.master_returns, least=s.launcher.get("least"),
            rejoins=s.max_restarts,
        )  # fmt: skip
        self._queue = SnapshotQueue(job.run_dir / "snapshots")
        self.supervisor = Supervisor(plan, journal, self._queue, moment)
        for worker in self._initial.new:
            self.supervisor.members[worker].new = True
        self._children = children(job.run_dir / "logs")
        self._masters = Masters(self._initial.served())
        self._recovery = Recovery(self._children, self.supervisor, self._initial, self._masters)
        self._watch = Watch(self._children, self.supervisor, faults.read(s), moment.exchanges)
        self._runner = CommandRunner(
            self._children, self.supervisor, self._recovery, self._masters, self._watch, moment.seconds, self._pass_on
        )
        self._vectors = 2.0  # that an exchange moves, on the average
        self._waiting: list[int] = []  # workers whose messages the master keeps until a round is complete

    # ---------------------------------------------------------------- start

    def start(self) -> None:
        """Starts masters, workers and evaluator, where the run begins. Raises RunError, MemoryError or OSError."""
        s, initial, resumed = self._experiment.settings, self._initial, self._journal.resumed
        recipe = self._experiment.recipe.shared()
        links, clocks, owners = initial.links(), {}, list[MasterStart]()
        for link in links:
            start = initial.worker(link, recipe)
            clocks[link.worker] = start.t
            self._start_worker(start)
            self.supervisor.advanced(link.worker, start.t)
        for place, party in enumerate(self._masters.parties if self.supervisor.plan.has_master else ()):
            owners.append(initial.master(links, clocks, place))
            self._children.start(party, Master, owners[place])
        self._recovery.keep(recipe, links, owners)
        self._runner.evaluator = EvaluatorStart(recipe, evaluator_threads(s))
        self._journal.open()
        if s.eval.when == "running":
            self.supervisor.evaluation.start()
        if resumed is None:
            self._queue.add_copies(initial.moment, initial.evaluated())
        else:
            self._queue.restore(resumed.pending)
        self._runner.obey()

    def _start_worker(self, start: WorkerStart) -> None:
        self._children.start(start.link.worker, WorkerLoop, start)

    # ---------------------------------------------------------------- the loop

    def handle_next(self) -> None:
        """Waits for the next event, at most a moment, and does what follows from it."""
        heard = self._children.wait(_LOOK_UP_SECONDS)
        self.supervisor.now = self._seconds()
        for party in heard:
            self._hear(party)
        self.supervisor.homeless(self._children.homeless())
        self._watch.look([*self._waiting, *(() if self._queue.busy else (EVALUATOR,))])
        if (said := fork_server.gone()) is not None:
            self._journal.note(f"{said}; the run goes on without it")
            fork_server.begin()  # so that the next evaluator can be forked
        self._children.start_due()
        self.supervisor.tick(self._seconds())
        self._runner.obey()
        self.supervisor.now = self._seconds()  # starting a process takes time, and a signal may be told next

    def _seconds(self) -> float:
        began = self._children.began
        return self._initial.moment.seconds if began is None else time.monotonic() - began

    def _hear(self, party: ProcessName) -> None:
        child, place = self._children[party], self._masters.place(party)
        for message, tensors in self._children.listen(party):
            self._watch.heard(party)
            if message["kind"] == "done":
                self._done(party, child)
            elif message["kind"] == "error":
                child.error, child.refused = message["text"], message["refused"]
            elif place is None:
                self._handle(party_of(party), message, tensors)
            elif message["kind"] != "ready":
                self._pass_on(self._masters.hear(place, message, tensors))
            elif self._masters.ready(place):
                self._handle(MASTER, message, tensors)
        if child.gone and not child.done:
            child.done = True
            self._tell_end(party, child)

    def _done(self, party: ProcessName, child: Child) -> None:
        child.done = True
        if isinstance(party, int):
            self._runner.tell_masters({"kind": "gone", "worker": party})  # a later master may not have heard the end

    def _pass_on(self, said: Iterable[Said]) -> None:
        """Handles messages of the masters, put together as those of one."""
        for message, tensors in said:
            self._handle(MASTER, message, tensors)

    def _tell_end(self, party: ProcessName, child: Child) -> None:
        for master in self._masters.parties if isinstance(party, int) else ():
            of = self._children.get(master)
            if of is not None and of.process.ended and not of.done:
                self._hear(master)  # first: the worker may have ended because the master did
                if self.supervisor.over:
                    return
        far, how = self._children.far_host(party), child.how
        if (place := self._masters.place(party)) is not None:
            self._masters.forget_last(place)
            self._pass_on(self._masters.forget_checkpoint())
            if far is not None:
                how = f"{party}, with its slice, on {far}: {how}"
            elif not self._masters.ended(place):
                return
        elif party == self._runner.lead:  # its mark may have reached one master and not another
            self._pass_on(self._masters.forget_checkpoint())
        self.supervisor.ended(
            party_of(party), how, refused=child.refused, raised=child.error is not None, log_file=str(child.log),
            follows=far is None,
        )  # fmt: skip

    def _handle(self, party: Party, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        kind, supervisor = message["kind"], self.supervisor
        if kind == "ready":
            supervisor.ready(party)
        elif kind == "news":
            supervisor.advanced(_worker(party), message["t"])
            for row in message["rows"]:
                self._recovery.row(_worker(party), row)
                supervisor.row(row)
        elif kind == "served":
            supervisor.served(message["workers"])
            moment = Moment(message["seconds"], message["step"], message["exchanges"])
            supervisor.owner_at(moment)
            self._waiting, self._vectors = message["waiting"], message["vectors"]
            supervisor.system(moment, **({"master_cpu_seconds": message["cpu"]} if "cpu" in message else {}))
            self._watch.served(moment.exchanges)
        elif kind == "order":
            supervisor.served(message["workers"])
        elif kind == "lost":
            log.info("master: the session of worker %d has ended", message["worker"])
        elif kind == "joined":
            supervisor.joined(_worker(party), message["t"])
        elif kind == "returned":
            master = message["master"] if len(self._masters.parties) > 1 else None
            supervisor.returned(message["worker"], message["t"], message["lost"], message["missed"], master)
        elif kind == "rejoins":
            supervisor.rejoins(_worker(party), message["t"], message["why"])
        elif kind == "fault":
            self._watch.said(party, message["what"], message["seconds"])
        elif kind == "state":
            supervisor.worker_state(
                _worker(party), WorkerState(vectors=_take(tensors), **message["state"]), message["purpose"] == "final"
            )
        elif kind == "snapshot":
            self._snapshot(message, tensors)
        elif kind == "evaluated":
            self._watch.measured()
            supervisor.evaluated(message["number"], message["metrics"])
        else:
            raise AssertionError(f"{party} sent {kind}")

    def _snapshot(self, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        moment = Moment.read(message["moment"])
        if "spread" in message:
            self.supervisor.measured(moment, spread=message["spread"])
        if message["purpose"] == "evaluate":
            assert tensors is not None
            self.supervisor.snapshot(moment, tensors)
        else:
            owner = OwnerState(
                moment, message["clock"], _take(tensors), message["cpu"], message["pace"],
                message.get("variables", {}), message.get("couriers", {}), message.get("masters", []),
            )  # fmt: skip
            if message["purpose"] == "last":
                self.supervisor.closing(owner)
                self._runner.tell_masters({"kind": "close"})  # too late for those that have been told to stop
            else:
                self.supervisor.owner_state(owner, message["purpose"] == "final")

    # ---------------------------------------------------------------- closing

    def end(self) -> None:
        """Ends all processes, whatever has happened."""
        self._watch.links(last=True)
        evaluator = self._children.get(EVALUATOR)
        if evaluator is not None and not evaluator.process.ended:
            self._children.tell(EVALUATOR, {"kind": "stop"})
        self._children.end(broken_off=self._journal.status == "failed" or self._journal.signal is not None)
        self._recovery.close()

    def show_stacks(self) -> None:
        """Has every process write its stacks into its log."""
        self._children.signal(signal.SIGQUIT, list(self._children))

    def facts(self) -> dict[str, Any]:
        """Returns what else the summary says."""
        own = {"threads": self._initial.threads, "vectors_per_exchange": self._vectors}
        return own | self._children.facts()

    def release(self) -> None:
        """Removes the snapshots that wait on the disk."""
        self._queue.clear()


def _worker(party: Party) -> int:
    assert isinstance(party, int), f"{party} is no worker"
    return party


def _take(tensors: SharedTensors | None) -> dict[str, Any]:
    """Returns the vectors that came with a message, by name; their memory lives as long as they do."""
    assert tensors is not None
    vectors = dict(tensors.tensors)
    tensors.close()
    return vectors
