"""Prints what a worker of every run waited for communication, beside the paper's Table 4: communication.py SWEEP."""

import json
import sys
from pathlib import Path

TABLE_4 = {  # seconds of 400 steps by (method, tau, p), CIFAR (p. 24)
    ("downpour", 1, 4): 3, ("downpour", 1, 8): 5, ("downpour", 1, 16): 9, ("easgd", 10, 4): 1, ("easgd", 10, 8): 1,
    ("easgd", 10, 16): 1,
}  # fmt: skip


def main(sweep: Path) -> None:
    for run in sorted(
        map(json.loads, (p.read_text() for p in sweep.glob("*/summary.json"))),
        key=lambda r: (r["algo"], r["tau"], r["workers"]),
    ):
        seconds, share = (
            run["seconds"]["communication"],
            100 * run["seconds"]["communication"] / sum(run["seconds"].values()),
        )
        printed = TABLE_4.get((run["algo"], run["tau"], run["workers"]))
        beside = "" if printed is None else f"   Table 4: {printed} s"
        busy = run["communication"]["master_busy"]
        print(
            f"{run['algo']:9} tau={run['tau']:<2} p={run['workers']:<2} waits {seconds:5.2f} s, {share:4.1f} "
            f"% of the time; master busy {busy:3.0f} %{beside}"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
