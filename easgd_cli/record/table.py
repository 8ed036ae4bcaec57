"""The tables a command closes with: of one run, and of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES = {"completed": "green", "diverged": "yellow", "interrupted": "yellow", "failed": "red"}


def show_run(summary: dict[str, Any], console: Console | None = None) -> None:
    """One run's end."""
    console = console or Console()
    center, seconds = summary.get("center", {}), summary.get("seconds", {})
    table = Table.grid(padding=(0, 2))
    status = Text(summary["status"], style=_STYLES.get(summary["status"], ""))
    if summary.get("reason"):
        status.append(f": {summary['reason']}")
    workers = summary["workers"]
    table.add_row("status", status)
    table.add_row(
        "method", f"{summary['algo']}, {workers} worker{'s' if workers > 1 else ''}, tau={summary['tau']}" if summary["exchanges"] else summary["algo"]
    )
    table.add_row(
        "test error of the center" if summary["exchanges"] else "test error",
        f"{_percent(center.get('test_error'))}  (best {_percent(center.get('best_test_error'))})",
    )
    table.add_row("loss", f"train {_number(center.get('train_loss'))}  test {_number(center.get('test_loss'))}")
    if center.get("validation_error") is not None:
        table.add_row("validation error", f"{_percent(center['validation_error'])}")
    steps = list(summary["steps"].values())
    table.add_row("steps", f"{steps[0]} each" if len(set(steps)) == 1 and len(steps) > 1 else ", ".join(map(str, steps)))
    table.add_row("exchanges", f"{summary['exchanges']:,}  ({summary['bytes_exchanged'] / 1e6:,.1f} MB)")
    table.add_row("speed", f"{summary['images_per_second']:,.0f} images/s for {summary['wall_seconds']:.1f} s")
    if seconds.get("compute") is not None:
        total = sum(v for v in seconds.values() if v is not None) or 1.0
        table.add_row("a worker's time", "  ".join(f"{part} {100 * (value or 0) / total:.1f} %" for part, value in seconds.items()))
    if summary.get("lost"):
        table.add_row("lost", ", ".join(f"{worker} ({how})" for worker, how in summary["lost"].items()))
    console.print(table, highlight=False)


def show_sweep(rows: Sequence[tuple[str, str, dict[str, Any], str | None]], console: Console | None = None) -> None:
    """A sweep's end: (name, status, summary, reason) of every job."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, side in (("run", "left"), ("status", "left"), ("test error", "right"), ("best", "right"), ("train loss", "right"), ("seconds", "right")):
        table.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for name, status, summary, reason in rows:
        center = summary.get("center") or {}
        wall = summary.get("wall_seconds")
        table.add_row(
            Text(name or "-"), Text(status, style=_STYLES.get(status, "")), _percent(center.get("test_error")), _percent(center.get("best_test_error")),
            _number(center.get("train_loss")), "-" if wall is None else f"{wall:.1f}",
        )  # fmt: skip
        if reason and status != "completed":
            table.add_row(Text(f"  {reason}", style=_STYLES.get(status, "")))
    console.print(table, highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"
