"""Draws steps a second against the number of workers, and prints each beside its closed form: draw_scaling.py DIR
OUT.svg."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from easgd_cli import picture

C, M, LATENCY, SERVICE = 0.092, 8 / 650, 1e-4, 3e-4  # configs/launcher/cluster_1g.yaml: a step, a vector on a link
PERIODS = {"easgd": 10, "eamsgd": 10, "diloco": 100, "allreduce": 1}
LABELS = {
    ("easgd", "master"): "EASGD, tau=10, one center",
    ("eamsgd", "master"): "EAMSGD, tau=10, one center",
    ("diloco", "ring"): "DiLoCo, tau=100, on a ring",
    ("diloco", "master"): "DiLoCo, tau=100, through one master",
    ("allreduce", "ring"): "all-reduce, on a ring",
    ("allreduce", "master"): "all-reduce, through one master",
}


def expected(algo: str, rounds: str, p: int, tau: int) -> float:
    """Seconds of tau steps of a worker, where all steps take as long."""
    if algo in ("easgd", "eamsgd"):  # a worker's own, an exchange behind a gradient; the link's; the master's
        return max((tau - 1) * C + max(C, 2 * (M + LATENCY) + SERVICE), p * M, p * SERVICE)
    if rounds == "master":
        return tau * C + 2 * p * M + 2 * LATENCY + p * SERVICE
    return tau * C + 2 * (p - 1) * (M / p + LATENCY) + SERVICE


def steps_per_second(run: dict[str, Any], steps: int) -> float:
    """Of all workers. DiLoCo's exchange before the first step, which it has beside one for each period, is left out."""
    rounds = run["exchanges"] / run["workers"]
    beside = (rounds - steps // run["tau"]) * run["seconds"]["communication"] / rounds
    return float(run["workers"] * steps / (run["wall_seconds"] - beside))


def main(directory: Path, out: Path) -> None:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for path in sorted(directory.glob("*/*/summary.json")):
        run = json.loads(path.read_text())
        if run["status"] != "completed":
            continue
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        key, p = (run["algo"], config["launcher"]["rounds"]), run["workers"]
        found.setdefault(key, {})[p] = steps_per_second(run, config["steps"])
    with picture.style():
        figure = picture.new(5.6, 3.4)
        axes = figure.subplots()
        most = sorted({p for by_p in found.values() for p in by_p})
        axes.plot(most, [p / C for p in most], color="0.7", linestyle=":", label="no communication")
        for (key, label), colour in zip(LABELS.items(), picture.COLOURS, strict=True):
            by_p = dict(sorted(found[key].items()))
            for p, rate in by_p.items():
                form = p * PERIODS[key[0]] / expected(*key, p, PERIODS[key[0]])
                print(f"{label:36} p={p:<5} {rate:9,.0f} steps/s, {rate / form:.3f} of the closed form")
            line = "--" if key[0] == "eamsgd" else "-"
            axes.plot(list(by_p), list(by_p.values()), line, color=colour, marker="o", markersize=3, label=label)
        axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="steps a second, of all workers")
        axes.set_xticks(most, [f"{p:,}" for p in most])
        axes.minorticks_off()
        axes.legend(fontsize=7)
        picture.save(figure, out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
