"""DistributedDataParallel, with which synchronous runs are compared: it averages all processes' gradients each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easgd_cli.bench.plain import Loop, LoopStart, loop_starts, side_by_side
from easgd_cli.data.dataset import Dataset
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Settings
from easgd_cli.system.channel import Channel
from easgd_cli.system.files import scratch_directory
from easgd_cli.training.data_parallel import Rendezvous, backend, grouped

_TIMEOUT = 60.0  # seconds after which a collective fails whose other members do not come


@dataclass
class GroupedStart:
    """What one process of the group begins with. `meeting`, `backend`: how the processes meet; see Rendezvous."""

    loop: LoopStart
    meeting: str
    backend: str

    @property
    def steps(self) -> int:
        return self.loop.steps


class DataParallelLoop:
    """A plain loop with a wrapped net: after backward its gradients are the mean over all processes."""

    def __init__(self, start: GroupedStart, channel: Channel):
        loop, many = start.loop, start.loop.settings.workers
        torch.set_num_threads(loop.threads)
        device = torch.device(loop.device)
        torch.get_device_module(device).set_device(device)
        net = build.model(loop.settings, loop.images).to(device).train()
        Rendezvous(loop.worker, many, start.meeting, start.backend, _TIMEOUT).join()
        self._loop = Loop(loop, grouped(net, device), channel)

    def run(self, began: float) -> None:
        self._loop.run()


def data_parallel_images_per_second(s: Settings, images: Dataset, steps: int) -> float:
    """Returns images a second of a process for each worker of `s`, `steps` steps each. `images` in shared memory."""
    with scratch_directory() as directory:
        starts = [GroupedStart(loop, str(directory / "meeting"), backend(s)) for loop in loop_starts(s, images, steps)]
        return side_by_side("data_parallel", DataParallelLoop, starts, s.batch_size)
