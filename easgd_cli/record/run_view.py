"""What a run shows while it goes on: a view that is redrawn in a terminal, plain lines everywhere else.

There is no thread: the launcher's loop often tells how far the run is, and this module decides how much to show. The
run goes on when the terminal is gone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from easgd_cli.problems.metric import TRAIN_LOSS, Metric, Metrics
from easgd_cli.record.display import Display, Screen, clock, count
from easgd_cli.record.metrics import Row, measured
from easgd_cli.record.table import show_run

_LINE_SECONDS = 10.0
_SMOOTH_SECONDS = 2.0  # time constant of the mean of samples a second
_SHOWN = 4  # most figures of an evaluation that are shown
_FRESH_SECONDS = 10.0  # a worker's rate counts for so long after its row, or for three intervals between its rows


class RunView:
    """The view of a run that ends after `steps` of each worker or `minutes` of training. `metrics`: the problem's."""

    def __init__(
        self, steps: int | None, minutes: float | None, workers: int, metrics: Metrics, console: Screen | None = None
    ):
        self._steps, self._minutes, self._workers, self._metrics = steps, minutes, workers, metrics
        self._display = Display(console)
        self._said = 0.0
        self._began: tuple[float, float] | None = None  # (training seconds, mean step) when this process began
        self._elapsed = self._seconds = self._step = 0.0
        self._exchanges = self._pending = 0
        self._center: Row = {}
        # of each worker: training second of its last row, seconds since the row before, mean samples a second
        self._rates: dict[str, tuple[float, float, float]] = {}
        self._finishing = False
        self._silent: list[str] = []
        self._links: list[str] = []
        self._show(f"starting {count(workers, 'worker')}", now=True)

    # ---------------------------------------------------------------- what happens

    def begin(self, elapsed: float) -> None:
        """Shows that training begins, or goes on after `elapsed` seconds of training."""
        self._seconds = self._elapsed = elapsed
        length = "" if self._minutes is None else f", {self._minutes:g} minutes"
        if self._steps is not None:
            length = f", {self._steps:,} steps each"
        again = f", going on after {clock(elapsed)}" if elapsed else ""
        self._show(f"training begins: {count(self._workers, 'worker')}{length}{again}", now=True)

    def update(self, seconds: float, step: float, exchanges: int, evaluations_pending: int) -> None:
        """Shows how far the run is: training seconds, mean local step, exchanges, snapshots waiting for evaluation."""
        self._seconds, self._step, self._exchanges, self._pending = seconds, step, exchanges, evaluations_pending
        if self._began is None and step > 0:
            self._began = (seconds, step)
        self._show(None)

    def silent(self, said: Iterable[str]) -> None:
        """Replaces the sentences on parties that stand still now, one for each."""
        self._silent = list(said)

    def links(self, said: Iterable[str]) -> None:
        """Replaces the sentences on links to hosts, one for each host that is shown."""
        self._links = list(said)

    def worker(self, row: Row) -> None:
        """Takes in a worker's row."""
        now, rate = row["seconds"], row["samples_per_second"]
        before, _, mean = self._rates.get(row["party"], (self._elapsed, 0.0, rate))
        weight = -math.expm1((before - now) / _SMOOTH_SECONDS)
        self._rates[row["party"]] = (now, now - before, mean + weight * (rate - mean))

    def center(self, row: Row) -> None:
        """Shows an evaluation of the center."""
        self._center = row
        if self._display.redraws:
            self._show(None, now=True)
        else:
            said = _evaluation(row, self._metrics)
            self._display.line(f"{clock(row['seconds'])}  step {row['step']:,.0f}: {said}")

    def finishing(self, evaluations: int) -> None:
        """Shows that training is over and how many `evaluations` are still to be made."""
        self._pending = evaluations
        first, self._finishing = not self._finishing, True
        said = f"training is over, {count(evaluations, 'evaluation')} to go"
        self._show(said if first and not self._display.redraws else None)

    def note(self, text: str) -> None:
        """Prints a note for the user, which stays above the view."""
        self._display.line(f"[yellow]{escape(text)}[/]")

    def end(self, summary: dict[str, Any]) -> None:
        """Replaces the view by the end of the run."""
        self._display.close(keep=False)
        self._display.show(lambda console: show_run(summary, console))

    def close(self) -> None:
        """Ends the view, which stays on the terminal as it last was. Harmless when repeated."""
        self._display.close()

    # ---------------------------------------------------------------- showing it

    def _show(self, text: str | None, now: bool = False) -> None:
        """Redraws the view in a terminal; elsewhere prints a line: `text`, or now and then how far the run is."""
        now_is = time.monotonic()
        if self._display.redraws:
            self._display.redraw(self._view, now)
        elif text is not None:
            self._said = now_is
            self._display.line(text)
        elif now_is - self._said >= _LINE_SECONDS and self._step > 0 and not self._finishing:
            self._said = now_is
            self._display.line("  ".join([clock(self._seconds), f"step {self._done()}", *self._facts()]))

    def _view(self) -> Group:
        if self._step == 0 and not self._center:
            return Group(Text(f"starting {count(self._workers, 'worker')} ..."))
        line = Table.grid(padding=(0, 2), expand=False)
        fraction = self._fraction()
        if self._finishing:
            cells: list[Any] = [Text(f"training is over, {count(self._pending, 'evaluation')} to go")]
        else:
            bar = [] if fraction is None else [ProgressBar(total=1.0, completed=fraction, width=24)]
            left = self._left()
            seconds = Text(f"{clock(self._seconds)}" + (f", {left}" if left else ""))
            cells = [*bar, Text(f"step {self._done()}"), seconds]
        line.add_row(*cells)
        silent = [Text(said, style="yellow", no_wrap=True, overflow="ellipsis") for said in self._silent]
        facts = Text("  ".join(self._facts(in_line=False)), no_wrap=True, overflow="ellipsis")
        links = [Text(said, style="dim", no_wrap=True, overflow="ellipsis") for said in self._links]
        rows: list[Any] = [line, *silent, facts, *links]
        if self._center:
            rows.append(Text(_evaluation(self._center, self._metrics), no_wrap=True, overflow="ellipsis"))
        return Group(*rows)

    def _done(self) -> str:
        return f"{self._step:,.0f}" + (f"/{self._steps:,}" if self._steps is not None else "")

    def _facts(self, in_line: bool = True) -> list[str]:
        facts = [f"{self._samples_per_second():,.0f} samples/s"]
        if self._exchanges:
            facts.append(f"{self._exchanges:,} exchanges")
        if self._pending:
            facts.append(f"{count(self._pending, 'evaluation')} waiting")
        left = self._left() if in_line else None
        return [*facts, *(self._silent if in_line else ()), *([left] if left else ())]

    def _samples_per_second(self) -> float:
        """The rates of all workers together, without those of workers that are lost or stand still."""
        newest = max((seconds for seconds, _, _ in self._rates.values()), default=0.0)
        return sum(
            rate
            for seconds, interval, rate in self._rates.values()
            if newest - seconds <= max(_FRESH_SECONDS, 3 * interval)
        )

    def _fraction(self) -> float | None:
        if self._steps is not None:
            return min(1.0, self._step / self._steps)
        return min(1.0, self._seconds / (60 * self._minutes)) if self._minutes is not None else None

    def _left(self) -> str | None:
        """Time left at the speed since this process began; None while it is unknown, as when a party stands still."""
        if self._minutes is not None and self._steps is None:
            return f"{clock(max(0.0, 60 * self._minutes - self._seconds))} left"
        if self._silent or self._steps is None or self._began is None or self._step <= self._began[1]:
            return None
        seconds, step = self._began
        speed = (self._step - step) / max(1e-9, self._seconds - seconds)
        return f"{clock((self._steps - self._step) / speed)} left" if speed > 0 else None


def _evaluation(row: Row, metrics: Metrics) -> str:
    """Returns loss and declared metrics of an evaluation; without the primary metric, all values by their names."""
    names = measured(row)
    shown = (
        [TRAIN_LOSS, *metrics.errors(names)]
        if metrics.primary is not None and metrics.primary.name in names
        else [Metric(name) for name in names]
    )
    return f"{row['party']}: " + ", ".join(_figure(row, metric, metrics) for metric in shown[:_SHOWN])


def _figure(row: Row, metric: Metric, metrics: Metrics) -> str:
    best = row.get(metric.best.name) if metric is metrics.primary else None
    value = metric.shown(row.get(metric.name), without="not finite" + (f" {metric.unit}" if metric.unit else ""))
    return f"{metric.title if metric is metrics.primary else metric.short} {value}" + (
        "" if best is None else f" (best {metric.shown(best)})"
    )
