"""Prints predicted and measured wall-clock of the runs of scripts/reproduce/calibration: calibration_table.py
DIRECTORY.
"""

import json
import statistics
import sys
from pathlib import Path

SETTINGS = (
    "easgd:1",
    "easgd:4",
    "easgd:10",
    "easgd:64",
    "easgd:10:long",
    "eamsgd:10",
    "downpour:1",
    "downpour:4",
    "mdownpour:1",
)


def main(directory: Path) -> None:
    def seconds(name: str) -> float:
        found = directory / name / "summary.json"
        return float(json.loads(found.read_text())["wall_seconds"])

    for net in ("digits", "cifar"):
        for setting in SETTINGS:
            measured = [seconds(f"local_{net}_{setting}_{n}") for n in (1, 2, 3)]
            line = f"{net} {setting}: {statistics.median(measured):.2f} s ({min(measured):.2f} to {max(measured):.2f})"
            for source in ("downpour:1", "easgd:10"):
                predicted = [seconds(f"simulated_{net}_{setting}_{n}_{source}") for n in (1, 2, 3)]
                ratios = [p / m for p, m in zip(predicted, measured, strict=True)]
                line += f"; from {source} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            print(line)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
