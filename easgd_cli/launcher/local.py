"""launcher=local: one machine, a process for the master, for every worker and for the evaluator.

The launcher itself computes nothing. It starts the others, listens to them, is the only one that writes the run
directory, and ends everything: on success, failure, Ctrl-C and SIGTERM. It is single-threaded, one loop over sockets.

How an end goes: workers finish their step and say `final`; when the last session has closed, the master says `final`;
the last snapshot is evaluated; then the record is closed. Whatever ends a run early only changes where this begins.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from easgd_cli import checkpoint as checkpoints
from easgd_cli.build import Prepared
from easgd_cli.channel import ChannelClosed
from easgd_cli.checkpoint import Checkpoint, WorkerState
from easgd_cli.config import Interval
from easgd_cli.devices import deal_devices, evaluator_threads, worker_threads
from easgd_cli.errors import RunError, UsageError
from easgd_cli.evaluator import Evaluator, EvaluatorStart
from easgd_cli.launcher.children import Child
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.master import Master, MasterStart
from easgd_cli.memory import SharedTensors
from easgd_cli.record.opening import open_record
from easgd_cli.record.progress import Progress
from easgd_cli.record.recorder import Recorder
from easgd_cli.snapshot import Moment, Pace
from easgd_cli.transport.shared import Link
from easgd_cli.worker import WorkerLoop, WorkerStart

_MOST_WORKERS = 120  # a child is started with at most 256 descriptors, and the master gets two for every worker
_GRACE_SECONDS = 10.0  # how long a worker that is told to stop may take over its step when the user is waiting
_CHECKPOINT_SECONDS = 60.0  # how long a checkpoint waits for a worker that does not answer
_SNAPSHOTS_IN_MEMORY = 8  # waiting for the evaluator; more wait on disk
_EVALUATOR_LIVES = 3
_SYSTEM_POINTS_PER_DOUBLING = 64

_RECORD = ("metrics.jsonl", "exchanges.bin")

log = logging.getLogger("easgd.launcher")


def launch(job: Job, prepared: Prepared) -> Outcome:
    """Runs the job to its end. Raises UsageError for more workers than one machine's launcher carries, RunError when it could not be started."""
    if job.settings.workers > _MOST_WORKERS:
        raise UsageError(f"workers={job.settings.workers}: launcher=local starts at most {_MOST_WORKERS} workers on one machine; use fewer.")
    run = Run(job, prepared)
    with _Signals() as signals:  # to the very end: an impatient second Ctrl-C must not cost what is being written
        try:
            try:
                run.start()
                while not run.over:
                    run.turn(signals)
            except (RunError, MemoryError, OSError) as e:  # the record cannot be written, say
                run.fail(str(e))
            except Exception as e:  # a defect: the record says so before it is shown
                run.fail(f"{type(e).__name__}: {e}")
                run.end_processes()
                with suppress(Exception):
                    run.outcome()
                raise
            run.end_processes()
            return run.outcome()
        finally:
            run.release()


@dataclass
class _Member:
    """A worker as the launcher sees it."""

    child: Child
    t: int
    final: WorkerState | None = None  # said at its end
    lost: str | None = None  # how it was lost

    @property
    def live(self) -> bool:
        return self.final is None and self.lost is None


@dataclass
class _Pending:
    """A snapshot on its way to the evaluator, in memory or on disk."""

    number: int
    moment: Moment
    tensors: SharedTensors | None
    path: Path | None = None

    def x(self) -> torch.Tensor:
        if self.tensors is not None:
            return self.tensors["x"]
        assert self.path is not None
        return torch.load(self.path, weights_only=True)


@dataclass
class _Cut:
    """A checkpoint being gathered."""

    lead: int
    begun: float
    workers: dict[int, WorkerState] = field(default_factory=dict)
    moment: Moment | None = None
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)
    clocks: dict[int, int] = field(default_factory=dict)


class Run:
    """One run, from its first process to its summary."""

    def __init__(self, job: Job, prepared: Prepared):
        self._job, self._prepared = job, prepared
        self._settings = s = job.settings
        self._method = prepared.method
        self._sequential = not self._method.center
        self._dir = job.run_dir
        self._selector = selectors.DefaultSelector()
        self._members: dict[int, _Member] = {}
        self._master: Child | None = None
        self._evaluator: Child | None = None
        self._evaluator_deaths = 0
        self._pending: deque[_Pending] = deque()
        self._evaluating: _Pending | None = None
        self._numbers = 0
        self._asked_snapshot = False
        self._next_ask = 0.0
        self._final: tuple[Moment, dict[str, torch.Tensor], dict[int, int]] | None = None
        self._last_evaluated: tuple[float, int] | None = None
        self._checkpoint_pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        self._cut: _Cut | None = None
        self._last_checkpoint: Path | None = None
        self._system_every, self._system_next, self._system_rows = 1.0, 0.0, 0
        self._served = (0.0, 0)  # the moment of the last system row: seconds, exchanges
        self._exchanges = 0
        self._master_cpu_seconds = 0.0
        self._pace: list[float] | None = None
        self._began: float | None = None
        self._stopping: float | None = None  # since when workers have been told to stop
        self._signal: int | None = None
        self._status = "completed"
        self._reason: str | None = None
        self._hit: tuple[Moment, torch.Tensor] | None = None
        self._ended_seconds: float | None = None
        self._resumed = checkpoints.newest(job.run_dir) if job.resume else None
        self._record: Recorder  # opened once the processes are on their way
        self._recording = False
        self._progress = Progress(steps=prepared.steps, minutes=s.minutes, workers=s.workers, samples="samples" if prepared.images is None else "images")
        logs = self._dir / "logs"
        logs.mkdir(exist_ok=True)
        self._log_handler = logging.FileHandler(logs / "launcher.log")
        self._log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._log_handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        log.info("run %s, process %d: %s", self._dir, os.getpid(), self._job.command)
        self.over = False

    # ---------------------------------------------------------------- start

    def start(self) -> None:
        s, prepared, resumed = self._settings, self._prepared, self._resumed
        self._elapsed = resumed.moment.seconds if resumed else 0.0
        images = prepared.images.share() if prepared.images is not None else None
        devices = deal_devices(s.device, s.workers)
        self._threads = worker_threads(s)
        own = Interval.parse("eval.every", s.eval.every)
        links = [Link.new(i, self._method, prepared.size, prepared.dtype) for i in range(s.workers)]
        for i, link in enumerate(links):
            state = resumed.workers.get(i) if resumed else None
            vectors = state.vectors if state is not None else {"x": resumed.vectors["x"] if resumed else prepared.problem.start(i)}
            for name, v in vectors.items():
                link.memory[name].copy_(v)
            self._spawn_worker(link, images, devices[i], own if self._sequential else None, state)
        if not self._sequential:
            self._spawn_master(links, own)
        for link in links:
            link.close_sockets()  # or no end would ever be seen by the other
            link.memory.close()
        self._evaluator_start = EvaluatorStart(s, images, evaluator_threads(s))
        if resumed is not None:
            self._take_back_record()
        self._record = open_record(self._job, prepared, resumed)
        self._recording = True
        if s.eval.when == "running":
            self._spawn_evaluator()
        if resumed is None:
            self._enqueue(Moment(0.0, 0.0, 0), SharedTensors.of({"x": prepared.start}))
        else:
            for moment, x in resumed.pending:
                self._enqueue(moment, SharedTensors.of({"x": x}))
            self._checkpoint_pace.due(resumed.moment.step, resumed.moment.seconds)

    def _spawn_worker(self, link: Link, images: Any, device: str, interval: Interval | None, state: WorkerState | None) -> None:
        start = WorkerStart(self._settings, images, link.for_worker(), device, self._threads, self._prepared.steps, self._settings.minutes, interval)
        if state is not None:
            start.t, start.center_clock, start.exchanges, start.meter = state.t, state.center_clock, state.exchanges, state.tally
        elif self._resumed is not None:
            start.t = self._resumed.clocks.get(link.worker, int(self._resumed.moment.step))
        if self._resumed is not None:
            start.pace = self._eval_pace()
        name = f"worker_{link.worker:02d}"
        self._members[link.worker] = _Member(self._child(name, WorkerLoop, start), start.t)

    def _eval_pace(self) -> list[float] | None:
        """The next points of evaluation as the checkpoint has them, unless eval.every has been changed since."""
        resumed = self._resumed
        interval = Interval.parse("eval.every", self._settings.eval.every)
        if resumed is None or resumed.pace is None or interval is None:
            return None
        step, seconds = resumed.pace
        if interval.steps is not None and step > 0 and step % interval.steps == 0:
            return [step, 0.0]
        if interval.seconds is not None and seconds > 0:
            return [0.0, min(seconds, resumed.moment.seconds + interval.seconds)]
        if interval.steps is not None:
            return [(resumed.moment.step // interval.steps + 1) * interval.steps, 0.0]
        return [0.0, resumed.moment.seconds + (interval.seconds or 0.0)]

    def _spawn_master(self, links: list[Link], interval: Interval | None) -> None:
        center = SharedTensors.allocate({name: ((self._prepared.size,), self._prepared.dtype) for name in self._method.center})
        start = MasterStart(self._method, center, [link.for_master() for link in links], interval)
        if self._resumed is None:
            center["x"].copy_(self._prepared.start)
        else:
            for name, v in self._resumed.vectors.items():
                center[name].copy_(v)
            start.clock, start.clocks = self._resumed.moment.exchanges, {i: m.t for i, m in self._members.items()}
            start.cpu_seconds, start.pace = self._resumed.master_cpu_seconds, self._eval_pace()
        self._served, self._exchanges = (self._elapsed, start.clock), start.clock
        self._master = self._child("master", Master, start)
        center.close()

    def _spawn_evaluator(self) -> None:
        self._evaluator = self._child("evaluator", Evaluator, self._evaluator_start)
        if self._began is not None:
            self._tell(self._evaluator, {"kind": "start", "began": self._began})

    def _child(self, name: str, maker: Any, start: Any) -> Child:
        child = Child(name, maker, start, self._dir / "logs" / f"{name}.log")
        self._selector.register(child.channel, selectors.EVENT_READ, child)
        self._selector.register(child.process.sentinel, selectors.EVENT_READ, child)
        log.info("%s: process %d", name, child.process.pid)
        return child

    # ---------------------------------------------------------------- the loop

    def turn(self, signals: _Signals) -> None:
        """Waits for the next event, at most a moment, and does what it asks for."""
        for child in {id(key.data): key.data for key, _ in self._selector.select(0.1) if key.data is not None}.values():
            self._hear(child)
        for number in signals.taken():
            self._interrupted(number)
        if self._began is None:
            self._begin_when_ready()
        else:
            self._keep_time()
        self._feed_evaluator()
        self._end_when_done()
        self._record.tick()

    def _hear(self, child: Child) -> None:
        ended = child.process.exitcode is not None  # asked before listening: what a child said last has all arrived then
        try:
            for message, tensors in child.channel.receive():
                self._handle(child, message, tensors)
            child.channel.flush()
        except ChannelClosed:
            self._forget(child.channel)
        if ended:
            self._forget(child.process.sentinel)
            self._forget(child.channel)
            if not child.done:
                self._died(child)
            child.done = True

    def _forget(self, what: Any) -> None:
        if what in self._selector.get_map():
            self._selector.unregister(what)

    def _handle(self, child: Child, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        kind = message["kind"]
        if kind == "ready":
            child.ready = True
        elif kind == "done":
            child.done = True
        elif kind == "error":
            child.error = message["text"]
        elif kind == "news":
            self._member(child).t = message["t"]
            for row in message["rows"]:
                self._worker_row(row)
        elif kind == "served":
            self._served_row(message)
        elif kind == "lost":
            log.info("master: the session of worker %d has ended", message["worker"])
        elif kind == "state":
            self._worker_state(child, message, tensors)
        elif kind == "snapshot":
            self._snapshot(message, tensors)
        elif kind == "evaluated":
            self._evaluated(message)
        else:
            raise AssertionError(f"{child.name} sent {kind}")

    def _begin_when_ready(self) -> None:
        waiting = [m.child for m in self._members.values()] + ([self._master] if self._master else [])
        if self._stopping is None and not self.over and all(c.ready for c in waiting):
            self._began = time.monotonic() - self._elapsed
            for child in waiting:
                self._tell(child, {"kind": "start", "began": self._began})
            if self._evaluator is not None:
                self._tell(self._evaluator, {"kind": "start", "began": self._began})
            log.info("training begins")
            self._progress.begin(self._elapsed)

    def _seconds(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    def _mean_step(self) -> float:
        clocks = [m.t for m in self._members.values() if m.lost is None]
        return sum(clocks) / len(clocks) if clocks else 0.0

    def _keep_time(self) -> None:
        now = self._seconds()
        step = self._mean_step()
        if self._ended_seconds is None:
            self._progress.update(seconds=now, step=step, exchanges=self._exchanges, evaluations_pending=len(self._pending))
        if self._stopping is None and self._final is None:
            if self._cut is not None and time.monotonic() - self._cut.begun > _CHECKPOINT_SECONDS:
                self._finish_checkpoint(late=True)
            if self._cut is None and self._checkpoint_pace.due(step, now):
                self._begin_checkpoint()
            self._ask_snapshot(now)
        elif self._stopping is not None and self._signal is not None and time.monotonic() - self._stopping > _GRACE_SECONDS:
            for i, m in self._members.items():
                if m.live and m.child.process.exitcode is None:
                    self._note(f"worker {i} does not answer; killing it")
                    m.child.kill()

    # ---------------------------------------------------------------- what the others say

    def _member(self, child: Child) -> _Member:
        return next(m for m in self._members.values() if m.child is child)

    def _worker_row(self, row: dict[str, Any]) -> None:
        self._record.row(row)
        self._progress.worker(row)
        if not math.isfinite(row["train_loss"]):
            self._diverge(f"{row['party']}'s training loss is {row['train_loss']} at step {row['step']}")

    def _served_row(self, message: dict[str, Any]) -> None:
        self._record.order(message["workers"])
        now, exchanges = message["seconds"], message["exchanges"]
        self._exchanges = exchanges
        if now >= self._system_next and now > self._served[0]:
            rate = (exchanges - self._served[1]) / (now - self._served[0])
            self._system_row(now, message["step"], exchanges, exchanges_per_second=rate, master_cpu_seconds=message["cpu"])
            self._served = (now, exchanges)
            self._system_rows += 1
            if self._system_rows % _SYSTEM_POINTS_PER_DOUBLING == 0:
                self._system_every *= 2
            self._system_next = now + self._system_every

    def _system_row(self, seconds: float, step: float, exchanges: int, **metrics: Any) -> None:
        alive = sum(m.lost is None for m in self._members.values())
        self._record.row({"seconds": seconds, "step": step, "exchanges": exchanges, "party": "system", "workers_alive": alive, **metrics})

    def _worker_state(self, child: Child, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        assert tensors is not None
        state = WorkerState(message["t"], dict(tensors.tensors), message["center_clock"], message["exchanges"], message["tally"])
        tensors.close()
        member = self._member(child)
        member.t = state.t
        number = int(child.name.removeprefix("worker_"))
        if message["purpose"] == "final":
            member.final = state
        if self._cut is not None:
            self._cut.workers[number] = state
            self._finish_checkpoint()

    def _snapshot(self, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        assert tensors is not None
        moment = Moment(**message["moment"])
        if message["purpose"] == "evaluate":
            self._asked_snapshot = False
            self._enqueue(moment, tensors)
            return
        vectors = dict(tensors.tensors)
        tensors.close()
        clocks = {int(w): t for w, t in message["clocks"].items()}
        if message["purpose"] == "final":
            self._final = (moment, vectors, clocks)
            self._master_cpu_seconds, self._pace = message.get("cpu", 0.0), message["pace"]
            self._ended_seconds = self._seconds()
        elif self._cut is not None:
            self._cut.moment, self._cut.vectors, self._cut.clocks = moment, vectors, clocks
            self._master_cpu_seconds, self._pace = message.get("cpu", 0.0), message["pace"]
            self._finish_checkpoint()

    # ---------------------------------------------------------------- evaluation

    def _enqueue(self, moment: Moment, tensors: SharedTensors) -> None:
        self._numbers += 1
        waiting = _Pending(self._numbers, moment, tensors)
        if sum(p.tensors is not None for p in self._pending) >= _SNAPSHOTS_IN_MEMORY:
            self._spill(waiting)
        self._pending.append(waiting)

    def _spill(self, waiting: _Pending) -> None:
        """Moves a snapshot from memory to disk, if the disk takes it."""
        assert waiting.tensors is not None
        directory = self._dir / "snapshots"
        path = directory / f"{waiting.number:06d}.pt"
        try:
            directory.mkdir(exist_ok=True)
            checkpoints.save(waiting.tensors["x"].clone(), path)
        except OSError as e:
            log.warning("%s could not be written (%s); the snapshot stays in memory", path, e.strerror or e)
            return
        waiting.tensors.close()
        waiting.tensors, waiting.path = None, path

    @property
    def _evaluates(self) -> bool:
        """Whether what is pending is still to be measured in this run; else it is part of the checkpoint."""
        return self._signal is None and self._hit is None and self._evaluator_deaths < _EVALUATOR_LIVES

    def _ask_snapshot(self, now: float) -> None:
        """Without eval.every: the newest snapshot whenever the evaluator is free."""
        if self._settings.eval.every is not None or self._settings.eval.when == "deferred":
            return
        if not self._asked_snapshot and self._evaluating is None and not self._pending and now >= self._next_ask:
            owner = self._master if self._master is not None else self._members[0].child
            self._asked_snapshot = self._tell(owner, {"kind": "snapshot"})
            self._next_ask = now + max(1.0, now / 200)  # a bound on the number of points of a long run

    def _feed_evaluator(self) -> None:
        if self._evaluating is not None or not self._pending or not self._evaluates:
            return
        if self._evaluator is None:
            if self._settings.eval.when == "deferred" and self._final is None:
                return
            self._spawn_evaluator()
        assert self._evaluator is not None
        if not self._evaluator.ready or self._began is None:
            return
        self._evaluating = waiting = self._pending.popleft()
        copy = SharedTensors.of({"x": waiting.x()}) if waiting.tensors is None else waiting.tensors.again()
        self._tell(self._evaluator, {"kind": "evaluate", "number": waiting.number}, copy)

    def _evaluated(self, message: dict[str, Any]) -> None:
        done = self._evaluating
        if done is None or done.number != message["number"]:
            return
        self._evaluating, self._evaluator_deaths = None, 0
        metrics, moment = message["metrics"], done.moment
        row = {"seconds": moment.seconds, "step": moment.step, "exchanges": moment.exchanges, "party": "center", **metrics}
        self._progress.center(self._record.row(row))
        log.info("center at step %g: %s", moment.step, metrics)
        self._last_evaluated = (moment.step, moment.exchanges)
        level = self._settings.until.test_error
        if not all(math.isfinite(metrics[loss]) for loss in ("train_loss", "test_loss") if loss in metrics):
            self._diverge(f"the center's loss is not finite at step {moment.step:g}")
        elif level is not None and self._hit is None and metrics["test_error"] <= level:
            self._hit = (moment, done.x().clone())
            self._status, self._reason = "completed", None  # whatever came later
            self._note(f"test error {metrics['test_error']:.2f} % reached the level {level:g} % at step {moment.step:g}")
            self._stop_workers()
        if done.tensors is not None:
            done.tensors.close()
        elif done.path is not None:
            done.path.unlink(missing_ok=True)

    # ---------------------------------------------------------------- checkpoints

    def _begin_checkpoint(self) -> None:
        live = [i for i, m in self._members.items() if m.live]
        if not live:
            return  # the end keeps everything anyway
        self._cut = _Cut(lead=live[0], begun=time.monotonic(), workers={i: m.final for i, m in self._members.items() if m.final is not None})
        for i in live:
            self._tell(self._members[i].child, {"kind": "checkpoint", "lead": i == live[0]})

    def _finish_checkpoint(self, late: bool = False) -> None:
        """Writes the checkpoint when everybody has said its part; `late`: without those that have not, who would come back as lost ones do."""
        cut = self._cut
        if cut is None:
            return
        if cut.moment is None or any(m.lost is None and i not in cut.workers for i, m in self._members.items()):
            if not late:
                return
            silent = [i for i, m in self._members.items() if m.live and i not in cut.workers]
            log.warning("the checkpoint does not wait for workers %s any longer", silent)
        if cut.moment is None:
            self._cut = None
            return
        self._cut = None
        waiting = ([self._evaluating] if self._evaluating else []) + list(self._pending)
        pending = [(p.moment, p.x()) for p in waiting if p.moment.exchanges <= cut.moment.exchanges and p.moment.seconds <= cut.moment.seconds]
        self._write_checkpoint(Checkpoint(cut.moment, cut.vectors, cut.clocks, cut.workers, pending, self._master_cpu_seconds, self._pace))

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        try:
            self._record.flush()
            self._last_checkpoint = checkpoints.write(self._dir / "checkpoint", checkpoint, self._settings.checkpoint.keep)
            log.info("checkpoint %s", self._last_checkpoint.name)
        except OSError as e:
            self._note(f"the checkpoint at step {checkpoint.moment.step:g} could not be written ({e.strerror or e}); the run goes on")

    # ---------------------------------------------------------------- ends

    def _interrupted(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._signal is not None:
            self._note(f"{name} again: ending at once, without a checkpoint of this moment")
            self.over = True
            return
        self._signal = number
        if self._status == "completed" and self._hit is None:  # a run that has diverged or reached its level has a result
            self._status, self._reason = "interrupted", f"{name} received"
        if self._began is None:
            self.over = True
            return
        self._note(f"{name}: workers finish their step, then a checkpoint is written; once more ends at once")
        self._stop_workers()

    def _diverge(self, reason: str) -> None:
        if self._status == "completed" and self._hit is None:
            self._status, self._reason = "diverged", reason
            self._note(f"diverged: {reason}")
            self._stop_workers()

    def fail(self, reason: str) -> None:
        """Ends the run at once; its table and the command say why."""
        if self._status != "failed":
            self._status, self._reason = "failed", reason
            log.error(reason)
        self.over = True

    def _stop_workers(self) -> None:
        if self._stopping is None:
            self._stopping = time.monotonic()
            for m in self._members.values():
                if m.live:
                    self._tell(m.child, {"kind": "stop"})

    def _died(self, child: Child) -> None:
        log.warning("%s: %s", child.name, child.ended)
        if child is self._evaluator:
            self._evaluator_died(child)
        elif child is self._master:
            if self._final is None:
                self.fail(f"the master died ({child.ended}); {self._how_to_go_on()}")
        else:
            number = int(child.name.removeprefix("worker_"))
            member = self._members[number]
            if member.final is not None:
                return
            if self._master is not None and self._master.process.exitcode is not None and self._final is None:
                return self._died(self._master)  # it ended because the master did: that is the news
            member.lost = child.ended
            left = sum(m.lost is None for m in self._members.values())
            if self._began is None:
                self.fail(f"worker {number} could not start: {child.ended}; see {child.log}")
            elif left == 0 and self._signal is not None:
                self.over = True
            elif left == 0:
                reasons = sorted({m.lost for m in self._members.values() if m.lost})
                self.fail(f"every worker has died ({'; '.join(reasons)}); see {child.log}. {self._how_to_go_on()}")
            else:
                self._note(f"worker {number} died ({child.ended}); the run goes on with {left} of {self._settings.workers}")
                self._system_row(self._seconds(), self._mean_step(), self._exchanges, lost=number)
                if self._cut is not None and self._cut.lead == number and self._cut.moment is None:
                    self._cut = None  # nobody will mark its place in the order any more
                self._finish_checkpoint()

    def _evaluator_died(self, child: Child) -> None:
        self._evaluator = None
        self._evaluator_deaths += 1
        if self._evaluating is not None:
            self._pending.appendleft(self._evaluating)
            self._evaluating = None
        if self._began is None and child.error is not None:
            self.fail(f"the evaluator could not start: {child.error}; see {child.log}")
        elif self._evaluator_deaths >= _EVALUATOR_LIVES:
            self._status, self._reason = "failed", f"the evaluator died {_EVALUATOR_LIVES} times in a row ({child.ended}); see {child.log}"
            self._note(f"{self._reason}; the workers stop, and a checkpoint is written")
            self._stop_workers()
        else:
            self._note(f"the evaluator died ({child.ended}); starting it again")
            self._spawn_evaluator()

    def _how_to_go_on(self) -> str:
        if self._last_checkpoint is None and self._resumed is None:
            return "there is no checkpoint to go on from; checkpoint.every='30 s' writes them."
        return f"go on from the last checkpoint with: easgd train resume={self._dir}"

    def _end_when_done(self) -> None:
        """Closes the run when nothing more is to come."""
        if self.over or self._final is None or any(m.live for m in self._members.values()):
            return
        moment = self._final[0]
        if self._evaluates:
            newest = self._pending[-1].moment if self._pending else self._evaluating.moment if self._evaluating else None
            at = (newest.step, newest.exchanges) if newest else self._last_evaluated
            if at != (moment.step, moment.exchanges):
                self._enqueue(moment, SharedTensors.of({"x": self._final[1]["x"]}))
                self._feed_evaluator()
            if self._pending or self._evaluating:
                self._progress.finishing(len(self._pending) + (self._evaluating is not None))
                return
        self.over = True

    # ---------------------------------------------------------------- closing

    def end_processes(self) -> None:
        """Leaves no process behind, whatever happened."""
        children = [m.child for m in self._members.values()] + [c for c in (self._master, self._evaluator) if c is not None]
        for child in children:
            if child is self._evaluator and child.process.exitcode is None:
                self._tell(child, {"kind": "stop"})
        ends = time.monotonic() + (2.0 if self.over and self._status != "failed" and self._signal is None else 0.2)
        for child in children:
            child.process.join(max(0.0, ends - time.monotonic()))
            if child.process.exitcode is None:
                child.kill()
                child.process.join()
            self._forget(child.channel)
            self._forget(child.process.sentinel)
            child.channel.close()
            child.process.close()
        self._selector.close()

    def release(self) -> None:
        """Gives back the terminal and the log file."""
        self._progress.close()
        log.removeHandler(self._log_handler)
        self._log_handler.close()

    def outcome(self) -> Outcome:
        """Writes what remains of the run directory and says how the run ended. Raises RunError."""
        if not self._recording:
            raise RunError(self._reason or "the run could not be started")
        if self._final is not None:
            moment, vectors, clocks = self._final
            states = {i: m.final for i, m in self._members.items() if m.final is not None}
            waiting = ([self._evaluating] if self._evaluating else []) + list(self._pending)
            self._write_checkpoint(Checkpoint(moment, vectors, clocks, states, [(p.moment, p.x()) for p in waiting], self._master_cpu_seconds, self._pace))
            x = vectors["x"]
            if self._hit is not None:
                moment, x = self._hit
                self._end_record_at(moment)
            try:
                checkpoints.save(self._prepared.problem.state_dict(x), self._dir / "center.pt")
            except OSError as e:
                self.fail(f"{self._dir / 'center.pt'} could not be written: {e.strerror or e}.")
        elif self._status == "interrupted":
            self._reason = f"{self._reason}; {self._how_to_go_on()}"
        shutil.rmtree(self._dir / "snapshots", ignore_errors=True)
        seconds = self._ended_seconds if self._ended_seconds is not None else self._seconds()
        steps = {f"worker_{i:02d}": m.t for i, m in self._members.items()}
        exchanges = self._final[0].exchanges if self._final else self._exchanges
        if self._hit is not None:  # the run is over where it reached its level
            seconds, exchanges = self._hit[0].seconds, self._hit[0].exchanges
            steps = {worker: min(t, round(self._hit[0].step)) for worker, t in steps.items()}
        facts = {
            "status": self._status, "reason": self._reason,
            "steps": steps,
            "exchanges": exchanges,
            "lost": {f"worker_{i:02d}": m.lost for i, m in self._members.items() if m.lost},
            "wall_seconds": seconds, "threads": self._threads, "vector_bytes": self._prepared.size * self._prepared.dtype.itemsize,
        }  # fmt: skip
        summary = self._record.close(facts)
        if summary:
            self._progress.end(summary)
        code = {"completed": 0, "diverged": 0, "failed": 1, "interrupted": 130}[self._status]
        if self._signal == signal.SIGTERM and self._status == "interrupted":
            code = 143
        return Outcome(self._status, code, summary, self._reason)

    def _end_record_at(self, moment: Moment) -> None:
        """The record of a run that reached its error ends there; what came after is kept for a run that goes on from its checkpoint."""
        self._record.flush()
        try:
            for name in _RECORD:
                shutil.copyfile(self._dir / name, self._dir / "checkpoint" / name)
        except OSError as e:
            raise RunError(f"{self._dir / 'checkpoint'} could not be written: {e.strerror or e}.") from e
        self._record.cut(lambda row: row["seconds"] <= moment.seconds, moment.exchanges)

    def _take_back_record(self) -> None:
        """What `_end_record_at` kept."""
        for name in _RECORD:
            kept = self._dir / "checkpoint" / name
            if kept.exists():
                kept.replace(self._dir / name)

    # ---------------------------------------------------------------- small things

    def _tell(self, child: Child, message: dict[str, Any], tensors: SharedTensors | None = None) -> bool:
        try:
            child.channel.post(message, tensors)
            return True
        except ChannelClosed:
            return False  # its end is on its way to us and says more

    def _note(self, text: str) -> None:
        log.warning(text)
        self._progress.note(text)


class _Signals:
    """SIGINT and SIGTERM as events of the loop, for as long as a run lasts; the handlers before are put back."""

    def __enter__(self) -> _Signals:
        self._numbers: list[int] = []
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, lambda n, _: self._numbers.append(n))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def taken(self) -> list[int]:
        """Those that have come since the last call. A signal wakes the loop within its 0.1 s."""
        numbers, self._numbers = self._numbers, []
        return numbers
