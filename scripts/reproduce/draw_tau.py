"""Draws the final error of the center against tau from a sweep directory: draw_tau.py SWEEP OUT (writes OUT.svg,
OUT.png).
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"easgd": "#0072B2", "eamsgd": "#009E73", "downpour": "#D55E00"}  # Okabe and Ito: told apart by all eyes
MARKERS = {"easgd": "o", "eamsgd": "s", "downpour": "^"}


def main(sweep: Path, out: Path) -> None:
    errors: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(sweep.glob("*/summary.json")):
        run = json.loads(path.read_text())
        if run["status"] in ("completed", "diverged"):
            errors[run["algo"]][run["tau"]].append(run["center"]["test_error"])
    if not errors:
        sys.exit(f"{sweep} holds no finished run.")
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "easgd"})
    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    # side by side, so that ranges do not hide each other
    for shift, (algo, by_tau) in zip((0.94, 1.0, 1.06), errors.items(), strict=False):
        taus = sorted(by_tau)
        means = [statistics.mean(by_tau[t]) for t in taus]
        spread = [
            [m - min(by_tau[t]) for t, m in zip(taus, means, strict=True)],
            [max(by_tau[t]) - m for t, m in zip(taus, means, strict=True)],
        ]
        axes.errorbar(
            [shift * t for t in taus],
            means,
            yerr=spread,
            color=COLOURS[algo],
            marker=MARKERS[algo],
            capsize=3,
            label=algo.upper(),
        )
        for t, m in zip(taus, means, strict=True):
            print(f"{algo:9} tau={t:<3} {m:6.2f} %   ({', '.join(f'{e:.2f}' for e in by_tau[t])})")
    n = {len(e) for by_tau in errors.values() for e in by_tau.values()}
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({t for by_tau in errors.values() for t in by_tau})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_ylim(0.15, 110)
    axes.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20, 50, 90], ["0.2", "0.5", "1", "2", "5", "10", "20", "50", "90"])
    axes.minorticks_off()
    axes.set_xlabel(r"communication period $\tau$ (local steps)")
    axes.set_ylabel("test error of the center (%)")
    axes.set_title(
        f"digits, 4 virtual workers, 600 steps each; mean and range of {'-'.join(map(str, sorted(n)))} seeds",
        fontsize=9,
    )
    axes.grid(True, color="0.9")
    axes.legend(frameon=False)
    for suffix in ("svg", "png"):
        figure.savefig(out.with_suffix(f".{suffix}"), dpi=160, metadata={"Date": None} if suffix == "svg" else None)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
