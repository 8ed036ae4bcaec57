"""Finds the directory in which a job of a sweep runs, by its name and by what an earlier start has left there.

A job has one directory, however often and at whatever moment its sweep is killed and started again. A job runs in
NAME.2 and so on only if NAME is taken by a run with other settings, or holds files that are not of a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from easgd_cli.errors import UsageError
from easgd_cli.record import reader, run_directory
from easgd_cli.settings.schema import OF_SWEEPS, Settings, asked_for
from easgd_cli.sweeps.job_status import ELSEWHERE, FAILED, JobStatus

NEW, STOPPED = "new", "stopped"  # a run is to begin there; a run is to go on from its checkpoint there


@dataclass(frozen=True)
class JobDirectory:
    """Where a job runs. `status`: NEW or STOPPED, or a status with which this start of the sweep does not run the job:
    completed, diverged, FAILED (with the reason), ELSEWHERE.
    """

    path: Path
    status: str
    reason: str | None = None

    @property
    def over(self) -> bool:
        return self.status not in (NEW, STOPPED)

    @property
    def said(self) -> JobStatus:
        """The status of a job that is `over`."""
        return JobStatus(self.status, self.reason, str(self.path), before=self.status != ELSEWHERE)


def find(path: Path, settings: Settings, retry: bool) -> JobDirectory:
    """Returns the directory of the job named `path`. Clears a run without a checkpoint; if it failed, for `retry`."""
    while True:
        with suppress(FileNotFoundError):  # another sweep has just removed a directory that is looked at
            return _find(path, settings, retry)


def _find(path: Path, settings: Settings, retry: bool) -> JobDirectory:
    wanted = _compared(yaml.safe_load(yaml.safe_dump(asdict(settings))))
    there = list(itertools.takewhile(Path.exists, run_directory.candidates(path)))
    own, unknown = [], []  # runs with these settings; directories without settings, as of a killed start
    for candidate in there:
        config = None
        with suppress(reader.BadFile):
            config = reader.config_of(candidate)
        if config is not None and _compared(config) == wanted:
            own.append(candidate)
        elif config is None and candidate.is_dir():
            unknown.append(candidate)
    runs = [_run(candidate, retry) for candidate in own]
    for status in (*run_directory.ENDED, ELSEWHERE, STOPPED, FAILED):  # a run with a result first
        found = next((found for found in runs if found.status == status), None)
        if found is not None:
            return found
    for candidate in sorted([*own, *unknown], key=there.index):
        try:
            with run_directory.held(candidate):
                if run_directory.clear(candidate):
                    return JobDirectory(candidate, NEW)
        except UsageError:
            return JobDirectory(candidate, ELSEWHERE)
        except FileNotFoundError:
            raise
        except OSError as e:
            left = e.filename or candidate
            reason = f"{left} is left of a killed start and cannot be removed: {e.strerror or e}."
            return JobDirectory(candidate, FAILED, reason)
    return JobDirectory(next(candidate for candidate in run_directory.candidates(path) if candidate not in there), NEW)


def _run(path: Path, retry: bool) -> JobDirectory:
    """Returns the run in `path`; its status is NEW if it left neither a result nor a checkpoint."""
    summary: dict[str, Any] = {}
    try:
        with run_directory.held(path), suppress(reader.BadFile):
            summary = reader.summary_of(path)
    except UsageError:
        return JobDirectory(path, ELSEWHERE)
    status = summary.get("status")
    if status in run_directory.ENDED:
        return JobDirectory(path, status)
    if status == FAILED and not retry:
        return JobDirectory(path, FAILED, summary.get("reason"))
    return JobDirectory(path, STOPPED if reader.checkpoints(path / "checkpoint") else NEW)


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that tell runs apart, without those that say how a sweep is run."""
    return {key: value for key, value in asked_for(config).items() if key not in OF_SWEEPS}


def leave_failure(path: Path, settings: Settings, overrides: list[str], reason: str) -> None:
    """Writes into the job's directory that the job failed, and why. Makes the directory if there is none."""
    from easgd_cli.record.summary import write_summary

    with suppress(OSError, UsageError):  # such as a full disk, which may be the reason of the failure
        if not path.exists():
            path = run_directory.create(path)
            run_directory.write_config(path, settings, overrides)
        with run_directory.held(path):
            write_summary(path, reader.summary_of(path) | {"status": FAILED, "reason": reason})
