"""A comparison in the form of the paper's figures: curves of the center, and bars of the time to a level (pp. 6-8,
24-29).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from easgd_cli import picture
from easgd_cli.reports import table
from easgd_cli.reports.comparison import Comparison, Configuration, label, order, written
from easgd_cli.reports.reading import Run
from easgd_cli.system.terminal import printable

NAMES = ("curves", "seconds_to_level", "faults", "grid")
# the first of these that tells configurations apart, as others do, makes the rows of panels, unless others are asked
# for
_ROWS = ("tau", "workers")
_SYMBOLS = {"tau": "τ", "workers": "p", "eta": "η", "gamma": "γ", "alpha": "α", "beta": "β", "delta": "δ"}
_DASHES = ("-", "--", ":", "-.")  # of curves with one colour; further ones are paler
_HATCHES = (None, "///", "...", "xxx")  # the same of bars
_RANGES = 8  # at most, of curves in a panel or bars over one number of workers: more would hide each other
_POINTS = 200  # at most, of a curve that is a mean over seeds


def figures(c: Comparison, x: str = "seconds", rows: Sequence[str] = ()) -> dict[str, Figure]:
    """By name: `curves`, `seconds_to_level` where the number of workers varies, and `faults` where the rate of faults
    does. What has nothing to show is left out.

    `rows`: the settings whose values make the rows of panels, or none for a choice. To be called and saved within
    picture.style().
    """
    shown = curves(c, x, rows)
    found = {
        "curves": _draw(shown) if shown else None,
        "seconds_to_level": _bars(c) if "workers" in c.told_apart and c.levels else None,
        "faults": _against_rate(c, rate) if (rate := _rate(c)) is not None else None,
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _chosen_rows(c: Comparison) -> list[str]:
    """None where nothing else varies: curves that differ in one thing are compared in one panel."""
    return [key for key in _ROWS if key in c.told_apart][:1] if len(c.told_apart) > 1 else []


def caption(c: Comparison, figure: str, x: str = "seconds") -> str:
    """What the figure shows, in sentences."""
    most = max(len(of.counted) for of in c.configurations)
    if figure == "seconds_to_level":
        over = (
            "the mean over the runs that reached the level, with "
            f"{'their range' if most > 1 else 'no range: one run each'}"
        )
        over += (
            f"; neither range nor number where more than {_RANGES} bars stand side by side"
            if len(c.configurations) > _RANGES
            else ""
        )
        few = (
            "Above a bar: how many of the runs, where not all reached it; no bar: none did. A method has one "
            "colour in all figures."
        )
        return f"{_seconds(c).capitalize()} until the {c.metric.title} was first at most the level: {over}. {few}"
    if figure == "faults":
        many = f"mean and range of up to {most} runs" if most > 1 else "one run each"
        return (
            f"The last {c.metric.title} and the useful steps of all workers a second against the probability that a "
            f"worker suffers the fault at a step: {many}. Where it is 0, at the left end."
        )
    crowded = f"; no range where more than {_RANGES} curves share a panel" if len(c.configurations) > _RANGES else ""
    over = (
        f"Mean and range of up to {most} runs, up to the end of the shortest{crowded}." if most > 1 else "One run each."
    )
    against = {
        "seconds": _seconds(c),
        "steps": "local steps of each worker",
        "bytes": "bytes exchanged by all workers",
    }[x]
    left_out = (
        " What exchanges nothing is left out." if x == "bytes" and len(_drawn(c, x)) < len(_drawn(c, "steps")) else ""
    )
    return f"{_of(c).capitalize()} against {against}. {over}{left_out}"


def _of(c: Comparison) -> str:
    parties = {run.party for run in c.runs}
    return (
        "the center, or its average where one is kept,"
        if len(parties) > 1
        else "the center"
        if parties == {"center"}
        else "the average of the center"
    )


def _seconds(c: Comparison) -> str:
    virtual = {run.virtual for run in c.runs}
    return (
        "seconds of training"
        if virtual == {False}
        else "virtual seconds of training"
        if virtual == {True}
        else "seconds of training, some virtual,"
    )


def _x_label(c: Comparison, x: str) -> str:
    return {"seconds": _seconds(c).rstrip(","), "steps": "local steps of each worker", "bytes": "exchanged (MB)"}[x]


def x_of(run: Run, x: str) -> np.ndarray:
    """Where each evaluation lies: seconds, steps, or MB."""
    if x == "bytes":
        return run.curve["exchanges"] * run.bytes_per_exchange / 1e6
    return run.curve[{"seconds": "seconds", "steps": "step"}[x]]


# --- curves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A configuration in one panel: positions `at` [n], the `mean` over its runs there [n], and their least and
    greatest values `range` [2, n], None of a single run. NaN where a run was not finite. `line`: its name."""

    line: str
    at: np.ndarray
    mean: np.ndarray
    range: np.ndarray | None


@dataclass(frozen=True)
class Curves:
    """What the figure of curves shows: `rows` of a title and, for each metric, the curves of one panel.

    `x`: what the positions are; `shares_x`: whether all rows have one axis of them. `metrics`: as they are spoken of,
    and whether their axis is logarithmic. `lines`: the colour, #rrggbb, and the dashes of every name.
    """

    x: str
    shares_x: bool
    metrics: list[tuple[str, bool]]
    lines: dict[str, tuple[str, str]]
    rows: list[tuple[str, list[list[Curve]]]]


def curves(c: Comparison, x: str = "seconds", rows: Sequence[str] = ()) -> Curves | None:
    """The same as numbers; None where nothing was evaluated twice. `rows` as those of figures()."""
    drawn, keys = _drawn(c, x), rows or _chosen_rows(c)
    if not drawn:
        return None
    looks = _looks(c, {id(of): _line(of, keys) for of in c.configurations}, keys)
    metrics = _metrics(c)
    found: list[tuple[str, list[list[Curve]]]] = []
    names: dict[str, None] = {}
    for values, those in _rows(drawn, keys):
        title = ", ".join(f"{_SYMBOLS.get(key, key)} = {written(v)}" for key, v in zip(keys, values, strict=False))
        lines = [(of, _line(of, keys)) for of in those]
        names |= dict.fromkeys(line for _, line in lines)
        found.append((title, [[u for of, line in lines if (u := _curve(of, metric, x, line))] for metric in metrics]))
    down = [[curve for _, panels in found for curve in panels[i]] for i in range(len(metrics))]
    return Curves(
        _x_label(c, x),
        x != "bytes",  # they fall with tau
        [(c.metrics[metric].labelled, _spans_decades(those)) for metric, those in zip(metrics, down, strict=True)],
        {name: (to_hex(looks[name][0]), _DASHES[looks[name][1]]) for name in names},
        found,
    )


def _curve(of: Configuration, metric: str, x: str, line: str) -> Curve | None:
    found = [(x_of(r, x), r.curve[metric]) for r in of.counted if metric in r.curve and len(r.curve[metric]) > 1]
    if len(found) < 2:
        return Curve(line, *found[0], None) if found else None
    at, values = on_a_common_axis(found)
    return Curve(line, at, values.mean(axis=0), np.array([values.min(axis=0), values.max(axis=0)]))


def _spans_decades(those: Sequence[Curve]) -> bool:
    """Whether one axis of these is logarithmic: their values span more than a factor of ten, and none is below 0."""
    values = np.concatenate([np.zeros(0), *(curve.mean for curve in those)])
    values = values[np.isfinite(values)]
    above = values[values > 0]
    return bool(len(above) and values.min() >= 0 and above.max() > 10 * above.min())


def _draw(shown: Curves) -> Figure:
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
                if curve.range is not None and len(those) <= _RANGES:
                    colour = looks[curve.line]["color"]
                    panel.fill_between(curve.at, *curve.range, color=colour, alpha=0.15, linewidth=0)
            panel.grid(True, color="0.9")
            panel.set_axisbelow(True)
            panel.set_ylabel(metric)
        picture.letter(across[0], text(title))
    for down, (_, logarithmic) in zip(panels.T, shown.metrics, strict=True):
        if logarithmic:
            _scale(down)
    for panel in panels[-1]:
        panel.set_xlabel(shown.x)
    if len(looks) > 1:
        handles = [Line2D([], [], **look) for look in looks.values()]
        columns = max(1, min(len(looks), int((100 if wide else 50) / (max(map(len, looks)) + 8))))
        figure.legend(handles, [text(name) for name in looks], loc="outside lower center", ncols=columns)
    return figure


def _scale(panels: Sequence[Axes]) -> None:
    """Panels with one logarithmic axis; a 0 lies below it."""
    least, most = min(panel.dataLim.minposy for panel in panels), max(panel.dataLim.y1 for panel in panels)
    panels[0].set_yscale("log", nonpositive="clip")  # the others share it
    for panel in panels:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 500 * least else (1,)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylim(least / 1.2, most * 1.2)


def _drawn(c: Comparison, x: str) -> list[Configuration]:
    """Those with a curve: two evaluations that are not at the same place."""
    return [
        of
        for of in c.configurations
        if any(len(run.curve["seconds"]) > 1 and x_of(run, x)[-1] > 0 for run in of.counted)
    ]


def _rows(drawn: Sequence[Configuration], keys: Sequence[str]) -> list[tuple[list[Any], list[Configuration]]]:
    """The values of `keys` and the configurations of each row; a row of tau or p has the sequential ones as well, as in
    the paper.
    """
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
    """What a curve is called among those of its panel."""
    named = {k: v for k, v in of.values.items() if k not in keys or of.runs[0].sequential}
    return label(named) or of.label or of.runs[0].path.name


def _looks(c: Comparison, names: Mapping[int, str], without: Sequence[str]) -> dict[str, tuple[Any, int]]:
    """The colour of each name, and which dash or hatch it has.

    `names`: of each configuration, by its id, in a figure that says the values of `without` elsewhere.
    A method, and whatever else is no number, has one colour in all figures; where there is one method only, every name
    has its own.
    """
    named = [
        key
        for key in c.told_apart
        if key not in without and any(isinstance(of.values[key], str) for of in c.configurations)
    ]
    groups: dict[str, dict[str, None]] = {}
    for of in c.configurations:
        groups.setdefault(label({key: of.values[key] for key in named}), {})[names[id(of)]] = None
    if len(groups) == 1:
        groups = {name: {name: None} for group in groups.values() for name in group}
    rounds = -(-len(groups) // len(picture.COLOURS))  # how many groups share a colour
    found: dict[str, tuple[Any, int]] = {}
    for number, group in enumerate(groups.values()):
        for at, name in enumerate(group):
            among = at * rounds + number // len(picture.COLOURS)
            found[name] = (
                picture.paler(picture.COLOURS[number % len(picture.COLOURS)], min(0.75, among // len(_DASHES) / 4)),
                among % len(_DASHES),
            )
    return found


def _metrics(c: Comparison) -> list[str]:
    measured = {key for run in c.runs for key in run.curve}
    primary, losses = c.metrics.primary, ("train_loss", "test_loss")  # the paper's panels, from left to right
    judged = primary is not None and primary.name in measured
    wanted = (
        (*losses, primary.name)
        if primary is not None and judged
        else (c.metric.name, "train_loss", "distance_to_optimum")
    )
    return [m for m in dict.fromkeys([*wanted, c.metric.name]) if m in measured]


def on_a_common_axis(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions [n] up to the end of the shortest curve, and each curve there [curves, n]; NaN where it was not finite.

    Positions are points of the curves, but for those too close to the one before to be seen apart.
    """
    end = min(xs[-1] for xs, _ in curves)
    at = [0.0]
    for x in sorted(x for xs, _ in curves for x in xs if x < end):
        if x - at[-1] >= end / _POINTS:
            at.append(x)
    at.append(end)
    return np.array(at), np.array([np.interp(at, xs, ys) for xs, ys in curves])


# --- bars ------------------------------------------------------------------------------------------------------------


def _bars(c: Comparison) -> Figure | None:
    """Seconds to each level against the number of workers p, in the paper's Figures 4 and 10's manner."""
    levels = [level for level in c.levels if any(c.seconds_to(of, level) for of in c.configurations)]
    if not levels:
        return None
    workers = sorted({of.setting("workers") for of in c.configurations})
    groups: dict[str, dict[int, Configuration]] = {}
    for of in c.configurations:
        groups.setdefault(label({k: v for k, v in of.values.items() if k != "workers"}), {})[of.setting("workers")] = of
    found = _looks(c, {id(of): name for name, group in groups.items() for of in group.values()}, ["workers"])
    looks: list[dict[str, Any]] = [
        {"facecolor": colour, "hatch": _HATCHES[i]} for name in groups for colour, i in [found[name]]
    ]
    figure = picture.new(picture.WIDTH, 2.3 + 0.15 * len(groups))
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    reached = {
        (level, p): [
            (s, look)
            for group, look in zip(groups.values(), looks, strict=True)
            if p in group and (s := c.seconds_to(group[p], level))
        ]
        for level in levels
        for p in workers
    }
    width = 0.8 / max(map(len, reached.values()))
    ranges = max(map(len, reached.values())) <= _RANGES
    for panel, level in zip(panels, levels, strict=True):
        for j, p in enumerate(workers):
            for i, (s, look) in enumerate(reached[level, p]):
                error = [[s.mean - s.least], [s.most - s.mean]] if s.n > 1 and ranges else None
                at = j + width * (i + 0.5 - len(reached[level, p]) / 2)
                panel.bar(
                    at,
                    s.mean,
                    width,
                    yerr=error,
                    capsize=2,
                    error_kw={"lw": 0.7},
                    edgecolor="white",
                    linewidth=0.3,
                    **look,
                )
                if s.n < s.of and ranges:
                    panel.annotate(
                        f"{s.n}/{s.of}",
                        (at, s.most),
                        (0, 2),
                        textcoords="offset points",
                        ha="center",
                        va="bottom",
                        fontsize=6,
                    )
            if not reached[level, p]:
                panel.annotate(
                    "none",
                    (j, 0),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=6,
                    color="0.4",
                )
        panel.set_xticks(range(len(workers)), [str(p) for p in workers])
        panel.set_xlim(-0.5, len(workers) - 0.5)
        panel.set_xlabel("p (workers)")
        panel.grid(True, axis="y", color="0.9")
        panel.set_axisbelow(True)
        picture.letter(panel, f"to {table.level(c, level)} {c.metric.title}")
    panels[0].set_ylabel(_seconds(c).rstrip(","))
    if len(groups) > 1:
        handles = [Rectangle((0, 0), 1, 1, edgecolor="white", **look) for look in looks]
        longest = max(map(len, groups))
        figure.legend(
            handles,
            [text(name) for name in groups],
            loc="outside lower center",
            ncols=max(1, min(len(groups), 100 // (longest + 8))),
        )
    return figure


# --- faults ----------------------------------------------------------------------------------------------------------


def _rate(c: Comparison) -> str | None:
    """The setting that is the probability of a fault, where these runs differ in one."""
    found = [key for key in c.told_apart if key.startswith("faults.") and key.endswith(".per_step")]
    return found[0] if len(found) == 1 else None


def _against_rate(c: Comparison, rate: str) -> Figure:
    """The last value of the metric, and goodput, against that probability."""
    groups: dict[str, list[Configuration]] = {}
    for of in sorted(c.configurations, key=lambda of: float(of.values[rate] or 0)):
        groups.setdefault(label({k: v for k, v in of.values.items() if k != rate}), []).append(of)
    looks = _looks(c, {id(of): name for name, group in groups.items() for of in group}, [rate])
    least = min((float(of.values[rate]) for of in c.configurations if of.values[rate]), default=1.0)
    figure = picture.new(picture.WIDTH, 2.3 + 0.15 * len(groups))
    panels = figure.subplots(1, 2)
    shown: list[tuple[str, Callable[[Run], float | None]]] = [
        (c.metric.labelled, lambda run: run.last(c.metric.name)),
        ("useful steps/s", lambda run: run.goodput.get("steps_per_second")),
    ]
    for panel, (title, of_run) in zip(panels, shown, strict=True):
        for name, group in groups.items():
            colour, dash = looks[name]
            found = [(float(of.values[rate] or 0), s) for of in group if (s := of.over(of_run)) is not None]
            panel.errorbar(
                [at for at, _ in found], [s.mean for _, s in found],
                [[s.mean - s.least for _, s in found], [s.most - s.mean for _, s in found]],
                color=colour, linestyle=_DASHES[dash % len(_DASHES)], marker="o", markersize=3, linewidth=1.2,
                capsize=2, label=text(name),
            )  # fmt: skip
        panel.set_xscale("symlog", linthresh=least)
        panel.set_xlim(left=0)
        panel.set_xlabel("probability of a fault per step")
        panel.set_ylabel(title)
        panel.grid(True, axis="y", color="0.9")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=max(1, len(groups)))
    return figure


def text(name: str) -> str:
    """As it stands: a dollar sign begins no formula, and no control character breaks the file."""
    return printable(name).replace("$", r"\$")
