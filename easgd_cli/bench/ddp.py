"""The synchronous peer: PyTorch's DistributedDataParallel, which averages the gradients of all processes at
every step.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from easgd_cli.bench.plain import Loop, LoopStart, loop_starts, side_by_side
from easgd_cli.data.dataset import Dataset
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Settings
from easgd_cli.system.channel import Channel
from easgd_cli.system.devices import deal_devices
from easgd_cli.system.files import scratch_directory

_TIMEOUT = datetime.timedelta(seconds=60)  # of a collective whose other side does not come; the default is half an hour


@dataclass
class GroupedStart:
    """What one process of the group begins with. `meeting`: a file in which they find each other, instead of a port."""

    loop: LoopStart
    meeting: str
    backend: str

    @property
    def steps(self) -> int:
        return self.loop.steps


class DataParallelLoop:
    """A plain loop whose net is wrapped: the gradients that its backward leaves are the mean of all processes'."""

    def __init__(self, start: GroupedStart, channel: Channel):
        loop, many = start.loop, start.loop.settings.workers
        torch.set_num_threads(loop.threads)
        device = torch.device(loop.device)
        torch.get_device_module(device).set_device(device)
        net = build.model(loop.settings, loop.images).to(device).train()
        dist.init_process_group(
            start.backend,
            store=dist.FileStore(start.meeting, many),
            rank=loop.worker,
            world_size=many,
            timeout=_TIMEOUT,
        )
        grouped = DistributedDataParallel(
            net, device_ids=None if device.type == "cpu" else [device], gradient_as_bucket_view=True
        )
        self._loop = Loop(loop, grouped, channel)

    def run(self, began: float) -> None:
        self._loop.run()


def backend(s: Settings) -> str:
    """nccl where every process has a GPU to itself, as it demands; else gloo."""
    devices = deal_devices(s.device, s.workers)
    return "nccl" if "cpu" not in devices and len(set(devices)) == s.workers else "gloo"


def data_parallel_images_per_second(s: Settings, images: Dataset, steps: int) -> float:
    """Images a second of as many processes as `s` has workers, `steps` steps each. `images` in shared memory."""
    with scratch_directory() as directory:
        starts = [GroupedStart(loop, str(directory / "meeting"), backend(s)) for loop in loop_starts(s, images, steps)]
        return side_by_side("data_parallel", DataParallelLoop, starts, s.batch_size)
