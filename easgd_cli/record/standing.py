"""Where a run stands by its rows: the last and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from easgd_cli.record.metrics import CENTER, PARTIES, Row, measured, worker_name

_PARTS = ("compute", "data", "communication", "other")


class Standing:
    """The last and best of a run's rows."""

    def __init__(self) -> None:
        self.evaluated: tuple[float, int] | None = None  # step and exchanges of the last evaluation
        self.reached: dict[str, int] = {}  # the local step of each worker's last row
        self._measured: dict[str, Row] = {}  # of the center and of its average: the last value of each metric
        self._seconds: dict[str, dict[str, float]] = {}  # of each worker that has not been lost: where its seconds have gone

    def take(self, row: Row) -> Row:
        """The row as it is recorded: not-finite numbers None, the best test error so far in those of the center."""
        row = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        party = row["party"]
        if PARTIES.get(party) is CENTER:
            error, last = row.get("test_error"), self._measured.get(party, {})
            best, when = last.get("best_test_error"), last.get("seconds_to_best")
            if error is not None and (best is None or error < best):
                best, when = error, row["seconds"]
            if best is not None:
                row |= {"best_test_error": best, "seconds_to_best": when}
            self.evaluated = (row["step"], row["exchanges"])
            self._measured[party] = last | {m: row[m] for m in measured(row)}
        elif party not in PARTIES:
            self.reached[party] = row["step"]
            if "seconds_compute" in row:
                self.spent(party, row)
        elif "lost" in row:  # its seconds have stopped; after it has come back they go on
            self._seconds.pop(worker_name(row["lost"]), None)
        return row

    def spent(self, worker: str, seconds: Mapping[str, Any]) -> None:
        """Where a worker's seconds have gone so far."""
        self._seconds[worker] = {part: seconds[f"seconds_{part}"] for part in _PARTS}

    def stats(self) -> dict[str, Any]:
        """The last evaluation of the center (and of its average), and the mean over the workers not lost of the seconds of their step loops."""
        count = len(self._seconds)
        seconds = {part: sum(s[part] for s in self._seconds.values()) / count if count else 0.0 for part in _PARTS}
        return {"center": {}, **self._measured, "seconds": seconds}
