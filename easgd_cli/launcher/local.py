"""launcher=local: one machine, a process for the master, for every worker and for the evaluator.

The launcher itself computes nothing. It starts the others, listens to them, is the only one that writes the run
directory, and ends everything: on success, failure, Ctrl-C and SIGTERM. It is single-threaded, one loop over sockets.

How an end goes: workers finish their step and say `final`; when the last session has closed, the master says `final`;
the last snapshot is evaluated; then the record is closed. Whatever ends a run early only changes where this begins.
"""

from __future__ import annotations

import selectors
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from easgd_cli.errors import RunError
from easgd_cli.experiment.build import Prepared
from easgd_cli.launcher.initial_state import Beginning
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal import Journal, log
from easgd_cli.launcher.pending_checkpoint import Cut
from easgd_cli.launcher.processes import Child
from easgd_cli.launcher.signals import Signals
from easgd_cli.launcher.snapshot_queue import Waiting
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.settings.schema import Interval
from easgd_cli.system.channel import ChannelClosed
from easgd_cli.system.devices import evaluator_threads
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.evaluator import Evaluator, EvaluatorStart
from easgd_cli.training.master import Master
from easgd_cli.training.meter import Tally
from easgd_cli.training.snapshot import EVALUATED, Moment, Pace
from easgd_cli.training.worker import WorkerLoop

_GRACE_SECONDS = 10.0  # how long a worker that is told to stop may take over its step when the user is waiting
_PATIENCE_SECONDS = 60.0  # and when nobody is: also how long a checkpoint waits for a worker that does not answer
_EVALUATOR_LIVES = 3
_SYSTEM_POINTS_PER_DOUBLING = 64


def launch(job: Job, prepared: Prepared) -> Outcome:
    """Runs the job to its end. Raises RunError when it could not be started."""
    with Signals() as signals:  # from the log's first line on, and to the very end: no Ctrl-C may cost the summary or what is being written
        run = Run(job, prepared)
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
    silent: bool = False  # killed, since it did not stop when told to
    lost: str | None = None  # how it was lost

    @property
    def live(self) -> bool:
        return self.final is None and self.lost is None


class Run:
    """One run, from its first process to its summary."""

    def __init__(self, job: Job, prepared: Prepared):
        self._job, self._prepared = job, prepared
        self._settings = s = job.settings
        self._method = prepared.method
        self._sequential = not self._method.center
        self._journal = Journal(job, prepared)
        self._resumed = self._journal.resumed
        self._beginning = Beginning(job, prepared, self._resumed)
        moment = self._beginning.moment
        self._selector = selectors.DefaultSelector()
        self._members: dict[int, _Member] = {}
        self._master: Child | None = None
        self._evaluator: Child | None = None
        self._evaluator_deaths = 0
        self._waiting = Waiting(job.run_dir / "snapshots")
        self._asked_snapshot = False
        self._next_ask = 0.0
        self._final: OwnerState | None = None
        self._checkpoint_pace = Pace(Interval.parse("checkpoint.every", s.checkpoint.every))
        self._cut: Cut | None = None
        self._system_every, self._system_next, self._system_rows = 1.0, 0.0, 0
        self._served = (moment.seconds, moment.exchanges)  # at the last system row
        self._exchanges = moment.exchanges
        self._told = moment  # where the master last said it was
        self._step = moment.step  # the greatest mean local step so far
        self._began: float | None = None
        self._stopping: float | None = None  # since when workers have been told to stop
        self.over = False

    # ---------------------------------------------------------------- start

    def start(self) -> None:
        """Starts master, workers and evaluator, where their run begins. Raises RunError, MemoryError or OSError."""
        s, beginning = self._settings, self._beginning
        images = self._prepared.images.share() if self._prepared.images is not None else None
        links = beginning.links()
        for link in links:
            start = beginning.worker(link, images)
            self._members[link.worker] = _Member(self._child(f"worker_{link.worker:02d}", WorkerLoop, start), start.t)
        if not self._sequential:
            owner = beginning.master(links, {i: m.t for i, m in self._members.items()})
            self._master = self._child("master", Master, owner)
            owner.center.close()
        for link in links:
            link.close_sockets()  # or no end would ever be seen by the other
            link.memory.close()
        self._evaluator_start = EvaluatorStart(s, images, evaluator_threads(s))
        self._journal.open()
        if s.eval.when == "running":
            self._spawn_evaluator()
        if self._resumed is None:
            self._waiting.add(beginning.moment, SharedTensors.of(beginning.evaluated()))
        else:
            self._waiting.restore(self._resumed.pending)
            self._checkpoint_pace.due(beginning.moment.step, beginning.moment.seconds)

    def _spawn_evaluator(self) -> None:
        self._evaluator = self._child("evaluator", Evaluator, self._evaluator_start)
        if self._began is not None:
            self._tell(self._evaluator, {"kind": "start", "began": self._began})

    def _child(self, name: str, maker: Any, start: Any) -> Child:
        child = Child(name, maker, start, self._job.run_dir / "logs" / f"{name}.log")
        self._selector.register(child.channel, selectors.EVENT_READ, child)
        self._selector.register(child.process.sentinel, selectors.EVENT_READ, child)
        log.info("%s: process %d", name, child.process.pid)
        return child

    # ---------------------------------------------------------------- the loop

    def turn(self, signals: Signals) -> None:
        """Waits for the next event, at most a moment, and does what it asks for. A signal is seen within that moment."""
        for child in {id(key.data): key.data for key, _ in self._selector.select(0.1) if key.data is not None}.values():
            self._hear(child)
        for number in signals.taken():
            self._interrupted(number)
        if self._journal.decided:
            self._stop_workers()
        if self._began is None:
            self._begin_when_ready()
        else:
            self._keep_time()
        self._feed_evaluator()
        self._end_when_done()
        self._journal.tick()

    def _hear(self, child: Child) -> None:
        ended = child.process.exitcode is not None  # asked before listening: what a child said last has all arrived then
        try:
            while messages := child.channel.receive():
                for message, tensors in messages:
                    self._handle(child, message, tensors)
                if not ended:
                    break  # the others' turn; of an ended child this is the last look
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
            child.error, child.refused = message["text"], message["refused"]
        elif kind == "news":
            self._member(child).t = message["t"]
            for row in message["rows"]:
                self._journal.worker(row)
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
            elapsed = self._beginning.moment.seconds
            self._began = time.monotonic() - elapsed
            for child in waiting:
                self._tell(child, {"kind": "start", "began": self._began})
            if self._evaluator is not None:
                self._tell(self._evaluator, {"kind": "start", "began": self._began})
            log.info("training begins")
            self._journal.progress.begin(elapsed)

    def _seconds(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    def _mean_step(self) -> float:
        """Of the workers that have not been lost. It does not step back when one is, nor when one has come back with its old clock."""
        clocks = [m.t for m in self._members.values() if m.lost is None]
        self._step = max(self._step, sum(clocks) / len(clocks) if clocks else 0.0)
        return self._step

    def _keep_time(self) -> None:
        now = self._seconds()
        step = self._mean_step()
        if self._final is None:
            self._journal.progress.update(seconds=now, step=step, exchanges=self._exchanges, evaluations_pending=len(self._waiting) - self._waiting.busy)
        if self._stopping is None and self._final is None:
            if self._cut is not None and time.monotonic() - self._cut.begun > _PATIENCE_SECONDS:
                self._finish_checkpoint(late=True)
            if self._cut is None and self._checkpoint_pace.due(step, now):
                self._begin_checkpoint()
            self._ask_snapshot(now)
        elif self._stopping is not None:
            self._kill_silent(time.monotonic() - self._stopping)

    def _kill_silent(self, waited: float) -> None:
        """Ends the workers that have not stopped within their time, as an end must not wait for ever. `waited`: since they were told to."""
        patience = _GRACE_SECONDS if self._journal.signal is not None else _PATIENCE_SECONDS
        for i, m in self._members.items():
            if waited > patience and m.live and not m.silent:
                self._journal.note(f"worker {i} has not finished its step within {patience:g} s; the run ends without it")
                m.silent = True
                m.child.kill()
        master = self._master
        if waited > patience + _GRACE_SECONDS and master is not None and self._final is None and not any(m.live for m in self._members.values()):
            master.kill()  # it has had its time after the last of them; its end is told as any master's

    # ---------------------------------------------------------------- what the others say

    def _member(self, child: Child) -> _Member:
        return next(m for m in self._members.values() if m.child is child)

    def _served_row(self, message: dict[str, Any]) -> None:
        self._journal.served(message["workers"])
        now, exchanges = message["seconds"], message["exchanges"]
        self._exchanges, self._told = exchanges, Moment(now, message["step"], exchanges)
        if now >= self._system_next and now > self._served[0]:
            rate = (exchanges - self._served[1]) / (now - self._served[0])
            self._journal.system(self._told, workers_alive=self._alive(), exchanges_per_second=rate, master_cpu_seconds=message["cpu"])
            self._served = (now, exchanges)
            self._system_rows += 1
            if self._system_rows % _SYSTEM_POINTS_PER_DOUBLING == 0:
                self._system_every *= 2
            self._system_next = now + self._system_every

    def _alive(self) -> int:
        return sum(m.lost is None for m in self._members.values())

    def _worker_state(self, child: Child, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        assert tensors is not None
        state = WorkerState(
            message["t"], dict(tensors.tensors), message["center_clock"], message["served"], message["exchanges"], message["tally"]
        )  # fmt: skip
        tensors.close()
        member = self._member(child)
        member.t = state.t
        if message["purpose"] == "final":
            member.final = state
            self._journal.ended(int(child.name.removeprefix("worker_")), Tally(**message["tally"]).seconds)
        if self._cut is not None:
            self._cut.workers[int(child.name.removeprefix("worker_"))] = state
            self._finish_checkpoint()

    def _snapshot(self, message: dict[str, Any], tensors: SharedTensors | None) -> None:
        assert tensors is not None
        moment = Moment.read(message["moment"])
        if message["purpose"] == "evaluate":
            self._asked_snapshot = False
            self._waiting.add(moment, tensors)
            return
        owner = OwnerState(moment, message["clock"], dict(tensors.tensors), message["cpu"], message["pace"])
        tensors.close()
        if message["purpose"] == "final":
            self._final = owner
        elif self._cut is not None:
            self._cut.owner = owner
            self._finish_checkpoint()

    # ---------------------------------------------------------------- evaluation

    @property
    def _evaluates(self) -> bool:
        """Whether what is pending is still to be measured in this run; else it is part of the checkpoint."""
        return self._journal.signal is None and not self._journal.reached and self._evaluator_deaths < _EVALUATOR_LIVES

    def _ask_snapshot(self, now: float) -> None:
        """Without eval.every: the newest snapshot whenever the evaluator is free."""
        if self._settings.eval.every is not None or self._settings.eval.when == "deferred":
            return
        if not self._asked_snapshot and not self._waiting and now >= self._next_ask:
            owner = self._master if self._master is not None else self._members[0].child
            self._asked_snapshot = self._tell(owner, {"kind": "snapshot"})
            self._next_ask = now + max(1.0, now / 200)  # a bound on the number of points of a long run

    def _feed_evaluator(self) -> None:
        if self._waiting.busy or not self._waiting or not self._evaluates:
            return
        if self._evaluator is None:
            if self._settings.eval.when == "deferred" and self._final is None:
                return
            self._spawn_evaluator()
        assert self._evaluator is not None
        if self._evaluator.ready and self._began is not None and (snapshot := self._waiting.next()) is not None:
            self._tell(self._evaluator, {"kind": "evaluate", "number": snapshot.number}, snapshot.shared())

    def _evaluated(self, message: dict[str, Any]) -> None:
        done = self._waiting.done(message["number"])
        if done is not None:
            self._evaluator_deaths = 0
            self._journal.evaluation(done.moment, done.vectors, message["metrics"])
            done.drop()

    # ---------------------------------------------------------------- checkpoints

    def _begin_checkpoint(self) -> None:
        live = [i for i, m in self._members.items() if m.live]
        if not live:
            return  # the end keeps everything anyway
        self._cut = Cut(live[0], time.monotonic(), {i: m.final for i, m in self._members.items() if m.final is not None})
        if self._method.gathers == "round":
            assert self._master is not None
            self._tell(self._master, {"kind": "checkpoint"})  # which tells the workers, in its next reply to all of them
            return
        for i in live:
            self._tell(self._members[i].child, {"kind": "checkpoint", "lead": i == live[0]})

    def _finish_checkpoint(self, late: bool = False) -> None:
        """Writes the checkpoint when everybody has said its part; `late`: without those that have not, who would come back as lost ones do."""
        cut = self._cut
        if cut is None:
            return
        silent = [i for i, m in self._members.items() if m.lost is None and i not in cut.workers]
        if (cut.owner is None or silent) and not late:
            return
        self._cut = None
        if cut.owner is None:
            return
        if silent:
            log.warning("the checkpoint does not wait for workers %s any longer", silent)
        self._journal.checkpoint(Checkpoint(cut.owner, cut.workers, self._waiting.until(cut.owner.moment)))

    # ---------------------------------------------------------------- ends

    def _interrupted(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._journal.signal is not None:
            self._journal.note(f"{name} again: ending at once, without a checkpoint of this moment")
            self.over = True
            return
        self._journal.interrupted(number)
        if self._began is None:
            self.over = True
            return
        self._journal.note(f"{name}: workers finish their step, then a checkpoint is written; once more ends at once")
        self._stop_workers()

    def fail(self, reason: str) -> None:
        """Ends the run at once; its table and the command say why."""
        self._journal.fail(reason)
        self.over = True

    def _stop_workers(self) -> None:
        if self._stopping is None:
            self._stopping = time.monotonic()
            if self._master is not None and self._method.gathers == "round":
                self._tell(self._master, {"kind": "stop"})  # or a worker that is silent would keep all others in its round
            for m in self._members.values():
                if m.live:
                    self._tell(m.child, {"kind": "stop"})

    def _died(self, child: Child) -> None:
        log.warning("%s: %s", child.name, child.ended)
        if child.refused:  # an image that cannot be decoded is missing for all of them
            self.fail(child.ended)
        if child is self._evaluator:
            self._evaluator_died(child)
        elif child is self._master:
            if self._final is None:
                self.fail(f"the master died ({child.ended}); {self._journal.how_to_go_on()}")
        else:
            number = int(child.name.removeprefix("worker_"))
            member = self._members[number]
            if member.final is not None:
                return
            if self._master is not None and self._master.process.exitcode is not None:
                self._hear(self._master)  # if this one ended because the master did, that is the news
                if self.over:
                    return
            member.lost = "did not finish its step when the run ended" if member.silent else child.ended
            left = sum(m.lost is None for m in self._members.values())
            if self._began is None:
                self.fail(f"worker {number} could not start: {child.ended}; see {child.log}")
            elif left == 0 and self._stopping is None:
                reasons = sorted({m.lost for m in self._members.values() if m.lost})
                self.fail(f"every worker has died ({'; '.join(reasons)}); see {child.log}. {self._journal.how_to_go_on()}")
            else:
                if self._stopping is None and not child.refused:
                    self._journal.note(f"worker {number} died ({child.ended}); the run goes on with {left} of {self._settings.workers}")
                elif not member.silent and not child.refused:
                    self._journal.note(f"worker {number} died ({child.ended}) while the run was ending")
                self.over = self.over or self._sequential  # with it went the owner of what is kept at an end
                self._journal.system(self._told, workers_alive=self._alive(), lost=number)
                if self._cut is not None and self._cut.lead == number and self._cut.owner is None and self._method.gathers == "each":
                    self._cut = None  # nobody will mark its place in the order any more
                self._finish_checkpoint()

    def _evaluator_died(self, child: Child) -> None:
        self._evaluator = None
        self._evaluator_deaths += 1
        self._waiting.give_back()
        if self._began is None and child.error is not None:
            self.fail(f"the evaluator could not start: {child.error}; see {child.log}")
        elif self._evaluator_deaths >= _EVALUATOR_LIVES:
            self._journal.fail(f"the evaluator died {_EVALUATOR_LIVES} times in a row ({child.ended}); see {child.log}")
            self._journal.note(f"{self._journal.reason}; the workers stop, and a checkpoint is written")
            self._stop_workers()
        else:
            self._journal.note(f"the evaluator died ({child.ended}); starting it again")
            self._spawn_evaluator()

    def _end_when_done(self) -> None:
        """Closes the run when nothing more is to come."""
        if self.over or self._final is None or any(m.live for m in self._members.values()):
            return
        moment = self._final.moment
        if self._evaluates:
            newest = self._waiting.newest
            if ((newest.step, newest.exchanges) if newest else self._journal.evaluated) != (moment.step, moment.exchanges):
                self._waiting.add(moment, SharedTensors.of({name: v for name, v in self._final.vectors.items() if name in EVALUATED}))
                self._feed_evaluator()
            if self._waiting:
                self._journal.progress.finishing(len(self._waiting))
                return
        self.over = True

    # ---------------------------------------------------------------- closing

    def end_processes(self) -> None:
        """Leaves no process behind, whatever happened."""
        children = [m.child for m in self._members.values()] + [c for c in (self._master, self._evaluator) if c is not None]
        for child in children:
            if child is self._evaluator and child.process.exitcode is None:
                self._tell(child, {"kind": "stop"})
        ends = time.monotonic() + (2.0 if self.over and self._journal.status != "failed" and self._journal.signal is None else 0.2)
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
        """Gives back the terminal, the log file and the disk."""
        self._waiting.clear()
        self._journal.release()

    def outcome(self) -> Outcome:
        """Writes what remains of the run directory and says how the run ended. Raises RunError."""
        last = None
        if self._final is not None:
            last = Checkpoint(self._final, {i: m.final for i, m in self._members.items() if m.final is not None}, self._waiting.until())
        seconds = self._final.moment.seconds if self._final is not None else self._seconds()
        lost = {f"worker_{i:02d}": m.lost for i, m in self._members.items() if m.lost}
        steps = {i: m.t for i, m in self._members.items()}
        return self._journal.close(self._final, last, steps, self._exchanges, seconds, {"lost": lost, "threads": self._beginning.threads})

    def _tell(self, child: Child, message: dict[str, Any], tensors: SharedTensors | None = None) -> bool:
        try:
            child.channel.post(message, tensors)
            return True
        except ChannelClosed:
            return False  # its end is on its way to us and says more
