"""The snapshots of a run on their way from their owner through the evaluator into the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.snapshot_queue import SnapshotQueue, Vectors
from easgd_cli.launcher.supervisor.commands import Command, Measure, StartEvaluator, TakeSnapshot
from easgd_cli.record.checkpoint import OwnerState
from easgd_cli.training.snapshot import EVALUATED, Moment

LIVES = 3  # how often in a row an evaluator may die before the run ends


class Evaluation:
    """Gives snapshots to the evaluator and its figures to the journal. `ask` takes commands; `asks`: whether the owner
    is asked for snapshots; `deferred`: whether they are measured after training.
    """

    def __init__(
        self, journal: Journal, queue: SnapshotQueue, ask: Callable[[Command], None], *, asks: bool, deferred: bool
    ):
        self._journal, self._queue, self._ask = journal, queue, ask
        self._asks, self._deferred = asks, deferred
        self._evaluator: Literal["absent", "starting", "ready"] = "absent"
        self._deaths = 0
        self._asked, self._next_ask = False, 0.0

    @property
    def goes_on(self) -> bool:
        """True while pending snapshots are to be measured in this run; else they go into the checkpoint."""
        return self._journal.signal is None and not self._journal.reached and self._deaths < LIVES

    def start(self) -> None:
        """Asks for an evaluator."""
        self._evaluator = "starting"
        self._ask(StartEvaluator())

    def ready(self) -> None:
        """Notes that the evaluator is running and waits for a snapshot."""
        self._evaluator = "ready"

    def feed(self, began: bool, at_end: bool) -> None:
        """Gives a waiting evaluator the next snapshot; asks for an evaluator where none is running. `began`: training
        has begun; `at_end`: the owner has said its last state.
        """
        if self._queue.busy or not self._queue or not self.goes_on:
            return
        if self._evaluator == "absent":
            if not self._deferred or at_end:
                self.start()
        elif self._evaluator == "ready" and began and (snapshot := self._queue.next()) is not None:
            self._ask(Measure(snapshot))

    def ask_snapshot(self, now: float) -> None:
        """In a run without an interval of evaluation: asks for a snapshot whenever the evaluator is free."""
        if self._asks and not self._asked and not self._queue and now >= self._next_ask:
            self._asked = True
            self._ask(TakeSnapshot())
            self._next_ask = now + max(1.0, now / 200)  # a bound on the number of points of a long run

    def forget_asked(self) -> None:
        """Forgets that a snapshot was asked for: the master that was asked has died."""
        self._asked = False

    def taken(self, moment: Moment, vectors: Vectors) -> None:
        """Queues a snapshot that the owner has taken; its memory is the queue's from now on."""
        self._asked = False
        self._queue.add(moment, vectors)

    def take_last(self, final: OwnerState) -> None:
        """Queues the owner's vectors at the end, unless a snapshot of this moment is queued or has been measured."""
        newest, moment = self._queue.newest, final.moment
        last = (newest.step, newest.exchanges) if newest else self._journal.evaluated
        if last != (moment.step, moment.exchanges):
            self._queue.add_copies(moment, {name: v for name, v in final.vectors.items() if name in EVALUATED})

    def measured(self, number: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Records the figures of the snapshot of this number, which has been measured."""
        done = self._queue.done(number)
        if done is not None:
            self._deaths = 0
            self._journal.evaluation(done.moment, done.vectors, metrics)
            if self._journal.reached:
                self._queue.keep(done)  # a resumed run measures it again, and so has the result, too
            else:
                done.drop()

    def ended(self) -> Literal["unwanted", "to start again", "too often"]:
        """Notes that the evaluator has died; the next one measures the snapshot that it had. Returns whether there is
        to be a next one.
        """
        self._evaluator = "absent"
        self._queue.give_back()
        if not self.goes_on:
            return "unwanted"
        self._deaths += 1
        return "to start again" if self._deaths < LIVES else "too often"
