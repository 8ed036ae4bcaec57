"""The last and the best values of a run's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from easgd_cli.problems.metric import SECONDS_TO_BEST, Metric
from easgd_cli.record.metrics import MEASURED, MOMENT, PARTIES, PARTS, Row, measured, worker_name


class BestValues:
    """Those of one run, whose metric `primary` it is judged by; None: by none."""

    def __init__(self, primary: Metric | None) -> None:
        self._primary = primary
        self.reached: dict[str, int] = {}  # the local step of each worker's last row
        self._evaluated: dict[str, Any] | None = None  # when the last evaluation was: seconds, step and exchanges
        self._measured: dict[str, Row] = {}  # of the center and of its average: the last value of each metric
        # of each worker that has not been lost: where its seconds have gone
        self._seconds: dict[str, dict[str, float]] = {}
        # by returns: steps whose work came to nothing, steps that were left out, seconds that workers were not there
        self._gone = {"steps_lost": 0, "steps_missed": 0, "seconds_away": 0.0}
        self._away: dict[int, float] = {}  # since when a worker is

    def take(self, row: Row) -> Row:
        """The row as it is recorded: not-finite numbers None, the best value so far in those of the center."""
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
        elif "lost" in row:  # its seconds have stopped; after it has come back they go on
            self._seconds.pop(worker_name(row["lost"]), None)
            self._away[row["lost"]] = row["seconds"]
        elif "returned" in row:
            self._gone["steps_lost"] += row.get("steps_lost") or 0
            self._gone["steps_missed"] += row.get("steps_missed") or 0
            self._gone["seconds_away"] += row["seconds"] - self._away.pop(row["returned"], row["seconds"])
        return row

    def _best(self, metric: Metric, row: Row, last: Row) -> Row:
        """The best value up to this row, and when it was first reached; nothing where there is none."""
        value, best, when = row.get(metric.name), last.get(metric.best.name), last.get(SECONDS_TO_BEST.name)
        if value is not None and (best is None or metric.sign * value < metric.sign * best):
            best, when = value, row["seconds"]
        return {} if best is None else {metric.best.name: best, SECONDS_TO_BEST.name: when}

    @property
    def evaluated(self) -> tuple[float, int] | None:
        """Step and exchanges of the last evaluation."""
        return (self._evaluated["step"], self._evaluated["exchanges"]) if self._evaluated is not None else None

    def spent(self, worker: str, seconds: Mapping[str, Any]) -> None:
        """Where a worker's seconds have gone so far."""
        self._seconds[worker] = {part: seconds[f"seconds_{part}"] for part in PARTS}

    def stats(self) -> dict[str, Any]:
        """The last evaluation of center and average, when it was, and where workers' seconds went, their mean."""
        count = len(self._seconds)
        seconds = {part: sum(s[part] for s in self._seconds.values()) / count if count else 0.0 for part in PARTS}
        return {
            "center": {},
            **self._measured,
            **({"evaluated": self._evaluated} if self._evaluated is not None else {}),
            "seconds": seconds,
            "goodput": dict(self._gone),
        }
