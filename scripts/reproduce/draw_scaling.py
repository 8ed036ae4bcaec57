"""Draws samples a second against the number of workers, and prints each beside its closed form: draw_scaling.py DIR
OUT.svg.
"""

import json
import sys
from pathlib import Path

import yaml

from easgd_cli import picture

C, M, LATENCY, SERVICE = 0.092, 8 / 650, 1e-4, 3e-4  # configs/launcher/cluster_1g.yaml: a step, a vector on a link
LABELS = {
    ("easgd", "master"): "EASGD, tau=10, one center", ("eamsgd", "master"): "EAMSGD, tau=10, one center",
    ("diloco", "master"): "DiLoCo, tau=100, one master", ("diloco", "ring"): "DiLoCo, tau=100, ring",
    ("allreduce", "master"): "all-reduce, one master", ("allreduce", "ring"): "all-reduce, ring",
}  # fmt: skip


def expected(algo: str, rounds: str, p: int, tau: int) -> float:
    """Seconds of tau steps of a worker, where all steps take as long."""
    if algo in ("easgd", "eamsgd"):  # a worker's own, the exchange behind a gradient; the link's; the master's
        return max((tau - 1) * C + max(C, 2 * (M + LATENCY) + SERVICE), p * M, p * SERVICE)
    if rounds == "master":
        exchange = 2 * p * M + 2 * LATENCY + p * SERVICE
    else:
        exchange = 2 * (p - 1) * (M / p + LATENCY) + SERVICE
    return tau * C + exchange


def main(directory: Path, out: Path) -> None:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for path in sorted(directory.glob("*/*/summary.json")):
        run = json.loads(path.read_text())
        rounds = yaml.safe_load((path.parent / "config.yaml").read_text())["launcher"]["rounds"]
        found.setdefault((run["algo"], rounds), {})[run["workers"]] = run["samples_per_second"]
        form = (
            run["workers"] * run["tau"] * run["batch_size"] / expected(run["algo"], rounds, run["workers"], run["tau"])
        )
        ratio = run["samples_per_second"] / form
        print(f"{LABELS[run['algo'], rounds]:30} p={run['workers']:<5} {run['samples_per_second']:12,.0f} samples/s, "
              f"{ratio:.3f} of the closed form")  # fmt: skip
    with picture.style():
        figure = picture.Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        most = sorted({p for by_p in found.values() for p in by_p})
        axes.plot(most, [p * 128 / C for p in most], color="0.7", linestyle=":", label="no communication")
        for (key, by_p), colour in zip(found.items(), picture.COLOURS, strict=False):
            dashed = "--" if key[0] == "eamsgd" else "-"
            axes.plot(sorted(by_p), [by_p[p] for p in sorted(by_p)], dashed, color=colour, marker="o", markersize=3,
                      label=LABELS[key])  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="samples a second, of all workers")
        axes.set_xticks(most, [f"{p:,}" for p in most])
        axes.minorticks_off()
        axes.legend(fontsize=7)
        figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
