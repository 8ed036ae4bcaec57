"""What the supervisor asks of whoever drives it."""

from __future__ import annotations

from dataclasses import dataclass

from easgd_cli.launcher.journal.snapshot_queue import Snapshot
from easgd_cli.launcher.supervisor.parties import Party


@dataclass(frozen=True)
class Begin:
    """Everybody is ready: training begins."""


@dataclass(frozen=True)
class Stop:
    """These workers finish their step and say their final state; the master gives back what waits for a round, or for
    the closing exchange.
    """

    workers: tuple[int, ...]


@dataclass(frozen=True)
class Wake:
    """The run is to end, and whoever has been stopped is to run again, to say what it has."""


@dataclass(frozen=True)
class Kill:
    """This party is ended at once."""

    party: Party


@dataclass(frozen=True)
class TakeSnapshot:
    """The owner of what is evaluated takes a snapshot of it now."""


@dataclass(frozen=True)
class TakeCheckpoint:
    """These workers say their state; the owner its own, at the mark of the worker `lead` in the order of requests.

    Without a lead the master takes it with its next round, whose members say theirs.
    """

    workers: tuple[int, ...]
    lead: int | None


@dataclass(frozen=True)
class StartWorker:
    """This worker was lost. It is started again, to come back with the center as it is then, its clock being `t`, or
    NEW where it has not been there before.
    """

    worker: int
    t: int


@dataclass(frozen=True)
class GiveUpWorker:
    """This worker was lost, and does not come back: its master waits for it no longer."""

    worker: int


@dataclass(frozen=True)
class StartMaster:
    """The master was lost. Another goes on with its center. `stopped`: no round comes any more."""

    stopped: bool


@dataclass(frozen=True)
class StartEvaluator:
    """There is none, and there is something to measure."""


@dataclass(frozen=True)
class Measure:
    """The evaluator measures this snapshot."""

    snapshot: Snapshot


Command = (
    Begin
    | Stop
    | Wake
    | Kill
    | TakeSnapshot
    | TakeCheckpoint
    | StartWorker
    | GiveUpWorker
    | StartMaster
    | StartEvaluator
    | Measure
)
