"""From the command to the first step of every worker: as a user waits for it, in a fresh process."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import time

from easgd_cli.scratch import scratch_directory


def seconds_to_first_steps(overrides: list[str], workers: int) -> float:
    """Runs `easgd train` with these overrides for one step and returns the seconds until the last worker had taken it.

    Raises RuntimeError when the run fails.
    """
    with scratch_directory() as directory:
        run = directory / "run"
        began = time.time()
        command = [sys.executable, "-m", "easgd_cli", "train", *overrides, "steps=1", f"hydra.run.dir={run}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        log = (run / "logs" / "launcher.log").read_text()
        found = re.search(r"^(\S+ \S+) INFO training begins$", log, re.MULTILINE)
        assert found is not None
        training = datetime.datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        first = {r["party"]: r["seconds"] for r in reversed(rows) if r["party"].startswith("worker_") and r["step"] >= 1}
        assert len(first) == workers
        return training - began + max(first.values())
