"""What a command closes with: the end of one run, or a table of a sweep's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easgd_cli.record import lost_workers as losses
from easgd_cli.record.display import Screen, count

STYLES = {"completed": "green", "diverged": "bold red", "interrupted": "yellow", "failed": "bold red", "killed": "bold red"}
WIDE = 400  # columns of what is not a terminal: lines are as long as they need be, for grep and paste


def show_run(summary: dict[str, Any], console: Console | None = None) -> None:
    """One run's end: a label and a value a line."""
    console = console or Console()
    center, steps = summary["center"], sorted(summary["steps"].values())
    workers = f"{summary['workers']} worker{'' if summary['workers'] == 1 else 's'}"
    lines: list[tuple[str, str | Text]] = [
        (
            "status",
            Text(summary["status"], style=STYLES.get(summary["status"], "")).append(f": {summary['reason']}" if summary.get("reason") else "", style=""),
        ),
        ("method", f"{summary['algo']}, {workers}" + (f", tau={summary['tau']}" if summary["exchanges"] else "")),
        *_measured(center, on_data=summary.get("dataset") != "none"),
        *_of_average(summary.get("average")),
        *_measured_before_the_end(summary),
        ("steps", f"{steps[0]:,}" + (" each" if len(steps) > 1 else "") if steps[0] == steps[-1] else f"{steps[0]:,} to {steps[-1]:,}"),
        ("exchanges", f"{summary['exchanges']:,} ({_bytes(summary['bytes_exchanged'])})" if summary["exchanges"] else "none"),
        ("speed", _speed(summary)),
        ("a worker's time", _shares(summary["seconds"])),
        *((("exchanging", _communication(summary["communication"])),) if "communication" in summary else ()),
        *(("lost", line) for line in losses.told(summary)),
    ]
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        console.print(Text(f"{label:{width}}  ").append(value), highlight=False, soft_wrap=True)


def show_sweep(rows: Sequence[tuple[str, str, dict[str, Any], str | None]], console: Console | None = None) -> None:
    """A sweep's end: (name, status, summary, reason) of every run, then why those failed that did."""
    console = console or Screen(width=None if sys.stdout.isatty() else WIDE)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("status", no_wrap=True)
    centers = [summary.get("center") or {} for _, _, summary, _ in rows]
    on_data = {"test_error" in center for center in centers if center} or {True}
    functions = [column for column in _ON_FUNCTIONS if False in on_data and any(column[1] in center for center in centers)]
    top5 = [_TOP5] if any(_TOP5[1] in center for center in centers) else []
    held_out = [_HELD_OUT] if any(_HELD_OUT[1] in center for center in centers) else []
    columns = (_ON_DATA + top5 + held_out if True in on_data else []) + functions
    summaries = [summary for _, _, summary, _ in rows]
    further = [("average", _average)] if any(summary.get("average") for summary in summaries) else []
    further += [("until", _until)] if any(_level(summary) is not None for summary in summaries) else []
    for heading in (*(heading for heading, _, _ in columns), *(heading for heading, _ in further), "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (name, status, summary, _), center in zip(rows, centers, strict=True):
        wall = summary.get("wall_seconds")
        table.add_row(
            Text(name), Text(status, style=STYLES.get(status, "")), *(show(center.get(metric)) for _, metric, show in columns),
            *(show(summary) for _, show in further), "-" if wall is None else f"{wall:,.1f}",
        )  # fmt: skip
    console.print(table, highlight=False)
    for name, status, _, reason in rows:
        if reason and status != "completed":
            console.print(Text(f"{name}: ").append(status, style=STYLES.get(status, "")).append(f": {reason}"), highlight=False, soft_wrap=True)


def job_line(title: str, status: str, said: str) -> Text:
    """One job of a sweep in a line, coloured by its status."""
    return Text(f"{title}: ").append(said, style=STYLES.get(status, ""))


def _measured(center: dict[str, Any], on_data: bool) -> list[tuple[str, str]]:
    """What the last evaluation says, a label and a value each: first what there is of a data set, then the rest under its own name."""
    lines = []
    if "test_error" in center or (on_data and not center):
        lines.append(("test error", f"{_percent(center.get('test_error'))}{_best(center)}"))
    if "test_error_top5" in center:
        lines.append(("top-5 error", _percent(center["test_error_top5"])))
    if "validation_error" in center:
        lines.append(("held-out error", _percent(center["validation_error"])))
    if "validation_error_top5" in center:
        lines.append(("held-out top-5", _percent(center["validation_error_top5"])))
    losses = [f"{split} {_number(center[f'{split}_loss'])}" for split in ("train", "test") if f"{split}_loss" in center]
    lines.append(("loss", ", ".join(losses) or "-"))
    told = (
        "test_error", "test_error_top5", "best_test_error", "seconds_to_best", "train_loss", "test_loss",
        "validation_loss", "validation_error", "validation_error_top5",
    )  # fmt: skip
    return lines + [(name.replace("_", " "), _number(value)) for name, value in center.items() if name not in told]


def _of_average(average: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not average:
        return []
    on_data = f"test error {_percent(average['test_error'])}{_best(average)}" if "test_error" in average else None
    return [("of the average", on_data or f"train loss {_number(average.get('train_loss'))}")]


def _measured_before_the_end(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Which center the figures are of where the run ended early, unless it is the last one."""
    at = summary.get("evaluated")
    if not at or summary["status"] == "completed":
        return []
    exchanges, steps = summary["exchanges"] - at["exchanges"], max(summary["steps"].values()) - at["step"]
    later = count(exchanges, "exchange") if summary["exchanges"] else count(round(steps), "step")
    return [("measured", f"at step {at['step']:,.0f}, {later} before the end")] if (exchanges if summary["exchanges"] else steps) > 0 else []


def _average(summary: dict[str, Any]) -> str:
    """The error of the average, or the loss where there is no error."""
    average = summary.get("average") or {}
    return _percent(average["test_error"]) if "test_error" in average else _number(average.get("train_loss"))


def _level(summary: dict[str, Any]) -> float | None:
    """The test error that ends the run."""
    level: float | None = (summary.get("until") or {}).get("test_error")
    return level


def _until(summary: dict[str, Any]) -> str:
    """Whether the run reached its level: its record then ends with the evaluation that did, of the average where one is kept."""
    level = _level(summary)
    if level is None:
        return "-"
    error = (summary.get("average") or summary.get("center") or {}).get("test_error")
    reached = summary.get("status") == "completed" and error is not None and error <= level
    return f"{level:g} % {'reached' if reached else 'not reached'}"


def _best(center: dict[str, Any]) -> str:
    if center.get("best_test_error") is None:
        return ""
    return f", at best {_percent(center['best_test_error'])} after {center['seconds_to_best']:.1f} s"


def _shares(seconds: dict[str, float]) -> str:
    """Where a worker's time went, in percent."""
    total = sum(seconds.values())
    return ", ".join(f"{part} {100 * spent / total:.1f} %" for part, spent in seconds.items()) if total > 0 else "-"


def _speed(summary: dict[str, Any]) -> str:
    real = f" (virtual; {summary['real_seconds']:.1f} s of real time)" if "real_seconds" in summary else ""
    return f"{summary.get('samples_per_second', 0.0):,.0f} samples/s for {summary['wall_seconds']:.1f} s{real}"


def _communication(said: dict[str, Any]) -> str:
    """What exchanges met in a simulated run."""
    stale, queue = said["staleness"], said["queue_seconds"]
    return (
        f"staleness {stale['mean']:.1f} (at most {stale['max']:.0f}), queue {_seconds(queue['mean'])} (at most {_seconds(queue['max'])}), "
        f"master busy {said['master_busy']:.1f} %"
    )


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


# Columns of a sweep's table: heading, metric of the center, how it is written.
_ON_DATA = [
    ("test error", "test_error", _percent),
    ("best", "best_test_error", _percent),
]
_TOP5 = ("top-5", "test_error_top5", _percent)
_HELD_OUT = ("held-out", "validation_error", _percent)
_ON_FUNCTIONS = [
    ("train loss", "train_loss", _number),
    ("distance to optimum", "distance_to_optimum", _number),
]
