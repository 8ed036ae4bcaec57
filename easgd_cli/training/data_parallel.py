"""What torch.distributed offers a user, put together as its documentation says: a process group, a net whose gradients
DistributedDataParallel averages, and the optimizer that averages parameters every so often.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel

from easgd_cli.settings.schema import Settings
from easgd_cli.system.devices import deal_devices

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True)
class Rendezvous:
    """How one process finds the others of its group. `meeting`: a file in which they do, instead of a port; `timeout`:
    seconds of a collective whose other side does not come.
    """

    rank: int
    many: int
    meeting: str
    backend: str
    timeout: float

    def join(self) -> None:
        """Joins the group, by sockets of this machine that nobody else reaches. Raises RuntimeError."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK)
        dist.init_process_group(
            self.backend, store=dist.FileStore(self.meeting, self.many), rank=self.rank, world_size=self.many,
            timeout=timedelta(seconds=self.timeout),
        )  # fmt: skip


def backend(s: Settings) -> str:
    """nccl where every process has a GPU to itself, as it demands; else gloo."""
    devices = deal_devices(s.device, s.workers)
    return "nccl" if "cpu" not in devices and len(set(devices)) == s.workers else "gloo"


def grouped(net: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The gradients that its backward leaves are the mean of all processes'. Its buffers stay each process's own: a
    run estimates those of its center.
    """
    devices = None if device.type == "cpu" else [device]
    with warnings.catch_warnings():  # newer torch says that its newest has another name for broadcast_buffers
        warnings.simplefilter("ignore", FutureWarning)
        made = DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False)
    made._set_ddp_runtime_logging_sample_rate(1)  # of its own measurements, which are a few readings of the clock
    return made


def waited(net: DistributedDataParallel) -> float:
    """Seconds of all backwards so far for which every gradient was there and not all were averaged, as
    DistributedDataParallel has measured them.
    """
    told = net._get_ddp_logging_data()
    waits = told.get("avg_backward_comm_time", 0) - told.get("avg_backward_compute_comm_overlap_time", 0)
    return max(0.0, told.get("iteration", 0) * waits / 1e9)


Timed = Callable[[Callable[[], None]], None]  # calls what it is given, and counts its seconds as communication


class EveryStep:
    """DistributedDataParallel by itself: gradients are averaged in every step, while backward goes on."""

    def begin(self, net: DistributedDataParallel, sgd: torch.optim.SGD, t: int, timed: Timed) -> torch.optim.Optimizer:
        """At the clock `t`, before a backward that is a rehearsal; returns what takes the steps."""
        return sgd

    def meets(self, t: int) -> bool:
        """Whether the processes wait for one another in step `t`."""
        return True

    def finish(self, parameters: list[nn.Parameter], t: int) -> None:
        """After the last step, at the clock `t`: all have the same."""


class TimedAverager(PeriodicModelAverager):
    """Torch's own, its seconds counted."""

    timed: Timed

    def average_parameters(self, params: Any) -> None:
        average = super().average_parameters
        self.timed(lambda: average(params))


@dataclass(frozen=True)
class Periodically:
    """post_localSGD_hook and PostLocalSGDOptimizer: gradients are averaged in the first `after` steps; then every
    process goes its own way, and parameters are averaged after one step and after every `tau` further ones.
    """

    tau: int
    after: int

    def begin(self, net: DistributedDataParallel, sgd: torch.optim.SGD, t: int, timed: Timed) -> torch.optim.Optimizer:
        from torch.distributed.optim import PostLocalSGDOptimizer  # here, since it compiles scripts for a second

        state = PostLocalSGDState(
            process_group=None, subgroup=None, start_localSGD_iter=self.after, post_local_gradient_allreduce=False
        )
        state.iter = t - 1 if t < self.after else self.after  # the rehearsal is counted, too
        net.register_comm_hook(state, post_localSGD_hook)
        averager = TimedAverager(period=self.tau, warmup_steps=self.after)
        averager.step, averager.timed = t, timed
        return PostLocalSGDOptimizer(sgd, averager)

    def meets(self, t: int) -> bool:
        return t < self.after or (t - self.after) % self.tau == 0

    def finish(self, parameters: list[nn.Parameter], t: int) -> None:
        """Puts the mean in the place of the parameters, where they were not averaged in the last step."""
        if t and not self.meets(t - 1):
            for p in parameters:
                dist.all_reduce(p.data)
                p.data /= dist.get_world_size()


Averaging = EveryStep | Periodically
