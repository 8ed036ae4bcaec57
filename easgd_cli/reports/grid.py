"""Which configuration is first to a level at each pair of values of two settings, and how far the next is behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

from easgd_cli import picture
from easgd_cli.reports import table
from easgd_cli.reports.appearance import text
from easgd_cli.reports.comparison import Comparison, Configuration, Spread, grouped, label, order, written
from easgd_cli.reports.curves import x_of
from easgd_cli.reports.reading import Run
from easgd_cli.reports.table import ResultTable

_NOBODY = "nobody"


@dataclass(frozen=True)
class Cell:
    """One pair of values, `at`. `ranking`: the first configuration of each kind, by the mean of what it took to reach
    the level, with that spread. Configurations of which a run did not reach the level are left out.

    By id() of a configuration: `names`, its name within the cell; `kinds`, the part of the name that is text, such as
    the method.
    """

    at: tuple[Any, Any]
    ranking: list[tuple[Configuration, Spread]]
    names: dict[int, str]
    kinds: dict[int, str]

    def name(self, place: int) -> str:
        return self.names[id(self.ranking[place][0])] if place < len(self.ranking) else _NOBODY

    @property
    def apart(self) -> bool:
        """True if every run of the first configuration was ahead of every run of the next."""
        first, following = (took for _, took in self.ranking[:2])
        return first.most < following.least

    @property
    def margin(self) -> float:
        """How much more the next configuration took than the first, as a share of what the first took."""
        first, following = (took for _, took in self.ranking[:2])
        return following.mean / first.mean - 1


def cells(c: Comparison, keys: Sequence[str], x: str) -> list[Cell]:
    """Returns the cells in the order of the settings' values. `x`: seconds, steps or bytes; the fewest are best."""
    groups = grouped(c.configurations, lambda of: repr([of.setting(key) for key in keys]))
    found = [_cell(c, keys, x, those) for those in groups.values()]
    return sorted(found, key=lambda cell: [order(value) for value in cell.at])


def _cell(c: Comparison, keys: Sequence[str], x: str, those: Sequence[Configuration]) -> Cell:
    differ = [k for k in c.told_apart if k not in keys and len({repr(of.values[k]) for of in those}) > 1]
    texts = [k for k in differ if any(isinstance(of.values[k], str) for of in c.configurations) and k != "tau"]
    names = {id(of): _said({k: of.values[k] for k in differ}) or of.label for of in those}
    kinds = {id(of): _said({k: of.values[k] for k in texts}) or names[id(of)] for of in those}
    took = [(of, s) for of in those if (s := _took(c, of, x)) is not None and s.n == s.of]
    best: dict[str, tuple[Configuration, Spread]] = {}
    for of, spread in sorted(took, key=lambda found: found[1].mean):
        best.setdefault(kinds[id(of)], (of, spread))
    first, second = (those[0].setting(key) for key in keys)
    return Cell((first, second), list(best.values()), names, kinds)


def _said(values: dict[str, Any]) -> str:
    """Returns the label of the values, with a method by its name alone."""
    return label(values).removeprefix("algo=")


def _took(c: Comparison, of: Configuration, x: str) -> Spread | None:
    """Returns what the configuration took, by `x`, until its runs first reached the hardest level."""

    def of_run(run: Run) -> float | None:
        at = run.first(c.metric.name, c.levels[-1])
        return None if at is None else float(x_of(run, x)[at])

    return of.over(of_run)


def result(c: Comparison, keys: Sequence[str], x: str) -> ResultTable:
    """Returns the cells as a table."""
    unit = {"seconds": "seconds", "steps": "steps", "bytes": "MB"}[x]
    rows = []
    for cell in cells(c, keys, x):
        two = [part for place in (0, 1) for part in (cell.name(place), _shown(cell, place))]
        margin = [f"{100 * cell.margin:.0f} %", "yes" if cell.apart else "no"] if len(cell.ranking) > 1 else ["-", "-"]
        rows.append([*map(written, cell.at), *two, *margin])
    headings = [*keys, "first", unit, "next", unit, "later by", "in every run"]
    return ResultTable(f"First at {table.level(c, c.levels[-1])} {c.metric.title}, by {x}", headings, rows, len(keys))


def _shown(cell: Cell, place: int) -> str:
    return table.shown(cell.ranking[place][1]) if place < len(cell.ranking) else "-"


def figure(c: Comparison, keys: Sequence[str], x: str) -> Figure:
    """Draws a square for every cell, in the colour of the kind that is first there."""
    all_cells = cells(c, keys, x)
    across, up = (sorted({cell.at[i] for cell in all_cells}, key=order) for i in (0, 1))
    kinds = dict.fromkeys(cell.kinds[id(cell.ranking[0][0])] for cell in all_cells if cell.ranking)
    colours = {kind: picture.COLOURS[number % len(picture.COLOURS)] for number, kind in enumerate(kinds)}
    drawn = picture.new(picture.WIDTH, 0.75 + 0.72 * len(up))
    axes = drawn.subplots()
    for cell in all_cells:
        left, low = across.index(cell.at[0]), up.index(cell.at[1])
        kind = cell.kinds[id(cell.ranking[0][0])] if cell.ranking else None
        told = len(cell.ranking) == 1 or (len(cell.ranking) > 1 and cell.apart)
        face = picture.paler(colours[kind], 0.45 if told else 0.82) if kind else picture.DIVERGENT
        axes.add_patch(Rectangle((left, low), 1, 1, facecolor=face, edgecolor="white", linewidth=2))
        lines = [text(cell.name(0))]
        if len(cell.ranking) > 1:
            lines.append(f"{100 * cell.margin:.0f} % before")
            lines.append(text(cell.name(1)))
        axes.text(left + 0.5, low + 0.5, "\n".join(lines), ha="center", va="center", fontsize=7, linespacing=1.3)
    axes.set_xlim(0, len(across))
    axes.set_ylim(0, len(up))
    axes.set_xticks([i + 0.5 for i in range(len(across))], [_tick(v) for v in across])
    axes.set_yticks([i + 0.5 for i in range(len(up))], [_tick(v) for v in up])
    axes.set_xlabel(text(keys[0]))
    axes.set_ylabel(text(keys[1]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    picture.letter(axes, text(f"first at {table.level(c, c.levels[-1])} {c.metric.title}, by {x}"))
    return drawn


def _tick(value: Any) -> str:
    """Returns the value as text, large and small numbers with a prefix, such as 12.5 M."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value and not 0.01 <= abs(value) < 10_000:
        return EngFormatter()(value)
    return text(written(value))


def caption(c: Comparison, x: str) -> str:
    """Returns sentences on what the figure shows."""
    most, reached = max(len(of.counted) for of in c.configurations), table.level(c, c.levels[-1])
    return (
        f"What comes first to {reached} {c.metric.title}, by {x}: the configuration with the lowest mean over {most} "
        f"run{'s' if most > 1 else ''}, every one of which came there, and by how much before the best of another "
        "method. Pale: not every run of the first was ahead of every run of the next."
    )
