"""The beginning of training: once all parties are ready, or at least `least` workers are and the rest have no host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.supervisor.commands import Begin, Command, StartWorker
from easgd_cli.launcher.supervisor.course import Course, Plan
from easgd_cli.launcher.supervisor.members import Members
from easgd_cli.launcher.supervisor.parties import MASTER
from easgd_cli.transport.base import NEW


class Beginning:
    """Notes which of master and workers are ready, and begins training. The evaluator is not waited for."""

    def __init__(self, plan: Plan, course: Course, journal: Journal, members: Members, ask: Callable[[Command], None]):
        self._course, self._journal, self._members, self._ask = course, journal, members, ask
        self._has_master, self._master_ready = plan.has_master, False
        self._least = len(members) if plan.least is None else plan.least

    def ready(self, party: int | Literal["master"]) -> None:
        """Notes that the party waits for training to begin."""
        course = self._course
        if course.began:
            if party == MASTER:
                log.info("the next master goes on")
            return
        if party == MASTER:
            self._master_ready = True
        else:
            self._members[party].ready = True
        self.begin_when_possible()

    def begin_when_possible(self) -> None:
        """Begins training, once, when the master, all workers with a host and at least `least` workers are ready. The
        other workers come later, in the way in which lost workers come back.
        """
        course, members = self._course, self._members
        ready = sum(m.ready for m in members.values())
        late = [worker for worker, m in members.items() if not m.ready]
        if (
            course.began or course.over or self._master_ready != self._has_master
            or ready < self._least or not members.homeless.issuperset(late)
        ):  # fmt: skip
            return
        course.began = True
        self._ask(Begin())
        log.info("training begins")
        self._journal.progress.begin(course.now)
        if late:
            self._journal.note(f"{ready} of {len(members)} workers begin; the others come when their hosts do")
        for worker in [worker for worker, m in members.items() if m.new or not m.ready]:
            members.lose(worker, "no host has come for it")
            members[worker].away = members[worker].new = True
            self._journal.system(course.told, workers_alive=members.alive, lost=worker)
            if worker in late:  # a new worker that is ready asks for the center by itself
                self._ask(StartWorker(worker, NEW))
