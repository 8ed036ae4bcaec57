"""One run as its launcher sees it: events in, commands out.

The supervisor knows neither processes nor clocks, as a rule knows neither. A driver tells it what has happened and at which
second of training, and does what it asks for: `local.py` drives it with processes, `simulated.py` with a virtual clock, a test
with any list of events. Nothing here waits, and nothing is asked twice.

How an end goes: workers are told to stop or have taken their last step and say their final state; when the owner of what is
evaluated has said its own, the last snapshot is measured; then the run is over. Whatever ends a run early only changes where
this begins.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.journal import Journal
from easgd_cli.launcher.pending_checkpoint import PendingCheckpoint
from easgd_cli.launcher.snapshot_queue import Snapshot, SnapshotQueue, Vectors
from easgd_cli.launcher.system_rows import SystemRows
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.record.metrics import worker_name
from easgd_cli.training.meter import Tally
from easgd_cli.training.snapshot import EVALUATED, Moment, Pace

log = logging.getLogger("easgd.launcher")

MASTER: Final = "master"
EVALUATOR: Final = "evaluator"
Party = int | Literal["master", "evaluator"]  # a worker is its number

EVALUATOR_LIVES = 3  # how often in a row an evaluator may die before the run ends


@dataclass(frozen=True)
class Begin:
    """Everybody is ready: training begins."""


@dataclass(frozen=True)
class Stop:
    """These workers finish their step and say their final state; in rounds the master gives back what waits for one."""

    workers: tuple[int, ...]


@dataclass(frozen=True)
class Kill:
    """This party is ended at once."""

    party: Party


@dataclass(frozen=True)
class TakeSnapshot:
    """The owner of what is evaluated takes a snapshot of it now."""


@dataclass(frozen=True)
class TakeCheckpoint:
    """These workers say their state; the owner its own, at the mark of the worker `lead` in the order of requests.

    Without a lead the master takes it with its next round, whose members say theirs.
    """

    workers: tuple[int, ...]
    lead: int | None


@dataclass(frozen=True)
class StartEvaluator:
    """There is none, and there is something to measure."""


@dataclass(frozen=True)
class Measure:
    """The evaluator measures this snapshot."""

    snapshot: Snapshot


Command = Begin | Stop | Kill | TakeSnapshot | TakeCheckpoint | StartEvaluator | Measure


@dataclass
class Member:
    """A worker: its clock `t` as far as it is known, and how it ended."""

    t: int
    ready: bool = False
    final: WorkerState | None = None  # said at its end
    silent: bool = False  # killed, since it did not stop when told to
    lost: str | None = None  # how it was lost

    @property
    def live(self) -> bool:
        return self.final is None and self.lost is None


@dataclass(frozen=True)
class Patience:
    """Seconds that a party may take. `interrupted`: over its last step when the user waits; `usual`: when nobody does, and over its part of a checkpoint."""

    interrupted: float = 10.0
    usual: float = 60.0


@dataclass(frozen=True)
class Plan:
    """What a supervisor has to know of a run beforehand.

    `has_master`: a master owns what is evaluated, else worker 0 does. `snapshots`: taken by the owner by itself, asked for
    whenever the evaluator is free, or `deferred`: taken by the owner, measured at the end. `patience`: None where nobody can be silent.
    """

    has_master: bool
    in_rounds: bool
    asks_for_snapshots: bool
    deferred: bool
    checkpoint_pace: Pace
    system_rows: SystemRows
    patience: Patience | None = Patience()


class Supervisor:
    """One run, from the first party that is ready to its summary. `over`: nothing more is to come; `now`: the second of training."""

    def __init__(self, plan: Plan, journal: Journal, queue: SnapshotQueue, moment: Moment):
        self.plan, self.journal, self.queue = plan, journal, queue
        self.members = {worker: Member(t) for worker, t in moment.clocks.items()}
        self.over = False
        self.began = False
        self.now = moment.seconds
        self.final: OwnerState | None = None
        self._commands: list[Command] = []
        self._master: Literal["absent", "starting", "ready", "killed"] = "starting" if plan.has_master else "absent"
        self._evaluator: Literal["absent", "starting", "ready"] = "absent"
        self._evaluator_deaths = 0
        self._asked_snapshot, self._next_ask = False, 0.0
        self._pending: PendingCheckpoint | None = None
        self._last_checkpoint_taken = False
        self._simulated: dict[str, Any] | None = None  # where a virtual cluster stands at its end
        self._told = moment  # where the owner last said it was
        self._step = moment.step  # the greatest mean local step so far
        self._clocks, self._alive = sum(moment.clocks.values()), len(moment.clocks)
        self._stopping: float | None = None  # since when workers have been told to stop

    def commands(self) -> list[Command]:
        """What is to be done now, in this order; each is given once."""
        commands, self._commands = self._commands, []
        return [] if self.over else commands

    # ---------------------------------------------------------------- what is known

    @property
    def step(self) -> float:
        """Mean local step of the workers that have not been lost. It does not step back when one is, nor when one has come back with its old clock."""
        if self._alive:
            self._step = max(self._step, self._clocks / self._alive)
        return self._step

    @property
    def alive(self) -> int:
        """How many workers have not been lost."""
        return self._alive

    @property
    def stopping(self) -> bool:
        """Whether workers have been told to stop."""
        return self._stopping is not None

    @property
    def _evaluates(self) -> bool:
        """Whether what is pending is still to be measured in this run; else it is part of the checkpoint."""
        return self.journal.signal is None and not self.journal.reached and self._evaluator_deaths < EVALUATOR_LIVES

    # ---------------------------------------------------------------- events of training

    def ready(self, party: Party) -> None:
        """The party waits for training to begin; the evaluator, for something to measure."""
        if party == EVALUATOR:
            self._evaluator = "ready"
            self._feed_evaluator()
            return
        if party == MASTER:
            self._master = "ready"
        else:
            self._member(party).ready = True
        everybody = self._master != "starting" and all(m.ready for m in self.members.values())
        if everybody and not self.began and not self.stopping and not self.over:
            self.began = True
            self._commands.append(Begin())
            log.info("training begins")
            self.journal.progress.begin(self.now)
            self._feed_evaluator()

    def advanced(self, worker: int, t: int) -> None:
        """The worker's clock stands at `t`."""
        member = self.members[worker]
        if member.lost is None:
            self._clocks += t - member.t
        member.t = t

    def row(self, row: dict[str, Any]) -> None:
        """A worker's row for the record."""
        self.journal.worker(row)
        self._stop_when_decided()

    def served(self, workers: list[int]) -> None:
        """The exchanges of these workers have been served, in this order."""
        self.journal.served(workers)

    def owner_at(self, moment: Moment) -> None:
        """The owner of what is evaluated says where it stands."""
        self._told = moment

    def system(self, moment: Moment, **figures: float) -> None:
        """Figures of the run as a whole at this moment, which are recorded now and then."""
        rate = self.plan.system_rows.rate(moment.seconds, moment.exchanges)
        if rate is not None:
            self.journal.system(moment, workers_alive=self._alive, exchanges_per_second=rate, **figures)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self.now = now
        if self.began and not self.over:
            self._keep_time()
        self._feed_evaluator()
        self._end_when_done()
        self.journal.tick()

    def pace(self) -> None:
        """The workers or the clock have advanced: a checkpoint may be due."""
        if self._pending is None and not self._last_checkpoint_taken and self.plan.checkpoint_pace.due(self.step, self.now):
            self._begin_checkpoint()

    def _keep_time(self) -> None:
        if self.final is None:
            pending = len(self.queue) - self.queue.busy
            self.journal.progress.update(seconds=self.now, step=self.step, exchanges=self._told.exchanges, evaluations_pending=pending)
        if not self.stopping and self.final is None:
            patience = self.plan.patience
            if self._pending is not None and patience is not None and self.now - self._pending.begun > patience.usual:
                self._finish_checkpoint(late=True)
            self.pace()
            self._ask_snapshot()
        elif self._stopping is not None:
            self._kill_silent(self.now - self._stopping)

    def _kill_silent(self, waited: float) -> None:
        """Ends the workers that have not stopped within their time, as an end must not wait for ever. `waited`: since they were told to."""
        if self.plan.patience is None:
            return
        grace = self.plan.patience.interrupted
        patience = grace if self.journal.signal is not None else self.plan.patience.usual
        for i, m in self.members.items():
            if waited > patience and self._waits_for(m) and not m.silent:
                self.journal.note(f"worker {i} has not finished its step within {patience:g} s; the run ends without it")
                m.silent = True
                self._commands.append(Kill(i))
        if waited > patience + grace and self._master == "ready" and self.final is None and not any(m.live for m in self.members.values()):
            self._master = "killed"  # it has had its time after the last of them; its end is told as any master's
            self._commands.append(Kill(MASTER))

    # ---------------------------------------------------------------- states: checkpoints and the end

    def worker_state(self, worker: int, state: WorkerState, final: bool) -> None:
        """A worker's part of a checkpoint, or its last word."""
        self.advanced(worker, state.t)
        if final:
            self.members[worker].final = state
            self.journal.ended(worker, Tally(**(state.tally or {})).seconds)
        if self._pending is not None and not self._pending.say(worker, state, final):
            self._pending = None
        self._finish_checkpoint()
        self._end_when_done()

    def owner_state(self, state: OwnerState, final: bool) -> None:
        """The owner's part of a checkpoint, or its last word."""
        if final:
            self.final = state
        elif self._pending is not None:
            self._pending.owner = state
            self._finish_checkpoint()
        self._end_when_done()

    def last_states(self, checkpoint: Checkpoint) -> None:
        """The last words of all at once."""
        for worker, state in checkpoint.workers.items():
            self.worker_state(worker, state, final=True)
        self._simulated = checkpoint.simulated
        self.owner_state(checkpoint.owner, final=True)

    def checkpoint(self, checkpoint: Checkpoint, last: bool = False) -> None:
        """All parts of a checkpoint at once. `last`: what comes after it, a run that goes on does again."""
        self._pending = None
        self._last_checkpoint_taken = self._last_checkpoint_taken or last
        self.journal.checkpoint(checkpoint)

    def _begin_checkpoint(self) -> None:
        live = tuple(i for i, m in self.members.items() if m.live)
        if not live:
            return  # the end keeps everything anyway
        lead = None if self.plan.in_rounds else live[0]
        self._pending = PendingCheckpoint(self.now, lead, {i: m.final for i, m in self.members.items() if m.final is not None})
        self._commands.append(TakeCheckpoint(live, lead))

    def _finish_checkpoint(self, late: bool = False) -> None:
        """Writes the checkpoint when everybody has said its part; `late`: without those that have not, who would come back as lost ones do."""
        pending = self._pending
        if pending is None:
            return
        parts = pending.parts()
        silent = [i for i, m in self.members.items() if m.lost is None and i not in parts]
        if (pending.owner is None or silent) and not late:
            return
        self._pending = None
        if pending.owner is None:
            return
        if silent:
            log.warning("the checkpoint does not wait for workers %s any longer", silent)
        self.journal.checkpoint(Checkpoint(pending.owner, parts, self.queue.until(pending.owner.moment)))

    # ---------------------------------------------------------------- evaluation

    def snapshot(self, moment: Moment, vectors: Vectors) -> None:
        """The owner has taken a snapshot, to be measured; it is the queue's from now on."""
        self._asked_snapshot = False
        self.queue.add(moment, vectors)
        self._feed_evaluator()

    def evaluated(self, number: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """The snapshot of this number has been measured."""
        done = self.queue.done(number)
        if done is not None:
            self._evaluator_deaths = 0
            self.journal.evaluation(done.moment, done.vectors, metrics)
            done.drop()
        self._stop_when_decided()
        self._feed_evaluator()
        self._end_when_done()

    def _ask_snapshot(self) -> None:
        """Without an interval: the newest snapshot whenever the evaluator is free."""
        if self.plan.asks_for_snapshots and not self._asked_snapshot and not self.queue and self.now >= self._next_ask:
            self._asked_snapshot = True
            self._commands.append(TakeSnapshot())
            self._next_ask = self.now + max(1.0, self.now / 200)  # a bound on the number of points of a long run

    def _feed_evaluator(self) -> None:
        if self.over or self.queue.busy or not self.queue or not self._evaluates:
            return
        if self._evaluator == "absent":
            if not self.plan.deferred or self.final is not None:
                self.start_evaluator()
        elif self._evaluator == "ready" and self.began and (snapshot := self.queue.next()) is not None:
            self._commands.append(Measure(snapshot))

    def start_evaluator(self) -> None:
        """Asks for an evaluator."""
        self._evaluator = "starting"
        self._commands.append(StartEvaluator())

    # ---------------------------------------------------------------- losses

    def ended(self, party: Party, how: str, *, refused: bool = False, raised: bool = False, log_file: str = "") -> None:
        """A party has ended without having said that it is done: `how`, for a sentence; `raised`: by an exception of its own.

        `refused`: by the data's fault, so that the next would end in the same way.
        """
        log.warning("%s: %s", _name(party), how)
        if self.over:
            return
        if refused and not self.journal.reached:  # an image that cannot be decoded is missing for all of them
            self.fail(how)
        if party == EVALUATOR:
            self._evaluator_ended(how, raised, log_file)
        elif party == MASTER:
            self._master_ended(how)
        elif self._waits_for(self._member(party)):
            self._lose(party, how, refused, log_file)
        self._end_when_done()

    def _lose(self, worker: int, how: str, refused: bool, log_file: str) -> None:
        member = self.members[worker]
        member.lost = "did not finish its step when the run ended" if member.silent else how
        self._clocks -= member.t
        self._alive -= 1
        if not self.began:
            self.fail(f"worker {worker} could not start: {how}; see {log_file}")
        elif self._alive == 0 and not self.stopping:
            reasons = sorted({m.lost for m in self.members.values() if m.lost})
            self.fail(f"every worker has died ({'; '.join(reasons)}); see {log_file}. {self.journal.how_to_go_on()}")
        else:
            if not self.stopping and not refused:
                self.journal.note(f"worker {worker} died ({how}); the run goes on with {self._alive} of {len(self.members)}")
            elif not member.silent and not refused:
                self.journal.note(f"worker {worker} died ({how}) while the run was ending")
            self.over = self.over or not self.plan.has_master  # with it went the owner of what is kept at an end
            self.journal.system(self._told, workers_alive=self._alive, lost=worker)
            if self._pending is not None and not self._pending.can_lose(worker):
                self._pending = None
            self._finish_checkpoint()

    def _master_ended(self, how: str) -> None:
        if self.final is not None:
            return
        if self.journal.reached:  # the run has its result
            self.over = True
        else:
            self.fail(f"the master died ({how}); {self.journal.how_to_go_on()}")

    def _evaluator_ended(self, how: str, raised: bool, log_file: str) -> None:
        self._evaluator = "absent"
        self.queue.give_back()
        if self.over or not self._evaluates:
            return
        self._evaluator_deaths += 1
        often = f"the evaluator died {EVALUATOR_LIVES} times in a row ({how}); see {log_file}"
        if not self.began and raised:
            self.fail(f"the evaluator could not start: {how}; see {log_file}")
        elif self._evaluator_deaths >= EVALUATOR_LIVES and not self.began:
            self.fail(often)
        elif self._evaluator_deaths >= EVALUATOR_LIVES:
            self.journal.fail(often)
            self.journal.note(f"{self.journal.reason}; the workers stop, and a checkpoint is written")
            self._stop_workers()
        else:
            self.journal.note(f"the evaluator died ({how}); starting it again")
            self.start_evaluator()

    # ---------------------------------------------------------------- ends

    def interrupted(self, number: int) -> None:
        """A signal has come that ends the run; one that is over has its result."""
        if self.over:
            return
        name = signal.Signals(number).name
        if self.journal.signal is not None:
            self.journal.note(f"{name} again: ending at once, without a checkpoint of this moment")
            self.over = True
            return
        self.journal.interrupted(number)
        if not self.began:
            self.over = True
            return
        if self.plan.patience is not None:
            self.journal.note(f"{name}: workers finish their step, then a checkpoint is written; once more ends at once")
        self._stop_workers()

    def fail(self, reason: str) -> None:
        """Ends the run at once; its table and the command say why."""
        self.journal.fail(reason)
        self.over = True

    def _stop_when_decided(self) -> None:
        if self.journal.decided:
            self._stop_workers()

    def _stop_workers(self) -> None:
        if not self.stopping:
            self._stopping = self.now
            if live := tuple(i for i, m in self.members.items() if m.live):
                self._commands.append(Stop(live))

    def _end_when_done(self) -> None:
        """Closes the run when nothing more is to come."""
        if self.over or self.final is None or any(m.live for m in self.members.values()):
            return
        moment = self.final.moment
        if self._evaluates:
            newest = self.queue.newest
            if ((newest.step, newest.exchanges) if newest else self.journal.evaluated) != (moment.step, moment.exchanges):
                self.queue.add_copies(moment, {name: v for name, v in self.final.vectors.items() if name in EVALUATED})
                self._feed_evaluator()
            if self.queue:
                self.journal.progress.finishing(len(self.queue))
                return
        self.over = True

    def outcome(self, **facts: Any) -> Outcome:
        """Writes what remains of the run directory and says how the run ended; `facts`: what else the summary says. Raises RunError."""
        last = None
        if self.final is not None and not self._last_checkpoint_taken:
            finals = {i: m.final for i, m in self.members.items() if m.final is not None}
            last = Checkpoint(self.final, finals, self.queue.until(), self._simulated)
        seconds = self.final.moment.seconds if self.final is not None else self.now
        lost = {worker_name(i): m.lost for i, m in self.members.items() if m.lost}
        steps = {i: m.t for i, m in self.members.items()}
        return self.journal.close(self.final, last, steps, self._told.exchanges, seconds, {"lost": lost, **facts})

    def _waits_for(self, member: Member) -> bool:
        """Whether a worker has something to say yet: its last state or, where it owns what is kept, that."""
        return member.live or (self.final is None and member.lost is None and not self.plan.has_master)

    def _member(self, party: Party) -> Member:
        assert isinstance(party, int), f"{party} is no worker"
        return self.members[party]


def _name(party: Party) -> str:
    return worker_name(party) if isinstance(party, int) else party
