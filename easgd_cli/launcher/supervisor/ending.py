"""The end of a run: what it waits for, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.snapshot_queue import SnapshotQueue
from easgd_cli.launcher.supervisor.checkpoints import Checkpoints
from easgd_cli.launcher.supervisor.course import Course
from easgd_cli.launcher.supervisor.evaluation import Evaluation
from easgd_cli.launcher.supervisor.members import Members


class Ending:
    """Closes the run when all parties have said their last states and all that is to be measured has been. `simulated`:
    the last state of a virtual cluster.
    """

    def __init__(
        self, course: Course, journal: Journal, queue: SnapshotQueue, members: Members, evaluation: Evaluation,
        checkpoints: Checkpoints,
    ):  # fmt: skip
        self._course, self._journal, self._queue, self._members = course, journal, queue, members
        self._evaluation, self._checkpoints = evaluation, checkpoints
        self.simulated: dict[str, Any] | None = None

    def close_when_done(self) -> None:
        """Closes the run when nothing more is to come."""
        course = self._course
        if course.over or course.final is None or self._members.live:
            return
        if self._evaluation.goes_on:
            self._evaluation.take_last(course.final)
            self._evaluation.feed(course.began, True)
            if self._queue:
                self._journal.progress.finishing(len(self._queue))
                return
        course.over = True

    def outcome(self, facts: Mapping[str, Any]) -> Outcome:
        """Writes what remains of the run directory and says how the run ended. Raises RunError."""
        course = self._course
        last = self._checkpoints.of_the_end(course, self.simulated)
        seconds = course.final.moment.seconds if course.final is not None else course.now
        steps = {i: m.t for i, m in self._members.items()}
        return self._journal.close(course.final, last, steps, course.told.exchanges, seconds, facts)
