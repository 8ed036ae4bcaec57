"""Finds the runs that the words of `easgd report` name, and the sweeps among them."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from easgd_cli.errors import UsageError
from easgd_cli.record import reader, run_directory
from easgd_cli.reports import reading
from easgd_cli.reports.reading import Run

_MARKS = ("config.yaml", "metrics.jsonl", "summary.json")  # a directory with one of these is a run's


def find(words: Sequence[str]) -> list[Path]:
    """Returns the runs that these paths name: runs, directories with runs below, patterns. Raises UsageError."""
    found: dict[Path, Path] = {}  # by the path without links, so that no run counts twice
    for word in words:
        path = Path(word)
        if not path.exists():
            matches = [Path(match) for match in sorted(glob.glob(word))] if glob.has_magic(word) else []
            if not matches:
                what = "nothing matches this pattern" if glob.has_magic(word) else "there is no such path"
                raise UsageError(f"report {word}: {what}; name run directories, or a directory that holds some.")
            runs = [run for match in matches if match.is_dir() for run in _below(match)]
        elif not path.is_dir():
            raise UsageError(f"report {word}: is a file; name the directory of a run, or one that holds runs.")
        else:
            runs = list(_below(path))
        if not runs and not _sweep(path)[0]:
            raise UsageError(
                f"report {word}: is no run and holds none; a run's directory has a config.yaml and a metrics.jsonl."
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    if not found:
        raise UsageError(f"report {' '.join(words)}: no run has begun yet. {' '.join(unfinished(words))}")
    return list(found.values())


def read_all(words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Returns the runs that these paths name, and a sentence for each run that is left out since it cannot be read.

    Raises UsageError where a run that cannot be read is named itself, or no run is left.
    """
    named = {Path(word).resolve() for word in words}
    runs, left_out = [], []
    for path in find(words):
        try:
            runs.append(reading.read(path))
        except UsageError as e:
            if path.resolve() in named:
                raise
            left_out.append(e)
    if not runs:
        raise left_out[0]
    return runs, [f"Left out: {str(e).removeprefix('report ')}" for e in left_out]


def unfinished(words: Sequence[str]) -> Iterator[str]:
    """Yields a sentence for each sweep among these paths that has not ended, and each job that could not begin."""
    for root in map(Path, words):
        jobs, command = _sweep(root)
        counts = Counter(job["status"] for job in jobs.values())
        if counts["queued"] or counts["running"]:
            stopped = ""
            # no process holds the sweep, but jobs of a launcher of Hydra's may have outlived the command
            with suppress(UsageError), run_directory.held(root):
                counts = Counter(_unattended(root / name, job["status"]) for name, job in jobs.items())
                whose = "the command that began them is gone" if counts["running"] else "no process is at them"
                stopped = f", and {whose}. To go on: {command or 'give the same command again.'}"
            yield (
                f"{root.name}: of {len(jobs)} jobs "
                f"{', '.join(f'{n} {status}' for status, n in sorted(counts.items()) if n)}{stopped or '.'}"
            )
        for name, job in jobs.items():
            if job["status"] == "failed" and not (root / name).is_dir():
                yield f"{name}: failed before it began: {job.get('reason', 'no reason is known')}"


def _unattended(path: Path, status: str) -> str:
    """Returns the status of a job of a sweep that no process attends to: by the job's own directory, if it has one."""
    if status not in ("queued", "running"):
        return status
    said: str | None = None
    try:
        with run_directory.held(path), suppress(reader.BadFile):
            said = reader.status_of(path)
    except UsageError:
        return "running"
    except FileNotFoundError:
        said = status
    return "killed" if said in ("running", None) else said


def _sweep(root: Path) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Returns the jobs of a sweep and its command, by sweep.json; no jobs where `root` is no sweep."""
    try:
        content = json.loads(reader.read_text(root / "sweep.json"))
        jobs = {name: job for name, job in content["jobs"].items() if isinstance(job["status"], str)}
    except (reader.BadFile, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}, None
    return jobs, content.get("command")


def _below(path: Path) -> Iterator[Path]:
    if any((path / mark).is_file() for mark in _MARKS):
        yield path
        return
    try:
        inside = sorted(entry.path for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError as e:
        raise UsageError(f"report {path}: cannot be looked into ({e.strerror}).") from e
    for directory in map(Path, inside):
        if not path.resolve().is_relative_to(directory.resolve()):  # skips a link to a directory above
            yield from _below(directory)
