"""Reads the directory of a run: settings, rows, summary, order of exchanges, checkpoints. Whoever looks at a run reads
it here.

A file that is not there says nothing (None, an empty list or dictionary), where that may be; one that is there and not
as the recorder writes it raises BadFile. Nothing that a run names is imported, and only a checkpoint takes torch.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from easgd_cli.errors import UsageError
from easgd_cli.problems.classification import METRICS as CLASSIFICATION
from easgd_cli.problems.metric import Metrics
from easgd_cli.record.metrics import MEASURED, MOMENT, PARTIES, SYSTEM, WORKER, Row
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings

if TYPE_CHECKING:
    from easgd_cli.record.checkpoint import Checkpoint

ENTRY = 2  # bytes of a worker's number in exchanges.bin, little-endian
_MOST = 1 << 63  # of a whole number in a row
# counted as they are written: the newest does not depend on what is in them
_CHECKPOINT = re.compile(r"(\d+)_step_\d+\.pt")
_WORKER = re.compile(r"worker_(\d{2,5})")
_RENAMED = {"images_per_second": "samples_per_second"}  # in directories of before
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# What readers use of summary.json, where it is there. It may say more.
_SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("status", "algo"), str), "reason": str | None,
    **dict.fromkeys(("workers", "batch_size", "parameters", "threads", "exchanges", "bytes_exchanged"), int),
    **dict.fromkeys(("wall_seconds", "samples_per_second"), float),
    "steps": dict[str, int], **dict.fromkeys(("evaluated", "seconds", "communication.staleness"), dict[str, float]),
    **dict.fromkeys(("center", "average", "length", "until"), dict[str, float | None]),
    "lost": dict[str, str], "lost_before": dict[str, list[float]], "metrics": list[dict[str, Any]],
    "symbols": list[str],
    **dict.fromkeys(("hardware", "versions", "communication"), dict[str, Any]),
}  # fmt: skip


class BadFile(UsageError):
    """A file of a run that cannot be used: `path`, the `line` from 1 (None: the file as a whole), and `fact`, all of it
    in words.
    """

    def __init__(self, path: Path, wrong: str, line: int | None = None):
        self.path, self.line = path, line
        self.fact = f"{path}: {'' if line is None else f'line {line} '}{wrong}"
        super().__init__(f"{self.fact}.")


class MissingFile(BadFile):
    """A file of a run that is not there."""


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened; never waits, as opening a pipe would. Raises BadFile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MissingFile(path, f"cannot be read ({e.strerror})") from e
    except OSError as e:
        raise BadFile(path, f"cannot be read ({e.strerror})") from e
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise BadFile(path, f"is {_KINDS.get(kind, 'something else')}, where a file belongs")
    return open(descriptor, "rb")


def read(path: Path) -> bytes:
    """The content of a regular file. Raises BadFile."""
    with open_file(path) as f:
        try:
            return f.read()
        except OSError as e:
            raise BadFile(path, f"cannot be read ({e.strerror})") from e


def read_text(path: Path) -> str:
    """Raises BadFile."""
    data = read(path)
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise BadFile(path, "is not UTF-8 text", data.count(b"\n", 0, e.start) + 1) from e


def config_of(run: Path) -> dict[str, Any] | None:
    """What config.yaml says; None without one. Raises BadFile, also for a setting of another type than it has."""
    path = run / "config.yaml"
    try:
        content = _yaml(path)
    except MissingFile:
        return None
    if not isinstance(content, dict):
        raise BadFile(path, "is not a dictionary of settings")
    hints = {
        key: dict[str, Any] if is_dataclass(hint) else hint for key, hint in typing.get_type_hints(Settings).items()
    }
    _check(path, content, hints)
    return content


def overrides_of(run: Path) -> list[str]:
    """What overrides.yaml says; nothing without one. Raises BadFile."""
    path = run / "overrides.yaml"
    try:
        content = _yaml(path)
    except MissingFile:
        return []
    if not isinstance(content, list):
        raise BadFile(path, "is not a list of overrides")
    return [str(override) for override in content]


def summary_of(run: Path) -> dict[str, Any]:
    """What summary.json says, by today's names; nothing without one. Raises BadFile."""
    path = run / "summary.json"
    try:
        text = read_text(path)
    except MissingFile:
        return {}
    try:
        content = json.loads(text)
    except json.JSONDecodeError as e:
        raise BadFile(path, f"is not JSON ({e.msg})", e.lineno) from e
    except (ValueError, RecursionError) as e:
        raise BadFile(path, f"is not JSON ({e})") from e
    if not isinstance(content, dict):
        raise BadFile(path, "is not a JSON object")
    summary = _renamed(content)
    _check(path, summary, _SUMMARY)
    return summary


def metrics_of(run: Path) -> Metrics:
    """What the run's problem declares that it measures; what classification does in directories of before. Raises
    BadFile.
    """
    try:
        return declared(summary_of(run))
    except (TypeError, ValueError) as e:
        raise BadFile(run / "summary.json", f"declares metrics that are none ({e})") from e


def declared(summary: Mapping[str, Any]) -> Metrics:
    """The metrics that a summary declares. Raises TypeError or ValueError where they are none."""
    return Metrics.read(summary["metrics"]) if "metrics" in summary else CLASSIFICATION


def result_of(summary: Mapping[str, Any]) -> str | None:
    """The primary metric of the last evaluation in words, such as `test error 2.31 %`; None without one."""
    primary, center = declared(summary).primary, summary.get("center") or {}
    return (
        None
        if primary is None or center.get(primary.name) is None
        else f"{primary.title} {primary.shown(center[primary.name])}"
    )


def status_of(run: Path) -> str | None:
    """How the run ended: running, completed, diverged, interrupted or failed; None where nothing says so. Raises
    BadFile.
    """
    return summary_of(run).get("status")


def read_rows(path: Path, workers: int | None = None, damaged: list[int] | None = None) -> Iterator[Row]:
    """The rows of a metrics.jsonl, but for an unfinished last line, by today's names.

    `workers`: how many the run has, others being none of its parties; None: any number. A line that is no row raises
    BadFile or, with `damaged`, is left out and its number put there.
    """
    for number, line in enumerate(read(path).split(b"\n")[:-1], 1):
        row, wrong = _row(line, workers)
        if row is not None:
            yield row
        elif damaged is not None:
            damaged.append(number)
        else:
            raise BadFile(path, f"is not a row of the record ({wrong})", number)


class NewRows:
    """The rows that a metrics.jsonl gains, which may not be there yet, or be replaced. Lines that are no rows are left
    out.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._at = path, 0, 0

    def take(self) -> tuple[list[Row], bool]:
        """The rows since the last call, and whether they begin another file."""
        try:
            with open_file(self._path) as f:
                file = os.fstat(f.fileno()).st_ino
                replaced = file != self._file
                if replaced:
                    self._file, self._at = file, 0
                f.seek(self._at)
                data = f.read()
        except (BadFile, OSError):
            return [], False
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return [row for line in whole.splitlines() if (row := _row(line, None)[0]) is not None], replaced


def read_order(path: Path, workers: int | None = None) -> list[int]:
    """The worker numbers of an exchanges.bin, but for an unfinished last one. Raises BadFile, also for a worker that
    the run has not.
    """
    data = read(path)
    order = list(struct.unpack(f"<{len(data) // ENTRY}H", data[: len(data) // ENTRY * ENTRY]))
    if workers is not None and order and max(order) >= workers:
        at = next(i for i, number in enumerate(order) if number >= workers)
        raise BadFile(path, f"says that exchange {at + 1} was of worker {order[at]}, and the run has {workers}, from 0")
    return order


def returns_of(path: Path, workers: int) -> list[tuple[int, int, int]]:
    """The workers that came back while their run went on, by its metrics.jsonl: after how many exchanges, who, and at
    which clock. Of rows that cannot be read there are none.
    """
    rows = read_rows(path, workers, damaged=[]) if path.exists() else ()
    return [(row["exchanges"], row["returned"], row["returned_at"]) for row in rows if "returned" in row]


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a run's `checkpoint` directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _CHECKPOINT.fullmatch(p.name)), key=checkpoint_number)


def checkpoint_number(path: Path) -> int:
    """Which of the run's checkpoints it is, counted from 1."""
    return int(path.name.partition("_")[0])


def newest_checkpoint(run: Path) -> Checkpoint:
    """The last checkpoint of a run. Raises BadFile where there is none or it cannot be read."""
    from easgd_cli.record.checkpoint import load  # here, since it loads torch

    found = checkpoints(run / "checkpoint")
    if not found:
        wrong = (
            "holds no checkpoint; one is written at the end, on interruption and at every checkpoint.every. "
            "Start the run again instead"
        )
        raise MissingFile(run, wrong)
    with open_file(found[-1]) as f:
        try:
            return load(f)
        except Exception as e:
            wrong = f"cannot be read ({type(e).__name__}); remove it to go on from an older checkpoint, if there is one"
            raise BadFile(found[-1], wrong) from e


def _yaml(path: Path) -> Any:
    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        raise BadFile(path, f"is not YAML ({e.problem})", None if mark is None else mark.line + 1) from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise BadFile(path, f"is not YAML ({' '.join(str(e).split())})") from e


def _check(path: Path, content: dict[Any, Any], hints: dict[str, Any]) -> None:
    """Raises BadFile where something is of another type."""
    for key, hint in hints.items():
        group, _, option = key.rpartition(".")
        there = content.get(group, {}) if group else content
        if option in there:
            try:
                targets.convert(key, there[option], hint)
            except UsageError as e:
                raise BadFile(path, f"is not as it was written: {str(e).removesuffix('.')}") from e


def _renamed(content: dict[str, Any]) -> dict[str, Any]:
    for old, new in _RENAMED.items():
        if old in content:
            content[new] = content.pop(old)
    return content


def _row(line: bytes, workers: int | None) -> tuple[Row | None, str]:
    """The row of this line; without one, what is wrong with the line."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return None, "it is not UTF-8 text"
    except (ValueError, RecursionError) as e:
        return None, str(e)
    wrong = "it is no JSON object" if not isinstance(row, dict) else _wrong(row, workers)
    return (None, wrong) if wrong is not None else (_renamed(row), "")


def _wrong(row: dict[str, Any], workers: int | None) -> str | None:
    """What makes this none of the recorder's rows."""
    for key in MOMENT[:-1]:
        if type(row.get(key)) not in (int, float) or not 0 <= row[key] < _MOST:
            return f"it has no {key}" if key not in row else f"its {key} is {_shown(row[key])}"
    party = row.get("party")
    if not isinstance(party, str):
        return "it has no party"
    if party not in PARTIES:
        number = _WORKER.fullmatch(party)
        if number is None or (workers is not None and int(number[1]) >= workers):
            return f"there is no party {_shown(party)}" + ("" if workers is None else f" in a run of {workers} workers")
    for what, most in (("lost", workers), ("returned", workers), ("returned_at", None)):
        number = row.get(what, 0)
        if type(number) is not int or not 0 <= number < (most or _MOST):
            return f"its {what} is {_shown(number)}"
    if "returned" in row and ("returned_at" not in row or type(row["exchanges"]) is not int):
        return "it does not say where the worker returned"
    numbers = SYSTEM if party == "system" else WORKER
    for name, value in row.items():
        kind = type(value)
        if kind is float or value is None or kind is bool or (kind is int and -_MOST < value < _MOST):
            continue
        if kind is not str or (name != "party" and (party in MEASURED or name in numbers)):
            return f"its {name} is {_shown(value)}"
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
