"""A worker: takes local steps until it is done or told to stop, and says how it went.

What a step does is the method's; what is measured around it is here. Nothing here waits for anybody but the master, and
for the master only as long as the method's rule does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from easgd_cli import build, drive
from easgd_cli.algorithms.base import Worker
from easgd_cli.channel import Channel
from easgd_cli.config import Interval, Settings
from easgd_cli.data.images import Images
from easgd_cli.memory import SharedTensors
from easgd_cli.problem import ImageProblem
from easgd_cli.snapshot import Moment, Snapshots
from easgd_cli.transport.base import Withdrawn
from easgd_cli.transport.shared import Link, SharedWorkerEnd

_POINTS = 250  # rows a worker posts over a run of known length
_POINTS_PER_DOUBLING = 64  # and, where the length is not known, before it posts half as often
_NEWS_SECONDS = 0.2  # how often it tells the launcher its clock and its rows: each message wakes a process that wants a core


@dataclass
class WorkerStart:
    """What a worker begins with. `link.memory` holds its vectors as they are to be at clock `t`."""

    settings: Settings
    images: Images
    link: Link
    device: str
    threads: int
    steps: int | None  # local steps to take in all; None: until told to stop
    minutes: float | None
    interval: Interval | None  # of snapshots, for a worker that owns what is evaluated
    t: int = 0
    center_clock: int = 0
    served: int = 0
    exchanges: int = 0
    meter: dict[str, Any] | None = None
    pace: Sequence[float] | None = None


@dataclass
class Tally:
    """Sums of a worker: over the whole run, and since its last row. Seconds are of its own step loop."""

    seconds_compute: float = 0.0
    seconds_data: float = 0.0
    seconds_communication: float = 0.0
    seconds_loop: float = 0.0
    loss: float = 0.0
    steps: int = 0
    staleness: int = 0
    exchanges: int = 0
    every: int = 1
    rows: int = 0
    last_loop: float = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Where the seconds of the whole run have gone, by the names they have in rows."""
        parts = {"seconds_compute": self.seconds_compute, "seconds_data": self.seconds_data, "seconds_communication": self.seconds_communication}
        return parts | {"seconds_other": self.seconds_loop - sum(parts.values())}


class WorkerLoop:
    """One worker from its start to its last step."""

    def __init__(self, start: WorkerStart, channel: Channel):
        torch.set_num_threads(start.threads)
        s = start.settings
        if s.deterministic:
            torch.use_deterministic_algorithms(True)
        self._start, self._channel = start, channel
        self._device = torch.device(start.device)
        self._method = build.method(s)
        self._problem = ImageProblem(
            build.model(s, start.images),
            start.images,
            batch_size=s.batch_size,
            seed=s.seed,
            l2=s.l2,
            device=self._device,
            train_images=s.eval.train_images,
        )
        self._session = SharedWorkerEnd(start.link, self._device)
        self._session.center_clock, self._session.served, self._session.exchanges = start.center_clock, start.served, start.exchanges
        self._w = Worker(self._session.vectors, s.tau, build.schedule(s), start.t, start.link.worker)
        self._tally = Tally(**(start.meter or {}))
        if start.steps is not None:
            self._tally.every = max(self._tally.every, -(-start.steps // _POINTS))  # also of a run that goes on for longer than it was meant to
        self._loss = torch.tensor(self._tally.loss, dtype=torch.float64, device=self._device)  # read only when it is told: no wait in a step
        self._sequential = not self._method.center
        self._average = build.average(s) if self._sequential else None
        self._stop = False
        self._rows: list[dict[str, Any]] = []
        self._warm_up()

    def _warm_up(self) -> None:
        """Differentiates once and forgets it: first-use costs of kernels and pages are paid before training begins."""
        self._problem.load(self._w.number, self._w.t)
        self._problem.gradient(self._w.x)

    def run(self, began: float) -> None:
        """Steps until the end. `began`: the monotonic time of training second 0.

        Raises SessionEnded when the master has ended, ChannelClosed when the launcher has.
        """
        start, w, tally, session = self._start, self._w, self._tally, self._session
        snapshots = Snapshots(self._channel, self._lasting(), start.interval, began, start.pace)
        timed = _Timed(self._problem, session, tally)
        news = 0.0
        loop_began, loop_before = time.perf_counter(), tally.seconds_loop
        while not self._stop and (start.steps is None or w.t < start.steps) and (start.minutes is None or snapshots.seconds() < start.minutes * 60):
            session.t = w.t
            exchanged = session.exchanges
            try:
                drive.take_step(self._method, w, timed, None if self._sequential else timed)
            except Withdrawn:  # the step has not happened: a rule changes its state only after its last yield
                self._stop = start.minutes is None or snapshots.seconds() < start.minutes * 60
                break
            self._loss += self._problem.loss
            tally.steps += 1
            if session.exchanges != exchanged:
                tally.staleness += session.staleness
                tally.exchanges += 1
            tally.seconds_loop = loop_before + time.perf_counter() - loop_began
            if w.t % tally.every == 0:
                self._row(snapshots.seconds())
            if self._average is not None:
                w.average.lerp_(w.x, self._average(w.t))
            if self._sequential:
                snapshots.changed(w.t, 0, {w.number: w.t})
            if snapshots.seconds() - news >= _NEWS_SECONDS:
                news = snapshots.seconds()
                self._post_rows()
            if session.cut:
                session.cut = False
                self._post_state("checkpoint", snapshots)
            self._listen(snapshots)
        if tally.steps and not self._stop:  # what an interrupted run has not yet said belongs to the row it goes on with
            self._row(snapshots.seconds())
        self._post_state("final", snapshots)
        if self._sequential:
            self._keep("final", snapshots)
        else:
            session.close(w.t)

    def _listen(self, snapshots: Snapshots) -> None:
        for message, _ in self._channel.receive():
            if message["kind"] == "stop":
                self._stop = True
            elif message["kind"] == "snapshot":
                snapshots.take("evaluate", self._moment(snapshots))
            elif message["kind"] == "checkpoint":
                self._post_state("checkpoint", snapshots)
                if self._sequential:
                    self._keep("checkpoint", snapshots)
                elif message["lead"]:
                    self._session.checkpoint(self._w.t)  # between two of this worker's exchanges: alone, it and the center agree

    def _lasting(self) -> dict[str, Tensor]:
        """The vectors this worker goes on from."""
        return {name: getattr(self._w, name) for name in (*self._method.state, *(("average",) if self._average is not None else ()))}

    def _keep(self, purpose: str, snapshots: Snapshots) -> None:
        """What the owner of a center keeps, where this worker's x takes its place."""
        snapshots.take(purpose, self._moment(snapshots), clock=self._w.t, cpu=0.0)

    def _moment(self, snapshots: Snapshots) -> Moment:
        return Moment(snapshots.seconds(), self._w.t, 0, {self._w.number: self._w.t})

    def _post_rows(self) -> None:
        self._channel.post({"kind": "news", "t": self._w.t, "rows": self._rows})
        self._rows = []

    def _post_state(self, purpose: str, snapshots: Snapshots) -> None:
        """Everything this worker needs to go on from here, after all it has to say of before."""
        self._post_rows()
        self._tally.loss = float(self._loss)
        kept = self._lasting()
        if self._session.reply is not None:
            kept["reply"] = self._session.reply  # only to measure distances from it
        self._channel.post(
            {
                "kind": "state", "purpose": purpose, "t": self._w.t, "center_clock": self._session.center_clock, "served": self._session.served,
                "exchanges": self._session.exchanges, "seconds": snapshots.seconds(), "tally": asdict(self._tally),
            },
            SharedTensors.of(kept),
        )  # fmt: skip

    def _row(self, seconds: float) -> None:
        """Notes what happened since the last row."""
        w, tally = self._w, self._tally
        loop = tally.seconds_loop - tally.last_loop
        row = {
            "seconds": seconds, "step": w.t, "exchanges": self._session.served, "party": f"worker_{self._start.link.worker:02d}",
            "train_loss": float(self._loss) / tally.steps, "eta": w.schedule(w.t),
            "images_per_second": tally.steps * self._problem.batch_size / loop if loop > 0 else 0.0, **tally.seconds,
        }  # fmt: skip
        if self._session.reply is not None:
            row["distance_to_center"] = float(torch.dist(w.x, self._session.reply))
            if tally.exchanges:
                row["staleness"] = tally.staleness / tally.exchanges
        self._rows.append(row)
        self._loss.zero_()
        tally.steps, tally.staleness, tally.exchanges, tally.last_loop = 0, 0, 0, tally.seconds_loop
        tally.rows += 1
        if self._start.steps is None and tally.rows % _POINTS_PER_DOUBLING == 0:
            tally.every *= 2


class _Timed:
    """The problem and the session of a worker, with the seconds its step loop spends in each."""

    def __init__(self, problem: ImageProblem, session: SharedWorkerEnd, tally: Tally):
        self._problem, self._session, self._tally = problem, session, tally

    def load(self, worker: int, t: int) -> None:
        before = time.perf_counter()
        self._problem.load(worker, t)
        self._tally.seconds_data += time.perf_counter() - before

    def gradient(self, x: Tensor) -> Tensor:
        before = time.perf_counter()
        g = self._problem.gradient(x)
        self._tally.seconds_compute += time.perf_counter() - before
        return g

    def post(self, message: Tensor) -> None:
        before = time.perf_counter()
        self._session.post(message)
        self._tally.seconds_communication += time.perf_counter() - before

    def collect(self) -> Tensor:
        before = time.perf_counter()
        reply = self._session.collect()
        self._tally.seconds_communication += time.perf_counter() - before
        return reply
