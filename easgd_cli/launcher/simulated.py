"""launcher=simulated: a virtual cluster in this process.

Workers, master and links live on a virtual clock; the rules, the problem, the data, the supervisor and what is recorded
are those of real runs. What happens is taken event by event in virtual-time order, so the same seed gives the same
bits.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher import driver
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal import Journal
from easgd_cli.launcher.parties import EVALUATOR, MASTER, Command, Measure, StartWorker, Stop, TakeCheckpoint
from easgd_cli.launcher.snapshot_queue import InPlace, SnapshotQueue
from easgd_cli.launcher.supervisor import Plan, Supervisor
from easgd_cli.launcher.system_rows import SystemRows
from easgd_cli.launcher.virtual_master import SERVE
from easgd_cli.launcher.virtual_parties import VirtualParties
from easgd_cli.launcher.virtual_worker import READY, VirtualWorker
from easgd_cli.record.checkpoint import Checkpoint, OwnerState
from easgd_cli.settings.schema import Interval
from easgd_cli.system.devices import cores
from easgd_cli.system.shared_memory import keep_freed_memory
from easgd_cli.training.faults import Rejoin
from easgd_cli.training.snapshot import EVALUATED, Moment, Pace
from easgd_cli.transport.simulated import ARRIVE, Event

_BEGIN = "begin"  # the event of a worker whose next step begins
_BACK = "back"  # of a variable that was lost, by its place
_JOIN = "join"  # of one that has been started again, or whose link is back
_EVALUATIONS = 20  # of a run whose eval.every says nothing
_LOOK_UP_SECONDS = 0.1  # of the real clock, between two looks at signals and at what is shown
_SYSTEM_POINTS = 200  # rows of the run as a whole


def launch(job: Job, experiment: Experiment, costs: CostModel) -> Outcome:
    """Runs the job to its end. Raises RunError when the record cannot be written."""
    keep_freed_memory()
    return driver.run(job, experiment, lambda journal: VirtualCluster(job, experiment, costs, journal))


class VirtualCluster:
    """One simulated run: the events of its parties, told to a supervisor."""

    def __init__(self, job: Job, experiment: Experiment, costs: CostModel, journal: Journal):
        s, resumed, method = experiment.settings, journal.resumed, experiment.method
        self._settings, self._steps, self._costs, self._journal = s, experiment.steps, costs, journal
        self._threads = s.threads if s.threads is not None else cores()  # one worker computes at a time
        torch.set_num_threads(self._threads)
        if s.deterministic:
            torch.use_deterministic_algorithms(True)
        self._parties = VirtualParties(job, experiment, costs, resumed)
        self._events = self._parties.events
        self._pace = Pace(Interval.parse("eval.every", s.eval.every) or self._default_interval())
        every = self._length() / _SYSTEM_POINTS
        self._system_rows = SystemRows(every, first=every)
        checkpoint_pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        self._queue = SnapshotQueue(job.run_dir / "snapshots")
        self._order: list[int] = []  # served, and not yet told
        self._kept = False  # whether the checkpoint at the first end of a worker has been written
        self._stopped = False
        self._real_before = 0.0
        self._real_began = time.monotonic()
        if resumed is not None:
            self._restore(resumed)
            checkpoint_pace.due(resumed.owner.moment.step, resumed.owner.moment.seconds)
        plan = Plan(
            has_master=not method.alone, in_rounds=method.in_rounds, asks_for_snapshots=False, deferred=False,
            checkpoint_pace=checkpoint_pace, system_rows=self._system_rows, patience=None,
            max_restarts=s.max_restarts, rejoins=s.max_restarts,
        )  # fmt: skip
        self.supervisor = Supervisor(plan, journal, self._queue, self._moment())
        if resumed is not None and (state := (resumed.simulated or {}).get("supervisor")) is not None:
            self.supervisor.restore(state)

    def _default_interval(self) -> Interval:
        if self._steps is not None:
            return Interval(steps=max(1, self._steps // _EVALUATIONS))
        return Interval(seconds=self._length() / _EVALUATIONS)

    def _length(self) -> float:
        """Virtual seconds that computing lasts, about."""
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
            self._snapshot()
            for m in self._parties.workers:
                self._begin_step(m)
        self._obey()

    def turn(self) -> None:
        """Takes events for a moment of the real clock, or to the last one."""
        supervisor = self.supervisor
        self._obey()
        until = time.monotonic() + _LOOK_UP_SECONDS
        while self._events and not self._stopped and time.monotonic() < until:
            event = self._events.peek()
            if event.kind in (ARRIVE, _JOIN) and self._parties.too_late(event.worker):
                self._events.drop()
                # given back: its step has not happened, and no other will; nor has this second
                self._parties.workers[event.worker].turn = None
                continue
            supervisor.now = self._events.next().time
            self._happen(event)
            supervisor.pace()
            self._obey()
            self._parties.close(away=bool(supervisor.members.away))
        self._report_order()
        supervisor.owner_at(self._moment())
        if (not self._events or self._stopped) and not supervisor.has_ended and not supervisor.over:
            if not self._stopped:
                self._tell_spread()
            supervisor.last_states(self._state())
        supervisor.tick(self._events.now)
        self._obey()

    def _happen(self, event: Event) -> None:
        if event.kind == SERVE:
            self._served(event.worker)
        elif event.kind == _BACK:
            self._journal.note(f"{self._parties.begin_again(event.worker)} is back")
            self._told_returned(event.worker)
        elif event.kind == ARRIVE:
            self._parties.wire.deliver(event)
            self._listen()
        elif (courier := self._parties.courier(event.worker)) is not None:
            courier.replied()
        else:
            self._happen_to(self._parties.workers[event.worker], event)

    def _happen_to(self, m: VirtualWorker, event: Event) -> None:
        if event.kind == _BEGIN:
            self._begin_step(m, event)
        elif event.kind == READY:
            self._go_on(m, event)
        elif event.kind == _JOIN:
            m.join()
        elif m.closes:
            m.close()
            self._listen()
        elif m.joins:
            self.supervisor.joined(m.number, m.joined())
            self._begin_step(m, event)
        else:
            m.replied()

    def _listen(self) -> None:
        """The masters take what has arrived."""
        while arrived := list(self._parties.wire.arrived):
            for place in arrived:
                for worker in self._parties.masters[place].listen():
                    self._parties.workers[worker].turn = None  # given back
                self._told_returned(place)

    def _told_returned(self, place: int) -> None:
        master = self._parties.masters[place]
        if master.returned:
            self._report_order()
            self.supervisor.owner_at(self._moment())
            for worker, t, lost, missed in master.returned:
                self._parties.clocks[worker] = t
                self.supervisor.returned(worker, t, lost, missed)
            master.returned.clear()

    def _begin_step(self, m: VirtualWorker, event: Event | None = None) -> None:
        steps, minutes = self._steps, self._settings.minutes
        if (steps is not None and m.w.t >= steps) or (minutes is not None and self._events.now >= minutes * 60):
            self._finish(m, event)
            return
        if m.faults is not None and self._fails(m):
            return
        try:
            m.begin()
        except Rejoin as e:
            self._rejoins(m, e)

    def _fails(self, m: VirtualWorker) -> bool:
        """Whether a fault on purpose keeps the worker from beginning its step now."""
        assert m.faults is not None
        for fault in m.faults.at(m.w.t):
            if fault.kind == "stop" and m.stood < m.w.t:
                m.stand_still(fault.seconds)
                self._events.add(self._events.now + fault.seconds, _BEGIN, m.number)
                return True
            if fault.kind == "link":
                m.link_down = self._events.now + fault.seconds if fault.seconds else math.inf
            elif fault.kind in ("kill", "exception"):
                self._lose(m, "killed by SIGKILL" if fault.kind == "kill" else "InjectedFault: a fault on purpose")
                return True
        return False

    def _lose(self, m: VirtualWorker, how: str) -> None:
        self._clock(m.number, m.w.t)
        self._report_order()
        self.supervisor.owner_at(self._moment())
        m.lose()
        self._listen()
        self.supervisor.ended(m.number, how)
        self._obey()

    def _rejoins(self, m: VirtualWorker, why: Rejoin) -> None:
        """The worker goes back to the center in the session it has."""
        self.supervisor.rejoins(m.number, m.w.t, str(why))
        m.turn = None
        self._events.add(max(self._events.now, why.until), _JOIN, m.number)
        self._obey()

    def _go_on(self, m: VirtualWorker, event: Event) -> None:
        """Everything the rule waits for is there."""
        try:
            if m.go_on() is None:
                return
        except Rejoin as e:
            self._rejoins(m, e)
            return
        w, average, alone = m.w, self._parties.average, not self._parties.masters
        if average is not None and alone:
            w.average.lerp_(w.x, average(w.t))
        if m.meter.due(w.t):
            self.supervisor.row(m.meter.row(w, self._events.now, w.seen.served, m.last_reply))
        if alone:
            self._clock(0, w.t)
            self._changed()
        self._begin_step(m, event)

    def _served(self, place: int) -> None:
        """The service at the variable of this place ends."""
        parties = self._parties
        served = parties.masters[place].serve()
        for request in served:
            self._order.append(request.entry)
            if request.worker in parties.clocks:
                self._clock(request.worker, request.t)
        self._told_returned(place)
        if parties.masters[place].away:
            self._journal.note(f"{parties.name(place)} died; its children go on alone until it is started again")
            self._events.add(self._events.now + self._costs.restart_seconds, _BACK, place)
        parties.updated(served)
        self._changed()

    def _clock(self, worker: int, t: int) -> None:
        self._parties.clocks[worker] = t
        self.supervisor.advanced(worker, t)

    def _changed(self) -> None:
        """What is evaluated has changed."""
        now = self._events.now
        if self._pace.due(self.supervisor.members.step, now):
            self._snapshot()
            self._obey()
        if self._parties.masters and self._system_rows.due(now):
            queue = self._parties.queueing
            self.supervisor.system(
                self._moment(), queue_seconds=queue.waited / queue.served, master_busy=100 * queue.busy / now
            )

    def _finish(self, m: VirtualWorker, event: Event | None) -> None:
        """The worker takes no further step. The first to say so ends what a longer run would have in common with this
        one.
        """
        m.turn = None
        if not self._kept and event is not None:
            self._events.again(event._replace(kind=_BEGIN))  # where a run that goes on for longer begins
            self._kept = True
            self._report_order()
            self.supervisor.checkpoint(self._state(), last=True)
            self._events.next()
        self._clock(m.number, m.w.t)
        m.close()
        self._listen()

    # ---------------------------------------------------------------- what the supervisor is told, and what it asks for

    def _moment(self) -> Moment:
        clocks = self._parties.clocks
        return Moment(self._events.now, sum(clocks.values()) / len(clocks), self._parties.served, dict(clocks))

    def _snapshot(self) -> None:
        self._report_order()  # what led here is in the record before what it led to
        self._tell_spread()
        self.supervisor.snapshot(self._moment(), InPlace(self._parties.evaluated()))

    def _tell_spread(self) -> None:
        if (spread := self._parties.variables.spread()) is not None:
            self.supervisor.measured(self._moment(), spread=spread)

    def _report_order(self) -> None:
        if self._order:  # where the record could not be opened there is none to tell
            self.supervisor.served(self._order)
        self._order = []

    def _obey(self) -> None:
        while commands := self.supervisor.commands():
            for command in commands:
                self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        """Begin asks for nothing here, and nobody is to be killed: there is no process."""
        if isinstance(command, Measure):
            metrics = {EVALUATED[name]: self._parties.evaluate(v) for name, v in command.snapshot.vectors().items()}
            self.supervisor.evaluated(command.snapshot.number, metrics)
        elif isinstance(command, TakeCheckpoint):
            self._report_order()
            self.supervisor.checkpoint(self._state())
        elif isinstance(command, StartWorker):
            self._events.add(self._events.now + self._costs.restart_seconds, _JOIN, command.worker)
        elif isinstance(command, Stop):
            self._stopped = True

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> Checkpoint:
        """Everything, between two events. Its tensors are the run's own."""
        parties = self._parties
        owner = OwnerState(
            self._moment(), parties.owner_clock, parties.vectors, pace=[self._pace.next_step, self._pace.next_seconds]
        )
        simulated = parties.place() | {
            "system": self._system_rows.state(), "real_seconds": self._real_seconds(),
            "supervisor": self.supervisor.state(),
        }  # fmt: skip
        return Checkpoint(owner, parties.states(), simulated=simulated)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Puts everything where it was."""
        assert checkpoint.simulated is not None
        self._parties.restore(checkpoint)
        self._real_before = checkpoint.simulated["real_seconds"]
        self._pace = Pace(self._pace.interval, *checkpoint.owner.pace)
        self._system_rows.restore(checkpoint.simulated["system"])

    # ---------------------------------------------------------------- the end

    def _real_seconds(self) -> float:
        return self._real_before + time.monotonic() - self._real_began

    def end(self) -> None:
        """There is no process to end."""
        self._report_order()
        for m in self._parties.workers:
            self.supervisor.advanced(m.number, m.w.t)

    def facts(self) -> dict[str, Any]:
        """What else the summary says."""
        own = {"launcher": "simulated", "threads": self._threads, "real_seconds": self._real_seconds()}
        return own | self._parties.communication()

    def show_stacks(self) -> None:
        """All parties are in this process."""

    def release(self) -> None:
        """Nothing is held."""
