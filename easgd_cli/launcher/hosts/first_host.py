"""Which workers and masters of a run are on its first host: the first ones by number. All others are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from easgd_cli.launcher.hosts.world import world
from easgd_cli.settings.schema import Settings

if TYPE_CHECKING:
    from easgd_cli.experiment.build import Experiment


@dataclass(frozen=True)
class FirstHost:
    """The first host has so many `workers` and `masters`. `entries`: those of vectors that its masters own;
    `elsewhere`: the number of masters on other hosts.
    """

    workers: int
    masters: int = 1
    entries: slice = field(default_factory=lambda: slice(None))
    elsewhere: int = 0


def workers_here(here: int | None) -> int:
    """Returns the first host's workers: `here` if given, else as many as torchrun or SLURM started there, or one."""
    started = world()
    return here if here is not None else 1 if started is None else started.local_size


def masters_elsewhere(s: Settings) -> int:
    """Returns the number of masters on other hosts."""
    here = s.launcher.get("masters_here")
    return 0 if here is None else s.masters - int(here)


def entries_here(experiment: Experiment) -> slice:
    """Returns the entries of vectors that the masters of the first host own."""
    elsewhere = masters_elsewhere(experiment.settings)
    return slice(0, experiment.slices[-elsewhere].start) if elsewhere else slice(None)
