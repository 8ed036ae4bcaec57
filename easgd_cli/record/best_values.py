"""The last and the best values of a run's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from easgd_cli.problems.metric import SECONDS_TO_BEST, Metric
from easgd_cli.record.metrics import MEASURED, MOMENT, PARTIES, PARTS, Row, measured, worker_name


class BestValues:
    """The last and the best values of one run. `primary`: the metric whose best value is kept; None: none is."""

    def __init__(self, primary: Metric | None) -> None:
        self._primary = primary
        self.reached: dict[str, int] = {}  # the local step of each worker's last row
        self._evaluated: dict[str, Any] | None = None  # when the last evaluation was: seconds, step and exchanges
        self._measured: dict[str, Row] = {}  # of center and average: the last value of each metric
        # of each worker, but for lost ones: its seconds by what they were spent on (PARTS)
        self._seconds: dict[str, dict[str, float]] = {}
        # sums over all returns of lost workers: steps whose work never reached the center, steps that the worker's
        # clock left out, seconds from loss to return
        self._gone = {"steps_lost": 0, "steps_missed": 0, "seconds_away": 0.0}
        self._away: dict[int, float] = {}  # of each lost worker: the training second of its loss

    def take(self, row: Row) -> Row:
        """Takes in a row and returns it as recorded: non-finite numbers as None, and with the best value so far."""
        row = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        party = row["party"]
        if party in MEASURED:
            last = self._measured.get(party, {})
            if self._primary is not None:
                row |= self._best(self._primary, row, last)
            self._evaluated = {key: row[key] for key in MOMENT if key != "party"}
            self._measured[party] = last | {m: row[m] for m in measured(row)}
        elif party not in PARTIES:
            self.reached[party] = row["step"]
            if all(row.get(f"seconds_{part}") is not None for part in PARTS):
                self.spent(party, row)
        elif "lost" in row:  # a lost worker's seconds do not count until it has come back and has a row again
            self._seconds.pop(worker_name(row["lost"]), None)
            self._away[row["lost"]] = row["seconds"]
        elif "returned" in row:
            self._gone["steps_lost"] += row.get("steps_lost") or 0
            self._gone["steps_missed"] += row.get("steps_missed") or 0
            self._gone["seconds_away"] += row["seconds"] - self._away.pop(row["returned"], row["seconds"])
        return row

    def _best(self, metric: Metric, row: Row, last: Row) -> Row:
        """Returns the best value of `metric` up to this row and the second at which it was first reached, nothing while
        there is no value. `last`: the party's last values.
        """
        value, best, when = row.get(metric.name), last.get(metric.best.name), last.get(SECONDS_TO_BEST.name)
        if value is not None and (best is None or metric.sign * value < metric.sign * best):
            best, when = value, row["seconds"]
        return {} if best is None else {metric.best.name: best, SECONDS_TO_BEST.name: when}

    @property
    def evaluated(self) -> tuple[float, int] | None:
        """Step and exchanges of the last evaluation; None before the first."""
        return (self._evaluated["step"], self._evaluated["exchanges"]) if self._evaluated is not None else None

    def spent(self, worker: str, seconds: Mapping[str, Any]) -> None:
        """Notes what a worker's seconds have been spent on so far."""
        self._seconds[worker] = {part: seconds[f"seconds_{part}"] for part in PARTS}

    def stats(self) -> dict[str, Any]:
        """Returns entries of summary.json: the last values of center and average, when they were evaluated, what the
        workers' seconds were spent on (mean over workers), and what losses of workers cost.
        """
        count = len(self._seconds)
        seconds = {part: sum(s[part] for s in self._seconds.values()) / count if count else 0.0 for part in PARTS}
        return {
            "center": {},
            **self._measured,
            **({"evaluated": self._evaluated} if self._evaluated is not None else {}),
            "seconds": seconds,
            "goodput": dict(self._gone),
        }
