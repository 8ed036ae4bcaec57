"""A hand-written PyTorch loop on the same net, data and batches, with which the step benchmarks compare runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from easgd_cli.data.dataset import Batch, Dataset
from easgd_cli.data.nest import called
from easgd_cli.errors import RunError
from easgd_cli.experiment import build
from easgd_cli.launcher.processes.child import Child, ProgramMaker
from easgd_cli.problems.batches import Batches
from easgd_cli.problems.net import outputs_as
from easgd_cli.problems.precision import autocast, compiled, use_tf32
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings
from easgd_cli.system.channel import Channel, ChannelClosed
from easgd_cli.system.devices import deal_devices, worker_threads
from easgd_cli.system.files import scratch_directory

WARM_UP = 3  # steps before the clock starts


@dataclass
class LoopStart:
    """What one loop begins with."""

    settings: Settings
    images: Dataset
    worker: int
    device: str
    threads: int
    steps: int


class Loop:
    """Takes steps of forward, backward and torch.optim.SGD on `net`, with Nesterov momentum if the method has delta.
    Batches are cut on the device to which a run puts its images.

    The loop compiles the net, clips gradients and smooths labels if the run does.
    """

    def __init__(self, start: LoopStart, net: nn.Module, channel: Channel):
        s = start.settings
        self._start, self._net, self._channel = start, net, channel
        self._called = compiled(net) if s.compile else net
        self._dtype, self._device = next(net.parameters()).dtype, torch.device(start.device)
        self._task = build.task(s, start.images).on(self._device)
        use_tf32(self._device, s.precision == "tf32")
        self._autocast = autocast(self._device, s.precision)
        self._images = start.images.training_on(self._device)
        momentum = s.delta if "delta" in targets.signature(targets.locate("algo", s.algo["target"])) else 0.0
        self._optimizer = torch.optim.SGD(
            net.parameters(), lr=s.eta, momentum=momentum, nesterov=momentum > 0, weight_decay=s.l2
        )
        self._batches = Batches(start.images.count("train"), s.batch_size, s.seed)
        self._generator = torch.Generator().manual_seed(start.worker)
        self._begun: deque[Callable[[], Batch]] = deque()  # batches in the making, the next step's first
        self._next = 0  # the first step whose batch is not begun

    def run(self) -> None:
        """Takes the steps and posts how many seconds they took. Raises ChannelClosed when the launcher has ended."""
        self._steps(0, WARM_UP)
        before = time.perf_counter()
        self._steps(WARM_UP, WARM_UP + self._start.steps)
        self._channel.post({"kind": "looped", "seconds": time.perf_counter() - before})

    def _steps(self, first: int, last: int) -> None:
        for t in range(first, last):
            while self._next <= t + self._images.ahead:  # decodes as many batches ahead as a worker
                indices = self._batches.indices(self._start.worker, self._next)
                self._begun.append(self._images.begin(indices, self._generator, self._dtype))
                self._next += 1
            inputs, targets = self._task.parted(*self._begun.popleft()())
            self._optimizer.zero_grad()
            with self._autocast:
                outputs = called(self._called, inputs)
            self._task.loss(outputs_as(self._dtype, outputs), targets).backward()
            if self._start.settings.clip is not None:
                nn.utils.clip_grad_norm_(self._net.parameters(), self._start.settings.clip)
            self._optimizer.step()
            self._channel.receive()  # a microsecond; without it the loop would outlive a launcher that was killed
        torch.get_device_module(self._device).synchronize(self._device)


class PlainLoop:
    """A process with one loop, which exchanges nothing with others."""

    def __init__(self, start: LoopStart, channel: Channel):
        torch.set_num_threads(start.threads)
        self._loop = Loop(start, build.model(start.settings, start.images).to(start.device).train(), channel)

    def run(self, began: float) -> None:
        self._loop.run()


def loop_starts(s: Settings, images: Dataset, steps: int) -> list[LoopStart]:
    """Returns the start of a loop for each worker of `s`, with device and threads. `images` in shared memory."""
    return [
        LoopStart(s, images, i, device, worker_threads(s), steps)
        for i, device in enumerate(deal_devices(s.device, s.workers))
    ]


def plain_images_per_second(s: Settings, images: Dataset, steps: int) -> float:
    """Returns images a second of a plain loop for each worker of `s`, `steps` steps each. `images` in shared memory."""
    return side_by_side("plain", PlainLoop, loop_starts(s, images, steps), s.batch_size)


def side_by_side(name: str, maker: ProgramMaker, starts: Sequence[Any], batch_size: int) -> float:
    """Runs a Loop in each of several processes at once and returns their images a second together. Ends all processes.
    Raises RunError when one fails.

    `starts`: each process's start, whose `steps` says how many steps it takes.
    """
    with ExitStack() as stack:
        logs = stack.enter_context(scratch_directory())
        children: list[Child] = []
        stack.callback(lambda: _end(children))
        for i, start in enumerate(starts):
            children.append(Child(f"{name}_{i}", maker, start, logs / f"{name}_{i}.log"))
        for child in children:
            heard(child, "ready")
        for child in children:
            child.channel.post({"kind": "start", "began": time.monotonic()})
        return sum(
            start.steps * batch_size / heard(child, "looped")["seconds"]
            for start, child in zip(starts, children, strict=True)
        )


def _end(children: list[Child]) -> None:
    for child in children:
        child.kill()
    for child in children:
        child.close()


def heard(child: Child, kind: str) -> dict[str, Any]:
    """Waits for the child's next message of this kind. Raises RunError when the child has failed or ended."""
    while True:
        try:
            message, _ = child.channel.wait()
        except ChannelClosed:
            child.process.join()
            raise RunError(f"{child.name}: {child.how}") from None
        if message["kind"] == kind:
            return message
        if message["kind"] == "error":
            raise RunError(f"{child.name}: {message['text']}")
