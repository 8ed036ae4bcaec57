"""Lost workers in summary.json: `lost` in the last start; `lost_before` earlier, until the run was resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from easgd_cli.record.metrics import Row, worker_name


def lost_before(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Returns, for each worker that is still lost at the end of a run's rows, the mean local step at each loss."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["party"] == "system" and "lost" in row:
            found.setdefault(worker_name(row["lost"]), []).append(row["step"])
        elif row["party"] == "system" and "returned" in row:  # while the run went on
            found.pop(worker_name(row["returned"]), None)
    return found


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns a line for every loss: when a worker in `lost_before` was lost, how one in `lost` was."""
    earlier = [
        f"{worker}: at step {step:,.0f}, until the run was resumed"
        for worker, steps in summary.get("lost_before", {}).items()
        for step in steps
    ]
    return earlier + [f"{worker}: {how}" for worker, how in summary.get("lost", {}).items()]


def restarts(summary: Mapping[str, Any]) -> str:
    """Returns a line that tells how often each party was started again; empty if none was."""
    return _how_often(summary.get("restarts", {}))


def goodput(summary: Mapping[str, Any]) -> str:
    """Returns a line that tells how much of the work was useful; empty if none was lost."""
    g = summary.get("goodput") or {}
    if not any(g.get(name) for name in ("steps_lost", "steps_missed", "seconds_away")):
        return ""
    return (
        f"{g['steps_per_second']:,.4g} useful steps/s of {g['without_faults']:,.4g} without faults; "
        f"{g['steps_lost']:,} steps lost, {g['steps_missed']:,} left out, {g['seconds_away']:,.3g} s away"
    )


def rejoins(summary: Mapping[str, Any]) -> str:
    """Returns a line that tells how often each worker went back to the center by itself; empty if none did."""
    return _how_often(summary.get("rejoins", {}))


def _how_often(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{party} {'once' if n == 1 else f'{n:,} times'}" for party, n in counts.items())
