"""Seconds to a level against the number of workers, in the manner of the paper's Figures 4 and 10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from easgd_cli import picture
from easgd_cli.reports import appearance, table
from easgd_cli.reports.comparison import Comparison, Configuration, Spread, label

_Look = dict[str, Any]
_Beside = Sequence[tuple[Spread, _Look]]  # the bars over one number of workers


def bars(c: Comparison) -> Figure | None:
    """Draws the seconds to each level against the number of workers p; None where no run has reached a level."""
    levels = [level for level in c.levels if any(c.seconds_to(of, level) for of in c.configurations)]
    if not levels:
        return None
    workers = sorted({of.setting("workers") for of in c.configurations})
    groups: dict[str, dict[int, Configuration]] = {}
    for of in c.configurations:
        groups.setdefault(label({k: v for k, v in of.values.items() if k != "workers"}), {})[of.setting("workers")] = of
    found = appearance.looks(c, {id(of): name for name, group in groups.items() for of in group.values()}, ["workers"])
    looks: list[_Look] = [
        {"facecolor": colour, "hatch": appearance.HATCHES[i]} for name in groups for colour, i in [found[name]]
    ]
    figure = picture.new(picture.WIDTH, 2.3 + 0.15 * len(groups))
    panels = figure.subplots(1, len(levels), squeeze=False)[0]

    def beside_at(p: int, level: float) -> _Beside:
        """Returns the bars over `p` workers: one for each configuration with a run that reached the level."""
        there = ((group[p], look) for group, look in zip(groups.values(), looks, strict=True) if p in group)
        return [(s, look) for of, look in there if (s := c.seconds_to(of, level))]

    reached = {level: [beside_at(p, level) for p in workers] for level in levels}
    most = max(len(beside) for over in reached.values() for beside in over)
    for panel, level in zip(panels, levels, strict=True):
        for at, beside in enumerate(reached[level]):
            _draw_beside(panel, at, beside, width=0.8 / most, ranges=most <= appearance.RANGES)
        panel.set_xticks(range(len(workers)), [str(p) for p in workers])
        panel.set_xlim(-0.5, len(workers) - 0.5)
        panel.set_xlabel("p (workers)")
        panel.grid(True, axis="y", color="0.9")
        panel.set_axisbelow(True)
        picture.letter(panel, f"to {table.level(c, level)} {c.metric.title}")
    panels[0].set_ylabel(appearance.seconds(c).rstrip(","))
    if len(groups) > 1:
        handles = [Rectangle((0, 0), 1, 1, edgecolor="white", **look) for look in looks]
        columns = max(1, min(len(groups), 100 // (max(map(len, groups)) + 8)))
        figure.legend(handles, list(map(appearance.text, groups)), loc="outside lower center", ncols=columns)
    return figure


def _draw_beside(panel: Axes, at: int, beside: _Beside, *, width: float, ranges: bool) -> None:
    """Draws the bars over one number of workers, side by side."""
    above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points"}
    above |= {"ha": "center", "va": "bottom", "fontsize": 6}
    for i, (s, look) in enumerate(beside):
        error = [[s.mean - s.least], [s.most - s.mean]] if s.n > 1 and ranges else None
        x = at + width * (i + 0.5 - len(beside) / 2)
        panel.bar(
            x, s.mean, width, yerr=error, capsize=2, error_kw={"lw": 0.7}, edgecolor="white", linewidth=0.3, **look
        )
        if s.n < s.of and ranges:
            panel.annotate(f"{s.n}/{s.of}", (x, s.most), **above)
    if not beside:
        panel.annotate("none", (at, 0), color="0.4", **above)
