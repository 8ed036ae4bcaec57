"""The parties of a run beside its launcher: how they are known and called."""

from __future__ import annotations

from typing import Final, Literal

from easgd_cli.record.metrics import worker_name

MASTER: Final = "master"
EVALUATOR: Final = "evaluator"
Party = int | Literal["master", "evaluator"]  # a worker is its number
ProcessName = int | str  # the same, and of each master beside the first a name of its own


def master_at(place: int) -> ProcessName:
    """The master at that place among several; they are one party."""
    return MASTER if place == 0 else f"{MASTER}_{place}"


def place_of(master: str) -> int:
    """Of the master of that name."""
    return 0 if master == MASTER else int(master.removeprefix(f"{MASTER}_"))


def party_of(process: ProcessName) -> Party:
    """Whose process this is."""
    return process if isinstance(process, int) else EVALUATOR if process == EVALUATOR else MASTER


def title(party: Party) -> str:
    """For a sentence."""
    return f"worker {party}" if isinstance(party, int) else f"the {party}"


def title_in_files(process: ProcessName) -> str:
    """As it is called in records and logs."""
    return worker_name(process) if isinstance(process, int) else process


def title_on_hosts(process: ProcessName) -> str:
    """As it is called on the terminal of its host, and where that is told of."""
    return f"worker {process}" if isinstance(process, int) else process
