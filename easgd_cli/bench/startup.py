"""The time from the command to the first step of every worker, as a user waits for it, in a new process."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from easgd_cli.bench.measure import spread
from easgd_cli.errors import RunError
from easgd_cli.record.reader import read_rows
from easgd_cli.system.files import scratch_directory

_TARGET = 3.0  # seconds, for 8 workers


@dataclass(frozen=True)
class Startup:
    """Seconds until all `workers` have taken their first step: median, least and greatest of several commands."""

    what: str
    workers: int
    seconds: float
    least: float
    greatest: float
    windows: int
    target: float | None

    def columns(self) -> dict[str, str]:
        """Returns the cells of a table's row, by heading."""
        return {
            "s": f"{self.seconds:.2f}", "range": f"{self.least:.2f} to {self.greatest:.2f}", "times": str(self.windows),
            "target": "" if self.target is None else f"<= {self.target:g}",
        }  # fmt: skip


def run(overrides: list[str], workers: int, windows: int) -> Startup:
    """Measures the startup `windows` times. Raises RunError when a run fails."""
    seconds = [_seconds_to_first_steps(overrides, workers) for _ in range(windows)]
    what = f"command to the first step of every one of {workers} worker{'s' if workers > 1 else ''}"
    target = _TARGET if workers == 8 else None
    return Startup(what, workers, *spread(seconds), windows, target)


def _seconds_to_first_steps(overrides: list[str], workers: int) -> float:
    """Runs `easgd train` for one step; returns the seconds until the last worker had taken it. Raises RunError."""
    with scratch_directory() as directory:
        run = directory / "run"
        began = time.time()
        command = [sys.executable, "-m", "easgd_cli", "train", *overrides, "steps=1", f"hydra.run.dir={run}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RunError(f"{' '.join(command)}: {done.stderr.strip()}")
        log = (run / "logs" / "launcher.log").read_text()
        found = re.search(r"^(\S+ \S+) INFO training begins$", log, re.MULTILINE)
        assert found is not None
        training = datetime.datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        rows = list(read_rows(run / "metrics.jsonl"))
        first = {
            r["party"]: r["seconds"] for r in reversed(rows) if r["party"].startswith("worker_") and r["step"] >= 1
        }
        assert len(first) == workers
        return training - began + max(first.values())
