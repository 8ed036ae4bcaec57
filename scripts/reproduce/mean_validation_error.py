"""Prints the mean error on held-out images at the end of every setting of a sweep: mean_validation_error.py SWEEP."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import yaml


def main(sweep: Path) -> None:
    errors: dict[tuple[str, float, float], list[float]] = defaultdict(list)
    for path in sorted(sweep.glob("*/summary.json")):
        run, config = json.loads(path.read_text()), yaml.safe_load((path.parent / "config.yaml").read_text())
        error = run["center"].get("validation_error")
        errors[run["algo"], config["eta"], config["delta"]].append(100.0 if error is None else error)
    for (algo, eta, delta), found in sorted(errors.items(), key=lambda item: statistics.mean(item[1])):
        print(
            f"{algo:10} eta={eta:<7g} delta={delta:<5g} {statistics.mean(found):6.2f} %   "
            f"({', '.join(f'{e:.2f}' for e in sorted(found))})"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
