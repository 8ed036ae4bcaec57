"""Draws a figure of the paper from the runs of its experiment: draw_figure.py NAME SWEEP OUT (writes OUT.svg, OUT.png).

NAME is that of the experiment, fig2 or fig2_small. Curves are the center's, or its average's where the method keeps one, against
seconds of training (virtual ones when simulated): mean and range over the seeds. Bars are the mean seconds to a level over the
seeds that reached it, with their range, and no bar where none did. Prints the numbers behind the picture.
"""

import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import yaml

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito: told apart by all eyes
COLOURS = {
    "easgd": "#0072B2", "eamsgd": "#009E73", "downpour": "#D55E00", "adownpour": "#CC79A7", "mvadownpour": "#E69F00", "mdownpour": "#56B4E9",
    "sgd": "#0072B2", "asgd": "#CC79A7", "mvasgd": "#E69F00", "msgd": "#000000",
}  # fmt: skip
VALUES = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"]  # of a setting, where curves are told apart by it
METRICS = {"train_loss": "training loss", "test_loss": "test loss", "test_error": "test error (%)"}
SYMBOLS = {"tau": r"$\tau$", "workers": "p", "eta": r"$\eta$", "gamma": r"$\gamma$"}


@dataclass(frozen=True)
class Form:
    """What a figure looks like: a row of panels for every value of `rows`, or groups of bars at every level of `levels` (%)."""

    rows: tuple[str, ...] = ()
    lines: str = "algo"  # what tells curves in a panel apart
    levels: tuple[float, ...] = ()


FORMS = {
    "fig2": Form(rows=("tau",)), "fig3": Form(rows=("workers",)), "fig4": Form(rows=("workers",)), "fig6": Form(), "fig7": Form(),
    "fig8": Form(rows=("algo",), lines="eta"), "fig9": Form(rows=("algo", "gamma"), lines="tau"),
    "fig10": Form(levels=(21, 20, 19, 18)), "fig10_small": Form(levels=(20, 10, 5, 3)), "fig11_small": Form(levels=(20, 10, 5, 3)),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One finished run: its settings and the evaluations of what it is judged by."""

    settings: dict
    curve: list[dict]

    def __getitem__(self, key: str):
        return self.settings["algo"]["name"] if key == "algo" else self.settings[key]

    def seconds_to(self, level: float) -> float | None:
        """Seconds of training after which the test error was first at most `level` percent, or None."""
        return next((row["seconds"] for row in self.curve if row["test_error"] is not None and row["test_error"] <= level), None)


def finished(sweep: Path) -> list[Run]:
    runs = []
    for path in sorted(sweep.glob("*/summary.json")):
        if json.loads(path.read_text())["status"] not in ("completed", "diverged"):
            continue
        settings = yaml.safe_load((path.parent / "config.yaml").read_text())
        party = "center" if settings["average"]["name"] == "none" else "average"
        rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        runs.append(Run(settings, [row for row in rows if row["party"] == party]))
    return runs


def grouped(runs: list[Run], *keys: str) -> dict[tuple, list[Run]]:
    groups = defaultdict(list)
    for run in runs:
        groups[tuple(run[key] for key in keys)].append(run)
    return dict(sorted(groups.items(), key=lambda item: [(list(COLOURS).index(v) if v in COLOURS else 0, 0 if v in COLOURS else v) for v in item[0]]))


def on_a_common_clock(runs: list[Run], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [n] up to the end of the shortest run, and the metric of every run at them [runs, n]; NaN where it was not finite."""
    end = min(run.curve[-1]["seconds"] for run in runs)
    seconds = np.linspace(0, end, 41)
    of = [np.array([np.nan if row[metric] is None else row[metric] for row in run.curve]) for run in runs]
    return seconds, np.array([np.interp(seconds, [row["seconds"] for row in run.curve], values) for run, values in zip(runs, of, strict=True)])


def _plain(label: str) -> str:
    return label.replace("$", "").replace("\\", "")


def draw_curves(runs: list[Run], form: Form) -> plt.Figure:
    baseline = [run for run in runs if run["algo"] == "msgd"] if form.rows else []  # the paper draws it in every panel
    rows = grouped([run for run in runs if run not in baseline], *form.rows)
    figure, axes = plt.subplots(len(rows), 3, figsize=(10, 1 + 2.1 * len(rows)), layout="constrained", squeeze=False, sharex="row")
    for panels, (values, inside) in zip(axes, rows.items(), strict=True):
        lines = grouped(inside, form.lines)
        of_row = ", ".join(v.upper() if k == "algo" else f"{SYMBOLS[k]} = {v:g}" for k, v in zip(form.rows, values, strict=True))
        for i, ((value,), those) in enumerate([*lines.items(), *([(("msgd",), baseline)] if baseline else [])]):
            label = f"{value.upper()}{', p = 1' if value == 'msgd' and form.rows else ''}" if isinstance(value, str) else f"{SYMBOLS[form.lines]} = {value:g}"
            for panel, (metric, name) in zip(panels, METRICS.items(), strict=True):
                seconds, found = on_a_common_clock(those, metric)
                colour = COLOURS[value] if isinstance(value, str) else VALUES[i % len(VALUES)]
                panel.plot(seconds, found.mean(axis=0), color=colour, label=label, linewidth=1.3)
                panel.fill_between(seconds, found.min(axis=0), found.max(axis=0), color=colour, alpha=0.15, linewidth=0)
                panel.set_yscale("log")
                panel.grid(True, color="0.9")
                panel.set_title(f"{name}{', ' if of_row else ''}{of_row}", fontsize=9)
            errors = [run.curve[-1]["test_error"] for run in those]
            bests = [run.curve[-1]["best_test_error"] for run in those]
            told = ", ".join("not finite" if e is None else f"{e:.2f}" for e in errors)
            print(f"{_plain(of_row):18} {_plain(label):16} test error at the end {told} %; mean best {statistics.mean(bests):.2f} %")
        panels[0].legend(frameon=False, fontsize=7)
    for panel in axes[-1]:
        panel.set_xlabel("seconds of training")
    return figure


def draw_bars(runs: list[Run], levels: tuple[float, ...]) -> plt.Figure:
    algos, workers = [a for (a,) in grouped(runs, "algo")], [p for (p,) in grouped(runs, "workers")]
    figure, axes = plt.subplots(1, len(levels), figsize=(2.7 * len(levels), 3), layout="constrained", squeeze=False)
    for panel, level in zip(axes[0], levels, strict=True):
        for i, algo in enumerate(algos):
            for j, p in enumerate(workers):
                those = [run for run in runs if (run["algo"], run["workers"]) == (algo, p)]
                reached = [s for run in those if (s := run.seconds_to(level)) is not None]
                if not reached:
                    continue
                mean = statistics.mean(reached)
                spread = [[mean - min(reached)], [max(reached) - mean]]
                panel.bar(j + 0.8 * ((i + 0.5) / len(algos) - 0.5), mean, 0.8 / len(algos), color=COLOURS[algo], yerr=spread, capsize=2, error_kw={"lw": 0.7})
                print(f"{level:g} %   {algo:9} p={p:<3} {mean:9.2f} s   ({len(reached)} of {len(those)} seeds: {', '.join(f'{s:.2f}' for s in reached)})")
        panel.set_xticks(range(len(workers)), [str(p) for p in workers])
        panel.set_xlim(-0.5, len(workers) - 0.5)
        panel.set_xlabel("p (workers)")
        panel.set_title(f"to {level:g} % test error", fontsize=9)
        panel.grid(True, axis="y", color="0.9")
        panel.set_axisbelow(True)
    axes[0][0].set_ylabel("seconds of training")
    colours = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[algo]) for algo in algos]
    figure.legend(colours, [algo.upper() for algo in algos], loc="outside right center", frameon=False, fontsize=8)
    return figure


def main(name: str, sweep: Path, out: Path) -> None:
    form = FORMS.get(name) or FORMS.get(name.removesuffix("_small"))
    if form is None:
        sys.exit(f"{name}: is none of {', '.join(FORMS)}, with or without _small.")
    if not (runs := finished(sweep)):
        sys.exit(f"{sweep} holds no finished run.")
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "easgd"})
    figure = draw_bars(runs, form.levels) if form.levels else draw_curves(runs, form)
    first = runs[0].settings
    where = "virtual cluster" if first["launcher"]["name"] != "local" else "wall-clock"
    n = len({run["seed"] for run in runs})
    figure.suptitle(f"{name}: {first['dataset']['name']}, {where}; {'one seed' if n == 1 else f'mean and range of {n} seeds'}", fontsize=9)
    for suffix in ("svg", "png"):
        figure.savefig(out.with_suffix(f".{suffix}"), dpi=130, metadata={"Date": None} if suffix == "svg" else None)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
