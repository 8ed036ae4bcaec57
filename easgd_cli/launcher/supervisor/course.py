"""What a run's supervisor and its parts know together: what is planned, and how far the run is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.record.checkpoint import OwnerState
from easgd_cli.training.snapshot import Moment, Pace


@dataclass(frozen=True)
class Patience:
    """Seconds that a party may take.

    `interrupted`: over its last step when the user waits; `usual`: when nobody does, and over its part of a checkpoint.
    The master may take a third of that longer. What is left of 10 s after a signal is for writing.
    """

    interrupted: float = 6.0
    usual: float = 60.0


@dataclass(frozen=True)
class Plan:
    """What a supervisor has to know of a run beforehand.

    `has_master`: a master owns what is evaluated, else worker 0 does, and several need one another.
    `asks_for_snapshots`: whenever the evaluator is free, else the owner takes them by itself; `deferred`: they are
    measured at the end. `patience`: None where nobody can be silent. `max_restarts`: how often in a row a worker or the
    master that dies is started again; `master_returns`: whether a master is.
    """

    has_master: bool
    in_rounds: bool
    asks_for_snapshots: bool
    deferred: bool
    checkpoint_pace: Pace
    system_rows: SystemRows
    patience: Patience | None
    max_restarts: int = 0
    master_returns: bool = True
    least: int | None = None  # workers with which training begins without those that have no host; None: all
    rejoins: int = 0  # how often in a row a worker whose gradient is not finite goes back to the center


@dataclass
class Course:
    """How far a run is. `now`: the second of training; `told`: where the owner of what is evaluated last said it was;
    `final`: its last word, and `before`: the same before the closing exchange, of a method that has one; `over`:
    nothing more is to come.
    """

    told: Moment
    now: float
    began: bool = False
    over: bool = False
    final: OwnerState | None = None
    before: OwnerState | None = None

    @property
    def moment(self) -> Moment:
        """Where the owner last said it was, now."""
        return replace(self.told, seconds=max(self.now, self.told.seconds))
