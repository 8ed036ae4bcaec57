"""A checkpoint whose parts are still being collected."""

from __future__ import annotations

from dataclasses import dataclass, field

from easgd_cli.record.checkpoint import OwnerState, WorkerState


@dataclass
class PendingCheckpoint:
    """`begun`: the second of training at which it was asked for; `lead`: the worker in whose session the mark for the
    owner travels; `asked`: the workers whose parts are waited for; `said`, `owner`: the parts that are there.

    Without a lead the checkpoint is one of a round: all its parts are of the same clock of the center.
    """

    begun: float
    lead: int | None
    asked: set[int]
    said: dict[int, WorkerState] = field(default_factory=dict)
    owner: OwnerState | None = None

    def say(self, worker: int, state: WorkerState, final: bool) -> bool:
        """Takes a worker's part. Returns whether the checkpoint can still become whole: it cannot where the lead ends
        without having made its mark.

        A worker's last state does not replace the part that it has said: the worker may have gone on since.
        """
        if final and worker in self.said:
            return True
        self.said[worker] = state
        return not final or self.can_lose(worker)

    def can_lose(self, worker: int) -> bool:
        """Returns whether the checkpoint can become whole without that worker: the lead is needed until its mark has
        brought the owner's part.
        """
        return worker != self.lead or self.owner is not None

    def parts(self) -> dict[int, WorkerState]:
        """Returns the workers' parts that belong to the owner's. In rounds others are left out: an earlier mark, of a
        checkpoint that was given up, may come late.
        """
        if self.lead is not None or self.owner is None:
            return self.said
        return {worker: state for worker, state in self.said.items() if state.center_clock == self.owner.clock}
