"""Sweepers and launchers of Hydra's other than its basic ones: Hydra runs the sweep, after the same checks."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from easgd_cli import interruption, rundir
from easgd_cli.commands import arguments, configs, running
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.plan import Plan
from easgd_cli.errors import RunError


def run(plan: Plan, asked: Arguments) -> int:
    """Has Hydra run the jobs; returns the exit status. Raises RunError when one failed."""
    words = [o for o in asked.overrides if not o.startswith(("hydra.sweep.dir=", "hydra.mode=", "sweep=", "jobs="))]
    with running.unchanged_process(), interruption.raised():
        sys.argv = ["easgd", "--config-name", asked.config_name, "--multirun", *words, f"hydra.sweep.dir={arguments.quote(str(plan.root.absolute()))}"]
        os.environ["HYDRA_FULL_ERROR"] = "1"
        hydra.main(config_path=str(configs.directory()), config_name=asked.config_name, version_base="1.3")(hydra_job)()
    print(f"The sweep is in {plan.root}; to look at it: {running.looked_at(str(plan.root))}", flush=True)
    return 0


def hydra_job(_: DictConfig) -> float | None:
    """One job in the hands of a sweeper or launcher of Hydra's: a run in a process of its own.

    It may be called in a thread or in another library's worker process, where neither signals nor multiprocessing are as a
    launcher needs them. Returns the best test error of the center, or where the problem has none its last train_loss,
    for a sweeper to minimise. Raises RunError when it failed.
    """
    info = HydraConfig.get()
    path = Path(info.runtime.output_dir)
    with suppress(OSError):
        path.rmdir()  # Hydra has made it; the run makes its own, or the next that is free
    words = [*info.overrides.task, f"hydra.run.dir={arguments.quote(str(path))}"]
    if info.searchpath:
        words.append(f"hydra.searchpath=[{','.join(arguments.quote(p) for p in info.searchpath)}]")
    command = [sys.executable, "-m", "easgd_cli", "train", "--config-name", str(info.job.config_name), *words]
    status = subprocess.run(command, cwd=info.runtime.cwd, check=False).returncode
    ran = list(itertools.takewhile(Path.exists, rundir.candidates(path)))[-1]
    if status:
        raise RunError(f"{ran}: ended with status {status}; its logs and summary.json say more.")
    center = rundir.summary_of(ran).get("center") or {}
    return center.get("best_test_error", center.get("train_loss"))
