"""launcher=simulated: a virtual cluster in this process.

Workers, master and links live on a virtual clock; the rules, the problem, the data, the supervisor and what is recorded are
those of real runs. What happens is taken event by event in virtual-time order, so the same seed gives the same bits.

A gradient is computed when its answer is handed to the rule, and not when it was asked for: the point it belongs to cannot
have changed (a rule changes its state only after its last yield), and so one gradient buffer serves any number of
workers. For the same reason a worker in mid-step is saved as its state, its clock and the answers it has had.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easgd_cli.algorithms.base import Seen, Variable, Worker
from easgd_cli.experiment import build
from easgd_cli.experiment.build import Prepared
from easgd_cli.launcher import driver
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal import Journal
from easgd_cli.launcher.snapshot_queue import InPlace, SnapshotQueue
from easgd_cli.launcher.supervisor import EVALUATOR, MASTER, Command, Measure, Plan, Stop, Supervisor, TakeCheckpoint
from easgd_cli.launcher.system_rows import SystemRows
from easgd_cli.launcher.virtual_master import SERVE, VirtualMaster
from easgd_cli.problems.base import statistics_of
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.record.recorder import read_order
from easgd_cli.settings.schema import Interval
from easgd_cli.system.devices import cores, deal_devices
from easgd_cli.system.shared_memory import keep_freed_memory
from easgd_cli.training.center import Center
from easgd_cli.training.drive import ProblemGradients, Turn
from easgd_cli.training.gathering import Each, Gathering, Recorded, Round
from easgd_cli.training.meter import Meter
from easgd_cli.training.snapshot import EVALUATED, Moment, Pace
from easgd_cli.transport.simulated import ARRIVE, REPLY, Event, Events, SimulatedWorkerEnd, Wire

_BEGIN, _READY = "begin", "ready"  # events of a worker: its next step begins; all its rule waits for is there
_EVALUATIONS = 20  # of a run whose eval.every says nothing
_LOOK_UP_SECONDS = 0.1  # of the real clock, between two looks at signals and at what is shown
_SYSTEM_POINTS = 200  # rows of the run as a whole


def launch(job: Job, prepared: Prepared, cluster: CostModel) -> Outcome:
    """Runs the job to its end. Raises RunError when the record cannot be written."""
    keep_freed_memory()
    return driver.run(job, prepared, lambda journal: VirtualCluster(job, prepared, cluster, journal))


@dataclass
class _VirtualWorker:
    """A worker, and where it is in its step."""

    w: Worker
    session: SimulatedWorkerEnd | None
    meter: Meter
    turn: Turn | None = None
    answered: list[tuple[bool, bool]] = field(default_factory=list)  # in this step: whether with a gradient, with a reply
    asked: float = 0.0  # when it began to wait for what it waits for now
    computed: float = 0.0  # when the gradient among it is ready

    @property
    def number(self) -> int:
        return self.w.number

    @property
    def last_reply(self) -> Tensor | None:
        return self.session.reply if self.session is not None and self.w.seen.exchanges else None


class VirtualCluster:
    """One simulated run: its events, told to a supervisor."""

    def __init__(self, job: Job, prepared: Prepared, cluster: CostModel, journal: Journal):
        s, resumed = job.settings, journal.resumed
        self._settings, self._prepared, self._cluster, self._journal = s, prepared, cluster, journal
        self._method, self._average, self._shared = prepared.method, prepared.average, prepared.method.shared
        self._threads = s.threads if s.threads is not None else cores()  # one worker computes at a time
        torch.set_num_threads(self._threads)
        if s.deterministic:
            torch.use_deterministic_algorithms(True)
        device = self._device = torch.device(deal_devices(s.device, 1)[0])
        self._problem = prepared.problem if device.type == "cpu" else build.problem(s, prepared.images, device)
        self._gradients = ProblemGradients(self._problem, s.clip)
        self._events = Events()
        self._wire = Wire(cluster.network(prepared.size * prepared.dtype.itemsize), self._events)
        self._members = [self._member(i, device) for i in range(s.workers)]
        self._master = None if self._shared is None else self._new_master(self._shared, device)
        self._seen_clocks = dict.fromkeys(range(s.workers), 0)  # the workers' as the owner has seen them
        self._pace = Pace(Interval.parse("eval.every", s.eval.every) or self._default_interval())
        every = self._length() / _SYSTEM_POINTS
        self._system_rows = SystemRows(every, first=every)
        in_rounds = self._shared is not None and self._shared.in_rounds
        checkpoint_pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        plan = Plan(self._shared is not None, in_rounds, False, False, checkpoint_pace, self._system_rows, patience=None)
        self._queue = SnapshotQueue(job.run_dir / "snapshots")
        self._order: list[int] = []  # served, and not yet told
        self._kept = False  # whether the checkpoint at the first end of a worker has been written
        self._stopped = False
        self._real_before = 0.0
        self._real_began = time.monotonic()
        if resumed is not None:
            self._restore(resumed)
            checkpoint_pace.due(resumed.owner.moment.step, resumed.owner.moment.seconds)
        self.supervisor = Supervisor(plan, journal, self._queue, self._moment())

    def _member(self, i: int, device: torch.device) -> _VirtualWorker:
        s, method = self._settings, self._method
        start = self._prepared.problem.start(i).to(device)
        vectors = {name: start.clone() if name in EVALUATED else torch.zeros_like(start) for name in (*method.state, *method.scratch)}
        if self._shared is None and self._average is not None:
            vectors["average"] = start.clone()
        session = None if self._shared is None else self._wire.end(i, vectors, torch.zeros_like(start))
        meter = Meter(i, s.batch_size, s.workers, self._prepared.steps, device, statistics_of(self._problem))
        return _VirtualWorker(Worker(vectors, s.tau, build.schedule(s, self._prepared.steps), number=i), session, meter)

    def _new_master(self, shared: Variable, device: torch.device) -> VirtualMaster:
        s = self._settings
        names = (*shared.state, *(("average",) if self._average is not None else ()))
        start = self._prepared.start.to(device)
        vectors = {name: start.clone() if name in EVALUATED else torch.zeros_like(start) for name in names}
        self._center = Center(self._method, vectors, average=self._average)
        gathering: Gathering = Round(range(s.workers)) if shared.in_rounds else Each()
        if s.replay is not None:  # of one that is resumed, the checkpoint has what is left of the order
            order = [] if self._journal.resumed is not None else read_order(Path(str(s.replay)) / "exchanges.bin")
            gathering = Recorded(order, shared.in_rounds)
        return VirtualMaster(self._center, self._wire.master(self._center), gathering, self._events, self._cluster.service)

    def _default_interval(self) -> Interval:
        steps = self._prepared.steps
        if steps is not None:
            return Interval(steps=max(1, steps // _EVALUATIONS))
        return Interval(seconds=self._length() / _EVALUATIONS)

    def _length(self) -> float:
        """Virtual seconds that computing lasts, about."""
        if self._settings.minutes is not None:
            return self._settings.minutes * 60
        assert self._prepared.steps is not None
        return self._prepared.steps * self._cluster.mean_seconds()

    # ---------------------------------------------------------------- the virtual clock

    def start(self) -> None:
        """Opens the record and begins. Raises RunError."""
        self._journal.open()
        supervisor = self.supervisor
        supervisor.ready(EVALUATOR)
        for m in self._members:
            supervisor.ready(m.number)
        if self._master is not None:
            supervisor.ready(MASTER)
        if self._journal.resumed is None:
            self._snapshot()
            for m in self._members:
                self._begin_step(m)
        self._obey()

    def turn(self) -> None:
        """Takes events for a moment of the real clock, or to the last one."""
        supervisor, master = self.supervisor, self._master
        self._obey()
        until = time.monotonic() + _LOOK_UP_SECONDS
        while self._events and not self._stopped and time.monotonic() < until:
            event = self._events.peek()
            if event.kind == ARRIVE and master is not None and master.rounds_are_over:
                self._events.drop()
                self._members[event.worker].turn = None  # given back: its step has not happened, and no other will; nor has this second
                continue
            supervisor.now = self._events.next().time
            self._happen(event)
            supervisor.pace()
            self._obey()
        self._report_order()
        supervisor.owner_at(self._moment())
        if (not self._events or self._stopped) and supervisor.final is None:
            supervisor.last_states(self._state())
        supervisor.tick(self._events.now)
        self._obey()

    def _happen(self, event: Event) -> None:
        m = self._members[event.worker]
        if event.kind == _BEGIN:
            self._begin_step(m, event)
        elif event.kind == _READY:
            self._go_on(m, event)
        elif event.kind == REPLY:
            self._events.add(max(self._events.now, m.computed), _READY, m.number)
        elif event.kind == SERVE:
            self._served()
        else:
            self._wire.deliver(event)
            self._listen()

    def _listen(self) -> None:
        """The master takes what has arrived."""
        if self._master is not None:
            for worker in self._master.listen():
                self._members[worker].turn = None  # given back

    def _begin_step(self, m: _VirtualWorker, event: Event | None = None) -> None:
        steps, minutes = self._prepared.steps, self._settings.minutes
        if (steps is not None and m.w.t >= steps) or (minutes is not None and self._events.now >= minutes * 60):
            self._finish(m, event)
            return
        m.turn, m.answered = Turn(self._method, m.w), []
        self._ask(m)

    def _ask(self, m: _VirtualWorker) -> None:
        """What the worker's rule waits for now is under way; what it asks for at once overlaps."""
        turn, now = m.turn, self._events.now
        assert turn is not None
        m.asked = now
        begin = now + self._overhead(turn)
        m.computed = begin + (0.0 if turn.at is None else self._cluster.compute_seconds(self._settings.seed, m.number, m.w.t))
        if turn.message is not None:
            assert m.session is not None
            m.session.post(turn.message, m.w.t)
        else:
            self._events.add(m.computed, _READY, m.number)

    def _overhead(self, turn: Turn) -> float:
        """Seconds of the worker's own before what its rule waits for is under way."""
        return self._cluster.overhead if turn.message is not None else 0.0

    def _go_on(self, m: _VirtualWorker, event: Event) -> None:
        """Everything the rule waits for is there."""
        turn, tally, now = m.turn, m.meter.tally, self._events.now
        assert turn is not None
        overhead = self._overhead(turn)
        tally.seconds_compute += m.computed - m.asked - overhead
        tally.seconds_communication += now - m.computed + overhead
        tally.seconds_loop += now - m.asked
        m.answered.append((turn.at is not None, turn.message is not None))
        self._answer(m)
        if not turn.ended:
            self._ask(m)
            return
        w, result = m.w, turn.result
        assert result.loss is not None
        m.meter.step(result.loss, result.staleness)
        if self._average is not None and self._shared is None:
            w.average.lerp_(w.x, self._average(w.t))
        if m.meter.due(w.t):
            self.supervisor.row(m.meter.row(w, now, w.seen.served, m.last_reply))
        if self._shared is None:
            self._clock(0, w.t)
            self._changed()
        self._begin_step(m, event)

    def _answer(self, m: _VirtualWorker) -> None:
        """Computes the gradient, if one was asked for, and hands it to the rule with the reply."""
        turn, gradient = m.turn, None
        assert turn is not None
        if turn.at is not None:
            self._gradients.load(m.number, m.w.t)
            gradient = self._gradients.gradient(turn.at)
            if m.session is not None and turn.message is None:  # the rule may exchange before it uses it, and the buffer is everybody's
                gradient = gradient[0].clone(), gradient[1]
        turn.answer(gradient, m.session.collect() if m.session is not None and turn.message is not None else None)

    def _served(self) -> None:
        assert self._master is not None
        for request in self._master.serve():
            self._order.append(request.worker)
            self._clock(request.worker, request.t)
        self._changed()

    def _clock(self, worker: int, t: int) -> None:
        self._seen_clocks[worker] = t
        self.supervisor.advanced(worker, t)

    def _changed(self) -> None:
        """What is evaluated has changed."""
        master, now = self._master, self._events.now
        if self._pace.due(self.supervisor.step, now):
            self._snapshot()
            self._obey()
        if master is not None and self._system_rows.due(now):
            queue = master.queueing
            self.supervisor.system(self._moment(), queue_seconds=queue.waited / queue.served, master_busy=100 * queue.busy / now)

    def _finish(self, m: _VirtualWorker, event: Event | None) -> None:
        """The worker takes no further step. The first to say so ends what a longer run would have in common with this one."""
        m.turn = None
        if not self._kept and event is not None:
            self._events.again(event._replace(kind=_BEGIN))  # where a run that goes on for longer begins
            self._kept = True
            self._report_order()
            self.supervisor.checkpoint(self._state(), last=True)
            self._events.next()
        self._clock(m.number, m.w.t)
        if m.session is not None:
            m.session.close(m.w.t)
            self._listen()

    # ---------------------------------------------------------------- what the supervisor is told, and what it asks for

    def _moment(self) -> Moment:
        clocks = self._seen_clocks
        return Moment(self._events.now, sum(clocks.values()) / len(clocks), 0 if self._master is None else self._master.served, dict(clocks))

    def _vectors(self) -> dict[str, Tensor]:
        """Of the owner of what is evaluated."""
        return self._center.vectors if self._master is not None else _lasting(self._members[0])

    def _snapshot(self) -> None:
        self._report_order()  # what led here is in the record before what it led to
        self.supervisor.snapshot(self._moment(), InPlace({name: v for name, v in self._vectors().items() if name in EVALUATED}))

    def _report_order(self) -> None:
        self.supervisor.served(self._order)
        self._order = []

    def _obey(self) -> None:
        while commands := self.supervisor.commands():
            for command in commands:
                self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        """Begin asks for nothing here, and nobody is to be killed: there is no process."""
        if isinstance(command, Measure):
            metrics = {EVALUATED[name]: self._problem.evaluate(v.to(self._device)) for name, v in command.snapshot.vectors().items()}
            self.supervisor.evaluated(command.snapshot.number, metrics)
        elif isinstance(command, TakeCheckpoint):
            self._report_order()
            self.supervisor.checkpoint(self._state())
        elif isinstance(command, Stop):
            self._stopped = True

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> Checkpoint:
        """Everything, between two events. Its tensors are the run's own."""
        clock = self._center.clock if self._master is not None else self._members[0].w.t
        owner = OwnerState(self._moment(), clock, self._vectors(), pace=[self._pace.next_step, self._pace.next_seconds])
        workers = {}
        for m in self._members:
            vectors = _lasting(m) | ({"reply": m.session.reply} if m.session is not None and m.session.reply is not None else {})
            seen = m.w.seen
            workers[m.number] = WorkerState(m.w.t, vectors, seen.clock, seen.served, seen.exchanges, m.meter.state())
        simulated = {
            **self._events.state(), "master": None if self._master is None else self._master.state(),
            "system": self._system_rows.state(), "real_seconds": self._real_seconds(),
            "members": [
                {
                    "in_step": m.turn is not None, "answered": m.answered, "asked": m.asked, "computed": m.computed,
                    "session": None if m.session is None else m.session.state(),
                }
                for m in self._members
            ],
        }  # fmt: skip
        return Checkpoint(owner, workers, simulated=simulated)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Puts everything where it was."""
        state, owner = checkpoint.simulated, checkpoint.owner
        assert state is not None
        self._real_before = state["real_seconds"]
        self._events.restore(state)
        if self._master is not None:
            for name, v in self._center.vectors.items():
                v.copy_(owner.vectors[name])
            self._center.clock = owner.clock
            self._master.restore(state["master"])
        self._seen_clocks = dict(sorted(owner.moment.clocks.items()))
        self._pace = Pace(self._pace.interval, *owner.pace)
        self._system_rows.restore(state["system"])
        for m, saved in zip(self._members, state["members"], strict=True):
            self._restore_member(m, checkpoint.workers[m.number], saved)

    def _restore_member(self, m: _VirtualWorker, worker: WorkerState, saved: dict[str, Any]) -> None:
        for name, v in _lasting(m).items():
            v.copy_(worker.vectors[name])
        s, steps, statistics = self._settings, self._prepared.steps, statistics_of(self._problem)
        seen = Seen(worker.center_clock, worker.served, worker.exchanges)
        m.w = Worker(_lasting(m), s.tau, m.w.schedule, worker.t, m.number, seen)
        m.meter = Meter(m.number, s.batch_size, len(self._members), steps, m.w.x.device, statistics, worker.tally)
        if m.session is not None:
            assert m.session.reply is not None
            m.session.reply.copy_(worker.vectors["reply"])
            m.session.restore(saved["session"])
        if saved["in_step"]:  # the rule is run again with the answers it has had
            m.turn = Turn(self._method, m.w)
            for _ in saved["answered"]:
                self._answer(m)
            m.answered = [tuple(a) for a in saved["answered"]]
            m.asked, m.computed = saved["asked"], saved["computed"]

    # ---------------------------------------------------------------- the end

    def _real_seconds(self) -> float:
        return self._real_before + time.monotonic() - self._real_began

    def end(self) -> None:
        """There is no process to end."""
        self._report_order()
        for m in self._members:
            self.supervisor.advanced(m.number, m.w.t)

    def facts(self) -> dict[str, Any]:
        """What else the summary says."""
        return {
            "launcher": "simulated", "threads": self._threads, "real_seconds": self._real_seconds(),
            **({"communication": self._communication()} if self._master is not None else {}),
        }  # fmt: skip

    def release(self) -> None:
        """Nothing is held."""

    def _communication(self) -> dict[str, Any]:
        """What exchanging has cost: the master's queue, and the share of the workers' time spent waiting, in percent."""
        assert self._master is not None
        tallies = [m.meter.tally for m in self._members]
        loop = sum(tally.seconds_loop for tally in tallies)
        waiting = 100 * sum(tally.seconds_communication for tally in tallies) / loop if loop else 0.0
        return self._master.queueing.figures(self._events.now) | {"waiting": waiting}


def _lasting(m: _VirtualWorker) -> dict[str, Tensor]:
    """The vectors a worker goes on from."""
    return {name: v for name, v in vars(m.w).items() if isinstance(v, Tensor)}
