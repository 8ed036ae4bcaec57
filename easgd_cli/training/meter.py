"""The measurements of one worker: its rows for the record, at fixed local steps, and the sums they are made of.

Seconds are in the caller's unit: those of a real step loop, or virtual ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from easgd_cli.algorithms.base import Worker

_POINTS = 250  # rows of a worker over a run of known length
_POINTS_OF_ALL = 5_000  # rows of all its workers together
_BLOCK = 1 << 18  # entries whose differences are held at a time
_POINTS_PER_DOUBLING = 64  # rows after which the interval doubles, where the run's length is unknown


@dataclass
class Tally:
    """Sums of one worker. The seconds are of its step loop, since the start of the run; `loss` to `exchanges` are since
    its last row. `last_loop`: `seconds_loop` at that row; `every`: steps from row to row; `rows`: how many so far.
    """

    seconds_compute: float = 0.0
    seconds_data: float = 0.0
    seconds_communication: float = 0.0
    seconds_loop: float = 0.0
    loss: float = 0.0
    steps: int = 0
    staleness: int = 0
    exchanges: int = 0
    last_loop: float = 0.0
    every: int = 1
    rows: int = 0

    @staticmethod
    def of(row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of a lost worker's tally that its last row tells."""
        parts = {name: row[name] for name in ("seconds_compute", "seconds_data", "seconds_communication")}
        loop = sum(parts.values()) + row["seconds_other"]
        return {**parts, "seconds_loop": loop, "last_loop": loop}

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of the whole run by what they were spent on, under the names that they have in rows."""
        parts = {
            "seconds_compute": self.seconds_compute,
            "seconds_data": self.seconds_data,
            "seconds_communication": self.seconds_communication,
        }
        other = self.seconds_loop - sum(parts.values())
        # a smaller rest is rounding: on a virtual clock the rest is nothing else
        return parts | {"seconds_other": other if other > 1e-9 * self.seconds_loop else 0.0}


class Meter:
    """Measures one worker. `samples`: those of a step; `steps`: the worker's steps in all, None if unknown;
    `statistics`: how many last entries of its vectors are no parameters, and not part of distances; `tally`: that of a
    run that goes on.
    """

    def __init__(
        self,
        number: int,
        samples: int,
        workers: int,
        steps: int | None,
        device: torch.device,
        statistics: int = 0,
        tally: Mapping[str, Any] | None = None,
    ):
        self.tally = Tally(**(tally or {}))
        self._party, self._samples, self._length_known = f"worker_{number:02d}", samples, steps is not None
        self._statistics = statistics
        if steps is not None:
            points = most_rows(workers, None)
            # a run that goes on for longer than it was meant to has longer intervals from then on
            self.tally.every = max(self.tally.every, -(-steps // points))
        # on the device, and read only for a row: no step waits for it
        self._loss = torch.tensor(self.tally.loss, dtype=torch.float64, device=device)

    def step(self, loss: Tensor, staleness: int | None) -> None:
        """Counts a step, with the loss [] of its batch; `staleness`: that of its exchange, if it had one."""
        self._loss += loss
        self.tally.steps += 1
        if staleness is not None:
            self.tally.staleness += staleness
            self.tally.exchanges += 1

    def due(self, t: int) -> bool:
        """Whether a row is due at the worker's clock t."""
        return t % self.tally.every == 0

    def row(self, w: Worker, seconds: float, served: int, reply: Tensor | None) -> dict[str, Any]:
        """Returns the row of what happened since the last one, at this second of training. `reply`: the worker's last
        reply [d], None before the first.
        """
        tally = self.tally
        loop = tally.seconds_loop - tally.last_loop
        row = {
            "seconds": seconds, "step": w.t, "exchanges": served, "party": self._party,
            "train_loss": float(self._loss) / tally.steps, "eta": w.schedule(w.t),
            "samples_per_second": tally.steps * self._samples / loop if loop > 0 else 0.0, **tally.seconds,
        }  # fmt: skip
        if reply is not None:
            row["distance_to_center"] = _distance(w.x, reply, len(reply) - self._statistics)
            if tally.exchanges:
                row["staleness"] = tally.staleness / tally.exchanges
        self._loss.zero_()
        tally.steps, tally.staleness, tally.exchanges, tally.last_loop = 0, 0, 0, tally.seconds_loop
        tally.rows += 1
        if not self._length_known and tally.rows % _POINTS_PER_DOUBLING == 0:
            tally.every *= 2
        return row

    def state(self) -> dict[str, Any]:
        """Returns the tally as plain numbers."""
        self.tally.loss = float(self._loss)
        return asdict(self.tally)


def most_rows(workers: int, steps: int | None) -> int:
    """Returns how many rows a worker writes at most in `steps` local steps, or in any number of them if None."""
    points = max(1, min(_POINTS, _POINTS_OF_ALL // workers))
    return points if steps is None else min(points, steps) + 1


def _distance(a: Tensor, b: Tensor, d: int) -> float:
    """Returns ||a - b|| of the first `d` entries of two vectors, block by block: the whole difference would be one
    vector more.
    """
    return float(
        torch.stack([torch.dist(p, q) for p, q in zip(a[:d].split(_BLOCK), b[:d].split(_BLOCK), strict=True)]).norm()
    )
