"""The workers of a run as its supervisor knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easgd_cli.record.checkpoint import WorkerState
from easgd_cli.training.mean_clock import MeanClock
from easgd_cli.training.snapshot import Moment


@dataclass
class Member:
    """A worker: its clock `t` as last reported, and how it ended."""

    t: int
    ready: bool = False
    final: WorkerState | None = None  # its last state, once it has said it
    silent: bool = False  # killed, since it did not stop when told to
    lost: str | None = None  # how it was lost, None: it is not
    away: bool = False  # lost, and expected back
    new: bool = False  # it has not been in the run yet
    returns: int = 0  # how often it has come back

    @property
    def live(self) -> bool:
        return self.final is None and self.lost is None


class Members(dict[int, Member]):
    """All workers by number. `alive`: how many are not lost; `homeless`: the workers without a host."""

    def __init__(self, moment: Moment):
        super().__init__({worker: Member(t) for worker, t in moment.clocks.items()})
        self.homeless: frozenset[int] = frozenset()
        self._mean = MeanClock(moment.clocks.values(), moment.step)

    @property
    def alive(self) -> int:
        return self._mean.workers

    @property
    def step(self) -> float:
        """Mean local step of the workers that are not lost. It never decreases."""
        return self._mean.step

    @property
    def live(self) -> tuple[int, ...]:
        """Numbers of the workers that still train."""
        return tuple(worker for worker, m in self.items() if m.live)

    @property
    def finals(self) -> dict[int, WorkerState]:
        """The last states of the workers that have said them."""
        return {worker: m.final for worker, m in self.items() if m.final is not None}

    @property
    def lost(self) -> dict[int, str]:
        """How each lost worker was lost."""
        return {worker: m.lost for worker, m in self.items() if m.lost is not None}

    def advance(self, worker: int, t: int) -> None:
        """Sets the worker's clock to `t`."""
        m = self[worker]
        before, m.t = m.t, t
        if m.lost is None:
            self._mean.advance(t - before)

    @property
    def away(self) -> tuple[int, ...]:
        """Numbers of the lost workers that are expected back."""
        if self.alive == len(self):  # the usual case, made fast: a virtual cluster asks after every event
            return ()
        return tuple(worker for worker, m in self.items() if m.away)

    def come_back(self, worker: int, t: int) -> None:
        """Takes a lost worker back, at clock `t`."""
        m = self[worker]
        m.lost, m.away, m.new, m.t = None, False, False, t
        m.returns += 1
        self._mean.join(t)

    def lose(self, worker: int, how: str) -> None:
        """Marks the worker as lost, for the reason `how`. A later loss replaces the reason; that of a worker which was
        killed since it was silent is always its silence.
        """
        m = self[worker]
        if m.lost is None:
            self._mean.leave(m.t)
        m.lost = "did not finish its step when the run ended" if m.silent else how

    def state(self) -> dict[str, Any]:
        """Returns losses, returns and clocks of the workers and the mean step, as plain numbers."""
        return {
            "members": {worker: [m.lost, m.away, m.returns, m.t] for worker, m in self.items()},
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` has returned."""
        for worker, (lost, away, returns, *t) in state["members"].items():
            if t:  # older checkpoints have no clock here
                self.advance(worker, *t)
            if lost is not None:
                self.lose(worker, lost)
            self[worker].away, self[worker].returns = away, returns
        self._mean.step = state["step"]
