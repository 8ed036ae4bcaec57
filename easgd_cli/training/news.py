"""What a worker tells its launcher: its clock and rows, its state, and, where its own x is evaluated, snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from easgd_cli.algorithms.base import Worker
from easgd_cli.settings.faults import Faults
from easgd_cli.system.channel import Channel
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.meter import Meter
from easgd_cli.training.snapshot import Moment, Snapshots
from easgd_cli.training.stopwatch import Stopwatch, Timed
from easgd_cli.transport.base import WorkerEnd

# between two messages with clock and rows: each wakes the launcher, which then wants a core
_SECONDS = 0.2


class News:
    """The messages of the worker `w`. `lasting`: its vectors that outlive a step; `faults`: None if it suffers none;
    `session`: None if it has no master.
    """

    def __init__(
        self, channel: Channel, w: Worker, session: WorkerEnd | None, meter: Meter, timed: Timed | Stopwatch,
        lasting: Mapping[str, Tensor], faults: Faults | None, snapshots: Snapshots,
    ):  # fmt: skip
        self._channel, self._w, self._session, self._meter, self._timed = channel, w, session, meter, timed
        self._lasting, self._faults, self._snapshots = lasting, faults, snapshots
        self._rows: list[dict[str, Any]] = []
        self._told = 0.0

    def seconds(self) -> float:
        """Training seconds now."""
        return self._snapshots.seconds()

    def row(self) -> None:
        """Makes a row of what happened since the last one."""
        self._rows.append(self._meter.row(self._w, self.seconds(), self._w.seen.served, self._last_reply()))

    def now_and_then(self) -> None:
        """Tells clock and rows, if that has not been done for a while."""
        seconds = self.seconds()
        if seconds - self._told >= _SECONDS:
            self._told = seconds
            self.rows()

    def rows(self) -> None:
        """Tells the worker's clock and the rows made so far."""
        self._channel.post({"kind": "news", "t": self._w.t, "rows": self._rows})
        self._rows = []

    def state(self, purpose: str) -> None:
        """Posts everything this worker needs to go on from here, after the rows made before."""
        self.rows()
        self._timed.settle()
        kept = dict(self._lasting)
        if (reply := self._last_reply()) is not None:
            kept["reply"] = reply  # used only to measure distances
        seen = self._w.seen
        state = {
            "t": self._w.t,
            "center_clock": seen.clock,
            "served": seen.served,
            "exchanges": seen.exchanges,
            "tally": self._meter.state(),
            **({} if self._faults is None else {"spared": self._faults.spared}),
        }
        self._channel.post({"kind": "state", "purpose": purpose, "state": state}, SharedTensors.of(kept))

    def changed(self) -> None:
        """Takes a snapshot if one is due. To be called after each change of a worker's x that is itself evaluated."""
        now = self._moment()
        self._snapshots.changed(now.step, now.exchanges, now.clocks)

    def snapshot(self) -> None:
        """Takes a snapshot to be measured."""
        self._snapshots.take("evaluate", self._moment())

    def keep(self, purpose: str) -> None:
        """Posts what the owner of a center posts, where this worker's x takes the center's place."""
        self._snapshots.take(purpose, self._moment(), clock=self._w.t, cpu=0.0)

    def _moment(self) -> Moment:
        return Moment(self.seconds(), self._w.t, 0, {self._w.number: self._w.t})

    def _last_reply(self) -> Tensor | None:
        return self._session.reply if self._session is not None and self._w.seen.exchanges else None
