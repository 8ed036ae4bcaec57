"""sweep.json: the settings of a sweep and the status of its jobs, for users and for the sweep's next start."""

from __future__ import annotations

import fcntl
import json
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from easgd_cli.errors import UsageError
from easgd_cli.record import reader, run_directory
from easgd_cli.sweeps.job_status import ELSEWHERE, FAILED, QUEUED, RUNNING, JobStatus
from easgd_cli.sweeps.plan import Plan
from easgd_cli.system.files import put


class SweepFile:
    """Writes sweep.json anew at every change. Of several processes that share a sweep's jobs, each writes of its own
    jobs, one process at a time.

    Jobs of an earlier start with other values stay in the file. The status of a job that has ended stays until the
    job's turn comes.
    """

    def __init__(self, plan: Plan, command: str):
        self._path = plan.root / "sweep.json"
        self._about: dict[str, Any] = {"command": command, "fixed": plan.fixed, "swept": plan.varying}
        with self._alone() as jobs:
            jobs |= {job.name: {"status": QUEUED} for job in plan.jobs if not _stays(jobs.get(job.name, {}))}

    def note(self, name: str, said: JobStatus) -> None:
        """Writes the status of a job."""
        if said.status != ELSEWHERE:  # that job's status is written by the process that runs it
            facts = {"reason": said.reason, "value": said.value}
            if said.status == RUNNING:
                facts = {"pid": said.pid, "host": said.host}
            with self._alone() as jobs:
                jobs[name] = {"status": said.status} | {key: value for key, value in facts.items() if value is not None}

    def choose(self, best: dict[str, Any] | None) -> None:
        """Writes which run of a search is the best; None: none is."""
        self._about["best"] = best
        with self._alone():
            pass  # the jobs are written as they are

    @contextmanager
    def _alone(self) -> Iterator[dict[str, Any]]:
        """Reads the jobs from the file, lets the block change them, and writes them. Other processes wait meanwhile, so
        that none overwrites a change.
        """
        with ExitStack() as held:
            with suppress(OSError):  # a file system without locks, as some networks have, or one that cannot be written
                lock = self._path.with_name(f".{self._path.name}.lock")
                fcntl.flock(held.enter_context(open(lock, "a", encoding="utf-8")), fcntl.LOCK_EX)
            jobs = _read(self._path).get("jobs")
            jobs = {name: job for name, job in jobs.items() if isinstance(job, dict)} if isinstance(jobs, dict) else {}
            yield jobs
            content = json.dumps({**self._about, "jobs": jobs}, indent=1) + "\n"
            with suppress(OSError):  # without sweep.json, the runs' own records still tell all
                put(self._path, lambda beside: beside.write_text(content, encoding="utf-8"))


def refuse_another(plan: Plan) -> None:
    """Raises UsageError if the directory is of a sweep with other settings. Swept keys may have other values."""
    before = _read(plan.root / "sweep.json")
    if not before:
        return
    had, swept = before.get("fixed"), before.get("swept")
    had = had if isinstance(had, dict) else {}
    swept = [str(key) for key in swept] if isinstance(swept, list) else []
    for key in sorted({*had, *plan.fixed, *swept, *plan.varying}):
        then = f"{key} was swept" if key in swept else f"it had {had[key]}" if key in had else f"it had no {key}="
        now = f"{key} is swept" if key in plan.varying else plan.fixed.get(key, f"there is no {key}=")
        if (key in swept, had.get(key)) != (key in plan.varying, plan.fixed.get(key)):
            raise UsageError(
                f"sweep={plan.root.name}: is the name of another sweep, where {then}, and now {now}; choose "
                "another name, or leave the settings as they were."
            )


def _stays(job: dict[str, Any]) -> bool:
    """Returns whether the job's status holds until its turn comes: it has ended, or another process runs it."""
    pid, host = job.get("pid"), job.get("host", platform.node())
    said = JobStatus(str(job.get("status")), pid=pid if isinstance(pid, int) else None, host=host)
    elsewhere = said.status == RUNNING and host != platform.node()
    return said.status in (*run_directory.ENDED, FAILED) or elsewhere or said.runs_here


def _read(path: Path) -> dict[str, Any]:
    try:
        return reader.json_object(path, reader.read_text(path))
    except UsageError:
        return {}
