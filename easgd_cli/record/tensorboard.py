"""TensorBoard's view of a run: curves, a layout, hyperparameters and texts, in one event file.

The file is written with TensorBoard's own protocol buffers: without a thread or TensorFlow, in a few microseconds a
value. A full disk does not end the run: metrics.jsonl is the record, from which the event file can be made again.
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
    training seconds. A failed write is logged once and tried again at the next flush.
    """

    def __init__(
        self, directory: Path, workers: int, hparams: Mapping[str, Value], texts: Mapping[str, str], started: float,
        metrics: Metrics,
    ):  # fmt: skip
        self._metrics = metrics
        self._directory, self._workers, self._hparams, self._texts = directory, workers, dict(hparams), dict(texts)
        # whole seconds, as in the file's name, from which a run that goes on takes it
        self._started = float(int(started))
        self._complained = False
        self._begin()

    def _begin(self) -> None:
        # files that are to be emptied; no links, whose targets lie elsewhere
        self._outdated = [p for p in _event_files(self._directory) if p.is_file() and not p.is_symlink()]
        self._points = Points(self._workers)
        self._described: set[str] = set()
        self._events = _EventFile(self._directory, self._started)
        self._laid_out = 0  # how many tags the last written layout was made for
        start = [pages.session_start(self._hparams, self._directory.name, self._started)]
        # not in a sweep, whose own entry (write_sweep) the page might then not read
        if not _event_files(self._directory.parent):
            start.append(pages.experiment([self._hparams], [self._metrics], domains=False))
        self._events.add(0.0, 0, [*start, *(pages.text(title, text) for title, text in self._texts.items())])

    def replace(self, rows: Iterable[Row]) -> None:
        """Makes `rows` all that is shown, and counts every worker as live again.

        The rows go into a new file with a later name; then the old files are emptied. So a page that is open on the run
        shows the new curves. Such a page does not notice that a file it has read was cut, and stops at a removed file.
        """
        self._events.close()
        self._begin()
        for row in rows:
            self.row(row)
        self._points.all_live()

    def row(self, row: Row) -> None:
        """Adds the points that a row gives."""
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
        """Writes what has been added. Never raises OSError, as for a full disk or a missing permission."""
        # new tags may need new charts; the page takes the last layout that it reads
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
        """Completes the curves. Writes final ends alone for the HParams page, which keeps the first that it reads."""
        self._add(self._points.rest())
        if status in ("completed", "diverged", "failed"):
            self._events.add(None, 0, [pages.session_end(failed=status == "failed")])
        self.flush()
        self._events.close()


class _EventFile:
    """One event file, named by the run's start and a number, so that TensorBoard reads a run's files in order."""

    def __init__(self, directory: Path, started: float):
        number = 1 + max((int(p.name.rpartition(".")[2]) for p in _event_files(directory)), default=-1)
        self._path = directory / f"events.out.tfevents.{int(started)}.{number:04d}"
        self._started = started
        self._framed = io.BytesIO()
        self._records = RecordWriter(self._framed)
        self._file: AppendFile | None = None
        self._write(Event(wall_time=started, file_version="brain.Event:2"))
        # Without its fast loader, TensorBoard forgets a run's points when it reads a second START of the run, that of
        # a replacing file; the fast loader goes by steps.
        self._write(Event(wall_time=started, session_log=SessionLog(status=SessionLog.START)))

    def add(self, seconds: float | None, step: int, values: Sequence[Summary.Value]) -> None:
        """Adds an event at `seconds` of training; None: at the present moment."""
        wall_time = time.time() if seconds is None else self._started + seconds
        self._write(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Writes all events. Raises OSError, and keeps them for the next attempt."""
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
    """Returns the Unix time of training second 0 by an event file's name in `directory`; None without one."""
    return next((float(p.name.split(".")[3]) for p in _event_files(directory)), None)


def _event_files(directory: Path) -> list[Path]:
    """Returns the event files in `directory` that easgd has written, oldest first."""
    return sorted(p for p in directory.glob("events.out.tfevents.*") if _NAME.fullmatch(p.name))


def write_sweep(
    root: Path, runs: Sequence[Mapping[str, Value]], texts: Mapping[str, str], metrics: Sequence[Metrics]
) -> None:
    """Writes an event file at the sweep's root, which tells TensorBoard the settings in which the runs differ and the
    metrics by which they are compared.

    `runs`: the hyperparameters of each run; `texts`: the sweep's Text page, Markdown by title; `metrics`: those of each
    run. To be called before the first run begins. Empties the files of earlier starts of the sweep. Never raises for
    want of space or permission.
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
