"""The commands that the supervisor gives its driver."""

from __future__ import annotations

from dataclasses import dataclass

from easgd_cli.launcher.journal.snapshot_queue import Snapshot
from easgd_cli.launcher.supervisor.parties import Party


@dataclass(frozen=True)
class Begin:
    """Begins training: the parties are ready."""


@dataclass(frozen=True)
class Stop:
    """Has these workers finish their step and say their final state; the master gives back messages that wait for a
    round, or for the closing exchange.
    """

    workers: tuple[int, ...]


@dataclass(frozen=True)
class Wake:
    """Lets stopped processes (SIGSTOP) run again, since the run is to end and they have to say their states."""


@dataclass(frozen=True)
class Kill:
    """Ends this party at once."""

    party: Party


@dataclass(frozen=True)
class TakeSnapshot:
    """Has the owner of what is evaluated take a snapshot now."""


@dataclass(frozen=True)
class TakeCheckpoint:
    """Has these workers say their states, and the owner its own, at the mark of the worker `lead` in the order of
    requests. Without a lead the master says its state after its next round, whose members say theirs.
    """

    workers: tuple[int, ...]
    lead: int | None


@dataclass(frozen=True)
class StartWorker:
    """Starts a lost worker again. It comes back with the center of that moment and with the clock `t`; NEW: it has not
    been in the run before.
    """

    worker: int
    t: int


@dataclass(frozen=True)
class GiveUpWorker:
    """Tells the master that a lost worker does not come back, so that nobody waits for it."""

    worker: int


@dataclass(frozen=True)
class StartMaster:
    """Starts another master, which goes on with the center of the lost one. `stopped`: no round comes any more."""

    stopped: bool


@dataclass(frozen=True)
class StartEvaluator:
    """Starts an evaluator: none is running, and one is needed."""


@dataclass(frozen=True)
class Measure:
    """Has the evaluator measure this snapshot."""

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
