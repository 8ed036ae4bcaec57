"""The plan of a sweep, made once every job has been checked (commands/plan.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from easgd_cli.experiment.build import Outline
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps.objective import Objective


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep. `words`: its settings, as after `easgd train`; `name`: its directory's name, made of the
    settings in which jobs differ.

    `steps`: local steps of each worker, None where minutes end the run. `memory`: bytes that the run needs at its peak,
    beside the processes' own.
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
    named: bool  # True if sweep= chose the directory
    at_once: str  # how many jobs run at a time, or auto
    retry: bool  # True if jobs that failed before are tried again
    report: str | None  # the options of the report at its end, None for no report
    jobs: list[SweepJob]
    left_out: list[tuple[str, str]]  # combinations of settings that cannot run, in words, and why
    launcher: str  # the option of hydra/launcher: basic, for easgd's own, or a plugin's
    sweeper: str  # the option of hydra/sweeper, likewise
    objective: Objective | None  # what a plugin's sweeper minimises, which draws the jobs itself; else None

    @property
    def basic(self) -> bool:
        """True if easgd runs the jobs itself."""
        return self.launcher == self.sweeper == "basic"

    @property
    def plugins(self) -> str:
        """The words of the command that name Hydra's plugins."""
        asked = (("launcher", self.launcher), ("sweeper", self.sweeper))
        return " ".join(f"hydra/{part}={option}" for part, option in asked if option != "basic")
