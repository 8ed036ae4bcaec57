"""launcher=simulated: a virtual cluster in this process.

Workers, master and links live on a virtual clock; the rules, the problem, the data, the supervisor and what is recorded
are those of real runs. Events are taken one by one in the order of virtual time, so the same seed gives the same bits.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher import driver
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.snapshot_queue import SnapshotQueue
from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.launcher.supervisor.commands import Command, Measure, StartWorker, Stop, TakeCheckpoint
from easgd_cli.launcher.supervisor.parties import EVALUATOR, MASTER
from easgd_cli.launcher.supervisor.supervisor import Plan, Supervisor
from easgd_cli.launcher.virtual.parties import VirtualParties
from easgd_cli.launcher.virtual.reports import VirtualReports
from easgd_cli.launcher.virtual.training import JOIN, VirtualTraining
from easgd_cli.record.checkpoint import Checkpoint, OwnerState
from easgd_cli.settings.schema import Interval
from easgd_cli.system.devices import cores
from easgd_cli.system.shared_memory import keep_freed_memory
from easgd_cli.training.snapshot import EVALUATED, Pace

_EVALUATIONS = 20  # how many there are in a run without eval.every
_LOOK_UP_SECONDS = 0.1  # real seconds between two looks at signals, and two updates of the view
_SYSTEM_POINTS = 200  # how many rows of the run as a whole there are


def launch(job: Job, experiment: Experiment, costs: CostModel) -> Outcome:
    """Runs the job to its end. Raises RunError when the record cannot be written."""
    keep_freed_memory()
    return driver.run(job, experiment, lambda journal: VirtualCluster(job, experiment, costs, journal))


class VirtualCluster:
    """One simulated run: takes the events of its parties and tells them to a supervisor."""

    def __init__(self, job: Job, experiment: Experiment, costs: CostModel, journal: Journal):
        s, resumed, method = experiment.settings, journal.resumed, experiment.method
        self._settings, self._steps, self._costs, self._journal = s, experiment.steps, costs, journal
        self._threads = s.threads if s.threads is not None else cores()  # one worker computes at a time
        torch.set_num_threads(self._threads)
        if s.deterministic:
            torch.use_deterministic_algorithms(True)
        self._parties = VirtualParties(experiment, costs, resumed)
        self._events = self._parties.events
        pace = Pace(Interval.parse("eval.every", s.eval.every) or self._default_interval())
        every = self._length() / _SYSTEM_POINTS
        rows = SystemRows(every, first=every)
        checkpoint_pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        self._queue = SnapshotQueue(job.run_dir / "snapshots")
        self._stopped = False
        self._real_before = 0.0
        self._real_began = time.monotonic()
        begins = 0.0 if resumed is None else resumed.owner.moment.step
        if resumed is not None:
            assert resumed.simulated is not None
            self._parties.restore(resumed)
            self._real_before = resumed.simulated["real_seconds"]
            pace = Pace(pace.interval, *resumed.owner.pace)
            rows.restore(resumed.simulated["system"])
            checkpoint_pace.due(resumed.owner.moment.step, resumed.owner.moment.seconds)
        plan = Plan(
            has_master=not method.alone, in_rounds=method.in_rounds, asks_for_snapshots=False, deferred=False,
            checkpoint_pace=checkpoint_pace, system_rows=rows, patience=None,
            max_restarts=s.max_restarts, rejoins=s.max_restarts,
        )  # fmt: skip
        self.supervisor = Supervisor(plan, journal, self._queue, self._parties.moment(begins))
        if resumed is not None and (state := (resumed.simulated or {}).get("supervisor")) is not None:
            self.supervisor.restore(state)
        self._reports = VirtualReports(self._parties, self.supervisor, pace, rows, self._obey)
        self._training = VirtualTraining(
            experiment, costs, self._parties, self.supervisor, self._reports, self._obey, self._state
        )

    def _default_interval(self) -> Interval:
        if self._steps is not None:
            return Interval(steps=max(1, self._steps // _EVALUATIONS))
        return Interval(seconds=self._length() / _EVALUATIONS)

    def _length(self) -> float:
        """Returns about how many virtual seconds computing lasts."""
        if self._settings.minutes is not None:
            return self._settings.minutes * 60
        assert self._steps is not None
        return self._steps * self._costs.mean_seconds()

    # ---------------------------------------------------------------- the virtual clock

    def start(self) -> None:
        """Opens the record and begins. Raises RunError."""
        self._journal.open()
        supervisor = self.supervisor
        if self._journal.resumed is not None:
            self._queue.restore(self._journal.resumed.pending)
        supervisor.ready(EVALUATOR)
        for m in self._parties.workers:
            supervisor.ready(m.number)
        if self._parties.masters:
            supervisor.ready(MASTER)
        if self._journal.resumed is None:
            self._reports.snapshot()
            self._training.begin()
        self._obey()

    def handle_next(self) -> None:
        """Takes events for a moment of real time, or until none is left."""
        supervisor = self.supervisor
        self._obey()
        until = time.monotonic() + _LOOK_UP_SECONDS
        while self._events and not self._stopped and time.monotonic() < until:
            event = self._events.peek()
            if self._training.is_too_late(event):
                self._events.drop()  # and the clock does not go on to its second
                continue
            supervisor.now = self._events.next().time
            self._training.happen(event)
            supervisor.pace()
            self._obey()
            self._parties.close(away=bool(supervisor.members.away))
        self._reports.owner()
        if (not self._events or self._stopped) and supervisor.course.final is None and not supervisor.over:
            if not self._stopped:
                self._reports.spread()
            supervisor.last_states(self._state())
        supervisor.tick(self._events.now)
        self._obey()

    # ---------------------------------------------------------------- what the supervisor is told, and what it asks for

    def _obey(self) -> None:
        while commands := self.supervisor.commands():
            for command in commands:
                self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        """Carries out a command. Begin and Kill need nothing here, since there are no processes."""
        if isinstance(command, Measure):
            metrics = {EVALUATED[name]: self._parties.evaluate(v) for name, v in command.snapshot.vectors().items()}
            self.supervisor.evaluated(command.snapshot.number, metrics)
        elif isinstance(command, TakeCheckpoint):
            self._reports.order()
            self.supervisor.checkpoint(self._state())
        elif isinstance(command, StartWorker):
            self._events.add(self._events.now + self._costs.restart_seconds, JOIN, command.worker)
        elif isinstance(command, Stop):
            self._stopped = True

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> Checkpoint:
        """Returns everything as it is between two events; the tensors are the run's own, no copies."""
        parties, (pace, rows) = self._parties, self._reports.state()
        owner = OwnerState(self._reports.moment, parties.owner_clock, parties.vectors, pace=pace)
        simulated = parties.position() | {
            "system": rows, "real_seconds": self._real_seconds(), "supervisor": self.supervisor.state(),
        }  # fmt: skip
        return Checkpoint(owner, parties.states(), simulated=simulated)

    # ---------------------------------------------------------------- the end

    def _real_seconds(self) -> float:
        return self._real_before + time.monotonic() - self._real_began

    def end(self) -> None:
        """Reports the last exchanges and clocks; there is no process to end."""
        self._reports.order()
        for m in self._parties.workers:
            self.supervisor.advanced(m.number, m.w.t)

    def facts(self) -> dict[str, Any]:
        """Returns what else the summary says."""
        own = {"launcher": "simulated", "threads": self._threads, "real_seconds": self._real_seconds()}
        return own | self._parties.communication()

    def show_stacks(self) -> None:
        """Does nothing: all parties are in this process, whose stacks the journal shows."""

    def release(self) -> None:
        """Does nothing: a virtual cluster holds nothing beside its parties."""
