"""One run as its launcher sees it: events in, commands out.

The supervisor knows neither processes nor clocks, as a rule knows neither. A driver tells it what has happened and at
which second of training, and does what it asks for: `local.py` drives it with processes, `simulated.py` with a virtual
clock, a test with any list of events. Nothing here waits, and nothing is asked twice.

How an end goes: workers are told to stop or have taken their last step and say their final state; when the owner of
what is evaluated has said its own, the last snapshot is measured; then the run is over. Whatever ends a run early only
changes where this begins.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from easgd_cli.launcher.checkpoints import Checkpoints
from easgd_cli.launcher.evaluation import LIVES, Evaluation
from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.journal import Journal
from easgd_cli.launcher.members import Member, Members
from easgd_cli.launcher.parties import (
    EVALUATOR,
    MASTER,
    Begin,
    Command,
    GiveUpWorker,
    Lives,
    Party,
    Patience,
    StartMaster,
    StartWorker,
    Wake,
)
from easgd_cli.launcher.shutdown import Shutdown
from easgd_cli.launcher.silence import Silence
from easgd_cli.launcher.snapshot_queue import SnapshotQueue, Vectors
from easgd_cli.launcher.system_rows import SystemRows
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.record.metrics import worker_name
from easgd_cli.training.meter import Tally
from easgd_cli.training.snapshot import EVALUATED, Moment, Pace

log = logging.getLogger("easgd.launcher")


@dataclass(frozen=True)
class Plan:
    """What a supervisor has to know of a run beforehand.

    `has_master`: a master owns what is evaluated, else worker 0 does. `snapshots`: taken by the owner by itself, asked
    for whenever the evaluator is free, or `deferred`: taken by the owner, measured at the end. `patience`: None where
    nobody can be silent. `max_restarts`: how often in a row a worker or the master that dies is started again;
    `master_returns`: whether a master is.
    """

    has_master: bool
    in_rounds: bool
    asks_for_snapshots: bool
    deferred: bool
    checkpoint_pace: Pace
    system_rows: SystemRows
    patience: Patience | None
    max_restarts: int = 0
    master_returns: bool = True
    rejoins: int = 0  # how often in a row a worker whose gradient is not finite goes back to the center


class Supervisor:
    """One run, from the first party that is ready to its summary. `over`: nothing more is to come; `now`: the second of
    training.
    """

    def __init__(self, plan: Plan, journal: Journal, queue: SnapshotQueue, moment: Moment):
        self.plan, self.journal, self.queue = plan, journal, queue
        self.members = Members(moment)
        self.over = False
        self.began = False
        self.now = moment.seconds
        self.final: OwnerState | None = None
        self.before: OwnerState | None = None  # the same before the closing exchange, of a method that has one
        self._commands: list[Command] = []
        self._master: Literal["absent", "starting", "ready"] = "starting" if plan.has_master else "absent"
        self._lives: dict[Party, Lives] = {
            party: Lives(plan.max_restarts if plan.has_master else 0) for party in (MASTER, *self.members)
        }
        if not plan.master_returns:
            self._lives[MASTER].limit = 0
        self._rejoins = {worker: Lives(plan.rejoins) for worker in self.members}
        self.evaluation = Evaluation(
            journal, queue, self._commands.append, asks=plan.asks_for_snapshots, deferred=plan.deferred
        )
        self._checkpoints = Checkpoints(
            journal, queue, self.members, self._commands.append, plan.checkpoint_pace, in_rounds=plan.in_rounds
        )
        self._silence = Silence(journal)
        recovers = plan.has_master and plan.max_restarts > 0
        self._shutdown = Shutdown(journal, self.members, self._silence, self._commands.append, plan.patience, recovers)
        self._simulated: dict[str, Any] | None = None  # where a virtual cluster stands at its end
        self._told = moment  # where the owner last said it was

    def commands(self) -> list[Command]:
        """What is to be done now, in this order; each is given once."""
        commands = list(self._commands)
        self._commands.clear()
        return commands

    @property
    def moment(self) -> Moment:
        """Where the owner of what is evaluated last said it was."""
        return self._told

    # ---------------------------------------------------------------- events of training

    def ready(self, party: Party) -> None:
        """The party waits for training to begin; the evaluator, for something to measure."""
        if party == EVALUATOR:
            self.evaluation.ready()
            self._feed_evaluator()
        if party == MASTER and self.began:
            log.info("the next master goes on")
        if party == EVALUATOR or self.began:
            return
        if party == MASTER:
            self._master = "ready"
        else:
            self.members[party].ready = True
        everybody = self._master != "starting" and all(m.ready for m in self.members.values())
        if everybody and not self.over:
            self.began = True
            self._commands.append(Begin())
            log.info("training begins")
            self.journal.progress.begin(self.now)
            self._feed_evaluator()

    def advanced(self, worker: int, t: int) -> None:
        """The worker's clock stands at `t`."""
        self.members.advance(worker, t)

    def joined(self, worker: int, t: int) -> None:
        """A worker that was lost has the center, and trains again from its clock `t` on."""
        if self.members[worker].away:  # else it has been given up meanwhile
            self.members.come_back(worker, t)
            self.journal.note(f"worker {worker} is back, at its step {t}")

    def returned(self, worker: int, t: int, lost: int = 0, missed: int = 0) -> None:
        """The owner has given the center to a worker that was lost: after the exchanges that have been said, and before
        the next. `lost`: its steps whose work has not reached the center, and will not; `missed`: those that its clock
        leaves out.
        """
        alive = self.members.alive + self.members[worker].away  # it may not yet have said so itself
        self.journal.system(
            self._told, workers_alive=alive, restarts=self._restarts, returned=worker, returned_at=t,
            steps_lost=lost, steps_missed=missed,
        )  # fmt: skip

    def rejoins(self, worker: int, t: int, why: str) -> None:
        """At its step `t` a worker goes back to the center, unless it has often done so and got no further."""
        if self.journal.decided or self._shutdown.begun or self.over:
            return
        if self._rejoins[worker].again(t):
            self.journal.note(f"worker {worker} goes back to the center at its step {t}: {why}")
            self._checkpoints.lose(worker)
        else:
            self.journal.diverge(f"worker {worker}: {why} at step {t}, as often as max_restarts allows")
            self._shutdown.begin(self.now)

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
        self._told = moment

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
            self._silence.lasts(party, seconds, stopped, self._moment())

    def goes_on(self, party: Party) -> None:
        """A party stands still no longer."""
        if not self.over:
            self._silence.ends(party, self._moment())

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
        self._checkpoints.begin_when_due(self.now)

    def _keep_time(self) -> None:
        if self.final is None:
            pending = len(self.queue) - self.queue.busy
            self.journal.progress.update(
                seconds=self.now, step=self.members.step, exchanges=self._told.exchanges, evaluations_pending=pending
            )
        if not self._shutdown.begun and self.final is None:
            if self.plan.patience is not None:
                self._checkpoints.give_up_late(self.now, self.plan.patience.usual)
            self.pace()
            self.evaluation.ask_snapshot(self.now)
        else:
            self._shutdown.keep_time(
                self.now, self._waits_for, master_awaited=self.plan.has_master and self.final is None
            )
            if self._shutdown.hopeless and self.final is None:
                self._without_master()

    def state(self) -> dict[str, Any]:
        """Who has been lost and how often somebody came back, as plain numbers: what a virtual cluster keeps."""
        return {
            "lives": {party: vars(lives) | {} for party, lives in self._lives.items()},
            "rejoins": {worker: vars(lives) | {} for worker, lives in self._rejoins.items()},
            "members": {worker: [m.lost, m.away, m.returns] for worker, m in self.members.items()},
            "step": self.members.step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it where it was."""
        self._lives = {party: Lives(**lives) for party, lives in state["lives"].items()}
        self._rejoins = {worker: Lives(**lives) for worker, lives in state["rejoins"].items()}
        for worker, (lost, away, returns) in state["members"].items():
            if lost is not None:
                self.members.lose(worker, lost)
            self.members[worker].away, self.members[worker].returns = away, returns
        self.members.stood_at(state["step"])

    # ---------------------------------------------------------------- states: checkpoints and the end

    def worker_state(self, worker: int, state: WorkerState, final: bool) -> None:
        """A worker's part of a checkpoint, or its last word."""
        self.advanced(worker, state.t)
        if final:
            self.members[worker].final = state
            self.journal.ended(worker, Tally(**(state.tally or {})).seconds)
        self._checkpoints.worker_state(worker, state, final)
        self._end_when_done()

    def owner_state(self, state: OwnerState, final: bool) -> None:
        """The owner's part of a checkpoint, or its last word."""
        if final:
            self.final = state
        else:
            self._checkpoints.owner_state(state)
        self._end_when_done()

    def closing(self, state: OwnerState) -> None:
        """The owner's part of what a longer run goes on from, before the closing exchange."""
        self.before = state

    def last_states(self, checkpoint: Checkpoint) -> None:
        """The last words of all at once."""
        for worker, state in checkpoint.workers.items():
            self.worker_state(worker, state, final=True)
        self._simulated = checkpoint.simulated
        self.owner_state(checkpoint.owner, final=True)

    def checkpoint(self, checkpoint: Checkpoint, last: bool = False) -> None:
        """All parts of a checkpoint at once. `last`: what comes after it, a run that goes on does again."""
        self._checkpoints.write(checkpoint, last)

    # ---------------------------------------------------------------- evaluation

    def snapshot(self, moment: Moment, vectors: Vectors) -> None:
        """The owner has taken a snapshot, to be measured; it is the queue's from now on."""
        self.evaluation.taken(moment, vectors)
        self._feed_evaluator()

    def evaluated(self, number: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """The snapshot of this number has been measured."""
        self.evaluation.measured(number, metrics)
        if self.journal.decided:
            self._shutdown.begin(self.now)
        self._feed_evaluator()
        self._end_when_done()

    def _feed_evaluator(self) -> None:
        if not self.over:
            self.evaluation.feed(self.began, self.final is not None)

    # ---------------------------------------------------------------- losses

    def ended(self, party: Party, how: str, *, refused: bool = False, raised: bool = False, log_file: str = "") -> None:
        """A party has ended without having said that it is done: `how`, for a sentence; `raised`: by an exception of
        its own.

        `refused`: by the data's fault, so that the next would end in the same way.
        """
        log.warning("%s: %s", _name(party), how)
        if self.over:
            return
        self._silence.drop(party)
        if refused and not self.journal.reached:  # an image that cannot be decoded is missing for all of them
            self.fail(how)
        if party == EVALUATOR:
            self._evaluator_ended(how, raised, log_file)
        elif party == MASTER:
            self._master_ended(how)
        elif self._waits_for(self.members[party]) or self.members[party].away:
            self._lose(party, how, refused, log_file)
        else:  # it has said its last, and perhaps not to its master
            self._give_up(party)
        self._end_when_done()

    def _give_up(self, worker: int) -> None:
        if self.plan.has_master and self.final is None and not self.over:
            self._commands.append(GiveUpWorker(worker))

    def _master_ended(self, how: str) -> None:
        if self.final is not None:
            return
        if self.journal.reached:
            self._without_master()
        elif self.began and self._lives[MASTER].again(self._told.exchanges):
            if not self._shutdown.master_killed:  # else it has been told
                self.journal.note(f"the master died ({how}); another goes on with its center")
            self.journal.system(self._told, workers_alive=self.members.alive, restarts=self._restarts)
            self._checkpoints.give_up()
            self.evaluation.forget_asked()
            finished = any(m.final is not None for m in self.members.values())
            self._commands.append(StartMaster(stopped=self._shutdown.begun or finished))
        elif self._shutdown.master_killed:
            self._without_master()
        else:
            self.fail(f"the master died ({how}); {self.journal.how_to_go_on()}")

    def _without_master(self) -> None:
        """The run has its result, or none."""
        self.over = True
        self.journal.without_master()

    @property
    def stopping(self) -> bool:
        """Whether workers have been told to stop."""
        return self._shutdown.begun

    @property
    def _restarts(self) -> int:
        """How often somebody has been started again."""
        return sum(lives.all for lives in self._lives.values())

    def _lose(self, worker: int, how: str, refused: bool, log_file: str) -> None:
        member, members = self.members[worker], self.members
        members.lose(worker, how)
        ending = self._shutdown.begun or (self.plan.in_rounds and members.finals)  # no round comes any more
        member.away = self.began and not refused and not ending and self._lives[worker].again(member.t)
        if not self.began:
            self.fail(f"worker {worker} could not start: {how}; see {log_file}")
        elif member.away:
            self.journal.note(f"worker {worker} died ({how}); it is started again")
            self.journal.system(self._told, workers_alive=members.alive, lost=worker)
            self._checkpoints.lose(worker)
            self._commands.append(StartWorker(worker, member.t))
        elif not members.alive and not members.away and not self._shutdown.begun:
            self.fail(
                f"every worker has died ({'; '.join(sorted(set(members.lost.values())))}); see {log_file}. "
                f"{self.journal.how_to_go_on()}"
            )
        else:
            if not self._shutdown.begun and not refused:
                goes_on = f"the run goes on with {members.alive} of {len(members)}"
                self.journal.note(f"worker {worker} died ({how}); {goes_on if members.live else 'the others are done'}")
            elif not member.silent and not refused:
                self.journal.note(f"worker {worker} died ({how}) while the run was ending")
            self.over = self.over or not self.plan.has_master  # with it went the owner of what is kept at an end
            self.journal.system(self._told, workers_alive=self.members.alive, lost=worker)
            self._checkpoints.lose(worker)
            self._give_up(worker)

    def _evaluator_ended(self, how: str, raised: bool, log_file: str) -> None:
        follows = self.evaluation.ended()
        if self.over or follows == "unwanted":
            return
        often = f"the evaluator died {LIVES} times in a row ({how}); see {log_file}"
        if not self.began and raised:
            self.fail(f"the evaluator could not start: {how}; see {log_file}")
        elif follows == "too often" and not self.began:
            self.fail(often)
        elif follows == "too often":
            self.journal.fail(often)
            self.journal.note(f"{self.journal.reason}; the workers stop, and a checkpoint is written")
            self._shutdown.begin(self.now)
        else:
            self.journal.note(f"the evaluator died ({how}); starting it again")
            self.evaluation.start()

    # ---------------------------------------------------------------- ends

    def interrupted(self, number: int) -> None:
        """A signal has come that ends the run; one that is over has its result."""
        if self.over:
            return
        name = signal.Signals(number).name
        if self.journal.signal is not None:
            if number == signal.SIGINT:  # of others a terminal that closes, or a scheduler, sends several
                self.journal.note(f"{name} again: ending at once, without a checkpoint of this moment")
                self.over = True
            return
        self.journal.interrupted(number)
        if not self.began:
            self.over = True
            return
        if self.plan.patience is not None:
            more = "once more" if number == signal.SIGINT else "Ctrl-C"
            self.journal.note(f"{name}: workers finish their step, then a checkpoint is written; {more} ends at once")
            self._commands.append(Wake())
        self._shutdown.begin(self.now)

    def fail(self, reason: str) -> None:
        """Ends the run at once; its table and the command say why."""
        self.journal.fail(reason)
        self.over = True

    def _end_when_done(self) -> None:
        """Closes the run when nothing more is to come."""
        if self.over or self.final is None or self.members.live:
            return
        moment = self.final.moment
        if self.evaluation.goes_on:
            newest = self.queue.newest
            if ((newest.step, newest.exchanges) if newest else self.journal.evaluated) != (
                moment.step,
                moment.exchanges,
            ):
                self.queue.add_copies(moment, {name: v for name, v in self.final.vectors.items() if name in EVALUATED})
                self._feed_evaluator()
            if self.queue:
                self.journal.progress.finishing(len(self.queue))
                return
        self.over = True

    def outcome(self, **facts: Any) -> Outcome:
        """Writes what remains of the run directory and says how the run ended; `facts`: what else the summary says.
        Raises RunError.
        """
        last, owner = None, self.before or self.final
        if owner is not None and not self._checkpoints.last_taken:
            pending = self.queue.until(None if self.before is None else self.before.moment)
            last = Checkpoint(owner, self.members.finals, pending, self._simulated)
        seconds = self.final.moment.seconds if self.final is not None else self.now
        lost = {worker_name(i): how for i, how in self.members.lost.items()}
        restarts = {_name(party): lives.all for party, lives in self._lives.items() if lives.all}
        rejoins = {worker_name(worker): lives.all for worker, lives in self._rejoins.items() if lives.all}
        steps = {i: m.t for i, m in self.members.items()}
        told = {"lost": lost, "restarts": restarts, **({"rejoins": rejoins} if rejoins else {}), **facts}
        return self.journal.close(self.final, last, steps, self._told.exchanges, seconds, told)

    def _moment(self) -> Moment:
        """Where the owner last said it was, now."""
        return replace(self._told, seconds=max(self.now, self._told.seconds))

    def _waits_for(self, member: Member) -> bool:
        """Whether a worker has something to say yet: its last state or, where it owns what is kept, that."""
        return member.live or (self.final is None and member.lost is None and not self.plan.has_master)


def _name(party: Party) -> str:
    return worker_name(party) if isinstance(party, int) else party
