"""Plugins of Hydra's that easgd is tested with, each an extra of the package, and what they need."""

from __future__ import annotations

import importlib.util
import shutil

from omegaconf import DictConfig

from easgd_cli.errors import UsageError

# An option of hydra/launcher or hydra/sweeper, the extra that brings it, and its module.
_EXTRAS = {
    ("launcher", "joblib"): ("joblib", "hydra_joblib_launcher"),
    ("launcher", "submitit_local"): ("slurm", "hydra_submitit_launcher"),
    ("launcher", "submitit_slurm"): ("slurm", "hydra_submitit_launcher"),
    ("sweeper", "optuna"): ("optuna", "hydra_optuna_sweeper"),
}
LAUNCHERS = [option for part, option in _EXTRAS if part == "launcher"]


def check(launcher: str, sweeper: str) -> None:
    """Raises UsageError where one of these two plugins is not installed, or SLURM is missing on this machine."""
    refuse_missing("launcher", launcher)
    refuse_missing("sweeper", sweeper)
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UsageError(
            "hydra/launcher=submitit_slurm: there is no sbatch on this machine, so no SLURM to hand jobs to; "
            "start it where one is, or leave the launcher out."
        )


def tasks(config: DictConfig) -> int:
    """Returns how many SLURM tasks each job of a sweep has, by the configuration that Hydra has composed."""
    launcher = config.hydra.launcher
    return int(launcher.get("nodes", 1)) * int(launcher.get("tasks_per_node", 1))


def refuse_missing(part: str, option: str) -> None:
    """Raises UsageError where hydra/`part`=`option` needs an extra that is not installed."""
    extra, module = _EXTRAS.get((part, option), (None, None))
    if extra is not None and not _installed(f"hydra_plugins.{module}"):
        raise UsageError(
            f"hydra/{part}={option}: needs a plugin of Hydra's that is not installed; install it with pip install "
            f"'easgd[{extra}]'."
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # there is no hydra_plugins at all
        return False
