"""Where a job of a sweep runs: in the directory of its name, by what an earlier start has left there.

However often a sweep is killed and given again, and whatever it was doing then, a job has one directory. Beside it,
in NAME.2 and so on, a job runs only where its own is a run's with other settings, or holds something that is no run's.
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
from easgd_cli.record import reader
from easgd_cli.record import run_directory as rundir
from easgd_cli.settings.schema import OF_SWEEPS, Settings

NEW, STOPPED = "new", "stopped"  # a run is to begin there; to go on from its checkpoint
FAILED, ELSEWHERE = "failed", "running elsewhere"


@dataclass(frozen=True)
class Place:
    """A directory and how the job stands there: NEW, STOPPED, or for this start of the sweep over: completed, diverged, FAILED (with the reason), ELSEWHERE."""

    path: Path
    standing: str
    reason: str | None = None

    @property
    def over(self) -> bool:
        return self.standing not in (NEW, STOPPED)


def place(path: Path, settings: Settings, retry: bool) -> Place:
    """Where the job that is named `path` runs with these settings. A run without a checkpoint is cleared away, a failed one only to `retry`."""
    while True:
        with suppress(FileNotFoundError):  # another sweep has just removed what we looked at
            return _place(path, settings, retry)


def _place(path: Path, settings: Settings, retry: bool) -> Place:
    wanted = _compared(yaml.safe_load(yaml.safe_dump(asdict(settings))))
    there = list(itertools.takewhile(Path.exists, rundir.candidates(path)))
    own, unknown = [], []  # runs with these settings; directories without settings, which a killed start may have made
    for candidate in there:
        config = None
        with suppress(reader.BadFile):
            config = reader.config_of(candidate)
        if config is not None and _compared(config) == wanted:
            own.append(candidate)
        elif config is None and candidate.is_dir():
            unknown.append(candidate)
    places = [_standing(candidate, retry) for candidate in own]
    for standing in (*rundir.ENDED, ELSEWHERE, STOPPED, FAILED):  # what has a result counts, wherever it is
        found = next((found for found in places if found.standing == standing), None)
        if found is not None:
            return found
    for candidate in sorted([*own, *unknown], key=there.index):
        try:
            with rundir.held(candidate):
                if rundir.clear(candidate):
                    return Place(candidate, NEW)
        except UsageError:
            return Place(candidate, ELSEWHERE)
        except FileNotFoundError:
            raise
        except OSError as e:
            return Place(candidate, FAILED, f"{e.filename or candidate} is left of a killed start and cannot be removed: {e.strerror or e}.")
    return Place(next(candidate for candidate in rundir.candidates(path) if candidate not in there), NEW)


def _standing(path: Path, retry: bool) -> Place:
    """How the run there stands; NEW where it has come to nothing."""
    summary: dict[str, Any] = {}
    try:
        with rundir.held(path), suppress(reader.BadFile):
            summary = reader.summary_of(path)
    except UsageError:
        return Place(path, ELSEWHERE)
    status = summary.get("status")
    if status in rundir.ENDED:
        return Place(path, status)
    if status == FAILED and not retry:
        return Place(path, FAILED, summary.get("reason"))
    return Place(path, STOPPED if reader.checkpoints(path / "checkpoint") else NEW)


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run another one: how the sweep was run does not."""
    return {key: value for key, value in config.items() if key not in OF_SWEEPS}


def leave_failure(path: Path, settings: Settings, overrides: list[str], reason: str) -> None:
    """Makes the job's directory say that it failed, and why, also where it failed before it had one."""
    from easgd_cli.record.summary import write_summary

    with suppress(OSError, UsageError):  # a full disk, say, which may be the reason
        if not path.exists():
            path = rundir.create(path)
            rundir.write_config(path, settings, overrides)
        with rundir.held(path):
            write_summary(path, {"status": FAILED, "reason": reason} | {k: v for k, v in reader.summary_of(path).items() if k not in ("status", "reason")})
