"""A worker of a run that torch.distributed keeps together, with the loop that its documentation shows: a net in
DistributedDataParallel, forward, backward, a step of torch.optim.SGD.

Data, batches, dropout, schedule and messages are those of every worker; torch's own code moves the parameters. The
first worker listens to the launcher for all: it owns what is evaluated, and decides when all stop or keep what they
have. It writes the decision into shared memory before a step in which all wait for one another. So every worker that
has taken that step can read it, and no further message is needed.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from easgd_cli.algorithms.base import Worker
from easgd_cli.problems.base import OfNet
from easgd_cli.settings.schema import samples_a_step
from easgd_cli.system.channel import Channel
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.data_parallel import Averaging, Rendezvous, grouped, waited
from easgd_cli.training.meter import Meter
from easgd_cli.training.news import News
from easgd_cli.training.snapshot import Moment, Snapshots
from easgd_cli.training.stopwatch import Stopwatch, stopwatch_of
from easgd_cli.training.worker import WorkerStart

_OTHERS_SECONDS = 3.0  # a loop that fails waits so long: if another process has died, the launcher tells that instead
_NEVER = sys.maxsize


def agreement(many: int) -> SharedTensors:
    """Allocates what so many workers know together: the clocks at which all end (`last`) and keep what they have
    (`kept`), 0 while undecided, and which workers have `ended`.
    """
    sizes = {"last": 1, "kept": 1, "ended": many}
    return SharedTensors.allocate({name: ((size,), torch.int64) for name, size in sizes.items()})


@dataclass
class PeerStart:
    """What such a worker begins with: any worker's start, and how it finds the group. `agreed`: see `agreement`."""

    worker: WorkerStart
    rendezvous: Rendezvous
    averaging: Averaging
    agreed: SharedTensors


class PeerLoop:
    """One worker from its start to its last step."""

    def __init__(self, start: PeerStart, channel: Channel):
        own = start.worker
        torch.set_num_threads(own.threads)
        s, self._steps, self._minutes = own.recipe.settings, own.recipe.steps, own.recipe.settings.minutes
        if s.deterministic:
            torch.use_deterministic_algorithms(True)
        device = torch.device(own.device)
        torch.get_device_module(device).set_device(device)
        self._start, self._channel, self._clip = start, channel, s.clip
        parts = own.recipe.parts(device)
        self._problem, vectors = cast(OfNet, parts.problem), own.link.memory.tensors
        self._w = Worker(vectors, s.tau, parts.schedule, own.t, own.link.worker, own.seen)
        self._lasting = {name: vectors[name] for name in parts.method.state}
        self._meter = Meter(self._w.number, samples_a_step(s), s.workers, self._steps, device, 0, own.meter)
        self._watch = stopwatch_of(self._meter.tally, device)
        self._last, self._kept = start.agreed["last"], start.agreed["kept"]
        self._leads, self._many = self._w.number == 0, s.workers
        self._before: Any = None  # when the computing of this step began
        self._asked: set[str] = set()  # what the launcher wants at the next meeting
        start.rendezvous.join()
        self._begin(device, parts.method.torch_sgd or {}, s.l2)

    def _begin(self, device: torch.device, momentum: Mapping[str, Any], l2: float) -> None:
        """Wraps the net, puts the optimizer where it was, and differentiates once to pay first-use costs before
        training begins.
        """
        w, wrapped = self._w, list[DistributedDataParallel]()

        def wrap(net: nn.Module) -> nn.Module:
            wrapped.append(grouped(net, device))
            return wrapped[0]

        self._parameters = self._problem.wrapped(wrap, w.x.to(device))
        self._sgd = torch.optim.SGD(self._parameters, lr=w.eta, weight_decay=l2, **momentum)
        if w.t and "v" in self._lasting:
            buffers = w.v.to(device, copy=True).split([p.numel() for p in self._parameters])
            for p, v in zip(self._parameters, buffers, strict=True):
                self._sgd.state[p]["momentum_buffer"] = v.view_as(p)
        self._net = wrapped[0]
        self._optimizer = self._start.averaging.begin(self._net, self._sgd, w.t, self._communicate)
        self._problem.load(w.number, w.t)
        self._problem.backward()
        self._waited = waited(self._net)
        torch.get_device_module(device).synchronize()

    def run(self, began: float) -> None:
        """Steps until the end. `began`: the monotonic time of training second 0.

        Raises ChannelClosed when the launcher has ended, and RuntimeError when another process of the group has.
        """
        try:
            self._run(began)
        except RuntimeError:
            ends = time.monotonic() + _OTHERS_SECONDS
            while (left := ends - time.monotonic()) > 0:
                select.select([self._channel], [], [], left)
                self._channel.receive()  # raises ChannelClosed if the launcher has ended
            raise

    def _run(self, began: float) -> None:
        start, w, tally = self._start.worker, self._w, self._meter.tally
        snapshots = Snapshots(self._channel, Gathered(self._gather), start.interval, began, start.pace)
        news = PeerNews(self._channel, w, self._meter, self._watch, self._gather, snapshots, self._many)
        loop_began, loop_before = time.perf_counter(), tally.seconds_loop
        while not self._over(snapshots.seconds()):
            meets = self._start.averaging.meets(w.t)
            self._step()
            tally.seconds_loop = loop_before + time.perf_counter() - loop_began
            if meets:
                w.seen.served += self._many
                w.seen.exchanges += 1
            if self._meter.due(w.t):
                self._settle()
                news.row()
            if meets:
                self._met(news)
            news.now_and_then()
            self._listen()
        self._settle()
        tally.seconds_loop = loop_before + time.perf_counter() - loop_began
        if tally.steps and "stop" not in self._asked:
            news.row()
        news.state("final")
        self._start.averaging.finish(self._parameters, w.t)
        if self._leads:
            news.keep("final")
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        """Waits until all have ended: none may close its connections while another is in the last collective."""
        ended = self._start.agreed["ended"]
        ended[self._w.number] = 1
        while not bool(ended.all()):
            select.select([self._channel], [], [], 0.002)
            self._channel.receive()

    def _over(self, seconds: float) -> bool:
        """Whether this worker takes no further step, at this second of training. The first worker decides for all."""
        w = self._w
        if self._steps is not None and w.t >= self._steps:
            return True
        if self._leads and not int(self._last):
            if "stop" in self._asked or (self._minutes is not None and seconds >= self._minutes * 60):
                self._last.fill_(self._after_next_meeting())
            elif "checkpoint" in self._asked:
                self._asked.discard("checkpoint")
                self._kept.fill_(self._after_next_meeting())
        return w.t >= (int(self._last) or _NEVER)

    def _after_next_meeting(self) -> int:
        """Returns the clock after the next step in which all wait for one another: no worker is past it, and each that
        comes there can read what was written before.
        """
        t = self._w.t
        while not self._start.averaging.meets(t):
            t += 1
        return t + 1

    def _step(self) -> None:
        w, problem, watch = self._w, self._problem, self._watch
        before = watch.now()
        problem.load(w.number, w.t)
        watch.spent("seconds_data", before)
        self._before = watch.now()
        self._sgd.zero_grad()
        problem.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for group in self._sgd.param_groups:
            group["lr"] = w.eta
        self._optimizer.step()
        watch.spent("seconds_compute", self._before)
        w.t += 1
        self._meter.step(problem.loss, None)

    def _communicate(self, average: Callable[[], None]) -> None:
        """Runs `average`, in which the processes wait for one another, and counts it as communication."""
        self._watch.spent("seconds_compute", self._before)
        before = self._watch.now()
        average()
        self._watch.spent("seconds_communication", before)
        self._before = self._watch.now()

    def _settle(self) -> None:
        """Brings the tally up to date, and counts the waits in the middle of backward as communication."""
        self._watch.settle()
        before, self._waited = self._waited, waited(self._net)
        self._meter.tally.seconds_communication += self._waited - before
        self._meter.tally.seconds_compute -= self._waited - before

    def _met(self, news: PeerNews) -> None:
        """Does what is due while all workers have the same parameters: snapshots and checkpoints."""
        if self._leads:
            news.changed()
            if "snapshot" in self._asked:
                self._asked.discard("snapshot")
                news.snapshot()
        if self._w.t == int(self._kept):
            news.state("checkpoint")
            if self._leads:
                news.keep("checkpoint")

    def _gather(self) -> dict[str, Tensor]:
        """Copies torch's parameters and momentum into shared memory; returns the vectors to go on from."""
        w = self._w
        w.x.copy_(torch.cat([p.data.reshape(-1) for p in self._parameters]))
        if "v" in self._lasting and w.t:
            w.v.copy_(torch.cat([self._sgd.state[p]["momentum_buffer"].reshape(-1) for p in self._parameters]))
        return self._lasting

    def _listen(self) -> None:
        for message, _ in self._channel.receive():
            if self._leads or message["kind"] == "stop":
                self._asked.add(message["kind"])


@dataclass(frozen=True)
class Gathered:
    """The vectors that the first worker keeps; its x is evaluated."""

    gather: Callable[[], dict[str, Tensor]]

    @property
    def vectors(self) -> dict[str, Tensor]:
        return self.gather()

    def evaluated(self) -> dict[str, Tensor]:
        return {"x": self.gather()["x"]}

    def spread(self) -> None:
        return None


class PeerNews(News):
    """What a worker tells. The first also tells the exchanges of all `many` workers, each with the 2 (many - 1) / many
    vectors that a ring all-reduce moves per worker.
    """

    def __init__(
        self, channel: Channel, w: Worker, meter: Meter, watch: Stopwatch, gather: Callable[[], dict[str, Tensor]],
        snapshots: Snapshots, many: int,
    ):  # fmt: skip
        super().__init__(channel, w, None, meter, watch, {}, None, snapshots)
        self._gather, self._many, self._served = gather, many, w.seen.served

    def rows(self) -> None:
        super().rows()
        if self._w.number == 0:
            rounds, self._served = (self._w.seen.served - self._served) // self._many, self._w.seen.served
            self._channel.post(
                {
                    "kind": "served", "workers": list(range(self._many)) * rounds, "seconds": self.seconds(),
                    "step": self._w.t, "exchanges": self._served, "waiting": [],
                    "vectors": 2 * (self._many - 1) / self._many,
                }
            )  # fmt: skip

    def state(self, purpose: str) -> None:
        self._lasting = self._gather()
        super().state(purpose)

    def _moment(self) -> Moment:
        clocks = dict.fromkeys(range(self._many), self._w.t)
        return Moment(self.seconds(), self._w.t, self._w.seen.served, clocks)
