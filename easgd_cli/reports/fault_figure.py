"""The figure of what faults cost: the last value of the metric, and goodput, against the probability of a fault."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from easgd_cli import picture
from easgd_cli.reports import appearance
from easgd_cli.reports.comparison import Comparison, grouped, label
from easgd_cli.reports.reading import Run


def rate_of(c: Comparison) -> str | None:
    """Returns the setting that is the probability of a fault, if the runs differ in exactly one such; else None."""
    found = [key for key in c.told_apart if key.startswith("faults.") and key.endswith(".per_step")]
    return found[0] if len(found) == 1 else None


def against_rate(c: Comparison, rate: str) -> Figure:
    """Draws the last value of the metric, and goodput, against the probability of a fault, the setting `rate`."""
    rising = sorted(c.configurations, key=lambda of: float(of.values[rate] or 0))
    groups = grouped(rising, lambda of: label({k: v for k, v in of.values.items() if k != rate}))
    looks = appearance.looks(c, {id(of): name for name, group in groups.items() for of in group}, [rate])
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
                color=colour, linestyle=appearance.DASHES[dash % len(appearance.DASHES)], marker="o",
                markersize=3, linewidth=1.2, capsize=2, label=appearance.text(name),
            )  # fmt: skip
        panel.set_xscale("symlog", linthresh=least)
        panel.set_xlim(left=0)
        panel.set_xlabel("probability of a fault per step")
        panel.set_ylabel(title)
        panel.grid(True, axis="y", color="0.9")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=max(1, len(groups)))
    return figure
