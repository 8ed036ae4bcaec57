"""What a sweep shows while its jobs run: in a terminal a line for each running job, elsewhere a line when a job begins
or ends.

Jobs are other processes, perhaps on other machines; how far they are is read from their records.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from easgd_cli.problems.metric import TRAIN_LOSS
from easgd_cli.record.display import Display, Screen, clock
from easgd_cli.record.metrics import PARTIES, Row
from easgd_cli.record.reader import BadFile, NewRows, declared, metrics_of
from easgd_cli.record.table import job_line

_LOOK_SECONDS = 1.0


class SweepView:
    """The view of a sweep. `jobs`: how many there are; None: not known."""

    def __init__(self, jobs: int | None, console: Screen | None = None):
        self._jobs = jobs
        self._display = Display(console)
        self._running: dict[str, _Watched] = {}
        self._ended: Counter[str] = Counter()
        self._looked = 0.0

    def begun(self, title: str, run_dir: Path, steps: int | None, minutes: float | None) -> None:
        """Shows that a job has begun, which ends after `steps` of each worker or `minutes` of training."""
        self._running[title] = _Watched(run_dir, steps, minutes)
        if self._display.redraws:
            self.look(now=True)
        else:
            self._display.line(Text(f"{title}: begun"))

    def ended(self, title: str, status: str, said: str) -> None:
        """Shows that a job has ended, now or in an earlier start."""
        self._running.pop(title, None)
        self._ended[status] += 1
        self.look(now=True)
        self._display.line(job_line(title, status, said))

    def look(self, now: bool = False) -> None:
        """Shows how far the jobs are; to be called often."""
        moment = time.monotonic()
        if self._display.redraws and (now or moment - self._looked >= _LOOK_SECONDS):
            self._looked = moment
            for job in self._running.values():
                job.look(moment)
            self._display.redraw(self._view, now=True)

    def close(self) -> None:
        """Removes the view from the terminal; harmless when repeated."""
        self._display.close(keep=False)

    def _view(self) -> Group:
        primaries = (job.metrics.primary for job in self._running.values())
        primary = next((metric.title for metric in primaries if metric is not None), "")
        table = Table.grid(padding=(0, 2), expand=False)
        for number in range(5):
            table.add_column(justify="right" if number else "left", no_wrap=number > 0)
        table.add_row("running", "step", "left", "train loss", primary, style="dim")
        for title, job in self._running.items():
            # In a narrow terminal names are cut.
            table.add_row(Text(title, no_wrap=True, overflow="ellipsis"), job.step, job.left, *job.measured())
        queued = 0 if self._jobs is None else self._jobs - len(self._running) - self._ended.total()
        counts = {"running": len(self._running), "queued": queued, **self._ended}
        told = Text(", ".join(f"{n} {status}" for status, n in counts.items() if n), no_wrap=True, overflow="ellipsis")
        return Group(*([table] if self._running else []), told)


class _Watched:
    """How far a job is, followed by the rows that its record gains."""

    def __init__(self, run_dir: Path, steps: int | None, minutes: float | None):
        self._record, self._steps = NewRows(run_dir / "metrics.jsonl"), steps
        self._length = steps if steps is not None else None if minutes is None else 60 * minutes
        self._run_dir, self.metrics = run_dir, declared({})
        self._forget()

    def _forget(self) -> None:
        self._reached: dict[str, float] = {}  # the local step of each worker's last row
        self._seconds = 0.0
        self._center: Row = {}
        self._points: list[tuple[float, float]] = []  # the first and the last (moment, `_done` then)

    def look(self, moment: float) -> None:
        """Reads the rows since the last look, at the present `moment`."""
        lines, others = self._record.take()
        if others:  # another file: the record was taken back to a checkpoint
            self._forget()
        before = self._done
        for row in lines:
            self._seconds = max(self._seconds, row["seconds"])
            if row["party"] == "center":
                if not self._center:
                    with suppress(BadFile):
                        self.metrics = metrics_of(self._run_dir)
                self._center = row
            elif row["party"] not in PARTIES:
                self._reached[row["party"]] = row["step"]
        if self._done > before:
            self._points[1:] = [(moment, self._done)]

    @property
    def _step(self) -> float:
        return sum(self._reached.values()) / len(self._reached) if self._reached else 0.0

    @property
    def _done(self) -> float:
        """How much of the run is done, in the unit of its length: mean local step or training seconds."""
        return self._step if self._steps is not None else self._seconds

    @property
    def step(self) -> str:
        """The workers' mean local step, and how many there will be where that is known."""
        if not self._reached:
            return "starting"
        return f"{self._step:,.0f}" + (f"/{self._steps:,}" if self._steps is not None else "")

    @property
    def left(self) -> str:
        """Time left at the speed since the job was first seen to train; real seconds, also for a virtual cluster."""
        if self._length is not None and self._done >= self._length:
            return "ending"
        if self._length is None or len(self._points) < 2:
            return ""
        (began, at_first), (moment, done) = self._points
        return clock((self._length - done) * (moment - began) / (done - at_first))

    def measured(self) -> list[str]:
        """Returns loss and primary metric at the last evaluation of the center, as texts."""
        return [
            ""
            if metric is None or metric.name not in self._center
            else metric.shown(self._center[metric.name], "not finite")
            for metric in (TRAIN_LOSS, self.metrics.primary)
        ]
