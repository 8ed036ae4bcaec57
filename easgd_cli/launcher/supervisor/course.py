"""What a supervisor shares with its parts: the plan of the run, and how far the run is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.record.checkpoint import OwnerState
from easgd_cli.training.snapshot import Moment, Pace


@dataclass(frozen=True)
class Patience:
    """Seconds that a party may take.

    `interrupted`: for its last step after a signal, when the user waits; `usual`: for its last step otherwise, and for
    its part of a checkpoint. The master may take a third longer. The rest of 10 s after a signal is for writing.
    """

    interrupted: float = 6.0
    usual: float = 60.0


@dataclass(frozen=True)
class Plan:
    """What a supervisor has to know of a run beforehand.

    `has_master`: whether a master owns what is evaluated; else worker 0 does, and no worker can go on without the
    others. `asks_for_snapshots`: whether the supervisor asks for one whenever the evaluator is free; else the owner
    takes them by itself. `deferred`: whether they are measured after training. `patience`: None where no party can be
    silent. `max_restarts`: how often in a row a worker or the master that dies is started again; `master_returns`:
    False where a master is not.
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
    """How far a run is. `now`: the second of training; `told`: the last moment that the owner of what is evaluated has
    reported; `final`: the owner's last state; `before`: its state before the closing exchange, in a method that has
    one; `over`: whether nothing more is to come.
    """

    told: Moment
    now: float
    began: bool = False
    over: bool = False
    final: OwnerState | None = None
    before: OwnerState | None = None

    @property
    def moment(self) -> Moment:
        """The owner's last reported moment, with the present second."""
        return replace(self.told, seconds=max(self.now, self.told.seconds))
