"""A worker: takes local steps until it is done or told to stop, and reports on them.

The method says what a step does; the loop around it, and what is measured of it, are here. The loop waits for nobody
but the master, and for the master only as long as the method's rule does.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from easgd_cli.algorithms.base import CENTER, Seen, Worker
from easgd_cli.experiment.build import Recipe
from easgd_cli.problems.base import statistics_of
from easgd_cli.settings import faults
from easgd_cli.settings.schema import Interval, profiled_steps, samples_a_step
from easgd_cli.system.channel import Channel
from easgd_cli.training import drive, messages
from easgd_cli.training.faults import Rejoin, Watched, WatchedSession, suffer
from easgd_cli.training.meter import Meter
from easgd_cli.training.news import News
from easgd_cli.training.profile import Named, Trace
from easgd_cli.training.replica import ReplicatedCenter
from easgd_cli.training.snapshot import OfOneWorker, Snapshots
from easgd_cli.training.stopwatch import Timed
from easgd_cli.transport.base import NEW, Kind, Mark, SessionEnded, Withdrawn, WorkerEnd
from easgd_cli.transport.collective import CollectiveWorkerEnd
from easgd_cli.transport.on_device import DeviceVectors
from easgd_cli.transport.shared import Elsewhere, Link, SharedWorkerEnd
from easgd_cli.transport.staging import Staging


@dataclass
class WorkerStart:
    """What a worker begins with. `link.memory` holds its vectors as they are to be at clock `t`."""

    recipe: Recipe
    link: Link
    device: str
    threads: int
    interval: Interval | None  # of snapshots, for a worker that owns what is evaluated
    t: int = 0
    seen: Seen = field(default_factory=Seen)  # what it knows of the center
    meter: dict[str, Any] | None = None
    pace: Sequence[float] | None = None
    center_device: str = "cpu"  # where the master has the center
    trace: Path | None = None  # where a profile of its steps is to be written
    new: bool = False  # a worker that comes into the run after its start
    returns: bool = False  # a lost or new worker, which takes the center before its first step
    spared: int = -1  # the step up to which it has had its faults
    plain: ClassVar = ("t", "meter", "pace", "returns", "new", "spared")  # fields that another host is told as they are


class WorkerLoop:
    """One worker from its start to its last step."""

    def __init__(self, start: WorkerStart, channel: Channel):
        torch.set_num_threads(start.threads)
        s, self._steps = start.recipe.settings, start.recipe.steps
        self._minutes = s.minutes
        if s.deterministic:
            torch.use_deterministic_algorithms(True)
        self._start, self._channel = start, channel
        self._device = torch.device(start.device)
        # torch.cuda, or torch.cpu, which has the same names and nothing to do
        self._runtime = torch.get_device_module(self._device)
        self._runtime.set_device(self._device)
        parts = start.recipe.parts(self._device)
        self._method = parts.method
        self._gradients = drive.ProblemGradients(parts.problem, s.clip)
        self._sequential = self._method.alone
        self._heard: list[dict[str, Any]] = []  # messages of the launcher that came while the next master was awaited
        # sessions with next masters, each with the master's place, that came while no reply was awaited
        self._given: list[tuple[int, socket.socket]] = []
        self._session: WorkerEnd = self._end(start.link)
        self._w = Worker(self._session.vectors, s.tau, parts.schedule, start.t, start.link.worker, start.seen)
        self._meter = Meter(
            start.link.worker,
            samples_a_step(s),
            s.workers,
            self._steps,
            self._device,
            statistics_of(parts.problem),
            start.meter,
        )
        self._watch(start)
        self._average = parts.average if self._sequential else None
        self._stop = False
        self._warm_up()

    def _watch(self, start: WorkerStart) -> None:
        """Wraps gradients and session: measured and, with faults or on_nan=rejoin, watched."""
        s, gradients, session = start.recipe.settings, self._gradients, self._session
        self._faults: faults.Faults | None = None
        given = faults.read(s)
        self._watched: Watched | None = None
        if given or s.on_nan == "rejoin":
            self._faults = faults.Faults(given, s.seed, start.link.worker, start.spared)
            checked = s.on_nan == "rejoin" and not self._sequential
            watched = self._watched = Watched(gradients, self._faults, checked=checked, sleep=time.sleep)
            self._link = WatchedSession(session, watched)
            self._timed = Timed(watched, self._link, self._meter.tally, self._device)
        else:
            self._timed = Timed(gradients, session, self._meter.tally, self._device)

    def _end(self, link: Link) -> WorkerEnd:
        if (replica := link.replica) is None:
            return SharedWorkerEnd(link, self._elsewhere(), self._next_session)
        center = ReplicatedCenter(self._method.variables[CENTER], replica.center.tensors)
        return CollectiveWorkerEnd(link, replica, center.update, self._elsewhere(), self._start.returns)

    def _warm_up(self) -> None:
        """Computes a gradient and drops it: first-use costs of kernels and pages are paid before training begins."""
        self._gradients.load(self._w.number, self._w.t)
        self._gradients.gradient(self._w.x)
        self._runtime.synchronize()

    def run(self, began: float) -> None:
        """Steps until the end. `began`: the monotonic time of training second 0.

        Raises SessionEnded when the master has ended, ChannelClosed when the launcher has.
        """
        start, w, meter = self._start, self._w, self._meter
        tally = meter.tally
        snapshots = Snapshots(self._channel, OfOneWorker(self._lasting()), start.interval, began, start.pace)
        news = self._news = News(
            self._channel, w, self._session, meter, self._timed, self._lasting(), self._faults, snapshots
        )
        trace = self._trace()
        asked = self._timed if trace is None else Named(self._timed)
        if start.returns:
            self._return()
        loop_began, loop_before = time.perf_counter(), tally.seconds_loop
        while (
            not self._stop
            and (self._steps is None or w.t < self._steps)
            and (self._minutes is None or snapshots.seconds() < self._minutes * 60)
        ):
            try:
                step = self._step(asked)
            except Rejoin as e:
                if not self._rejoin(e):
                    self._stop = True
                continue
            except Withdrawn:  # the step has not happened: a rule changes its state only after its last yield
                self._stop = self._minutes is None or snapshots.seconds() < self._minutes * 60
                break
            assert step.loss is not None
            meter.step(step.loss, step.staleness)
            if meter.due(w.t):
                self._timed.settle()  # a row tells a loss, so it waits for the device in any case
            tally.seconds_loop = loop_before + time.perf_counter() - loop_began
            if trace is not None:
                trace.step()
            if meter.due(w.t):
                news.row()
            if self._average is not None:
                w.average.lerp_(w.x, self._average(w.t))
            if self._sequential:
                news.changed()
            news.now_and_then()
            if step.mark is Mark.CHECKPOINT:
                news.state("checkpoint")
            self._listen(news)
        self._timed.settle()
        tally.seconds_loop = loop_before + time.perf_counter() - loop_began
        if trace is not None:
            trace.close()
        # the last steps of an interrupted run belong to the next row of the run that goes on from it
        if tally.steps and not self._stop:
            news.row()
        news.state("final")
        if self._sequential:
            news.keep("final")
        else:
            self._close()

    def _step(self, asked: Timed | Named) -> drive.StepResult:
        if self._faults is not None:
            self._fail(self._faults)
        return drive.take_step(self._method, self._w, asked, None if self._sequential else asked)

    def _close(self) -> None:
        """Ends the session, after the closing exchange if the method has one; a run that is told to end gives its
        message back. Raises SessionEnded.
        """
        ask = self._method.closing(self._w)
        if ask is not None and (self._watched is None or self._watched.passes(ask.message)):
            self._session.post(ask.message, self._w.t, ask.to, Kind.CLOSING, fragment=ask.fragment)
            with suppress(Withdrawn):
                self._session.collect()
        self._session.close(self._w.t)

    def _return(self) -> None:
        """Joins the run again, in a new process of a lost worker. Raises SessionEnded, also if the run is ending."""
        try:
            self._join(NEW if self._start.new else self._w.t)
        except Withdrawn as e:
            raise SessionEnded("the run is ending") from e

    def _elsewhere(self) -> Elsewhere | None:
        """Returns where the worker's vectors lie if not in the shared memory; None if there."""
        if self._device.type == "cpu":
            return None
        if not self._sequential and self._start.center_device != "cpu":
            return DeviceVectors(self._start.link, self._device)
        return Staging(self._start.link.memory.tensors, self._device)

    def _trace(self) -> Trace | None:
        """Returns the profile to take of this worker; None if none is asked for."""
        steps = profiled_steps(self._start.recipe.settings)
        return (
            Trace(self._start.trace, steps, self._device)
            if self._start.trace is not None and steps is not None
            else None
        )

    def _join(self, t: int) -> None:
        """Joins at the clock `t`: takes x from the center and a clock from the master, and sets everything else to 0.
        Raises Withdrawn and SessionEnded.
        """
        w, session = self._w, self._session
        session.join(t)
        reply = session.collect()
        for name in self._method.state:
            getattr(w, name).zero_()
        w.x.copy_(reply.vector)
        w.t, w.seen.clock, w.seen.served = reply.t, reply.clock, reply.served
        self._channel.post(messages.Joined(kind="joined", t=w.t))

    def _fail(self, given: faults.Faults) -> None:
        """Suffers the faults of this step. The worker tells its clock first: it comes back with that clock."""
        for fault in given.at(self._w.t):
            if fault.kind == "link":
                self._link.down = time.monotonic() + fault.seconds if fault.seconds else 0.0
            elif fault.kind in ("kill", "stop", "exception"):
                self._news.rows()
                self._channel.post({"kind": "fault", "what": fault.kind, "seconds": fault.seconds})
                while not self._channel.flush():
                    time.sleep(0.001)
                suffer(fault)
                self._news.rows()  # a stopped process has been woken

    def _rejoin(self, why: Rejoin) -> bool:
        """Goes back to the center in the open session; returns False where the run is ending. Raises SessionEnded."""
        w, given = self._w, self._faults
        assert given is not None
        try:
            if self._link.outstanding:
                self._link.collect()  # the exchange has happened, and is of no use to this worker any more
            self._news.rows()
            self._channel.post(messages.Rejoins(kind="rejoins", t=w.t, why=str(why)))
            while not self._stop and time.monotonic() < why.until:
                time.sleep(min(0.05, max(0.0, why.until - time.monotonic())))
                self._listen(self._news)
            given.spared = max(given.spared, w.t)
            if not self._stop:
                self._join(w.t)
                self._listen(self._news)
        except Withdrawn:
            return False
        return True

    def _next_session(self, place: int) -> socket.socket:
        """Waits for the session with the next master of this place, which the launcher is to start. Raises
        ChannelClosed if the launcher has ended.
        """
        while (given := next((one for one in self._given if one[0] == place), None)) is None:
            message, enclosed = self._channel.wait()
            if message["kind"] == "session":
                self._given.append((message["place"], enclosed))
            else:
                self._heard.append(message)
        self._given.remove(given)
        return given[1]

    def _listen(self, news: News) -> None:
        arrived = self._channel.receive()
        self._given += [(message["place"], sock) for message, sock in arrived if message["kind"] == "session"]
        heard, self._heard = self._heard + [message for message, _ in arrived], []
        for message in heard:
            if message["kind"] == "stop":
                self._stop = True
            elif message["kind"] == "snapshot":
                news.snapshot()
            elif message["kind"] == "checkpoint":
                news.state("checkpoint")
                if self._sequential:
                    news.keep("checkpoint")
                elif message["lead"]:
                    # between two of this worker's exchanges: without other workers, its state and the center's agree
                    self._session.checkpoint(self._w.t)

    def _lasting(self) -> dict[str, Tensor]:
        """Returns the vectors from which this worker goes on."""
        return {
            name: getattr(self._w, name)
            for name in (*self._method.state, *(("average",) if self._average is not None else ()))
        }
