"""Prepares a run that goes on: checks that its checkpoint, settings and record belong together, and takes the record
back to the checkpoint. Everything is checked before anything is started or written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.order_entry import entry_worker
from easgd_cli.record import reader
from easgd_cli.record.checksum import Held
from easgd_cli.record.reader import NOBODY, BadFile, Entries
from easgd_cli.record.run_directory import candidates, remove_unfinished
from easgd_cli.record.run_files import check_directory, check_own, reading

if TYPE_CHECKING:
    from easgd_cli.record.checkpoint import Checkpoint

RECORD = ("metrics.jsonl", "exchanges.bin")
_REPLACED = ("config.yaml", "overrides.yaml", "summary.json", "center.pt", "average.pt")
_DIRECTORIES = ("checkpoint", "logs", "snapshots")
_ANEW = "to go on without it, give new_record=true, which puts it aside and begins another"


def check(
    run: Path, resumed: Checkpoint, workers: int, size: int, new_record: bool, entries: Entries | None = None
) -> None:
    """Raises UsageError for a directory with which the run, of `workers` workers and a center [size], cannot go on.
    `entries`: the form of exchanges.bin; None: that of a method whose only variable is the center.
    """
    try:
        for name in _DIRECTORIES:
            if check_directory(run / name) and (run / name).is_symlink():
                raise BadFile(run / name, "is a link, and easgd writes to nothing outside the run's directory")
        for path in (*(run / name for name in RECORD), *_logs(run)):
            check_own(path)
        for name in _REPLACED:
            if (run / name).is_dir():
                raise BadFile(run / name, "is a directory, where a file belongs")
        _check_checkpoint(run, resumed, workers, size)
        sources(run, resumed, workers, new_record, entries)
    except BadFile as e:
        raise UsageError(f"resume={run}: {e}") from e


def sources(
    run: Path, resumed: Checkpoint, workers: int, new_record: bool, entries: Entries | None = None
) -> dict[str, Path | None]:
    """Returns, by name, the path of each file of the record that fits the checkpoint: in the run's directory or, where
    the run reached its level and its record was cut there, the whole copy beside the checkpoint. None: no file fits,
    and `new_record` allows a new one. Raises UsageError where no file fits without `new_record`.
    """
    found: dict[str, Path | None] = {}
    for name in RECORD:
        kept = run / "checkpoint" / name
        wrong: UsageError | None = None
        for path in [kept, run / name] if kept.exists() else [run / name]:
            try:
                _check_file(path, run, resumed, workers, entries or Entries(workers))
                found[name] = path
                break
            except UsageError as e:
                wrong = wrong or e
        else:
            if not new_record:
                assert wrong is not None
                raise wrong
            found[name] = None
    return found


def check_order(run: Path) -> None:
    """Raises UsageError if exchanges.bin begins otherwise than by its checksum in the newest checkpoint, if any."""
    path = run / "exchanges.bin"
    try:
        newest = reader.newest_checkpoint(run, [])
    except BadFile:
        return
    if path.name in newest.record and not any(_begins(path, held) for held in _known(run, newest, path.name)):
        raise BadFile(path, f"is damaged: it does not hold what it held when {newest.name} was written")


def go_back(run: Path, resumed: Checkpoint, workers: int, new_record: bool, of: Entries) -> Iterator[str]:
    """Removes unfinished files of a killed run and takes the record back to the checkpoint. Yields a sentence for each
    file that begins anew. `of`: the form of exchanges.bin. Raises RunError and UsageError.
    """
    try:
        remove_unfinished(run)
    except OSError as e:
        raise RunError(f"{run} cannot be written to: {why(e)}.") from e
    yield from take_back(run, resumed, sources(run, resumed, workers, new_record, of), of)


def take_back(run: Path, resumed: Checkpoint, found: dict[str, Path | None], of: Entries) -> Iterator[str]:
    """Puts the files of `found` into the run's directory. Yields a sentence for each that begins anew; the old one is
    renamed. Raises RunError.
    """
    try:
        for name, source in found.items():
            path, kept = run / name, run / "checkpoint" / name
            if source == kept:
                kept.replace(path)
            kept.unlink(missing_ok=True)
            if source is None:
                aside = next(p for p in candidates(run / f"{name}.damaged") if not os.path.lexists(p))
                with suppress(FileNotFoundError):
                    path.rename(aside)
                path.write_bytes(_nobody(name, resumed, of))
                yield f"{name} begins anew at step {resumed.owner.moment.step:g}; what it was is in {aside.name}"
    except OSError as e:
        raise RunError(f"{e.filename or run}: the run's record cannot be put there: {e.strerror or e}.") from e


def _nobody(name: str, resumed: Checkpoint, of: Entries) -> bytes:
    """Returns the content with which a new file of the record begins: in exchanges.bin, exchanges of NOBODY."""
    return of.pack([NOBODY]) * resumed.owner.moment.exchanges if name == "exchanges.bin" else b""


def _logs(run: Path) -> list[Path]:
    logs = run / "logs"
    return sorted(logs.glob("*.log")) if logs.is_dir() else []


def _check_checkpoint(run: Path, resumed: Checkpoint, workers: int, size: int) -> None:
    """Raises BadFile unless the checkpoint is of a run with `workers` workers and vectors [size]."""
    path = run / "checkpoint" / resumed.name
    clocks = set(resumed.owner.moment.clocks)
    if clocks != set(range(workers)):
        wrong = f"says workers={workers}, and {resumed.name} is of {len(clocks)} workers"
        raise BadFile(run / "config.yaml", wrong)
    if strangers := sorted(set(resumed.workers) - clocks):
        raise BadFile(path, f"has a worker {strangers[0]}, and the run has {workers}, from 0")
    parts = [("the center", resumed.owner.vectors), *((f"worker {i}", w.vectors) for i, w in resumed.workers.items())]
    for whose, vectors in parts:
        for name, vector in vectors.items():
            if "x" not in vectors or tuple(vector.shape) != (size,):
                has = f"has {name} of {whose} with shape {list(vector.shape)}"
                raise BadFile(path, f"{has}, and the problem of config.yaml {size:,} parameters")


def _check_file(path: Path, run: Path, resumed: Checkpoint, workers: int, entries: Entries) -> None:
    """Raises UsageError unless the checkpoint can go on with this file of the record."""
    name, given = path.name, f"resume={run}"
    try:
        if name == "metrics.jsonl":
            for _ in reader.read_rows(path, workers):
                pass
        else:
            _check_exchanges(path, resumed.owner.moment.exchanges, entries)
        if name in resumed.record and not any(_begins(path, held) for held in _known(run, resumed, name)):
            raise BadFile(path, f"is damaged: it does not hold what it held when {resumed.name} was written")
        # after the end of a run, also the part of the file behind the checkpoint is checked, since it may be kept
        if path.parent == run and (wrong := reader.wrong_at_the_end(path, reader.held_at_the_end(run).get(name))):
            raise BadFile(path, wrong)
    except BadFile as e:
        remedy = "" if e.line is None else "mend or remove that line, or "
        remedy = "" if name in resumed.record else remedy
        raise UsageError(f"{given}: {e.fact}, and a run goes on with its record; {remedy}{_ANEW}.") from e


def _check_exchanges(path: Path, exchanges: int, of: Entries) -> None:
    """Raises BadFile if the file has fewer than `exchanges` exchanges, or one of a worker that the run has not."""
    order = of.unpack(reader.beginning(path, of.size * exchanges))
    known = [entry for entry in order if entry_worker(entry) != NOBODY]
    if (stranger := of.stranger(known)) is not None:
        worker = stranger[1]
        number = next(i for i, entry in enumerate(order, 1) if entry_worker(entry) == worker)
        raise BadFile(path, f"says that exchange {number} was of worker {worker}, and the run has {of.workers}, from 0")
    if len(order) < exchanges:
        raise BadFile(path, f"holds {len(order)} exchanges, and {exchanges} are needed to go on from the checkpoint")


def _known(run: Path, resumed: Checkpoint, name: str) -> Iterator[Held]:
    """Yields what the file may begin with: its content when the checkpoint was written, or the content to which an
    earlier start from the same checkpoint cut it.
    """
    yield resumed.record[name]
    again = reader.summary_of(run).get("resumed", {})
    if again.get("checkpoint") == resumed.name:
        with suppress(ValueError):
            yield Held.read(again.get(name))


def _begins(path: Path, held: Held) -> bool:
    with reading(path) as f:
        return held.begins(f)
