"""The checkpoints of a run that goes on: when one is taken, and what becomes of its parts."""

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
    """One at a time. `last_taken`: what comes after the last one, a run that goes on does again."""

    def __init__(
        self, journal: Journal, queue: SnapshotQueue, members: Members, ask: Callable[[Command], None], pace: Pace, *,
        in_rounds: bool,
    ):  # fmt: skip
        self._journal, self._queue, self._members, self._ask = journal, queue, members, ask
        self._pace, self._in_rounds = pace, in_rounds
        self._pending: PendingCheckpoint | None = None
        self.last_taken = False
        self._refused: Checkpoint | None = None  # the last one, where the disk has not taken it: it is tried again

    def begin_when_due(self, now: float) -> None:
        """Asks for one, if it is time and there is anybody: the end keeps everything anyway."""
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
        # in rounds all parts are of one moment; an earlier mark that comes late is of one before the ends there were
        asked = {*live, *self._members.finals} if self._in_rounds else set(live)
        self._pending = PendingCheckpoint(now, lead, asked, self._members.finals)
        self._ask(TakeCheckpoint(live, lead))

    def worker_state(self, worker: int, state: WorkerState, final: bool) -> None:
        """A worker's part."""
        if self._pending is not None and not self._pending.say(worker, state, final):
            self._pending = None
        self._finish()

    def owner_state(self, state: OwnerState) -> None:
        """The owner's part."""
        if self._pending is not None:
            self._pending.owner = state
            self._finish()

    def lose(self, worker: int) -> None:
        """Nobody waits for that worker's part any more; a lead that has made no mark takes the checkpoint along."""
        if self._pending is not None:
            self._pending.asked.discard(worker)
            if not self._pending.can_lose(worker):
                self._pending = None
        self._finish()

    def give_up(self) -> None:
        """The owner is gone, and with it the mark of its part."""
        self._pending = None

    def write(self, checkpoint: Checkpoint, last: bool) -> None:
        """All parts of one at once."""
        self._pending = None
        whole = replace(checkpoint, pending=self._queue.until(checkpoint.owner.moment))
        written = self._journal.checkpoint(whole)
        self.last_taken = self.last_taken or (last and written)
        if last and not written:
            self._refused = copy.deepcopy(whole)  # its tensors are the run's own, and the run goes on

    def of_the_end(self, course: Course, simulated: dict[str, Any] | None) -> Checkpoint | None:
        """What is to be kept when the run is over, as it was before a closing exchange, and on a virtual cluster when
        the first worker had taken its last step; None where the end was not reached, or has been kept.
        """
        owner = course.before or course.final
        if owner is None or self.last_taken:
            return None
        if self._refused is not None:
            return self._refused
        pending = self._queue.until(None if course.before is None else course.before.moment)
        return Checkpoint(owner, self._members.finals, pending, simulated)

    def give_up_late(self, now: float, patience: float) -> None:
        """Writes what there is of one that has taken too long, without the workers that are late, who would come back
        as lost ones do.
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
