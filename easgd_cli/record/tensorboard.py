"""TensorBoard's view of a run: curves, a layout, hyperparameters and the texts, in one event file.

Written over TensorBoard's own protocol buffers: no thread, no TensorFlow, a few microseconds a value, and a full disk
never ends a run, since metrics.jsonl is the record and this can be made again from it.
"""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from easgd_cli.errors import why
from easgd_cli.problems.metric import Metrics
from easgd_cli.record import tensorboard_pages as pages
from easgd_cli.record.append_file import AppendFile
from easgd_cli.record.metrics import Row
from easgd_cli.record.points import Point, Points
from easgd_cli.record.tensorboard_pages import Value

log = logging.getLogger("easgd.launcher.record")

_NAME = re.compile(r"events\.out\.tfevents\.\d+\.\d+")


class EventWriter:
    """The event file of one run.

    `started`: the wall-clock time of training second 0, in Unix seconds; with it the page's relative axis shows
    training seconds. A failed write is told once and tried again at the next flush.
    """

    def __init__(
        self, directory: Path, workers: int, hparams: Mapping[str, Value], texts: Mapping[str, str], started: float,
        metrics: Metrics,
    ):  # fmt: skip
        self._metrics = metrics
        self._directory, self._workers, self._hparams, self._texts = directory, workers, dict(hparams), dict(texts)
        # whole seconds, as the file's name says it, so that a run that goes on has the same
        self._started = float(int(started))
        self._complained = False
        self._begin()

    def _begin(self) -> None:
        # none that is a link, which would be emptied somewhere else
        self._outdated = [p for p in _event_files(self._directory) if p.is_file() and not p.is_symlink()]
        self._points = Points(self._workers)
        self._described: set[str] = set()
        self._events = _EventFile(self._directory, self._started)
        self._laid_out = 0  # how many tags were plotted when the layout was told
        start = [pages.session_start(self._hparams, self._directory.name, self._started)]
        # a run of its own; in a sweep the page might read this one instead of the sweep's
        if not _event_files(self._directory.parent):
            start.append(pages.experiment([self._hparams], [self._metrics], domains=False))
        self._events.add(0.0, 0, [*start, *(pages.text(title, text) for title, text in self._texts.items())])

    def replace(self, rows: Iterable[Row]) -> None:
        """Makes these rows all that is shown, after which every worker lives again.

        They go into a new file whose name comes later, upon which the old ones are emptied: a page that is open on the
        run then shows the new curves. It would never notice that a file it has read was cut, and would stop at one that
        is gone.
        """
        self._events.close()
        self._begin()
        for row in rows:
            self.row(row)
        self._points.all_live()

    def row(self, row: Row) -> None:
        """Adds what is plotted of a row."""
        self._add(self._points.of(row))

    def _add(self, points: Iterable[Point]) -> None:
        for point in points:
            values = []
            for tag, value in point.values.items():
                described = None if tag in self._described else pages.about(tag, self._metrics)
                values.append(Summary.Value(tag=tag, simple_value=value, metadata=described))
                self._described.add(tag)
            self._events.add(point.seconds, point.step, values)

    def flush(self) -> None:
        """Writes what has been added. Never raises for want of space or permission."""
        # a chart may have come with them; the page takes the last layout it reads
        if self._laid_out < len(self._described):
            self._laid_out = len(self._described)
            self._events.add(0.0, 0, [pages.layout(self._described, self._metrics)])
        try:
            self._events.flush()
            while self._outdated:
                os.truncate(self._outdated[-1], 0)
                self._outdated.pop()
        except OSError as e:
            if not self._complained:
                told = "TensorBoard's file could not be written (%s); it is tried again, and the run goes on"
                log.warning(told, why(e))
            self._complained = True

    def close(self, status: str) -> None:
        """Completes the curves. Only a final end is told to the HParams page, which keeps the first it reads."""
        self._add(self._points.rest())
        if status in ("completed", "diverged", "failed"):
            self._events.add(None, 0, [pages.session_end(failed=status == "failed")])
        self.flush()
        self._events.close()


class _EventFile:
    """One event file, named after its start and a number, so that a later one of the run is read later."""

    def __init__(self, directory: Path, started: float):
        number = 1 + max((int(p.name.rpartition(".")[2]) for p in _event_files(directory)), default=-1)
        self._path = directory / f"events.out.tfevents.{int(started)}.{number:04d}"
        self._started = started
        self._framed = io.BytesIO()
        self._records = RecordWriter(self._framed)
        self._file: AppendFile | None = None
        self._write(Event(wall_time=started, file_version="brain.Event:2"))
        # A page without TensorBoard's fast loader forgets what it has read upon the second of these; the fast one goes
        # by steps.
        self._write(Event(wall_time=started, session_log=SessionLog(status=SessionLog.START)))

    def add(self, seconds: float | None, step: int, values: Sequence[Summary.Value]) -> None:
        """One event at `seconds` of training, now where None."""
        wall_time = time.time() if seconds is None else self._started + seconds
        self._write(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Raises OSError; nothing is lost then."""
        if self._file is None:
            self._file = AppendFile(self._path)
        self._file.add(self._framed.getvalue())
        self._framed.seek(0)
        self._framed.truncate()
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def started_at(directory: Path) -> float | None:
    """When training second 0 of the run in `directory` was, in Unix seconds, by its event files' names; None: none."""
    return next((float(p.name.split(".")[3]) for p in _event_files(directory)), None)


def _event_files(directory: Path) -> list[Path]:
    """Those that this program has written there."""
    return sorted(p for p in directory.glob("events.out.tfevents.*") if _NAME.fullmatch(p.name))


def write_sweep(
    root: Path, runs: Sequence[Mapping[str, Value]], texts: Mapping[str, str], metrics: Sequence[Metrics]
) -> None:
    """Tells TensorBoard, in an event file at the sweep's root, what the runs differ in and what they are compared by.

    `runs`: the hyperparameters of each; `texts`: of the sweep, for the Text page, Markdown by title; `metrics`: what
    each measures. To be called before the first run begins; replaces what an earlier start of the same sweep has told.
    Never raises for want of space or permission.
    """
    old = _event_files(root)
    events = _EventFile(root, time.time())
    events.add(
        0.0,
        0,
        [pages.experiment(runs, metrics, domains=True), *(pages.text(title, text) for title, text in texts.items())],
    )
    try:
        events.flush()
        for path in old:
            os.truncate(path, 0)
    except OSError as e:
        log.warning("TensorBoard's file in %s could not be written (%s)", root, why(e))
    events.close()
