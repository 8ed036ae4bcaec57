"""What of a run is on its first host: workers and masters, the first of each. All others are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from easgd_cli.launcher.hosts.world import world
from easgd_cli.settings.schema import Settings

if TYPE_CHECKING:
    from easgd_cli.experiment.build import Experiment


@dataclass(frozen=True)
class FirstHost:
    """So many `workers` and `masters`; `entries`: of vectors, those of its masters; `elsewhere`: how many masters are
    not there.
    """

    workers: int
    masters: int = 1
    entries: slice = field(default_factory=lambda: slice(None))
    elsewhere: int = 0


def workers_here(here: int | None) -> int:
    """How many there are, if so many are asked for."""
    started = world()
    return here if here is not None else 1 if started is None else started.local_size


def masters_elsewhere(s: Settings) -> int:
    """How many masters are not there."""
    here = s.launcher.get("masters_here")
    return 0 if here is None else s.masters - int(here)


def entries_here(experiment: Experiment) -> slice:
    """Of vectors, those of the masters there."""
    elsewhere = masters_elsewhere(experiment.settings)
    return slice(0, experiment.slices[-elsewhere].start) if elsewhere else slice(None)
