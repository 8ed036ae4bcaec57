"""Tells how jobs stand that another program has started, by the files in which they say it (job_status.py)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from easgd_cli.sweeps import job_status
from easgd_cli.sweeps.job_status import INTERRUPTED, KILLED, QUEUED, RUNNING, JobStatus

_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0  # for a job that is asked to end to save what it has, and for a network to show its file


class JobWatch:
    """`said`: what each job has said last since this began; `tell` is called whenever that is something new."""

    def __init__(self, root: Path, tell: Callable[[str, JobStatus], None], look: Callable[[], None] = lambda: None):
        self.said: dict[str, JobStatus] = {}
        self._root, self._tell, self._view = root, tell, look
        self._before = self._read()
        # once jobs are being ended: those here that had ended before without a word
        self._dead: list[str] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks every moment in a thread, since another program has this one, and once more at the end."""
        over = threading.Event()

        def look_on() -> None:
            while not over.wait(_LOOK_SECONDS):
                self._look()

        thread = threading.Thread(target=look_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._look()
            for name in self._silent():
                self._say(name, replace(self.said[name], status=KILLED, reason="its process has ended without a word"))

    def settle(self, last: Callable[[JobStatus], bool]) -> None:
        """Waits until every job has said the `last` it will say: all have ended, but a network may show it late."""
        _wait_until(lambda: all(map(last, list(self.said.values()))))

    def end(self) -> None:
        """Asks the jobs that run on this machine to end, as SIGTERM does, and waits until they have.

        What began them may begin others meanwhile, and kill those when it is told: they count as interrupted, too.
        """
        self._dead = self._silent()
        here = {name: said.pid for name, said in (self.said | self._new()).items() if said.runs_here}
        for pid in here.values():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid or 0, signal.SIGTERM)
        _wait_until(lambda: not any(job_status.read(self._root, name).runs_here for name in here))

    def _read(self) -> dict[str, JobStatus]:
        said = {name: job_status.read(self._root, name) for name in job_status.names(self._root)}
        return {name: s for name, s in said.items() if s.status != QUEUED}

    def _new(self) -> dict[str, JobStatus]:
        return {name: said for name, said in self._read().items() if said != self._before.get(name)}

    def _look(self) -> None:
        for name, said in self._new().items():
            self._before[name] = said
            self._say(name, said)
        self._view()

    def _silent(self) -> list[str]:
        """The jobs of this machine that have ended, but for all that they have said still run."""
        running = [(name, said) for name, said in list(self.said.items()) if said.status == RUNNING]
        return [name for name, said in running if said.here and not said.runs_here]

    def _say(self, name: str, said: JobStatus) -> None:
        if self._dead is not None and said.status == KILLED and said.here and name not in self._dead:
            said = replace(said, status=INTERRUPTED, reason=None)
        self.said[name] = said
        self._tell(name, said)


def _wait_until(true: Callable[[], bool]) -> None:
    """At most for a minute."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while not true() and time.monotonic() < patience:
        time.sleep(_LOOK_SECONDS)
