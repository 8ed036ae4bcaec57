"""A kill -9 of the master every few seconds of a minute-long run, beside the same run undisturbed: how each ended.

    python scripts/reproduce/master_killed.py [--minutes 1] [--every 5] [METHOD ...]

Prints a line for each run: its status, test error, exchanges, how often the master was started again, and whether its
record gives its center when it is replayed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

METHODS = ("easgd", "eamsgd", "downpour", "sync_easgd")


def easgd(directory: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "easgd_cli", *words], cwd=directory, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def trained(directory: Path, algo: str, minutes: float, every: float | None) -> str:
    """Runs the method for so many minutes, its master killed every so many seconds; says how that ended."""
    name, killed = f"{algo}_{'calm' if every is None else 'killed'}", 0
    words = ["train", f"algo={algo}", "workers=2", "threads=1", f"minutes={minutes:g}", f"hydra.run.dir={name}"]
    command = easgd(directory, *words, "eval.every=5 s", "checkpoint.every=15 s")
    log = directory / name / "logs" / "launcher.log"
    while every is not None and command.poll() is None:
        time.sleep(every)
        found = re.findall(r"INFO master: process (\d+)", log.read_text() if log.exists() else "")
        with suppress(ProcessLookupError):  # it has just ended by itself
            if found and command.poll() is None:
                os.kill(int(found[-1]), signal.SIGKILL)
                killed += 1
    said, _ = command.communicate()
    path = directory / name / "summary.json"
    if not path.exists():
        return f"{name}: {said[-500:]}"
    summary = json.loads(path.read_text())
    same = "not tried"
    if every is not None:
        again, _ = easgd(directory, "train", f"replay={name}", f"hydra.run.dir={name}_again").communicate()
        same = "its center, bit for bit" if "bit for bit" in again else again.strip().splitlines()[-1]
    return (
        f"{name}: status {command.returncode}, {summary['status']}, killed {killed}, "
        f"started again {summary.get('restarts', {}).get('master', 0)}, lost {summary.get('lost', {})}, "
        f"test error {summary['center']['test_error']:.2f} % (best {summary['center']['best_test_error']:.2f} %), "
        f"{sum(summary['steps'].values())} steps, {summary['exchanges']} exchanges; replayed: {same}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="master-killed-") as directory:
        for algo in asked.methods:
            for every in (asked.every, None):
                print(trained(Path(directory), algo, asked.minutes, every), flush=True)


if __name__ == "__main__":
    main()
