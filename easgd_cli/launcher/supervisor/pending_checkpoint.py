"""A checkpoint of which the parts are still being said."""

from __future__ import annotations

from dataclasses import dataclass, field

from easgd_cli.record.checkpoint import OwnerState, WorkerState


@dataclass
class PendingCheckpoint:
    """`begun`: the second of training at which it was asked for; `lead`: the worker in whose session the mark for the
    owner travels; `asked`: the workers whose parts are waited for.

    Without a lead it is one of a round: all parts are of the same clock of the center.
    """

    begun: float
    lead: int | None
    asked: set[int]
    said: dict[int, WorkerState] = field(default_factory=dict)
    owner: OwnerState | None = None

    def say(self, worker: int, state: WorkerState, final: bool) -> bool:
        """A worker's part. Returns whether the checkpoint can still be whole: a lead that ends without its part has
        made no mark.

        The last state of a worker that has said its part does not replace it: it may have gone on since.
        """
        if final and worker in self.said:
            return True
        self.said[worker] = state
        return not final or self.can_lose(worker)

    def can_lose(self, worker: int) -> bool:
        """Whether it can be whole without that worker: somebody has to mark its place in the order of requests."""
        return worker != self.lead or self.owner is not None

    def parts(self) -> dict[int, WorkerState]:
        """Those that belong to the owner's. In rounds an earlier mark, of a checkpoint that was given up, may come
        late.
        """
        if self.lead is not None or self.owner is None:
            return self.said
        return {worker: state for worker, state in self.said.items() if state.center_clock == self.owner.clock}
