"""The parties of a run beside its launcher, and what its supervisor asks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from easgd_cli.launcher.journal.snapshot_queue import Snapshot
from easgd_cli.record.metrics import worker_name

MASTER: Final = "master"
EVALUATOR: Final = "evaluator"
Party = int | Literal["master", "evaluator"]  # a worker is its number
Process = int | str  # the same, and by names of their own what masters there are beside the first


def master_at(place: int) -> Process:
    """The master at that place among several; they are one party."""
    return MASTER if place == 0 else f"{MASTER}_{place}"


def place_of(master: str) -> int:
    """Of the master of that name."""
    return 0 if master == MASTER else int(master.removeprefix(f"{MASTER}_"))


def party_of(process: Process) -> Party:
    """Whose process this is."""
    return process if isinstance(process, int) else EVALUATOR if process == EVALUATOR else MASTER


def title(party: Party) -> str:
    """For a sentence."""
    return f"worker {party}" if isinstance(party, int) else f"the {party}"


def title_in_files(party: Party) -> str:
    """As it is called in records and logs."""
    return worker_name(party) if isinstance(party, int) else party


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


@dataclass
class Lives:
    """How often a party may be started again, `limit` times in a row without getting further between two deaths."""

    limit: int
    deaths: int = 0
    reached: float = -1.0  # at its last death
    all: int = 0  # how often it has been started again

    def again(self, reached: float) -> bool:
        """It has died, having `reached` so much; whether it is started again."""
        self.deaths = 1 if reached > self.reached else self.deaths + 1
        self.reached = reached
        alive = self.deaths <= self.limit
        self.all += alive
        return alive


@dataclass(frozen=True)
class Patience:
    """Seconds that a party may take.

    `interrupted`: over its last step when the user waits; `usual`: when nobody does, and over its part of a checkpoint.
    The master may take a third of that longer. What is left of 10 s after a signal is for writing.
    """

    interrupted: float = 6.0
    usual: float = 60.0
