"""What a sweep is made of, once every job of it has been checked (commands/plan.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from easgd_cli.experiment.build import Outline
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps.objective import Objective


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep. `words` are its settings, as after `easgd train`; its directory is named by those that
    differ.

    `steps`: local steps of each worker, None where minutes end it. `memory`: bytes it needs at its peak, beside its
    processes.
    """

    words: list[str]
    name: str
    outline: Outline
    steps: int | None
    memory: int

    @property
    def settings(self) -> Settings:
        return self.outline.settings


@dataclass(frozen=True)
class Plan:
    """A sweep whose every job can run."""

    root: Path
    fixed: dict[str, str]  # overrides that all jobs share, by key
    varying: list[str]  # keys that are swept
    named: bool  # whether sweep= chose the directory
    at_once: str  # how many jobs at a time
    retry: bool  # whether those that failed before are tried again
    report: str | None  # the options of the report at its end, None for no report
    jobs: list[SweepJob]
    left_out: list[tuple[str, str]]  # what is said of combinations that cannot run, and why they cannot
    launcher: str  # Hydra's: basic, which is to say ours, or a plugin's
    sweeper: str  # the same
    objective: Objective | None  # where a sweeper draws the values, and there are no jobs yet: what it minimises

    @property
    def basic(self) -> bool:
        """Whether easgd runs the jobs itself."""
        return self.launcher == self.sweeper == "basic"

    @property
    def plugins(self) -> str:
        """Hydra's plugins that it is left to, as they are asked for."""
        asked = (("launcher", self.launcher), ("sweeper", self.sweeper))
        return " ".join(f"hydra/{part}={option}" for part, option in asked if option != "basic")
