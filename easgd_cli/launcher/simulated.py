"""launcher=simulated: a virtual cluster in this process.

Workers, master and links live on a virtual clock; the rules, the problem, the data and what is recorded are those of real
runs. What happens is taken event by event in virtual-time order, so the same seed gives the same bits.

A gradient is computed when its answer is handed to the rule, and not when it was asked for: the point it belongs to cannot
have changed (a rule changes its state only after its last yield), and so one gradient buffer serves any number of
workers. For the same reason a worker in mid-step is saved as its state, its clock and the answers it has had.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easgd_cli.algorithms.base import Worker
from easgd_cli.errors import RunError
from easgd_cli.experiment import build
from easgd_cli.experiment.build import Prepared
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal import Journal
from easgd_cli.launcher.kinds import Simulated
from easgd_cli.launcher.signals import Signals
from easgd_cli.problems.base import statistics_of
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.record.reader import read_order
from easgd_cli.settings.schema import Interval
from easgd_cli.system.devices import cores, deal_devices
from easgd_cli.system.shared_memory import keep_freed_memory
from easgd_cli.training.center import Center
from easgd_cli.training.drive import Turn, clipped
from easgd_cli.training.meter import Meter
from easgd_cli.training.snapshot import EVALUATED, Moment, Pace
from easgd_cli.transport.simulated import Event, Events, Network, Session, SimulatedMaster

_EVALUATIONS = 20  # of a run whose eval.every says nothing
_LOOK_UP_SECONDS = 0.1  # of the real clock, between two looks at signals and at what is shown
_SYSTEM_POINTS = 200  # rows of the run as a whole


def launch(job: Job, prepared: Prepared, cluster: Simulated) -> Outcome:
    """Runs the job to its end. Raises RunError when the record cannot be written."""
    keep_freed_memory()
    with Signals() as signals:
        journal = Journal(job, prepared)
        try:
            run = Run(job, prepared, cluster, journal)
            try:
                journal.open()
                run.to_the_end(signals)
            except (RunError, OSError) as e:  # the record cannot be written, say
                journal.fail(str(e))
            except Exception as e:  # a defect: the record says so before it is shown
                journal.fail(f"{type(e).__name__}: {e}")
                with suppress(Exception):
                    run.outcome()
                raise
            return run.outcome()
        finally:
            journal.release()


@dataclass
class _Member:
    """A worker, and where it is in its step."""

    w: Worker
    session: Session | None
    meter: Meter
    turn: Turn | None = None
    answered: list[tuple[bool, bool]] = field(default_factory=list)  # in this step: whether with a gradient, with a reply
    asked: float = 0.0  # when it began to wait for what it waits for now
    computed: float = 0.0  # when the gradient among it is ready
    replied: bool = False  # whether the reply among it has come
    loss: Tensor | None = None  # of this step's batch

    @property
    def number(self) -> int:
        return self.w.number


class Run:
    """One simulated run."""

    def __init__(self, job: Job, prepared: Prepared, cluster: Simulated, journal: Journal):
        s = job.settings
        self._settings, self._prepared, self._cluster, self._journal = s, prepared, cluster, journal
        self._method, self._average = prepared.method, prepared.average
        self._threads = s.threads if s.threads is not None else cores()  # one worker computes at a time
        torch.set_num_threads(self._threads)
        if s.deterministic:
            torch.use_deterministic_algorithms(True)
        device = torch.device(deal_devices(s.device, 1)[0])
        self._problem = prepared.problem if device.type == "cpu" else build.problem(s, prepared.images, device)
        self._objective = clipped(self._problem, s.clip)
        self._events = Events()
        self._members = [self._member(i, device) for i in range(s.workers)]
        self._center: Center | None = None
        self._master: SimulatedMaster | None = None
        nbytes = prepared.size * prepared.dtype.itemsize
        if self._method.center:
            names = (*self._method.center, *(("average",) if self._average is not None else ()))
            start = prepared.start.to(device)
            vectors = {name: start.clone() if name in EVALUATED else torch.zeros_like(start) for name in names}
            self._center = Center(self._method, vectors, average=self._average)
            network = Network(cluster.both("latency"), (None, None) if cluster.bandwidth is None else cluster.both("bandwidth"), cluster.service)
            again = s.replay is not None and journal.resumed is None  # the checkpoint of a replay has what is left of the order
            order = read_order(Path(str(s.replay)) / "exchanges.bin", s.workers) if again else None
            sessions = [m.session for m in self._members if m.session is not None]
            self._master = SimulatedMaster(self._center, sessions, network, self._events, nbytes, order)
        self._clocks = [0] * s.workers  # the workers' as the master has seen them
        self._pace = Pace(Interval.parse("eval.every", s.eval.every) or self._default_interval())
        self._checkpoint_pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        self._system_every = self._length() / _SYSTEM_POINTS
        self._system_next, self._system_before = self._system_every, (0.0, 0)
        self._order: list[int] = []
        self._now = 0.0
        self._kept: Checkpoint | None = None  # at the first moment at which a worker had finished
        self._real_before = 0.0
        self._began = time.monotonic()
        if journal.resumed is not None:
            self._restore(journal.resumed)

    def _member(self, i: int, device: torch.device) -> _Member:
        s, method = self._settings, self._method
        start = self._prepared.problem.start(i).to(device)
        vectors = {name: start.clone() if name in EVALUATED else torch.zeros_like(start) for name in (*method.state, *method.scratch)}
        if not method.center and self._average is not None:
            vectors["average"] = start.clone()
        session = Session(torch.zeros_like(start)) if method.center else None
        meter = Meter(i, s.batch_size, s.workers, self._prepared.steps, device, statistics_of(self._problem))
        return _Member(Worker(vectors, s.tau, build.schedule(s, self._prepared.steps), number=i), session, meter)

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

    def to_the_end(self, signals: Signals) -> None:
        """Takes event after event until nothing is left to happen, a signal comes or the run has its result."""
        journal = self._journal
        journal.progress.begin(self._now)
        if journal.resumed is None:
            self._evaluate(self._moment())
            for m in self._members:
                self._begin_step(m)
        looked = time.monotonic()
        while self._events and not journal.decided:
            event = self._events.next()
            if event.kind == "arrive" and self._master is not None and self._master.rounds_are_over:
                self._members[event.worker].turn = None  # given back: its step has not happened, and no other will; nor has this second
                continue
            self._now = event.time
            self._happen(event)
            if self._kept is None and self._checkpoint_pace.due(self._mean_step(), self._now):
                self._checkpoint(self._state())
            if time.monotonic() - looked >= _LOOK_UP_SECONDS:
                looked = time.monotonic()
                self._look_up()
                for number in signals.taken():
                    journal.interrupted(number)
                if journal.signal is not None:
                    break
        self._report_order()

    def _happen(self, event: Event) -> None:
        m = self._members[event.worker]
        if event.kind == "begin":
            self._begin_step(m, event)
        elif event.kind == "ready":
            self._go_on(m, event)
        elif event.kind == "reply":
            m.replied = True
            self._events.add(max(self._now, m.computed), "ready", m.number)
        else:
            assert self._master is not None
            if event.kind == "serve":
                self._served(self._master.serve(self._now))
            else:
                self._master.arrive(m.number, self._now)

    def _begin_step(self, m: _Member, event: Event | None = None) -> None:
        steps, minutes = self._prepared.steps, self._settings.minutes
        if (steps is not None and m.w.t >= steps) or (minutes is not None and self._now >= minutes * 60):
            self._finish(m, event)
            return
        m.turn, m.answered = Turn(self._method, m.w), []
        self._ask(m)

    def _ask(self, m: _Member) -> None:
        """What the worker's rule waits for now is under way; what it asks for at once overlaps."""
        turn = m.turn
        assert turn is not None
        m.asked, m.replied = self._now, False
        begin = self._now + self._overhead(turn)
        m.computed = begin + (0.0 if turn.at is None else self._cluster.compute_seconds(self._settings.seed, m.number, m.w.t))
        if turn.message is not None:
            assert self._master is not None
            self._master.post(m.number, turn.message, m.w.t, begin)
        else:
            self._events.add(m.computed, "ready", m.number)

    def _overhead(self, turn: Turn) -> float:
        """Seconds of the worker's own before what its rule waits for is under way."""
        return self._cluster.overhead if turn.message is not None else 0.0

    def _go_on(self, m: _Member, event: Event) -> None:
        """Everything the rule waits for is there."""
        turn, tally = m.turn, m.meter.tally
        assert turn is not None
        overhead = self._overhead(turn)
        tally.seconds_compute += m.computed - m.asked - overhead
        tally.seconds_communication += self._now - m.computed + overhead
        tally.seconds_loop += self._now - m.asked
        m.answered.append((turn.at is not None, turn.message is not None))
        self._answer(m)
        if not turn.ended:
            self._ask(m)
            return
        assert m.loss is not None
        w, session = m.w, m.session
        m.meter.step(m.loss, session.staleness if session is not None and any(replied for _, replied in m.answered) else None)
        if self._average is not None and session is None:
            w.average.lerp_(w.x, self._average(w.t))
        if m.meter.due(w.t):
            reply = session.reply if session is not None and session.exchanges else None
            self._journal.worker(m.meter.row(w, self._now, session.served if session is not None else 0, reply))
        if session is None:
            self._clocks[0] = w.t
            self._changed()
        self._begin_step(m, event)

    def _answer(self, m: _Member) -> None:
        """Computes the gradient, if one was asked for, and hands it to the rule with the reply."""
        turn, g = m.turn, None
        assert turn is not None
        if turn.at is not None:
            self._objective.load(m.number, m.w.t)
            g = self._objective.gradient(turn.at)
            if m.session is not None and turn.message is None:
                g = g.clone()  # the rule may exchange before it uses it, and the buffer is everybody's
            m.loss = self._problem.loss
        turn.answer(g, m.session.reply if m.session is not None and turn.message is not None else None)

    def _served(self, members: list[int]) -> None:
        self._order += members
        for worker in members:
            session = self._members[worker].session
            assert session is not None
            self._clocks[worker] = session.t
        self._changed()

    def _changed(self) -> None:
        """What is evaluated has changed."""
        step = self._mean_step()
        if self._pace.due(step, self._now):
            self._evaluate(self._moment())
        if self._master is not None and self._now >= self._system_next:
            (before, served), queue = self._system_before, self._master.queueing
            if self._now > before:
                rate = (self._master.served - served) / (self._now - before)
                self._journal.system(
                    self._moment(), workers_alive=len(self._members), exchanges_per_second=rate,
                    queue_seconds=queue.waited / queue.served, master_busy=100 * queue.busy / self._now,
                )  # fmt: skip
            self._system_before, self._system_next = (self._now, self._master.served), self._now + self._system_every

    def _finish(self, m: _Member, event: Event | None) -> None:
        """The worker takes no further step. The first to say so ends what a longer run would have in common with this one."""
        if self._kept is None and event is not None:
            self._events.again(event._replace(kind="begin"))  # where a run that goes on for longer begins
            m.turn = None
            self._kept = self._state()
            self._checkpoint(self._kept)
            self._events.next()
        m.turn = None
        self._clocks[m.number] = m.w.t
        if self._master is not None:
            for worker in self._master.leave(m.number):
                self._members[worker].turn = None

    # ---------------------------------------------------------------- what is told

    def _mean_step(self) -> float:
        return sum(self._clocks) / len(self._clocks)

    def _moment(self) -> Moment:
        return Moment(self._now, self._mean_step(), 0 if self._master is None else self._master.served, dict(enumerate(self._clocks)))

    def _vectors(self) -> dict[str, Tensor]:
        """Of the owner of what is evaluated."""
        return self._center.vectors if self._center is not None else _lasting(self._members[0])

    def _evaluate(self, moment: Moment) -> None:
        vectors = {name: v for name, v in self._vectors().items() if name in EVALUATED}
        metrics = {EVALUATED[name]: self._problem.evaluate(v) for name, v in vectors.items()}
        self._report_order()  # what led here is in the record before what it led to
        self._journal.evaluation(moment, lambda: vectors, metrics)

    def _report_order(self) -> None:
        self._journal.served(self._order)
        self._order = []

    def _look_up(self) -> None:
        self._report_order()
        self._journal.progress.update(seconds=self._now, step=self._mean_step(), exchanges=self._moment().exchanges, evaluations_pending=0)
        self._journal.tick()

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> Checkpoint:
        """Everything, between two events. Its tensors are the run's own."""
        clock = self._center.clock if self._center is not None else self._members[0].w.t
        owner = OwnerState(self._moment(), clock, self._vectors(), pace=[self._pace.next_step, self._pace.next_seconds])
        workers = {}
        for m in self._members:
            vectors = _lasting(m) | ({"reply": m.session.reply} if m.session is not None else {})
            said = (m.session.center_clock, m.session.served, m.session.exchanges) if m.session is not None else (0, 0, 0)
            workers[m.number] = WorkerState(m.w.t, vectors, *said, m.meter.state())
        simulated = {
            "now": self._now, **self._events.state(), "master": None if self._master is None else self._master.state(),
            "system": [self._system_next, list(self._system_before)], "real_seconds": self._real_seconds(),
            "members": [
                {
                    "in_step": m.turn is not None, "answered": m.answered, "asked": m.asked, "computed": m.computed, "replied": m.replied,
                    "posted": None if m.session is None else [m.session.t, m.session.arrived, m.session.staleness],
                }
                for m in self._members
            ],
        }  # fmt: skip
        return Checkpoint(owner, workers, simulated=simulated)

    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        self._report_order()
        self._journal.checkpoint(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Puts everything where it was."""
        state, owner = checkpoint.simulated, checkpoint.owner
        assert state is not None
        self._now = state["now"]
        self._real_before = state["real_seconds"]
        self._events.restore(state)
        if self._center is not None and self._master is not None:
            for name, v in self._center.vectors.items():
                v.copy_(owner.vectors[name])
            self._center.clock = owner.clock
            self._master.restore(state["master"])
        self._clocks = [owner.moment.clocks[i] for i in range(len(self._members))]
        self._pace = Pace(self._pace.interval, *owner.pace)
        self._checkpoint_pace.due(owner.moment.step, owner.moment.seconds)
        self._system_next, before = state["system"]
        self._system_before = (before[0], before[1])
        for m, saved in zip(self._members, state["members"], strict=True):
            worker = checkpoint.workers[m.number]
            for name, v in _lasting(m).items():
                v.copy_(worker.vectors[name])
            m.w.t = worker.t
            steps, statistics = self._prepared.steps, statistics_of(self._problem)
            m.meter = Meter(m.number, self._settings.batch_size, len(self._members), steps, m.w.x.device, statistics, worker.tally)
            if m.session is not None:
                m.session.reply.copy_(worker.vectors["reply"])
                m.session.center_clock, m.session.served, m.session.exchanges = worker.center_clock, worker.served, worker.exchanges
                m.session.t, m.session.arrived, m.session.staleness = saved["posted"]
            if saved["in_step"]:  # the rule is run again with the answers it has had
                m.turn = Turn(self._method, m.w)
                for _ in saved["answered"]:
                    self._answer(m)
                m.answered = [tuple(a) for a in saved["answered"]]
                m.asked, m.computed, m.replied = saved["asked"], saved["computed"], saved["replied"]
                if m.session is not None and not m.replied:
                    m.session.message = m.turn.message

    # ---------------------------------------------------------------- the end

    def _real_seconds(self) -> float:
        return self._real_before + time.monotonic() - self._began

    def outcome(self) -> Outcome:
        """Evaluates the end and closes the record. Raises RunError."""
        journal = self._journal
        ended = journal.status != "failed"
        if ended and journal.signal is None and not journal.decided and journal.evaluated != (self._moment().step, self._moment().exchanges):
            self._evaluate(self._moment())
        final = self._state() if ended else None
        keep = None if self._kept is not None else final  # what came after the first end, a run that goes on does again
        facts = {
            "launcher": "simulated", "threads": self._threads, "real_seconds": self._real_seconds(), "lost": {},
            **({"communication": self._communication()} if self._master is not None else {}),
        }  # fmt: skip
        steps = {m.number: m.w.t for m in self._members}
        for m in self._members:
            journal.ended(m.number, m.meter.tally.seconds)
        return journal.close(final.owner if final else None, keep, steps, self._moment().exchanges, self._now, facts)

    def _communication(self) -> dict[str, Any]:
        """What exchanging has cost: the master's queue, and the share of the workers' time spent waiting, in percent."""
        assert self._master is not None
        tallies = [m.meter.tally for m in self._members]
        loop = sum(tally.seconds_loop for tally in tallies)
        waiting = 100 * sum(tally.seconds_communication for tally in tallies) / loop if loop else 0.0
        return self._master.queueing.figures(self._now) | {"waiting": waiting}


def _lasting(m: _Member) -> dict[str, Tensor]:
    """The vectors a worker goes on from."""
    return {name: v for name, v in vars(m.w).items() if isinstance(v, Tensor)}
