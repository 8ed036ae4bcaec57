"""The checkpoints that a run takes while it trains: when one is due, and how its parts are put together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.journal.snapshot_queue import SnapshotQueue
from easgd_cli.launcher.supervisor.commands import Command, TakeCheckpoint
from easgd_cli.launcher.supervisor.course import Course
from easgd_cli.launcher.supervisor.members import Members
from easgd_cli.launcher.supervisor.pending_checkpoint import PendingCheckpoint
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.training.snapshot import Pace


class Checkpoints:
    """Takes one checkpoint at a time. `last_taken`: whether the run's last one has been written; whatever comes after
    it, a resumed run does again.
    """

    def __init__(
        self, journal: Journal, queue: SnapshotQueue, members: Members, ask: Callable[[Command], None], pace: Pace, *,
        in_rounds: bool,
    ):  # fmt: skip
        self._journal, self._queue, self._members, self._ask = journal, queue, members, ask
        self._pace, self._in_rounds = pace, in_rounds
        self._pending: PendingCheckpoint | None = None
        self.last_taken = False
        self._refused: Checkpoint | None = None  # the last one, where it could not be written: tried again at the end

    def begin_when_due(self, now: float) -> None:
        """Asks for a checkpoint if one is due and a worker still trains; else the end of the run writes one anyway."""
        if (
            self._pending is not None
            or self._journal.writing
            or self.last_taken
            or self._refused is not None
            or not self._pace.due(self._members.step, now)
            or not (live := self._members.live)
        ):
            return
        lead = None if self._in_rounds else live[0]
        # In rounds all parts are of one moment, those of ended workers included: else an earlier mark that comes late,
        # from before these workers ended, would make a checkpoint without them.
        asked = {*live, *self._members.finals} if self._in_rounds else set(live)
        self._pending = PendingCheckpoint(now, lead, asked, self._members.finals)
        self._ask(TakeCheckpoint(live, lead))

    def worker_state(self, worker: int, state: WorkerState, final: bool) -> None:
        """Takes a worker's part of the pending checkpoint."""
        if self._pending is not None and not self._pending.say(worker, state, final):
            self._pending = None
        self._finish()

    def owner_state(self, state: OwnerState) -> None:
        """Takes the owner's part of the pending checkpoint."""
        if self._pending is not None:
            self._pending.owner = state
            self._finish()

    def lose(self, worker: int) -> None:
        """Waits for that worker's part no longer; drops the checkpoint if the worker was its lead and made no mark."""
        if self._pending is not None:
            self._pending.asked.discard(worker)
            if not self._pending.can_lose(worker):
                self._pending = None
        self._finish()

    def give_up(self) -> None:
        """Drops the pending checkpoint: the owner has died, and with it the mark of its part."""
        self._pending = None

    def write(self, checkpoint: Checkpoint, last: bool) -> None:
        """Writes a checkpoint that has all its parts. `last`: it is the run's last one."""
        self._pending = None
        whole = replace(checkpoint, pending=self._queue.until(checkpoint.owner.moment))
        written = self._journal.checkpoint(whole)
        self.last_taken = self.last_taken or (last and written)
        if last and not written:
            self._refused = copy.deepcopy(whole)  # the run goes on and changes these tensors

    def of_the_end(self, course: Course, simulated: dict[str, Any] | None) -> Checkpoint | None:
        """Returns the checkpoint to write when the run is over: of the moment before the closing exchange, or, on a
        virtual cluster, after the first worker's last step. None where the end was not reached or is kept already.
        """
        owner = course.before or course.final
        if owner is None or self.last_taken:
            return None
        if self._refused is not None:
            return self._refused
        pending = self._queue.until(None if course.before is None else course.before.moment)
        return Checkpoint(owner, self._members.finals, pending, simulated)

    def give_up_late(self, now: float, patience: float) -> None:
        """Writes the pending checkpoint, if it has taken longer than `patience` seconds, without the late workers: in a
        resumed run these come back as lost workers do.
        """
        if self._pending is not None and now - self._pending.begun > patience:
            self._finish(late=True)

    def _finish(self, late: bool = False) -> None:
        pending = self._pending
        if pending is None:
            return
        parts = pending.parts()
        silent = sorted(pending.asked - parts.keys())
        if (pending.owner is None or silent) and not late:
            return
        self._pending = None
        if pending.owner is None:
            return
        if silent:
            log.warning("the checkpoint does not wait for workers %s any longer", silent)
        self._journal.begin_checkpoint(Checkpoint(pending.owner, parts, self._queue.until(pending.owner.moment)))
