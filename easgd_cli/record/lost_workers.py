"""Workers that were lost: summary.json has `lost`, those of the last start, and `lost_before`, those that came back
when the run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from easgd_cli.record.metrics import Row, worker_name


def lost_before(rows: Iterable[Row]) -> dict[str, list[float]]:
    """By worker, the mean local steps at which it was lost, by the rows of a run that is resumed."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["party"] == "system" and "lost" in row:
            found.setdefault(worker_name(row["lost"]), []).append(row["step"])
    return found


def lines(summary: Mapping[str, Any]) -> list[str]:
    """A line for every loss: how, or when it was."""
    earlier = [
        f"{worker}: at step {step:,.0f}, until the run was resumed"
        for worker, steps in summary.get("lost_before", {}).items()
        for step in steps
    ]
    return earlier + [f"{worker}: {how}" for worker, how in summary.get("lost", {}).items()]
