"""The numbers of a comparison as tables, which are printed, put on the page and written as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from easgd_cli.record.metrics import PARTS
from easgd_cli.reports.comparison import Comparison, Configuration, Spread, written
from easgd_cli.reports.reading import Run


@dataclass(frozen=True)
class ResultTable:
    """Texts under their headings; the columns from `numbers` on are numbers."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    numbers: int


def tables(c: Comparison) -> list[ResultTable]:
    """Returns the tables of what the configurations reached, how soon, and at what cost."""
    found = [_table(c, "Reached", [("status", lambda of: of.statuses)], _reached(c))]
    if c.levels:
        found.append(_table(c, f"Seconds to a {c.metric.title} of", [], _seconds_to(c)))
    return [*found, _table(c, "Cost", [], _cost(c)), *_links(c)]


def level(c: Comparison, value: float) -> str:
    return c.metric.with_unit(f"{value:g}")


def numbers(c: Comparison) -> dict[str, Any]:
    """Returns the content of the tables as numbers, for --json."""

    def held_out(of: Configuration) -> dict[str, Any]:
        there = _plain(_held_out(c, of, c.metric.name))
        return {"held_out": _plain(_held_out(c, of)), f"{c.metric.name}_at_{c.metric.lowest}_held_out": there}

    rows = []
    for of in c.configurations:
        rows.append({
            "settings": of.values, "runs": [str(run.path) for run in of.runs],
            "seeds": [run.settings.get("seed") for run in of.runs],
            "status": [run.status for run in of.runs],
            "counted_seeds": [run.settings.get("seed") for run in of.counted],
            "party": of.runs[0].party, "baseline": of is c.baseline,
            "final": _plain(final(c, of)), "best": _plain(_best(c, of)),
            "seconds_to_best": _plain(_best(c, of, "seconds")),
            "seconds_to": {f"{v:g}": _plain(c.seconds_to(of, v)) for v in c.levels},
            "speed_up": {f"{v:g}": c.speed_up(of, v) for v in c.levels},
            **(held_out(of) if _holds_out(c) else {}),
            "samples_per_second": _plain(of.over(lambda run: run.samples_per_second)),
            "percent": {part: _plain(share(of, part)) for part in PARTS},
            "bytes_exchanged": _plain(of.over(lambda run: run.bytes_exchanged)),
            "staleness": _plain(of.over(lambda run: run.staleness)),
            "train_seconds": _plain(of.over(_last_second)),
        })  # fmt: skip
    about = {"metric": c.metric.name, "told_apart": c.told_apart, "also_differ": c.also_differ, "levels": c.levels}
    return {**about, "configurations": rows}


Column = tuple[str, Callable[[Configuration], str]]


def _table(c: Comparison, title: str, texts: Sequence[Column], columns: Sequence[Column]) -> ResultTable:
    def named(of: Configuration) -> list[str]:
        return [written(of.values[key]) for key in c.told_apart] or [of.runs[0].path.name]

    headings = [*(c.told_apart or ["run"]), *(heading for heading, _ in texts)]
    rows = [[*named(of), *(show(of) for _, show in (*texts, *columns))] for of in c.configurations]
    return ResultTable(title, [*headings, *(heading for heading, _ in columns)], rows, len(headings))


def _links(c: Comparison) -> list[ResultTable]:
    """Returns a table of what the links to hosts have carried in each run; none where no run has links."""
    columns = {
        heading.format(way): (f"{name}_{way}", scale)
        for heading, name, scale in (
            ("bytes {} (MB)", "bytes", 1e-6),
            ("seconds {}", "seconds", 1.0),
            ("{} (% of the link)", "share", 1.0),
        )
        for way in ("up", "down")
    } | {"longest silence (s)": ("longest_silence", 1.0)}

    def cells(link: dict[str, float]) -> list[str]:
        return [digits(scale * link[key]) if key in link else "-" for key, scale in columns.values()]

    links = [(run.path.name, host, link) for run in c.runs for host, link in run.links.items()]
    rows = [[name, host, f"{link['workers']:.0f}", *cells(link)] for name, host, link in links]
    return [ResultTable("Links to hosts", ["run", "host", "workers", *columns], rows, 2)] if rows else []


def _reached(c: Comparison) -> list[Column]:
    columns: list[Column] = [
        ("n", lambda of: str(len(of.counted))),
        (f"final {c.metric.labelled}", lambda of: shown(final(c, of))),
        (f"best {c.metric.labelled}", lambda of: shown(_best(c, of))),
        ("seconds to best", lambda of: shown(_best(c, of, "seconds"))),
    ]
    if _holds_out(c):
        held_out = f"{c.metric.lowest} {c.metrics[c.metric.held_out].labelled}"
        there = replace(c.metric, title=f"{c.metric.title} there").labelled
        columns += [
            (held_out, lambda of: shown(_held_out(c, of))),
            (there, lambda of: shown(_held_out(c, of, c.metric.name))),
        ]
    return columns


def _seconds_to(c: Comparison) -> list[Column]:
    columns: list[Column] = []
    for value in c.levels:
        columns.append((level(c, value), lambda of, v=value: shown(c.seconds_to(of, v))))  # type: ignore[misc]
        if c.baseline is not None:
            columns.append(("speed-up", lambda of, v=value: _times(c.speed_up(of, v))))  # type: ignore[misc]
    return columns


def _cost(c: Comparison) -> list[Column]:
    def in_percent(part: str) -> Column:
        return f"{part} (%)", lambda of: "-" if (s := share(of, part)) is None else f"{s.mean:.1f}"

    return [
        ("samples/s", lambda of: shown(of.over(lambda run: run.samples_per_second))),
        *map(in_percent, PARTS),
        ("exchanged (MB)", lambda of: shown(of.over(lambda run: run.bytes_exchanged / 1e6))),
        ("staleness", lambda of: shown(of.over(lambda run: run.staleness))),
        ("seconds", lambda of: shown(of.over(_last_second))),
        *(_goodput() if any(run.goodput.get(k) for run in c.runs for k in ("steps_lost", "steps_missed")) else ()),
    ]


def _goodput() -> list[Column]:
    return [
        ("useful steps/s", lambda of: shown(of.over(lambda run: run.goodput.get("steps_per_second")))),
        ("steps lost", lambda of: shown(of.over(lambda run: run.goodput.get("steps_lost")))),
    ]


def final(c: Comparison, of: Configuration) -> Spread | None:
    return of.over(lambda run: run.last(c.metric.name))


def _best(c: Comparison, of: Configuration, what: str | None = None) -> Spread | None:
    """Returns the metric, or the column `what`, at the evaluation with the best value of the metric."""
    return _at_best(of, c.metric.name, what or c.metric.name)


def _holds_out(c: Comparison) -> bool:
    held_out = c.metric.held_out
    return c.metric.primary and held_out != c.metric.name and any(held_out in run.curve for run in c.runs)


def _held_out(c: Comparison, of: Configuration, what: str | None = None) -> Spread | None:
    """Returns the held-out metric, or the column `what`, at the evaluation with the best value of the held-out metric.
    The test set's metric there does not flatter, since the evaluation was chosen without it.
    """
    return _at_best(of, c.metric.held_out, what or c.metric.held_out)


def _at_best(of: Configuration, metric: str, what: str) -> Spread | None:
    def of_run(run: Run) -> float | None:
        return None if (at := run.best(metric)) is None or what not in run.curve else float(run.curve[what][at])

    return of.over(of_run)


def share(of: Configuration, part: str) -> Spread | None:
    """Returns the share of `part` in a worker's time, in percent."""

    def of_run(run: Run) -> float | None:
        total = sum(run.seconds.values()) if run.seconds else 0
        return 100 * run.seconds[part] / total if run.seconds and total > 0 else None

    return of.over(of_run)


def _last_second(run: Run) -> float | None:
    return float(run.curve["seconds"][-1]) if len(run.curve["seconds"]) else None


def shown(s: Spread | None) -> str:
    """Returns `3.21 ± 0.05`, the deviation with two digits and the mean as fine; `(2 of 3)` if values are missing."""
    if s is None:
        return "-"
    few = f" ({s.n} of {s.of})" if s.n < s.of else ""
    if s.std is None or s.std <= 1e-9 * abs(s.mean):  # one value, or several that are equal but for rounding
        return digits(s.mean) + ("" if s.std is None else " ± 0") + few
    fine = max(0, 1 - math.floor(math.log10(s.std)))
    if fine > 6:
        return f"{s.mean:.6g} ± {s.std:.2g}{few}"
    return f"{s.mean:,.{fine}f} ± {s.std:,.{fine}f}{few}"


def digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"×{value:.2f}"


def _plain(s: Spread | None) -> dict[str, Any] | None:
    return None if s is None else asdict(s)
