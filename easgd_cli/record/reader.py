"""Reads the directory of a run: settings, rows, summary, order of exchanges, checkpoints. All code that looks at a run
reads it with this module.

A missing file gives None, an empty list or an empty dictionary, where it may be missing. A file that is not as the
recorder writes it raises BadFile. No code that a run's settings name is imported, and only checkpoints need torch.
"""

from __future__ import annotations

import json
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from easgd_cli.errors import UsageError
from easgd_cli.problems.classification import METRICS as CLASSIFICATION
from easgd_cli.problems.metric import Metrics
from easgd_cli.record import checksum
from easgd_cli.record.checksum import Held, Wrong
from easgd_cli.record.row_reader import NOBODY as NOBODY
from easgd_cli.record.row_reader import Entries as Entries
from easgd_cli.record.row_reader import NewRows as NewRows
from easgd_cli.record.row_reader import by_variable as by_variable
from easgd_cli.record.row_reader import read_order as read_order
from easgd_cli.record.row_reader import read_rows as read_rows
from easgd_cli.record.row_reader import renamed
from easgd_cli.record.row_reader import returns_of as returns_of
from easgd_cli.record.run_files import BadFile as BadFile
from easgd_cli.record.run_files import MissingFile as MissingFile
from easgd_cli.record.run_files import check_directory, reading
from easgd_cli.record.run_files import open_file as open_file
from easgd_cli.record.run_files import read as read
from easgd_cli.record.run_files import read_text as read_text
from easgd_cli.settings import targets
from easgd_cli.settings.schema import GROUPS, Settings

if TYPE_CHECKING:
    from easgd_cli.record.checkpoint import Checkpoint

_CONFIG = 1 << 20  # most bytes of a configuration; reading ten times as much YAML takes a minute
_DEEPEST = 20
# groups whose target may be None: not every problem or method uses them
_MAY_BE_NONE = ("local", "dataset", "model")
# the number before `_step_` counts checkpoints in the order of writing: the newest is known without reading them
_CHECKPOINT = re.compile(r"(\d{1,18})_step_\d{1,18}\.pt")

# Types of the entries of summary.json that readers use. Each may be missing, and there may be others.
_SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("status", "algo"), str), "reason": str | None,
    **dict.fromkeys(("workers", "batch_size", "parameters", "threads", "exchanges", "bytes_exchanged"), int),
    **dict.fromkeys(("wall_seconds", "samples_per_second"), float),
    "steps": dict[str, int], **dict.fromkeys(("evaluated", "seconds", "communication.staleness"), dict[str, float]),
    **dict.fromkeys(("center", "average", "length", "until"), dict[str, float | None]),
    "lost": dict[str, str], "lost_before": dict[str, list[float]], "metrics": list[dict[str, Any]],
    "goodput": dict[str, float], "links": dict[str, dict[str, Any]], "under": str,
    "symbols": list[str], "exchange": str, "hparams": dict[str, Any], "files": dict[str, dict[str, Any]],
    "resumed": dict[str, Any],
    **dict.fromkeys(("hardware", "versions", "communication"), dict[str, Any]),
}  # fmt: skip


def config_of(run: Path, doubts: list[str] | None = None) -> dict[str, Any] | None:
    """Returns the content of config.yaml, with `${...}` as a text like any other; None without the file.

    Raises BadFile, also for a setting of a wrong type and for a flipped bit. `doubts`: takes a sentence if the file was
    edited.
    """
    path = run / "config.yaml"
    try:
        content = _yaml(path, doubts)
    except MissingFile:
        return None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadFile(path, "is not a dictionary of settings")
    hints = {
        key: dict[str, Any] if is_dataclass(hint) else hint for key, hint in typing.get_type_hints(Settings).items()
    }
    for group in GROUPS:
        hints |= {f"{group}.name": str, f"{group}.target": str | None if group in _MAY_BE_NONE else str}
    _check(path, content, hints)
    return content


def overrides_of(run: Path) -> list[str]:
    """Returns the overrides in overrides.yaml; none without the file. Raises BadFile."""
    path = run / "overrides.yaml"
    try:
        content = _yaml(path)
    except MissingFile:
        return []
    if not isinstance(content, list):
        raise BadFile(path, "is not a list of overrides")
    return [str(override) for override in content]


def summary_of(run: Path, doubts: list[str] | None = None) -> dict[str, Any]:
    """Returns the content of summary.json, by today's names; empty without the file. Raises as `config_of` does."""
    path = run / "summary.json"
    try:
        text = read_text(path)
    except MissingFile:
        return {}
    content = json_object(path, text)
    _doubt(path, checksum.wrong_entry(text, content), doubts)
    content.pop("crc32", None)
    summary = renamed(content)
    _check(path, summary, _SUMMARY)
    return summary


def json_object(path: Path, text: str) -> dict[str, Any]:
    """Returns the JSON object that `text`, the content of `path`, stands for. Raises BadFile."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as e:
        raise BadFile(path, f"is not JSON ({e.msg})", e.lineno) from e
    except (ValueError, RecursionError) as e:
        raise BadFile(path, f"is not JSON ({e})") from e
    if not isinstance(content, dict):
        raise BadFile(path, "is not a JSON object")
    return content


def metrics_of(run: Path) -> Metrics:
    """Returns the metrics that the run's problem declares; classification's if none are there. Raises BadFile."""
    try:
        return declared(summary_of(run))
    except (TypeError, ValueError) as e:
        raise BadFile(run / "summary.json", f"declares metrics that are none ({e})") from e


def declared(summary: Mapping[str, Any]) -> Metrics:
    """Returns the metrics that a summary declares, else classification's. Raises TypeError or ValueError."""
    return Metrics.read(summary["metrics"]) if "metrics" in summary else CLASSIFICATION


def result_of(summary: Mapping[str, Any]) -> str | None:
    """Returns the primary metric of the last evaluation in words, such as `test error 2.31 %`; None without one."""
    primary, center = declared(summary).primary, summary.get("center") or {}
    if primary is None or center.get(primary.name) is None:
        return None
    return f"{primary.title} {primary.shown(center[primary.name])}"


def status_of(run: Path) -> str | None:
    """Returns the run's status: running, completed, diverged, interrupted, failed or None. Raises BadFile."""
    return summary_of(run).get("status")


def checkpoints(directory: Path) -> list[Path]:
    """Returns the checkpoints in `directory`, oldest first; none without it. Raises BadFile if it is no directory."""
    if not check_directory(directory):
        return []
    return sorted((p for p in directory.iterdir() if _CHECKPOINT.fullmatch(p.name)), key=checkpoint_number)


def checkpoint_number(path: Path) -> int:
    """Returns the number of a checkpoint among the run's, counted from 1."""
    return int(path.name.partition("_")[0])


def newest_checkpoint(run: Path, damaged: list[BadFile] | None = None) -> Checkpoint:
    """Returns the run's last checkpoint. `damaged`: takes the errors of damaged checkpoints, and the last sound one is
    returned; None: a damaged last one raises its error. Raises BadFile where there is none to return.
    """
    found = checkpoints(run / "checkpoint")
    if not found:
        wrong = (
            "holds no checkpoint; one is written at the end, on interruption and at every checkpoint.every. "
            "Start the run again instead"
        )
        raise MissingFile(run, wrong)
    newest: BadFile | None = None
    for path in reversed(found):
        try:
            return _checkpoint(path)
        except BadFile as e:
            newest = newest or e
            if damaged is None:
                break
            damaged.append(e)
    assert newest is not None
    raise newest


def _checkpoint(path: Path) -> Checkpoint:
    from easgd_cli.record.checkpoint import load  # here, since it loads torch

    remedy = "remove it to go on from an older checkpoint, if there is one"
    with open_file(path) as f:
        try:
            wrong = checksum.wrong_archive(f)
            if wrong is not None:
                raise BadFile(path, f"{wrong}; {remedy}")
            return load(f, path.name)
        except BadFile:
            raise
        except Exception as e:
            raise BadFile(path, f"cannot be read ({type(e).__name__}); {remedy}") from e


def beginning(path: Path, count: int) -> bytes:
    """Returns the first `count` bytes of a file, or as many as it has. Raises BadFile."""
    with reading(path) as f:
        return f.read(min(count, os.fstat(f.fileno()).st_size))


def held_at_the_end(run: Path, doubts: list[str] | None = None) -> dict[str, Held]:
    """Returns size and checksum of files when the run ended, by name, if summary.json has them. Raises BadFile."""
    files: dict[str, Any] = summary_of(run, doubts).get("files", {})
    try:
        return {name: Held.read(said) for name, said in files.items()}
    except ValueError as e:
        raise BadFile(run / "summary.json", f"what it says of files {e}") from e


def wrong_at_the_end(path: Path, held: Held | None) -> str | None:
    """Returns what is wrong with a file; None: nothing. `held`: its size and checksum when the run ended; None: not
    known, and so nothing is wrong. Raises BadFile.
    """
    if held is None:
        return None
    with reading(path) as f:
        size = f.seek(0, 2)
        f.seek(0)
        sound = size == held.size and held.begins(f)
    return None if sound else "is damaged: it is not what it was when the run ended (summary.json has its checksum)"


class _Loader(yaml.SafeLoader):
    """Loads YAML, but refuses references and deep nesting, of which easgd writes none: with references a few lines
    could stand for a content of any size, or one without end.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"a reference, *{event.anchor}", event.start_mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested more than {_DEEPEST} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _yaml(path: Path, doubts: list[str] | None = None) -> Any:
    text = read_text(path, _CONFIG)
    _doubt(path, checksum.wrong_line(text), doubts)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        raise BadFile(path, f"is not YAML ({e.problem})", None if mark is None else mark.line + 1) from e
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as e:
        raise BadFile(path, f"is not YAML ({' '.join(str(e).split())})") from e


def _doubt(path: Path, wrong: Wrong | None, doubts: list[str] | None) -> None:
    """Raises BadFile if `wrong` is a flipped bit; an edit is put in `doubts`."""
    if wrong is None:
        return
    e = BadFile(path, wrong.sentence, wrong.line)
    if wrong.line is not None:
        raise e
    if doubts is not None:
        doubts.append(str(e))


def _check(path: Path, content: dict[Any, Any], hints: dict[str, Any]) -> None:
    """Raises BadFile where an entry of `content` has another type than in `hints`, by `key` or `group.key`."""
    for key, hint in hints.items():
        group, _, option = key.rpartition(".")
        there = content.get(group, {}) if group else content
        if isinstance(there, dict) and option in there:
            try:
                targets.convert(key, there[option], hint)
            except UsageError as e:
                raise BadFile(path, f"is not as it was written: {str(e).removesuffix('.')}") from e
