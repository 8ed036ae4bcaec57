"""Watches jobs that another program has started, by their status files (job_status.py)."""

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
_PATIENCE_SECONDS = 60.0  # time for jobs to save what they have and end, and for a network to show their files


class JobWatch:
    """Watches the jobs of the sweep in `root`. `said`: the last status of each job that had one since the watch began;
    `tell` is called with each new status, `look` at every look.
    """

    def __init__(self, root: Path, tell: Callable[[str, JobStatus], None], look: Callable[[], None] = lambda: None):
        self.said: dict[str, JobStatus] = {}
        self._root, self._tell, self._view = root, tell, look
        self._before = self._read()
        # set by `end`: the jobs of this machine that had ended without a final status before
        self._dead: list[str] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at the status files in a thread during the block, and once more at its end."""
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
        """Waits until `last` holds for every job's status: all have ended, but a network may show their files late."""
        _wait_until(lambda: all(map(last, list(self.said.values()))))

    def end(self) -> None:
        """Sends SIGTERM to the jobs that run on this machine, and waits until they have ended.

        The program that started them may start others meanwhile, and kill those later: they count as interrupted, too.
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
        """Returns the jobs of this machine whose process has ended, but whose last status is that they run."""
        running = [(name, said) for name, said in list(self.said.items()) if said.status == RUNNING]
        return [name for name, said in running if said.here and not said.runs_here]

    def _say(self, name: str, said: JobStatus) -> None:
        if self._dead is not None and said.status == KILLED and said.here and name not in self._dead:
            said = replace(said, status=INTERRUPTED, reason=None)
        self.said[name] = said
        self._tell(name, said)


def _wait_until(true: Callable[[], bool]) -> None:
    """Waits until `true()`, or for a minute at most."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while not true() and time.monotonic() < patience:
        time.sleep(_LOOK_SECONDS)
