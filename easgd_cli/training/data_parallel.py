"""The parts of torch.distributed, put together as its documentation says: a process group, a net whose gradients
DistributedDataParallel averages, and an optimizer that averages parameters at intervals.
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
    """How a process finds the others of its group. `meeting`: the file in which they find each other, in place of a
    port; `timeout`: seconds after which a collective fails that another process does not join.
    """

    rank: int
    many: int
    meeting: str
    backend: str
    timeout: float

    def join(self) -> None:
        """Joins the group over the loopback interface, unless the environment names another. Raises RuntimeError."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK)
        dist.init_process_group(
            self.backend, store=dist.FileStore(self.meeting, self.many), rank=self.rank, world_size=self.many,
            timeout=timedelta(seconds=self.timeout),
        )  # fmt: skip


def backend(s: Settings) -> str:
    """Returns nccl if every process has a GPU to itself, as nccl demands; else gloo."""
    devices = deal_devices(s.device, s.workers)
    return "nccl" if "cpu" not in devices and len(set(devices)) == s.workers else "gloo"


def grouped(net: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wraps the net, so that backward leaves the mean of all processes' gradients. Buffers stay each process's own: the
    run estimates those of its center.
    """
    devices = None if device.type == "cpu" else [device]
    with warnings.catch_warnings():  # a newer torch announces another name for broadcast_buffers
        warnings.simplefilter("ignore", FutureWarning)
        made = DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False)
    made._set_ddp_runtime_logging_sample_rate(1)  # it measures every step; that takes a few readings of the clock
    return made


def waited(net: DistributedDataParallel) -> float:
    """Returns the seconds of communication in all backwards so far that did not overlap with computing, as
    DistributedDataParallel has measured them.
    """
    told = net._get_ddp_logging_data()
    waits = told.get("avg_backward_comm_time", 0) - told.get("avg_backward_compute_comm_overlap_time", 0)
    return max(0.0, told.get("iteration", 0) * waits / 1e9)


Timed = Callable[[Callable[[], None]], None]  # calls its argument, and counts the seconds of the call as communication


class EveryStep:
    """DistributedDataParallel by itself: gradients are averaged in every step, while backward goes on."""

    def begin(self, net: DistributedDataParallel, sgd: torch.optim.SGD, t: int, timed: Timed) -> torch.optim.Optimizer:
        """Prepares for training from the clock `t`, before the rehearsal backward; returns the optimizer to use."""
        return sgd

    def meets(self, t: int) -> bool:
        """Whether the processes wait for one another in step `t`."""
        return True

    def finish(self, parameters: list[nn.Parameter], t: int) -> None:
        """Makes all processes' parameters equal after the last step, at the clock `t`. Here they are equal already."""


class TimedAverager(PeriodicModelAverager):
    """Torch's PeriodicModelAverager, with the seconds of each average counted."""

    timed: Timed

    def average_parameters(self, params: Any) -> None:
        average = super().average_parameters
        self.timed(lambda: average(params))


@dataclass(frozen=True)
class Periodically:
    """post_localSGD_hook and PostLocalSGDOptimizer: gradients are averaged in the first `after` steps; then every
    process steps by itself, and parameters are averaged after one step and after every `tau` further ones.
    """

    tau: int
    after: int

    def begin(self, net: DistributedDataParallel, sgd: torch.optim.SGD, t: int, timed: Timed) -> torch.optim.Optimizer:
        from torch.distributed.optim import PostLocalSGDOptimizer  # here, since it compiles scripts for a second

        state = PostLocalSGDState(
            process_group=None, subgroup=None, start_localSGD_iter=self.after, post_local_gradient_allreduce=False
        )
        state.iter = t - 1 if t < self.after else self.after  # the hook counts the rehearsal, too
        net.register_comm_hook(state, post_localSGD_hook)
        averager = TimedAverager(period=self.tau, warmup_steps=self.after)
        averager.step, averager.timed = t, timed
        return PostLocalSGDOptimizer(sgd, averager)

    def meets(self, t: int) -> bool:
        return t < self.after or (t - self.after) % self.tau == 0

    def finish(self, parameters: list[nn.Parameter], t: int) -> None:
        """Replaces the parameters by their mean over all processes, unless the last step has averaged them."""
        if t and not self.meets(t - 1):
            for p in parameters:
                dist.all_reduce(p.data)
                p.data /= dist.get_world_size()


Averaging = EveryStep | Periodically
