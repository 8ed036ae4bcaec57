"""One run as its launcher sees it: events in, commands out.

Like a method's rule, the supervisor knows neither processes nor clocks. A driver tells it what has happened and at
which second of training, and carries out its commands: `local.py` drives it with processes, `simulated.py` with a
virtual clock, a test with any list of events. Nothing here waits, and no command is given twice.

How a run ends: workers are told to stop, or have taken their last step, and say their final states; when the owner of
what is evaluated has said its own, the last snapshot is measured; then the run is over. Whatever ends a run early only
changes when this begins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.journal.snapshot_queue import SnapshotQueue, Vectors
from easgd_cli.launcher.supervisor.beginning import Beginning
from easgd_cli.launcher.supervisor.checkpoints import Checkpoints
from easgd_cli.launcher.supervisor.commands import Command
from easgd_cli.launcher.supervisor.course import Course
from easgd_cli.launcher.supervisor.course import Plan as Plan
from easgd_cli.launcher.supervisor.ending import Ending
from easgd_cli.launcher.supervisor.evaluation import Evaluation
from easgd_cli.launcher.supervisor.losses import Losses
from easgd_cli.launcher.supervisor.members import Members
from easgd_cli.launcher.supervisor.parties import EVALUATOR, Party, title_in_files
from easgd_cli.launcher.supervisor.shutdown import Shutdown
from easgd_cli.launcher.supervisor.stalls import Stalls
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.training.meter import Tally
from easgd_cli.training.snapshot import Moment


class Supervisor:
    """One run. `over`: whether nothing more is to come; `now`: the second of training; `course`: how far the run is."""

    def __init__(self, plan: Plan, journal: Journal, queue: SnapshotQueue, moment: Moment):
        self.plan, self.journal, self.queue = plan, journal, queue
        self.members = Members(moment)
        course = self.course = Course(moment, moment.seconds)
        self._taken = moment  # when the last snapshot was taken
        self._commands: list[Command] = []
        members, ask = self.members, self._commands.append
        self._beginning = Beginning(plan, course, journal, members, ask)
        self.evaluation = Evaluation(journal, queue, ask, asks=plan.asks_for_snapshots, deferred=plan.deferred)
        self._checkpoints = Checkpoints(journal, queue, members, ask, plan.checkpoint_pace, in_rounds=plan.in_rounds)
        self._stalls = Stalls(journal)
        recovers = plan.has_master and plan.master_returns and plan.max_restarts > 0
        self._shutdown = Shutdown(journal, members, self._stalls, ask, plan.patience, recovers)
        self._losses = Losses(plan, course, journal, members, self.evaluation, self._checkpoints, self._shutdown, ask)
        self._ending = Ending(course, journal, queue, members, self.evaluation, self._checkpoints)

    @property
    def over(self) -> bool:
        return self.course.over

    @property
    def now(self) -> float:
        return self.course.now

    @now.setter
    def now(self, second: float) -> None:
        self.course.now = second

    def commands(self) -> list[Command]:
        """Returns the commands that are to be carried out now, in this order; each is returned once."""
        commands = list(self._commands)
        self._commands.clear()
        return commands

    @property
    def moment(self) -> Moment:
        """The owner's latest known moment: of its last report or of its last snapshot, which may arrive before that."""
        return max(self.course.told, self._taken, key=lambda moment: (moment.exchanges, moment.step))

    # ---------------------------------------------------------------- events of training

    def ready(self, party: Party) -> None:
        """The party waits: the evaluator for something to measure, any other for training to begin."""
        if party == EVALUATOR:
            self.evaluation.ready()
        else:
            self._beginning.ready(party)
        self._feed_evaluator()

    def homeless(self, workers: Collection[int]) -> None:
        """These workers have no host at this moment, all others have."""
        self.members.homeless = frozenset(workers)
        for worker in workers:  # one that was ready, and has lost its host since
            self.members[worker].ready = False
        self._beginning.begin_when_possible()

    def advanced(self, worker: int, t: int) -> None:
        """The worker's clock stands at `t`."""
        self.members.advance(worker, t)

    def joined(self, worker: int, t: int) -> None:
        """A worker that was lost has the center, and trains again from its clock `t` on."""
        self._losses.joined(worker, t)

    def returned(self, worker: int, t: int, lost: int = 0, missed: int = 0, master: int | None = None) -> None:
        """The owner has given the center to a lost worker, after the exchanges that have been reported and before the
        next. `lost`: how many of the worker's steps never reach the center; `missed`: how many steps its clock leaves
        out; `master`: which of several masters it was.
        """
        self._losses.returned(worker, t, lost, missed, master)

    def rejoins(self, worker: int, t: int, why: str) -> None:
        """A worker cannot take its step `t`: it goes back to the center, unless it has done so too often."""
        if not (self.journal.decided or self._shutdown.begun or self.over):
            self._losses.rejoins(worker, t, why)

    def row(self, row: dict[str, Any]) -> None:
        """A worker's row for the record."""
        self.journal.worker(row)
        if self.journal.decided:
            self._shutdown.begin(self.now)

    def served(self, entries: list[int]) -> None:
        """These exchanges have been served, in this order: each by its worker's number and its variable's place."""
        self.journal.served(entries)

    def owner_at(self, moment: Moment) -> None:
        """The owner of what is evaluated says where it stands."""
        self.course.told = moment

    def system(self, moment: Moment, **figures: float) -> None:
        """Figures of the run as a whole at this moment, which are recorded now and then."""
        rate = self.plan.system_rows.rate(moment.seconds, moment.exchanges)
        if rate is not None:
            self.journal.system(moment, workers_alive=self.members.alive, exchanges_per_second=rate, **figures)

    def measured(self, moment: Moment, **figures: float) -> None:
        """The owner of what is evaluated has measured these figures of it at this moment."""
        self.journal.system(moment, workers_alive=self.members.alive, **figures)

    def silent(self, party: Party, seconds: float, *, stopped: bool) -> None:
        """A party that is there has said nothing for so long; `stopped`: a signal keeps its process from running."""
        if not self.over:
            self._stalls.lasts(party, seconds, stopped, self.course.moment)

    def goes_on(self, party: Party) -> None:
        """A party stands still no longer."""
        if not self.over:
            self._stalls.ends(party, self.course.moment)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self.now = now
        if self.course.began and not self.over:
            self._keep_time()
        self._feed_evaluator()
        self._ending.close_when_done()
        self.journal.tick()

    def pace(self) -> None:
        """The workers or the clock have advanced: a checkpoint may be due."""
        self._checkpoints.begin_when_due(self.now)

    def _keep_time(self) -> None:
        if self.course.final is None:
            pending = len(self.queue) - self.queue.busy
            self.journal.progress.update(
                seconds=self.now,
                step=self.members.step,
                exchanges=self.course.told.exchanges,
                evaluations_pending=pending,
            )
        if not self._shutdown.begun and self.course.final is None:
            self._losses.give_up_homeless()
            if self.plan.patience is not None:
                self._checkpoints.give_up_late(self.now, self.plan.patience.usual)
            self.pace()
            self.evaluation.ask_snapshot(self.now)
        else:
            self._shutdown.keep_time(
                self.now, self._losses.awaits, master_awaited=self.plan.has_master and self.course.final is None
            )
            if self._shutdown.hopeless and self.course.final is None:
                self._losses.without_master()

    def state(self) -> dict[str, Any]:
        """Returns losses and returns of the parties as plain numbers, for the checkpoint of a virtual cluster."""
        return {**self._losses.state(), **self.members.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` has returned."""
        self._losses.restore(state)
        self.members.restore(state)

    # ---------------------------------------------------------------- states: checkpoints and the end

    def worker_state(self, worker: int, state: WorkerState, final: bool) -> None:
        """A worker has said its state, for a checkpoint or as its last one (`final`)."""
        self.advanced(worker, state.t)
        if final:
            self.members[worker].final = state
            self.journal.ended(worker, Tally(**(state.tally or {})).seconds)
        self._checkpoints.worker_state(worker, state, final)
        self._ending.close_when_done()

    def owner_state(self, state: OwnerState, final: bool) -> None:
        """The owner has said its state, for a checkpoint or as its last one (`final`)."""
        if final:
            self.course.final = state
        else:
            self._checkpoints.owner_state(state)
        self._ending.close_when_done()

    def closing(self, state: OwnerState) -> None:
        """The owner has said its state before the closing exchange, from which a longer run goes on."""
        self.course.before = state

    def last_states(self, checkpoint: Checkpoint) -> None:
        """All parties have said their last states at once."""
        for worker, state in checkpoint.workers.items():
            self.worker_state(worker, state, final=True)
        self._ending.simulated = checkpoint.simulated
        self.owner_state(checkpoint.owner, final=True)

    def checkpoint(self, checkpoint: Checkpoint, last: bool = False) -> None:
        """All parts of a checkpoint are there at once. `last`: a resumed run does again whatever comes after it."""
        self._checkpoints.write(checkpoint, last)

    # ---------------------------------------------------------------- evaluation

    def snapshot(self, moment: Moment, vectors: Vectors) -> None:
        """The owner has taken a snapshot, to be measured; its memory is the queue's from now on."""
        self._taken = moment
        self.evaluation.taken(moment, vectors)
        self._feed_evaluator()

    def evaluated(self, number: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """The snapshot of this number has been measured."""
        self.evaluation.measured(number, metrics)
        if self.journal.decided:
            self._shutdown.begin(self.now)
        self._feed_evaluator()
        self._ending.close_when_done()

    def _feed_evaluator(self) -> None:
        if not self.over:
            self.evaluation.feed(self.course.began, self.course.final is not None)

    # ---------------------------------------------------------------- losses

    def ended(
        self, party: Party, how: str, *, refused: bool = False, raised: bool = False, log_file: str = "",
        follows: bool = True,
    ) -> None:  # fmt: skip
        """A party has ended without having said that it is done. `how`: the reason, for a sentence; `raised`: whether
        by an exception of its own; `refused`: whether the data are at fault, so that another would end in the same way;
        `follows`: whether another master can go on with what a dead one leaves.
        """
        log.warning("%s: %s", title_in_files(party), how)
        if not self.over:
            self._stalls.drop(party)
            self._losses.ended(party, how, refused, raised, log_file, follows)
            self._ending.close_when_done()

    @property
    def stopping(self) -> bool:
        """True once workers have been told to stop."""
        return self._shutdown.begun

    # ---------------------------------------------------------------- ends

    def interrupted(self, number: int) -> None:
        """A signal has come that ends the run; a run that is over keeps its result."""
        if not self.over and self._shutdown.interrupted(number, self.now, self.course.began):
            self.course.over = True

    def fail(self, reason: str) -> None:
        """Ends the run at once as failed; its table and the command say why."""
        self.journal.fail(reason)
        self.course.over = True

    def outcome(self, **facts: Any) -> Outcome:
        """Writes what remains of the run directory and says how the run ended; `facts`: what else the summary says.
        Raises RunError.
        """
        return self._ending.outcome({**self._losses.facts(), **facts})
