"""Turns a run's rows into what is plotted: values at steps, by tags."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from easgd_cli.record.metrics import (
    BEGIN_WITH_THEIR_FIRST,
    LINK,
    MEASURED,
    PARTIES,
    SYSTEM,
    WORKER,
    Row,
    measured,
    worker_name,
)

# The Custom Scalars page has the label "run (tag)" for a curve and takes all before the last "(" for the run: a curve
# whose tag has a parenthesis is not drawn.
_WITHOUT_PARENTHESES = str.maketrans("", "", "()")


@dataclass(frozen=True)
class Point:
    """Values at one step. `seconds`: training seconds; not-finite values are NaN."""

    seconds: float
    step: int
    values: dict[str, float]


class Points:
    """Turns rows into points, one after another, in the order they are recorded.

    Tags: `<metric>/worker_<ii>`, `workers/<metric>_{mean,min,max}`, `center/...`, `average/...`, `system/...`,
    `link_<metric>/<host>`. Every tag begins at step 0, where TensorBoard puts the zero of relative time. A tag's step
    never goes back, for TensorBoard would then drop all points of the tag from that step on. The steps of the mean over
    workers, which would go back when the slowest worker is lost, are held at the last step instead.
    """

    def __init__(self, workers: int):
        self._live = {worker_name(i) for i in range(workers)}
        self._reached: dict[str, float] = dict.fromkeys(self._live, -1)  # the last step of each worker's rows
        self._bins: dict[int, list[Row]] = {}  # workers' rows by step, until all live workers reach that step
        self._last: dict[str, Point] = {}  # each party's last point, with its last value of every tag

    def of(self, row: Row) -> Iterator[Point]:
        """Yields the points that `row` adds."""
        party = row["party"]
        if party == "system" and "host" in row:  # a row of the link to a host, a party of its own here
            host = row["host"].translate(_WITHOUT_PARENTHESES)
            yield from self._points({**row, "party": f"link to {host}"}, {m: f"{m}/{host}" for m in LINK})
        elif party in PARTIES:
            names = measured(row) if party in MEASURED else SYSTEM  # a problem's metrics are not in a fixed list
            yield from self._points(row, {m: f"{party}/{m}" for m in names})
            if party == "system" and "lost" in row:
                self._live.discard(worker_name(row["lost"]))
                yield from self._gathered()
            elif party == "system" and "returned" in row:
                self._live.add(worker_name(row["returned"]))
        else:
            yield from self._points(row, {m: f"{m}/{party}" for m in WORKER})
            self._reached[party] = row["step"]
            self._bins.setdefault(row["step"], []).append(row)
            yield from self._gathered()

    def all_live(self) -> None:
        """Counts all workers as live again, as they are when a run goes on."""
        self._live = set(self._reached)

    def rest(self) -> Iterator[Point]:
        """Yields mean and range at steps that some workers have not reached, when the run ends."""
        self._live.clear()
        yield from self._gathered(len(self._reached))

    def _gathered(self, of: int | None = None) -> Iterator[Point]:
        """Yields mean and range over the workers at every step that all live workers have reached, if more than half
        of `of` workers (None: of the live ones) had a row there.
        """
        while self._bins and all(self._reached[name] >= min(self._bins) for name in self._live):
            step = min(self._bins)
            rows = self._bins.pop(step)
            if 2 * len(rows) <= (len(self._live) if of is None else of):
                continue
            merged: Row = {"party": "workers", "step": step, "seconds": max(r["seconds"] for r in rows)}
            tags: dict[str, str] = {}
            for metric in WORKER:
                values = [r[metric] for r in rows if r.get(metric) is not None]
                if values:
                    merged |= {
                        f"{metric}_mean": sum(values) / len(values),
                        f"{metric}_min": min(values),
                        f"{metric}_max": max(values),
                    }
                    tags |= {f"{metric}_{kind}": f"workers/{metric}_{kind}" for kind in ("mean", "min", "max")}
            yield from self._points(merged, tags)

    def _points(self, row: Row, tags: dict[str, str]) -> Iterator[Point]:
        values = {
            tag: _number(row[metric])
            for metric, tag in tags.items()
            if metric in row and not isinstance(row[metric], str)
        }
        if not values:
            return
        last = self._last.get(row["party"], Point(0.0, 0, {}))
        point = Point(max(row["seconds"], last.seconds), max(int(row["step"]), last.step), values)
        new = {tag: value for tag, value in values.items() if tag not in last.values}
        if new and point.step > 0 and row["party"] not in MEASURED:  # center and average are measured at step 0, too
            yield Point(0.0, 0, {tag: _at_zero(tag, first) for tag, first in new.items()})
        self._last[row["party"]] = Point(point.seconds, point.step, last.values | values)
        yield point


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _at_zero(tag: str, first: float) -> float:
    group, _, name = tag.partition("/")
    metric = name.rpartition("_")[0] if group == "workers" else group
    return first if metric in BEGIN_WITH_THEIR_FIRST else 0.0
