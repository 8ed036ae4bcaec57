"""A checkpoint being gathered from the processes of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from easgd_cli.record.checkpoint import OwnerState, WorkerState


@dataclass
class Cut:
    """`lead`: the worker in whose session the mark for the master travels; `begun`: when it was asked for, on the monotonic clock."""

    lead: int
    begun: float
    workers: dict[int, WorkerState] = field(default_factory=dict)
    owner: OwnerState | None = None
