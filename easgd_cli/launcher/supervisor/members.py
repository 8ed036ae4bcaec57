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
    """A worker: its clock `t` as far as it is known, and how it ended."""

    t: int
    ready: bool = False
    final: WorkerState | None = None  # said at its end
    silent: bool = False  # killed, since it did not stop when told to
    lost: str | None = None  # how it was lost
    away: bool = False  # lost, and started again
    new: bool = False  # it has not been there yet
    returns: int = 0  # how often it has come back

    @property
    def live(self) -> bool:
        return self.final is None and self.lost is None


class Members(dict[int, Member]):
    """All of them by number. `alive`: how many have not been lost; `homeless`: those for which no host is there."""

    def __init__(self, moment: Moment):
        super().__init__({worker: Member(t) for worker, t in moment.clocks.items()})
        self.homeless: frozenset[int] = frozenset()
        self._mean = MeanClock(moment.clocks.values(), moment.step)

    @property
    def alive(self) -> int:
        return self._mean.workers

    @property
    def step(self) -> float:
        """Mean local step of those that have not been lost. It never steps back."""
        return self._mean.step

    @property
    def live(self) -> tuple[int, ...]:
        """Those that still train."""
        return tuple(worker for worker, m in self.items() if m.live)

    @property
    def finals(self) -> dict[int, WorkerState]:
        """The last states that have been said."""
        return {worker: m.final for worker, m in self.items() if m.final is not None}

    @property
    def lost(self) -> dict[int, str]:
        """How the others were lost."""
        return {worker: m.lost for worker, m in self.items() if m.lost is not None}

    def advance(self, worker: int, t: int) -> None:
        """Its clock stands at `t`."""
        m = self[worker]
        before, m.t = m.t, t
        if m.lost is None:
            self._mean.advance(t - before)

    @property
    def away(self) -> tuple[int, ...]:
        """Those that are expected back."""
        if self.alive == len(self):  # asked for after every event of a virtual cluster, however many there are
            return ()
        return tuple(worker for worker, m in self.items() if m.away)

    def come_back(self, worker: int, t: int) -> None:
        """It trains again, its clock at `t`."""
        m = self[worker]
        m.lost, m.away, m.new, m.t = None, False, False, t
        m.returns += 1
        self._mean.join(t)

    def lose(self, worker: int, how: str) -> None:
        """It is lost, or again before it was back: the last reason is told. A silent one had to be."""
        m = self[worker]
        if m.lost is None:
            self._mean.leave(m.t)
        m.lost = "did not finish its step when the run ended" if m.silent else how

    def state(self) -> dict[str, Any]:
        """Who was lost and is away, clocks, and the step that has been told, as plain numbers."""
        return {
            "members": {worker: [m.lost, m.away, m.returns, m.t] for worker, m in self.items()},
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts them where they were."""
        for worker, (lost, away, returns, *t) in state["members"].items():
            if t:  # which checkpoints of before have not
                self.advance(worker, *t)
            if lost is not None:
                self.lose(worker, lost)
            self[worker].away, self[worker].returns = away, returns
        self._mean.step = state["step"]
