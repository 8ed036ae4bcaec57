"""The recorder: writes rows to metrics.jsonl and TensorBoard's file, and the order of exchanges to exchanges.bin."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from easgd_cli.errors import RunError, why
from easgd_cli.record import lost_workers, reader
from easgd_cli.record.append_file import AppendFile
from easgd_cli.record.best_values import BestValues
from easgd_cli.record.checksum import Held
from easgd_cli.record.metrics import Row, worker_name
from easgd_cli.record.reader import BadFile, Entries, declared, read_rows
from easgd_cli.record.summary import summarize, surroundings, write_summary
from easgd_cli.record.tensorboard import EventWriter, started_at
from easgd_cli.record.tensorboard_pages import Value
from easgd_cli.system.files import put

_FLUSH_SECONDS = 0.2
_PAUSE_SECONDS = 1.0  # between two attempts on a full disk


class Recorder:
    """Writes the record of one run, for the launcher, in the launcher's thread.

    Only `sync` waits for a disk. metrics.jsonl and exchanges.bin are the record: entries that cannot be written, on a
    full disk above all, wait in memory and are tried again. `paused`: the file that cannot be written and the error,
    None while all can. TensorBoard's file is a view of the record; its entries wait in the same way.
    """

    def __init__(
        self, run_dir: Path, workers: int, hparams: Mapping[str, Value], texts: Mapping[str, str],
        facts: Mapping[str, Any],
    ):  # fmt: skip
        """Begins the record of a new run.

        `texts`: TensorBoard's Text page, Markdown by title; `facts`: the entries of summary.json that are known at the
        start, `metrics` among them.
        """
        self._begin(run_dir, EventWriter(run_dir, workers, hparams, texts, time.time(), declared(facts)), facts, [], 0)
        self.row({"seconds": 0.0, "step": 0, "exchanges": 0, "party": "system", "workers_alive": workers})
        self.flush()

    @classmethod
    def reopen(
        cls, run_dir: Path, workers: int, hparams: Mapping[str, Value], texts: Mapping[str, str],
        facts: Mapping[str, Any], keep: Callable[[Row], bool], exchanges: int, checkpoint: str = "",
    ) -> Recorder:  # fmt: skip
        """Goes on with the record of a run, of which it keeps the rows that `keep` accepts and the first `exchanges`
        exchanges.

        `checkpoint`: the name of the checkpoint to go on from; summary.json has this name, and size and checksum of the
        record at that point. An unfinished last line is dropped. Raises RunError when the record is missing, damaged or
        shorter than `exchanges`.
        """
        recorder = cls.__new__(cls)
        with _told(run_dir / "metrics.jsonl", "read"):
            rows = [row for row in read_rows(run_dir / "metrics.jsonl") if keep(row)]
        if lost := lost_workers.lost_before(rows):
            facts = {**facts, "lost_before": lost}
        started = started_at(run_dir) or time.time() - max((row["seconds"] for row in rows), default=0.0)
        events = EventWriter(run_dir, workers, hparams, texts, started, declared(facts))
        recorder._begin(run_dir, events, facts, rows, exchanges, checkpoint)
        recorder.flush()
        return recorder

    def _begin(
        self, run_dir: Path, events: EventWriter, facts: Mapping[str, Any], rows: list[Row], exchanges: int,
        checkpoint: str = "",
    ) -> None:  # fmt: skip
        self._entries = Entries(variables=len(facts.get("variables", ())))
        self._dir, self._events = run_dir, events
        self._facts = {**facts, **surroundings()}
        self.paused: tuple[Path, OSError] | None = None
        self._next_flush = 0.0
        rows, order = self._taken_back(rows, exchanges)
        # written before the record is cut: if this process is killed in between, the record is still one of the two
        # that a check knows, the checkpoint's and this one
        if checkpoint:
            text = b"".join(map(_line, rows))
            now = {"metrics.jsonl": vars(Held.of(text)), "exchanges.bin": vars(order)}
            self._facts["resumed"] = {"checkpoint": checkpoint, **now}
        with _told(run_dir / "summary.json", "written"):
            write_summary(run_dir, summarize({"status": "running", **self._facts}, self._best.stats()))
        self._replace(rows, exchanges)

    def _taken_back(self, rows: Iterable[Row], exchanges: int) -> tuple[list[Row], Held]:
        """Returns `rows` as recorded, and size and checksum of the first `exchanges` exchanges. Raises RunError."""
        order, there = self._dir / "exchanges.bin", b""
        with _told(order, "read"):
            if exchanges:
                there = reader.beginning(order, self._entries.size * exchanges)
        if len(there) < self._entries.size * exchanges:
            raise RunError(
                f"{order}: holds {len(there) // self._entries.size} exchanges, and {exchanges} are needed to go on "
                "from the checkpoint; start the run again instead."
            )
        self._best = BestValues(declared(self._facts).primary)
        return [self._best.take(row) for row in rows], Held.of(there)

    def _replace(self, rows: Iterable[Row], exchanges: int) -> None:
        """Makes `rows`, and the first `exchanges` exchanges of the file, the whole record."""
        order, metrics = self._dir / "exchanges.bin", self._dir / "metrics.jsonl"
        with _told(metrics, "written"):
            put(metrics, partial(_write, rows))
            self._metrics = AppendFile(metrics)
        with _told(order, "written"):
            self._order = AppendFile(order, keep=self._entries.size * exchanges)
        self._events.replace(rows)

    def row(self, row: Row) -> Row:
        """Records a row and returns it as recorded: rows of the center gain the best value so far and its second."""
        row = self._best.take(row)
        self._metrics.add(_line(row))
        self._events.row(row)
        return row

    @property
    def evaluated(self) -> tuple[float, int] | None:
        """Step and exchanges of the last evaluation; None before the first."""
        return self._best.evaluated

    @property
    def reached(self) -> dict[str, int]:
        """The local step of each worker's last row."""
        return self._best.reached

    def spent(self, worker: int, seconds: Mapping[str, float]) -> None:
        """Notes, for summary.json, what all seconds of a worker's loop were spent on, by their names in rows."""
        self._best.spent(worker_name(worker), seconds)

    def order(self, entries: Sequence[int]) -> None:
        """Records exchanges in the order in which they were served; `entries`: one number each, see order_entry.py."""
        self._order.add(self._entries.pack(entries))

    def checkpointed(self) -> None:
        """Drops the entry `resumed` of summary.json, since a newer checkpoint has been written."""
        self._facts.pop("resumed", None)

    @property
    def held(self) -> dict[str, Held]:
        """Size and checksum of the files of the record as of the last flush, by file name."""
        return {file.path.name: file.held for file in (self._metrics, self._order)}

    def tick(self) -> None:
        """Flushes a few times a second; to be called often."""
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> bool:
        """Hands all waiting entries to the operating system; returns whether it has taken all of the record."""
        self._events.flush()
        self.paused = None
        for file in (self._metrics, self._order):
            try:
                file.flush()
            except OSError as e:
                self.paused = (file.path, e)
        self._next_flush = time.monotonic() + (_FLUSH_SECONDS if self.paused is None else _PAUSE_SECONDS)
        return self.paused is None

    def sync(self) -> None:
        """Waits until all flushed entries are on the disk; may be called in another thread. Raises OSError."""
        self._metrics.sync()
        self._order.sync()

    def cut(self, keep: Callable[[Row], bool], exchanges: int) -> None:
        """Drops all rows that `keep` refuses, and all exchanges after the first `exchanges`. Raises RunError."""
        if not self.flush():
            assert self.paused is not None
            raise _failure(self.paused[0], "written", self.paused[1])
        self._close_files()
        with _told(self._dir / "metrics.jsonl", "read"):
            rows = [row for row in read_rows(self._dir / "metrics.jsonl") if keep(row)]
        self._replace(self._taken_back(rows, exchanges)[0], exchanges)

    def close(self, facts: Mapping[str, Any], files: Mapping[str, Held] | None = None) -> dict[str, Any]:
        """Ends the record, writes summary.json and returns its content. `facts`: how the run ended, `status` among
        them; `files`: size and checksum of the run's other files, by file name.

        Raises RunError when summary.json cannot be written. The caller has called `flush`, which tells whether the
        record is whole.
        """
        with suppress(OSError):
            if self.flush():
                self.sync()
        self._events.close(facts["status"])
        self._close_files()
        of_files = {name: vars(held) for name, held in {**self.held, **(files or {})}.items()}
        summary = summarize({**self._facts, **facts, "files": of_files}, self._best.stats())
        try:
            write_summary(self._dir, summary)
        except OSError as e:
            raise _failure(self._dir / "summary.json", "written", e) from e
        return summary

    def _close_files(self) -> None:
        self._metrics.close()
        self._order.close()


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(rows: Iterable[Row], path: Path) -> None:
    with open(path, "wb") as f:
        f.writelines(map(_line, rows))
        f.flush()
        os.fsync(f.fileno())


@contextmanager
def _told(path: Path, done: str) -> Iterator[None]:
    """Raises errors of the block as a RunError which says that `path` could not be `done` (read or written)."""
    try:
        yield
    except OSError as e:
        raise _failure(path, done, e) from e
    except BadFile as e:
        raise RunError(f"{e.fact}; the run cannot go on with it.") from e


def _failure(path: Path, done: str, e: OSError) -> RunError:
    return RunError(
        f"{path} could not be {done}: {why(e)}. It is the run's record, without which the run does not go on."
    )
