"""The parties of a run beside its launcher, and their names."""

from __future__ import annotations

from typing import Final, Literal

from easgd_cli.record.metrics import worker_name

MASTER: Final = "master"
EVALUATOR: Final = "evaluator"
Party = int | Literal["master", "evaluator"]  # a worker is its number
ProcessName = int | str  # a party; of several masters each beside the first has a name of its own


def master_at(place: int) -> ProcessName:
    """Returns the name of the master at that place among several, which are one party."""
    return MASTER if place == 0 else f"{MASTER}_{place}"


def place_of(master: str) -> int:
    """Returns the place of the master of that name."""
    return 0 if master == MASTER else int(master.removeprefix(f"{MASTER}_"))


def party_of(process: ProcessName) -> Party:
    """Returns the party to which this process belongs."""
    return process if isinstance(process, int) else EVALUATOR if process == EVALUATOR else MASTER


def title(party: Party) -> str:
    """Returns the party's name for a sentence."""
    return f"worker {party}" if isinstance(party, int) else f"the {party}"


def title_in_files(process: ProcessName) -> str:
    """Returns the name of the process in records and logs."""
    return worker_name(process) if isinstance(process, int) else process


def title_on_hosts(process: ProcessName) -> str:
    """Returns the name of the process on its host's terminal, and in what is said of that host."""
    return f"worker {process}" if isinstance(process, int) else process
