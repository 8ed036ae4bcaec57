"""The peer of every step benchmark: a plain hand-written PyTorch loop, on the same net, data and batches."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from easgd_cli import build
from easgd_cli.channel import Channel
from easgd_cli.config import Settings
from easgd_cli.data.dataset import Dataset
from easgd_cli.launcher.children import Child
from easgd_cli.problems.images import Batches
from easgd_cli.scratch import scratch_directory

WARM_UP = 3  # steps before the clock starts


@dataclass
class PlainStart:
    """What one loop begins with."""

    settings: Settings
    images: Dataset
    worker: int
    threads: int
    steps: int


class PlainLoop:
    """Forward, backward, torch.optim.SGD with Nesterov momentum; nothing shared with anybody."""

    def __init__(self, start: PlainStart, channel: Channel):
        torch.set_num_threads(start.threads)
        s = start.settings
        self._start, self._channel = start, channel
        self._net = build.model(s, start.images).train()
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=s.eta, momentum=s.delta, nesterov=s.delta > 0, weight_decay=s.l2)
        self._batches = Batches(start.images.count("train"), s.batch_size, s.seed)
        self._generator = torch.Generator().manual_seed(start.worker)

    def run(self, began: float) -> None:
        self._steps(0, WARM_UP)
        before = time.perf_counter()
        self._steps(WARM_UP, WARM_UP + self._start.steps)
        self._channel.post({"kind": "plain", "seconds": time.perf_counter() - before})

    def _steps(self, first: int, last: int) -> None:
        for t in range(first, last):
            inputs, labels = self._start.images.begin(self._batches.indices(self._start.worker, t), self._generator, torch.float32)()
            self._optimizer.zero_grad()
            F.cross_entropy(self._net(inputs), labels).backward()
            self._optimizer.step()


def plain_images_per_second(s: Settings, images: Dataset, loops: int, threads: int, steps: int) -> float:
    """Images a second of `loops` plain loops side by side, `steps` steps each. `images` in shared memory."""
    with ExitStack() as stack:
        logs = stack.enter_context(scratch_directory())
        children = [Child(f"plain_{i}", PlainLoop, PlainStart(s, images, i, threads, steps), logs / f"plain_{i}.log") for i in range(loops)]
        for child in children:
            _wait(child, "ready")
        for child in children:
            child.channel.post({"kind": "start", "began": time.monotonic()})
        seconds = [_wait(child, "plain")["seconds"] for child in children]
        for child in children:
            child.process.join()
            child.channel.close()
        return steps * s.batch_size * sum(1 / t for t in seconds)


def _wait(child: Child, kind: str) -> dict[str, Any]:
    while True:
        message, _ = child.channel.wait()
        if message["kind"] == kind:
            return message
        if message["kind"] == "error":
            raise RuntimeError(f"{child.name}: {message['text']}")
