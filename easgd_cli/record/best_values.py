"""Where a run stands by its rows: the last and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from easgd_cli.record.metrics import CENTER, MOMENT, PARTIES, Row, measured, worker_name

_PARTS = ("compute", "data", "communication", "other")


class Standing:
    """The last and best of a run's rows."""

    def __init__(self) -> None:
        self.reached: dict[str, int] = {}  # the local step of each worker's last row
        self._evaluated: dict[str, Any] | None = None  # when the last evaluation was: seconds, step and exchanges
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
            self._evaluated = {key: row[key] for key in MOMENT if key != "party"}
            self._measured[party] = last | {m: row[m] for m in measured(row)}
        elif party not in PARTIES:
            self.reached[party] = row["step"]
            if "seconds_compute" in row:
                self.spent(party, row)
        elif "lost" in row:  # its seconds have stopped; after it has come back they go on
            self._seconds.pop(worker_name(row["lost"]), None)
        return row

    @property
    def evaluated(self) -> tuple[float, int] | None:
        """Step and exchanges of the last evaluation."""
        return (self._evaluated["step"], self._evaluated["exchanges"]) if self._evaluated is not None else None

    def spent(self, worker: str, seconds: Mapping[str, Any]) -> None:
        """Where a worker's seconds have gone so far."""
        self._seconds[worker] = {part: seconds[f"seconds_{part}"] for part in _PARTS}

    def stats(self) -> dict[str, Any]:
        """The last evaluation of the center (and of its average), when it was, and the mean over the workers not lost of the seconds of their step loops."""
        count = len(self._seconds)
        seconds = {part: sum(s[part] for s in self._seconds.values()) / count if count else 0.0 for part in _PARTS}
        return {"center": {}, **self._measured, **({"evaluated": self._evaluated} if self._evaluated is not None else {}), "seconds": seconds}
