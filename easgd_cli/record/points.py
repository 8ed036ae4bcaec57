"""What is plotted of a run's rows: under which tag, at which step."""

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

# The page of Custom Scalars takes what is before the last parenthesis of "run (tag)" for a curve's run: with one in the
# tag it draws no line.
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
    `link_<metric>/<host>`. Every
    tag begins at step 0, where TensorBoard puts the zero of relative time. A tag's step never goes back, not even when
    the slowest worker is lost and the mean over workers would: TensorBoard would drop what it has from there on.
    """

    def __init__(self, workers: int):
        self._live = {worker_name(i) for i in range(workers)}
        self._reached: dict[str, float] = dict.fromkeys(self._live, -1)  # the last step of each worker's rows
        self._bins: dict[int, list[Row]] = {}  # rows of workers at a step that not all of them have reached
        self._last: dict[str, Point] = {}  # of each party

    def of(self, row: Row) -> Iterator[Point]:
        """The points that `row` adds."""
        party = row["party"]
        if party == "system" and "host" in row:  # a row of its link, whose steps are its own
            host = row["host"].translate(_WITHOUT_PARENTHESES)
            yield from self._points({**row, "party": f"link to {host}"}, {m: f"{m}/{host}" for m in LINK})
        elif party in PARTIES:
            names = measured(row) if party in MEASURED else SYSTEM  # a problem says itself what it measures
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
        """Tells that lost workers have come back, as they do when a run goes on."""
        self._live = set(self._reached)

    def rest(self) -> Iterator[Point]:
        """Mean and range at steps that some workers have not reached, once it is certain that they never will."""
        self._live.clear()
        yield from self._gathered(len(self._reached))

    def _gathered(self, of: int | None = None) -> Iterator[Point]:
        """Mean and range over the workers at every step that all live ones have reached, if most had a row."""
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
        if new and point.step > 0 and row["party"] not in MEASURED:  # the center's start is measured like all others
            yield Point(0.0, 0, {tag: _at_zero(tag, first) for tag, first in new.items()})
        self._last[row["party"]] = Point(point.seconds, point.step, last.values | values)
        yield point


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _at_zero(tag: str, first: float) -> float:
    group, _, name = tag.partition("/")
    metric = name.rpartition("_")[0] if group == "workers" else group
    return first if metric in BEGIN_WITH_THEIR_FIRST else 0.0
