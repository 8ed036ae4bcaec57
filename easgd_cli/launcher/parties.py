"""The parties of a run beside its launcher, and what its supervisor asks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from easgd_cli.launcher.snapshot_queue import Snapshot

MASTER: Final = "master"
EVALUATOR: Final = "evaluator"
Party = int | Literal["master", "evaluator"]  # a worker is its number


def title(party: Party) -> str:
    """For a sentence."""
    return f"worker {party}" if isinstance(party, int) else f"the {party}"


@dataclass(frozen=True)
class Begin:
    """Everybody is ready: training begins."""


@dataclass(frozen=True)
class Stop:
    """These workers finish their step and say their final state; in rounds the master gives back what waits for one."""

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
class StartEvaluator:
    """There is none, and there is something to measure."""


@dataclass(frozen=True)
class Measure:
    """The evaluator measures this snapshot."""

    snapshot: Snapshot


Command = Begin | Stop | Wake | Kill | TakeSnapshot | TakeCheckpoint | StartEvaluator | Measure


@dataclass(frozen=True)
class Patience:
    """Seconds that a party may take.

    `interrupted`: over its last step when the user waits; `usual`: when nobody does, and over its part of a checkpoint.
    The master may take a third of that longer. What is left of 10 s after a signal is for writing.
    """

    interrupted: float = 6.0
    usual: float = 60.0
