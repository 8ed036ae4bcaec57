"""Draws a comparison in the form of the paper's figures, and says in words what each shows."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from easgd_cli.reports import appearance, curves
from easgd_cli.reports.bars import bars
from easgd_cli.reports.comparison import Comparison
from easgd_cli.reports.fault_figure import against_rate, rate_of

NAMES = ("curves", "seconds_to_level", "faults", "grid")


def figures(c: Comparison, x: str = "seconds", rows: Sequence[str] = ()) -> dict[str, Figure]:
    """Returns the figures by name: `curves`, `seconds_to_level` where the number of workers varies, and `faults` where
    the rate of faults does. A figure with nothing to show is left out.

    `rows`: the settings whose values make the rows of panels; without them one is chosen. The figures are to be made
    and saved within picture.style().
    """
    shown = curves.curves(c, x, rows)
    found = {
        "curves": curves.draw(shown) if shown else None,
        "seconds_to_level": bars(c) if "workers" in c.told_apart and c.levels else None,
        "faults": against_rate(c, rate) if (rate := rate_of(c)) is not None else None,
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def caption(c: Comparison, figure: str, x: str = "seconds") -> str:
    """Returns sentences on what the figure shows."""
    most = max(len(of.counted) for of in c.configurations)
    if figure == "seconds_to_level":
        return _of_bars(c, most)
    return _of_faults(c, most) if figure == "faults" else _of_curves(c, most, x)


def _of_bars(c: Comparison, most: int) -> str:
    ranges = "their range" if most > 1 else "no range: one run each"
    without = ""
    if len(c.configurations) > appearance.RANGES:
        without = f"; neither range nor number where more than {appearance.RANGES} bars stand side by side"
    return (
        f"{appearance.seconds(c).capitalize()} until the {c.metric.title} was first at most the level: the mean over "
        f"the runs that reached the level, with {ranges}{without}. Above a bar: how many of the runs, where not all "
        "reached it; no bar: none did. A method has one colour in all figures."
    )


def _of_faults(c: Comparison, most: int) -> str:
    many = f"mean and range of up to {most} runs" if most > 1 else "one run each"
    return (
        f"The last {c.metric.title} and the useful steps of all workers a second against the probability that a "
        f"worker suffers the fault at a step: {many}. Where it is 0, at the left end."
    )


def _of_curves(c: Comparison, most: int, x: str) -> str:
    crowded = len(c.configurations) > appearance.RANGES
    without = f"; no range where more than {appearance.RANGES} curves share a panel" if crowded else ""
    several = f"Mean and range of up to {most} runs, up to the end of the shortest{without}."
    over = several if most > 1 else "One run each."
    named = {"steps": "local steps of each worker", "bytes": "bytes exchanged by all workers"}
    silent = x == "bytes" and len(curves.drawn(c, x)) < len(curves.drawn(c, "steps"))
    left_out = " What exchanges nothing is left out." if silent else ""
    return f"{_of(c).capitalize()} against {named.get(x) or appearance.seconds(c)}. {over}{left_out}"


def _of(c: Comparison) -> str:
    parties = {run.party for run in c.runs}
    if len(parties) > 1:
        return "the center, or its average where one is kept,"
    return "the center" if parties == {"center"} else "the average of the center"
