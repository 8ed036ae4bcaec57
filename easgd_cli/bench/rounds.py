"""What a round of all workers costs by an all-reduce, compared with the same round over sessions, and with the
all-reduce alone as DistributedDataParallel makes it: of a gradient in buckets of 25 MiB, all begun before it waits for
the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from easgd_cli.algorithms.base import CENTER, Method
from easgd_cli.bench.measure import Row
from easgd_cli.bench.plain import heard
from easgd_cli.launcher.hosts.measured_gloo import BUCKET
from easgd_cli.launcher.processes.child import Child
from easgd_cli.system.channel import Channel
from easgd_cli.system.files import scratch_directory
from easgd_cli.system.shared_memory import AnonymousFile, SharedTensors
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.training.replica import ReplicatedCenter
from easgd_cli.transport.base import WorkerEnd
from easgd_cli.transport.collective import CollectiveWorkerEnd, Group
from easgd_cli.transport.meeting import Meeting
from easgd_cli.transport.replica import Replica
from easgd_cli.transport.shared import Link, SharedWorkerEnd

_SIZES = {"352 k": 351_946, "61 M": 61_128_808}
_SECONDS = 0.4  # of a window, about


@dataclass
class _Start:
    """What one worker begins with. `ways`: its sessions, without and with all-reduce; `rounds`: those of a window."""

    method: Method
    ways: tuple[Link, Link]
    meeting: Meeting
    workers: int
    windows: int
    rounds: int


class _Rounds:
    """A worker that takes part in rounds of each kind in turn, on the same schedule as all other workers."""

    def __init__(self, start: _Start, channel: Channel):
        torch.set_num_threads(1)
        self._start, self._channel = start, channel
        sessions, summed = start.ways
        replica = summed.replica
        assert replica is not None
        center = ReplicatedCenter(start.method.variables[CENTER], replica.center.tensors)
        vector = torch.ones_like(summed.memory["x"])
        self._group = Group(start.meeting, 0, summed.worker, start.workers, [vector])
        self._group.ready(None)
        self._buckets = list(vector.split(BUCKET // vector.element_size()))
        ends = CollectiveWorkerEnd(summed, replica, center.update), SharedWorkerEnd(sessions)
        self._kinds: list[Callable[[], object]] = [_exchange(end) for end in ends] + [self._sum]

    def _sum(self) -> None:
        self._group.sum_all(self._buckets)

    def run(self, began: float) -> None:
        for _ in range(self._start.windows + 1):
            spent = []
            for kind in self._kinds:
                kind()  # after this round all workers are at the same place
                before = time.perf_counter()
                for _ in range(self._start.rounds):
                    kind()
                spent.append((time.perf_counter() - before) / self._start.rounds)
            self._channel.post({"kind": "spent", "seconds": spent})
        while not self._channel.flush():
            time.sleep(0.001)
        self._channel.wait()  # until the parent kills this process


def _exchange(end: WorkerEnd) -> Callable[[], object]:
    x = end.vectors["x"]

    def exchange() -> object:
        end.post(x, 0)
        return end.collect()

    return exchange


def run(algo: str, method: Method, workers: int, windows: int) -> Iterator[Row]:
    """Measures rounds of `method`, named `algo`, at two sizes, each against its two peers."""
    for name, size in _SIZES.items():
        spent = _measured(method, size, workers, windows, rounds=max(2, int(_SECONDS / (size * 1.2e-8))))
        what = f"a round by an all-reduce, {algo}, {name}, {workers} workers"
        for place, peer in ((1, "over sessions"), (2, "DistributedDataParallel's all-reduce")):
            yield Row.of(what, [(1 / seconds[0], 1 / seconds[place]) for seconds in spent], peer, "rounds/s")


def _measured(method: Method, size: int, workers: int, windows: int, rounds: int) -> list[Sequence[float]]:
    """Returns, for each window, the seconds of a round of each kind: all-reduce, sessions, the all-reduce alone."""
    with ExitStack() as stack:
        logs = stack.enter_context(scratch_directory())
        ways = [_links(method, size, workers, summed=False), _links(method, size, workers, summed=True)]
        masters = [
            Child(f"master_{i}", Master, _master(method, size, links), logs / f"master_{i}.log")
            for i, links in enumerate(ways)
        ]
        meeting = Meeting(AnonymousFile())
        starts = [
            _Start(method, (a.for_worker(), b.for_worker()), meeting, workers, windows, rounds)
            for a, b in zip(*ways, strict=True)
        ]
        children = masters + [
            Child(f"worker_{i:02}", _Rounds, start, logs / f"worker_{i:02}.log") for i, start in enumerate(starts)
        ]
        for link in (link for links in ways for link in links):
            link.close_sockets()
        for child in children:
            stack.callback(child.close)
            stack.callback(child.kill)
        for child in children:
            heard(child, "ready")
        for child in children:
            child.channel.post({"kind": "start", "began": time.monotonic()})
        return [heard(children[len(masters)], "spent")["seconds"] for _ in range(windows + 1)][1:]


def _links(method: Method, size: int, workers: int, summed: bool) -> list[Link]:
    links = [Link.new(i, method, size, torch.float32) for i in range(workers)]
    for link in links:
        link.memory["x"].uniform_()
    if not summed:
        return links
    replicas = Replica.new(method.variables[CENTER].state, size, torch.float32, workers)
    return [replace(link, replica=replica) for link, replica in zip(links, replicas, strict=True)]


def _master(method: Method, size: int, links: list[Link]) -> MasterStart:
    center: dict[str, Tensor] = {name: torch.zeros(size) for name in method.variables[CENTER].state}
    return MasterStart(method, None, SharedTensors.of(center), [link.for_master() for link in links], None)
