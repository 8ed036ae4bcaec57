"""The curves of a comparison: as numbers, which the page draws, and as a figure like the paper's (pp. 6-8, 24-29)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from easgd_cli import picture
from easgd_cli.reports import appearance
from easgd_cli.reports.comparison import Comparison, Configuration, label, order, written
from easgd_cli.reports.reading import Run

# Unless --rows names others: the first of these settings in which configurations differ makes the rows of panels, if
# they differ in another setting, too.
_ROWS = ("tau", "workers")
_SYMBOLS = {"tau": "τ", "workers": "p", "eta": "η", "gamma": "γ", "alpha": "α", "beta": "β", "delta": "δ"}
_POINTS = 200  # the most points of a curve that is a mean over seeds


@dataclass(frozen=True)
class Curve:
    """A configuration's curve in one panel: positions `at` [n], the `mean` over its runs there [n], and `range` [2, n],
    their least and greatest values, None for a single run. NaN where a run was not finite. `line`: the curve's name."""

    line: str
    at: np.ndarray
    mean: np.ndarray
    range: np.ndarray | None


@dataclass(frozen=True)
class Curves:
    """The content of the figure of curves.

    `x`: label of the x axis; `shares_x`: whether all rows have the same x axis. `metrics`: label of each metric, and
    whether its axis is logarithmic. `lines`: colour, #rrggbb, and dashes of every name. `rows`: title of each row of
    panels and, for each metric, the curves of its panel.
    """

    x: str
    shares_x: bool
    metrics: list[tuple[str, bool]]
    lines: dict[str, tuple[str, str]]
    rows: list[tuple[str, list[list[Curve]]]]


def curves(c: Comparison, x: str = "seconds", rows: Sequence[str] = ()) -> Curves | None:
    """Returns the curves as numbers; None where no run was evaluated twice. `rows`: as in figures()."""
    shown, keys = drawn(c, x), rows or _chosen_rows(c)
    if not shown:
        return None
    looks = appearance.looks(c, {id(of): _line(of, keys) for of in c.configurations}, keys)
    metrics = _metrics(c)
    found: list[tuple[str, list[list[Curve]]]] = []
    names: dict[str, None] = {}
    for values, those in _rows(shown, keys):
        title = ", ".join(f"{_SYMBOLS.get(key, key)} = {written(v)}" for key, v in zip(keys, values, strict=False))
        lines = [(of, _line(of, keys)) for of in those]
        names |= dict.fromkeys(line for _, line in lines)
        found.append((title, [[u for of, line in lines if (u := _curve(of, metric, x, line))] for metric in metrics]))
    down = [[curve for _, panels in found for curve in panels[i]] for i in range(len(metrics))]
    return Curves(
        _x_label(c, x),
        x != "bytes",  # bytes fall with tau, so each row of tau has an x axis of its own
        [(c.metrics[metric].labelled, _spans_decades(those)) for metric, those in zip(metrics, down, strict=True)],
        {name: (to_hex(looks[name][0]), appearance.DASHES[looks[name][1]]) for name in names},
        found,
    )


def _curve(of: Configuration, metric: str, x: str, line: str) -> Curve | None:
    found = [(x_of(r, x), r.curve[metric]) for r in of.counted if metric in r.curve and len(r.curve[metric]) > 1]
    if len(found) < 2:
        return Curve(line, *found[0], None) if found else None
    at, values = on_a_common_axis(found)
    return Curve(line, at, values.mean(axis=0), np.array([values.min(axis=0), values.max(axis=0)]))


def _spans_decades(those: Sequence[Curve]) -> bool:
    """Returns whether these curves need a logarithmic axis: the values span more than a factor of ten, none below 0."""
    values = np.concatenate([np.zeros(0), *(curve.mean for curve in those)])
    values = values[np.isfinite(values)]
    above = values[values > 0]
    return bool(len(above) and values.min() >= 0 and above.max() > 10 * above.min())


def draw(shown: Curves) -> Figure:
    wide = len(shown.metrics) > 1
    looks: dict[str, dict[str, Any]] = {}
    for name, (colour, dash) in shown.lines.items():
        looks[name] = {"color": colour, "linestyle": dash, "linewidth": 1.2}
    height = 1.9 * len(shown.rows) + 0.35 + 0.15 * len(looks)
    figure = picture.new(picture.WIDTH if wide else picture.WIDTH / 2, height)
    panels = figure.subplots(len(shown.rows), len(shown.metrics), squeeze=False, sharex=shown.shares_x, sharey="col")
    for across, (title, row) in zip(panels, shown.rows, strict=True):
        for panel, those, (metric, _) in zip(across, row, shown.metrics, strict=True):
            for curve in those:
                panel.plot(curve.at, curve.mean, **looks[curve.line])
                if curve.range is not None and len(those) <= appearance.RANGES:
                    colour = looks[curve.line]["color"]
                    panel.fill_between(curve.at, *curve.range, color=colour, alpha=0.15, linewidth=0)
            panel.grid(True, color="0.9")
            panel.set_axisbelow(True)
            panel.set_ylabel(metric)
        picture.letter(across[0], appearance.text(title))
    for down, (_, logarithmic) in zip(panels.T, shown.metrics, strict=True):
        if logarithmic:
            _scale(down)
    for panel in panels[-1]:
        panel.set_xlabel(shown.x)
    if len(looks) > 1:
        handles = [Line2D([], [], **look) for look in looks.values()]
        columns = max(1, min(len(looks), int((100 if wide else 50) / (max(map(len, looks)) + 8))))
        figure.legend(handles, [appearance.text(name) for name in looks], loc="outside lower center", ncols=columns)
    return figure


def _scale(panels: Sequence[Axes]) -> None:
    """Gives the panels one logarithmic y axis; values of 0 lie below its lower end."""
    least, most = min(panel.dataLim.minposy for panel in panels), max(panel.dataLim.y1 for panel in panels)
    panels[0].set_yscale("log", nonpositive="clip")  # the others share it
    for panel in panels:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 500 * least else (1,)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylim(least / 1.2, most * 1.2)


def drawn(c: Comparison, x: str) -> list[Configuration]:
    """Returns the configurations that have a curve: two evaluations of a run at different positions."""
    return [
        of
        for of in c.configurations
        if any(len(run.curve["seconds"]) > 1 and x_of(run, x)[-1] > 0 for run in of.counted)
    ]


def _rows(drawn: Sequence[Configuration], keys: Sequence[str]) -> list[tuple[list[Any], list[Configuration]]]:
    """Returns the values of `keys` and the configurations of each row; sequential ones are in every row of tau or p."""
    everywhere = [of for of in drawn if keys and set(keys) <= set(_ROWS) and of.runs[0].sequential]
    rows: dict[str, tuple[list[Any], list[Configuration]]] = {}
    for of in drawn:
        if of not in everywhere:
            values = [of.setting(key) for key in keys]
            rows.setdefault(repr(values), (values, []))[1].append(of)
    if len(rows) < 2:
        return [([], list(drawn))]
    ordered = sorted(rows.values(), key=lambda row: [order(v) for v in row[0]])
    return [(values, [of for of in drawn if of in those or of in everywhere]) for values, those in ordered]


def _line(of: Configuration, keys: Sequence[str]) -> str:
    """Returns the name of a curve within its panel: the settings that the title of the row does not have."""
    named = {k: v for k, v in of.values.items() if k not in keys or of.runs[0].sequential}
    return label(named) or of.label or of.runs[0].path.name


def _metrics(c: Comparison) -> list[str]:
    measured = {key for run in c.runs for key in run.curve}
    primary, losses = c.metrics.primary, ("train_loss", "test_loss")  # the paper's panels, from left to right
    wanted: tuple[str, ...] = (c.metric.name, "train_loss", "distance_to_optimum")
    if primary is not None and primary.name in measured:
        wanted = (*losses, primary.name)
    return [m for m in dict.fromkeys([*wanted, c.metric.name]) if m in measured]


def on_a_common_axis(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions [n] up to the end of the shortest curve, and each curve's values there [curves, n], NaN where
    not finite.

    The positions are those of the curves' points, without points too close to the one before to be seen apart.
    """
    end = min(xs[-1] for xs, _ in curves)
    at = [0.0]
    for x in sorted(x for xs, _ in curves for x in xs if x < end):
        if x - at[-1] >= end / _POINTS:
            at.append(x)
    at.append(end)
    return np.array(at), np.array([np.interp(at, xs, ys) for xs, ys in curves])


def _chosen_rows(c: Comparison) -> list[str]:
    """Returns the setting that makes the rows; none if no other varies: then all curves share a panel."""
    return [key for key in _ROWS if key in c.told_apart][:1] if len(c.told_apart) > 1 else []


def _x_label(c: Comparison, x: str) -> str:
    named = {"steps": "local steps of each worker", "bytes": "exchanged (MB)"}
    return named.get(x) or appearance.seconds(c).rstrip(",")


def x_of(run: Run, x: str) -> np.ndarray:
    """Returns the position of each evaluation [n]: seconds, steps, or MB."""
    if x == "bytes":
        return run.curve["exchanges"] * run.bytes_per_exchange / 1e6
    return run.curve[{"seconds": "seconds", "steps": "step"}[x]]
