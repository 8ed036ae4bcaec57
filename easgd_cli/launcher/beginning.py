"""The beginning of training: it waits for everybody."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from easgd_cli.launcher.course import Course, Plan
from easgd_cli.launcher.journal import Journal
from easgd_cli.launcher.members import Members
from easgd_cli.launcher.parties import MASTER, Begin, Command

log = logging.getLogger("easgd.launcher")


class Beginning:
    """Who of master and workers is ready. The evaluator is not waited for."""

    def __init__(self, plan: Plan, course: Course, journal: Journal, members: Members, ask: Callable[[Command], None]):
        self._course, self._journal, self._members, self._ask = course, journal, members, ask
        self._has_master, self._master_ready = plan.has_master, False

    def ready(self, party: int | Literal["master"]) -> None:
        """The party waits for training to begin."""
        course = self._course
        if course.began:
            if party == MASTER:
                log.info("the next master goes on")
            return
        if party == MASTER:
            self._master_ready = True
        else:
            self._members[party].ready = True
        if self._master_ready == self._has_master and all(m.ready for m in self._members.values()) and not course.over:
            course.began = True
            self._ask(Begin())
            log.info("training begins")
            self._journal.progress.begin(course.now)
