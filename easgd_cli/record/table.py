"""What a command prints at its end: the result of one run, or a table of a sweep's runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easgd_cli.problems.metric import SECONDS_TO_BEST, Metric, Metrics
from easgd_cli.record import lost_workers
from easgd_cli.record.display import Screen, count
from easgd_cli.record.reader import declared

STYLES = {
    "completed": "green",
    "diverged": "bold red",
    "interrupted": "yellow",
    "failed": "bold red",
    "killed": "bold red",
}
WIDE = 400  # columns where output is no terminal: lines stay whole, for grep and paste


def show_run(summary: dict[str, Any], console: Console | None = None) -> None:
    """Prints the result of one run: a label and a value in each line."""
    console = console or Screen()
    center, steps = summary["center"], sorted(summary["steps"].values())
    metrics = declared(summary)
    status = Text(summary["status"], style=STYLES.get(summary["status"], ""))
    if summary.get("reason"):
        status.append(f": {summary['reason']}", style="")
    workers = f"{summary['workers']} worker{'' if summary['workers'] == 1 else 's'}"
    exchanges = f"{summary['exchanges']:,} ({_bytes(summary['bytes_exchanged'])})" if summary["exchanges"] else "none"
    alike = f"{steps[0]:,}" + (" each" if len(steps) > 1 else "")
    lines: list[tuple[str, str | Text]] = [
        ("status", status),
        ("method", f"{summary['algo']}{_under(summary)}, {workers}{_period(summary)}"),
        *_measured(center, metrics),
        *_of_average(summary.get("average"), metrics),
        *_measured_before_the_end(summary),
        ("steps", alike if steps[0] == steps[-1] else f"{steps[0]:,} to {steps[-1]:,}"),
        ("exchanges", exchanges),
        ("speed", _speed(summary)),
        ("a worker's time", _shares(summary["seconds"])),
        *((("exchanging", _communication(summary["communication"])),) if "communication" in summary else ()),
        *(("link", _link(host, link, summary["wall_seconds"])) for host, link in summary.get("links", {}).items()),
        *(("lost", line) for line in lost_workers.lines(summary)),
        *([("started again", line)] if (line := lost_workers.restarts(summary)) else []),
        *([("back at center", line)] if (line := lost_workers.rejoins(summary)) else []),
        *([("goodput", line)] if (line := lost_workers.goodput(summary)) else []),
    ]
    width = max(len(label) for label, _ in lines)
    if not console.is_terminal:
        for label, value in lines:
            console.print(Text(f"{label:{width}}  ").append(value), highlight=False, soft_wrap=True)
        return
    narrow = Table.grid(padding=(0, 2, 0, 0))
    narrow.add_column(no_wrap=True)
    for label, value in lines:
        narrow.add_row(label, value if isinstance(value, Text) else Text(value))
    console.print(narrow, highlight=False)


def show_sweep(rows: Sequence[tuple[str, str, dict[str, Any], str | None]], console: Console | None = None) -> None:
    """Prints a table of (name, status, summary, reason) of a sweep's runs, then why runs did not complete."""
    console = console or Screen(width=None if sys.stdout.isatty() else WIDE)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("status", no_wrap=True)
    centers = [summary.get("center") or {} for _, _, summary, _ in rows]
    columns = _columns([(declared(summary), center) for (_, _, summary, _), center in zip(rows, centers, strict=True)])
    summaries = [summary for _, _, summary, _ in rows]
    further = [("average", _average)] if any(summary.get("average") for summary in summaries) else []
    further += [("until", _until)] if any(_level(summary) is not None for summary in summaries) else []
    for heading in (*(metric.short for metric in columns), *(heading for heading, _ in further), "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (name, status, summary, _), center in zip(rows, centers, strict=True):
        wall = summary.get("wall_seconds")
        table.add_row(
            Text(name), Text(status, style=STYLES.get(status, "")),
            *(metric.shown(center.get(metric.name)) for metric in columns),
            *(show(summary) for _, show in further), "-" if wall is None else f"{wall:,.1f}",
        )  # fmt: skip
    console.print(table, highlight=False)
    for name, status, _, reason in rows:
        if reason and status != "completed":
            line = Text(f"{name}: ").append(status, style=STYLES.get(status, "")).append(f": {reason}")
            console.print(line, highlight=False, soft_wrap=not console.is_terminal)


def job_line(title: str, status: str, said: str) -> Text:
    """Returns the line of one job of a sweep, coloured by its status."""
    return Text(f"{title}: ").append(said, style=STYLES.get(status, ""))


def _columns(measured: Sequence[tuple[Metrics, dict[str, Any]]]) -> list[Metric]:
    """Returns the metrics of the center that a sweep's table shows: the primary one, its best, other errors; without a
    primary one the loss and the declared ones.
    """
    columns: dict[str, Metric] = {}
    for metrics, center in measured:
        judged = metrics.primary is not None and metrics.primary.name in center
        shown = metrics.errors(center)
        if judged and metrics.primary is not None:
            others = [metric for metric in shown if metric is not metrics.primary]
            shown = [metrics.primary, metrics.primary.best, *others]
        elif center:
            shown = [Metric("train_loss"), *shown]
        columns |= {metric.name: metric for metric in shown}
    if not columns and (primary := next((metrics.primary for metrics, _ in measured), None)) is not None:
        columns = {metric.name: metric for metric in (primary, primary.best)}
    return list(columns.values())


def _measured(center: dict[str, Any], metrics: Metrics) -> list[tuple[str, str]]:
    """Returns (label, value) of the last evaluation's metrics: declared ones, losses in one line, others by name."""
    errors = metrics.errors(center) if center or metrics.primary is None else [metrics.primary]
    lines = [
        (m.title, m.shown(center.get(m.name)) + (_best(center, m) if m is metrics.primary else "")) for m in errors
    ]
    losses = [f"{split} {_number(center[f'{split}_loss'])}" for split in ("train", "test") if f"{split}_loss" in center]
    told = {metric.name for metric in metrics.known()}
    loss = [("loss", ", ".join(losses) or "-")]
    rest = [(name.replace("_", " "), _number(value)) for name, value in center.items() if name not in told]
    return [*lines, *loss, *rest] if metrics.primary is not None else [*loss, *lines, *rest]


def _of_average(average: dict[str, Any] | None, metrics: Metrics) -> list[tuple[str, str]]:
    if not average:
        return []
    primary = metrics.primary
    if primary is None or primary.name not in average:
        return [("of the average", f"train loss {_number(average.get('train_loss'))}")]
    return [("of the average", f"{primary.title} {primary.shown(average[primary.name])}{_best(average, primary)}")]


def _measured_before_the_end(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns a line that tells when the last evaluation was, if the run ended early and went on after it."""
    at = summary.get("evaluated")
    if not at or summary["status"] == "completed":
        return []
    exchanges, steps = summary["exchanges"] - at["exchanges"], max(summary["steps"].values()) - at["step"]
    if (exchanges if summary["exchanges"] else steps) <= 0:
        return []
    later = count(exchanges, "exchange") if summary["exchanges"] else count(round(steps), "step")
    return [("measured", f"at step {at['step']:,.0f}, {later} before the end")]


def _average(summary: dict[str, Any]) -> str:
    """Returns the primary metric of the average, or the loss if there is none."""
    average, primary = summary.get("average") or {}, declared(summary).primary
    if primary is not None and primary.name in average:
        return primary.shown(average[primary.name])
    return _number(average.get("train_loss"))


def _level(summary: dict[str, Any]) -> tuple[Metric, float] | None:
    """Returns the metric, and the level of it, at which the run ends; None: it does not end by a level."""
    asked = {name: level for name, level in (summary.get("until") or {}).items() if level is not None}
    metrics = declared(summary)
    return next(((metrics[metrics.named(name)], level) for name, level in asked.items()), None)


def _until(summary: dict[str, Any]) -> str:
    """Returns whether the run reached its level, in words; judged by the last evaluation, of the average if kept."""
    asked = _level(summary)
    if asked is None:
        return "-"
    metric, level = asked
    value = (summary.get("average") or summary.get("center") or {}).get(metric.name)
    reached = summary.get("status") == "completed" and metric.reached(value, level)
    return f"{metric.with_unit(f'{level:g}')} {'reached' if reached else 'not reached'}"


def _best(center: dict[str, Any], metric: Metric) -> str:
    if (best := center.get(metric.best.name)) is None:
        return ""
    return f", at best {metric.shown(best)} after {SECONDS_TO_BEST.shown(center[SECONDS_TO_BEST.name])}"


def _shares(seconds: dict[str, float]) -> str:
    """Returns what a worker's time was spent on, in percent."""
    total = sum(seconds.values())
    return ", ".join(f"{part} {100 * spent / total:.1f} %" for part, spent in seconds.items()) if total > 0 else "-"


def _speed(summary: dict[str, Any]) -> str:
    real = f" (virtual; {summary['real_seconds']:.1f} s of real time)" if "real_seconds" in summary else ""
    return f"{summary.get('samples_per_second', 0.0):,.0f} samples/s for {summary['wall_seconds']:.1f} s{real}"


def _communication(said: dict[str, Any]) -> str:
    """Returns staleness, waiting and load of the master in a simulated run."""
    stale, queue = said["staleness"], said["queue_seconds"]
    return (
        f"staleness {stale['mean']:.1f} (at most {stale['max']:.0f}), queue {_seconds(queue['mean'])} (at most "
        f"{_seconds(queue['max'])}), master busy {said['master_busy']:.1f} %"
    )


def _link(host: str, link: dict[str, Any], seconds: float) -> str:
    """Returns the traffic to and from a host's workers; `seconds`: the length of the run."""
    ways = []
    for way in ("up", "down"):
        count, rate, most = (link.get(f"{name}_{way}") for name in ("bytes", "bytes_per_second", "measured"))
        fast = f" at {_bytes(rate)} a second" if rate else ""
        used = f", {100 * count / seconds / most:.1f} % of the link" if count and most and seconds else ""
        ways.append(f"{_bytes(count or 0)} {way}{fast}{used}")
    many = len(link["workers"])
    return f"{host}: {many} worker{'s' if many != 1 else ''}; {'; '.join(ways)}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def _under(summary: dict[str, Any]) -> str:
    """Returns the name of torch's own loop that the workers run; empty if they run easgd's."""
    return f" under {summary['under']}" if "under" in summary else ""


def _period(summary: dict[str, Any]) -> str:
    """Returns tau, and for tau=auto how it was chosen; empty for a run without exchanges."""
    if not summary["exchanges"]:
        return ""
    chosen = summary.get("tau_chosen", {"share": 0.0, "probes": []})
    waits = ", ".join(f"{100 * probe['share']:.3g} % at {probe['tau']}" for probe in chosen["probes"])
    auto = f" by tau=auto (waiting {waits}; at most {100 * chosen['share']:g} %)" if waits else ""
    return f", tau={summary['tau']}{auto}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
