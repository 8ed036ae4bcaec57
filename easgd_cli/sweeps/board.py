"""sweep.json: what a sweep is made of and how each of its jobs stands, for whoever looks, and for the sweep that is given again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from easgd_cli.commands.plan import Plan
from easgd_cli.errors import UsageError
from easgd_cli.record import run_directory as rundir
from easgd_cli.sweeps.job_directory import ELSEWHERE
from easgd_cli.system.files import put

_ENDED = (*rundir.ENDED, "failed")


class Board:
    """Writes sweep.json anew at every change.

    A job is queued, running (with its process number), completed, diverged, failed or killed (with the reason) or interrupted.
    Jobs of an earlier start with other values stay in it, and what has ended stays so until its turn comes. Where two sweeps
    share the jobs, each tells of its own, one at a time.
    """

    def __init__(self, plan: Plan, command: str):
        self._path = plan.root / "sweep.json"
        self._about: dict[str, Any] = {"command": command, "fixed": plan.fixed, "swept": plan.varying}
        with self._alone() as jobs:
            jobs |= {m.name: {"status": "queued"} for m in plan.members if not _stays(jobs.get(m.name, {}))}

    def note(self, name: str, status: str, **facts: Any) -> None:
        if status != ELSEWHERE:
            with self._alone() as jobs:
                jobs[name] = {"status": status} | {key: value for key, value in facts.items() if value is not None}

    def choose(self, best: dict[str, Any] | None) -> None:
        """Says which run a search has found to be the best."""
        self._about["best"] = best
        with self._alone():
            pass  # of the jobs there is nothing new

    @contextmanager
    def _alone(self) -> Iterator[dict[str, Any]]:
        """The jobs as they are in the file, to be changed and written. Another sweep waits meanwhile: it would take back what it had not read."""
        with ExitStack() as held:
            with suppress(OSError):  # a file system without locks, as some networks have, or one that cannot be written
                lock = held.enter_context(open(self._path.with_name(f".{self._path.name}.lock"), "a", encoding="utf-8"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            jobs = self._jobs()
            yield jobs
            self._write(jobs)

    def _jobs(self) -> dict[str, Any]:
        jobs = _read(self._path).get("jobs")
        return {name: job for name, job in jobs.items() if isinstance(job, dict)} if isinstance(jobs, dict) else {}

    def _write(self, jobs: dict[str, Any]) -> None:
        with suppress(OSError):  # the runs' own records are what counts
            put(self._path, lambda beside: beside.write_text(json.dumps({**self._about, "jobs": jobs}, indent=1) + "\n", encoding="utf-8"))


def _stays(job: dict[str, Any]) -> bool:
    """Whether what is said of a job is so until its turn comes: it has ended, or another sweep is at it."""
    if job.get("status") != "running" or not isinstance(job.get("pid"), int):
        return job.get("status") in _ENDED
    try:
        os.kill(job["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def refuse_another(plan: Plan) -> None:
    """Raises UsageError for a name that a sweep of other settings has: its runs would not be comparable. More values of what is swept are welcome."""
    before = _read(plan.root / "sweep.json")
    if not before:
        return
    given = f"sweep={plan.root.name}"
    had, swept = before.get("fixed", {}), before.get("swept", [])
    for key in sorted({*had, *plan.fixed, *swept, *plan.varying}):
        then = f"{key} was swept" if key in swept else f"it had {had[key]}" if key in had else f"it had no {key}="
        now = f"{key} is swept" if key in plan.varying else plan.fixed.get(key, f"there is no {key}=")
        if (key in swept, had.get(key)) != (key in plan.varying, plan.fixed.get(key)):
            raise UsageError(f"{given}: is the name of another sweep, where {then}, and now {now}; choose another name, or leave the settings as they were.")
