"""A checkpoint of which the parts are still being said."""

from __future__ import annotations

from dataclasses import dataclass, field

from easgd_cli.record.checkpoint import OwnerState, WorkerState


@dataclass
class PendingCheckpoint:
    """`lead`: the worker in whose session the mark for the master travels; `begun`: the second of training at which it was asked for."""

    lead: int
    begun: float
    workers: dict[int, WorkerState] = field(default_factory=dict)
    owner: OwnerState | None = None
