"""What an exchange costs, the center's rule alone and the whole exchange as a worker sees it, against copying memory.

Costs are counted in streams; a stream is one pass over a vector in main memory. EASGD's rule reads the message, reads
and writes the center and writes the reply (4 streams). The worker's pull reads the reply, reads and writes x (3). A
copy reads and writes (2).

A worker on a GPU sends its message and gets its reply over the bus. Its exchange is compared with these two copies
alone, to and from pinned memory, which are as fast as the bus allows. With the center on the same GPU nothing crosses
the bus, and the exchange is compared with copying the GPU's memory, in streams as on the host.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from easgd_cli.algorithms import slices
from easgd_cli.algorithms.base import CENTER, Method
from easgd_cli.bench.measure import Row, alternate, rate
from easgd_cli.bench.plain import heard
from easgd_cli.launcher.processes.child import Child
from easgd_cli.system.channel import Channel
from easgd_cli.system.files import scratch_directory
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.center import BLOCK, Center
from easgd_cli.training.ledger import Ledger
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.transport.on_device import DeviceVectors
from easgd_cli.transport.shared import Elsewhere, Link, SharedWorkerEnd
from easgd_cli.transport.staging import Staging

_HOST = torch.device("cpu")
_EXCHANGES = 200  # whose median is taken
SEVERAL = (2, 4)  # numbers of masters, each with a slice of the center
_RULE_STREAMS, _PULL_STREAMS, _COPY_STREAMS = 4, 3, 2
_SIZES = {"352 k (the paper's CIFAR net)": 351_946, "5 M": 5_000_000, "61 M (the paper's ImageNet net)": 61_128_808}


def run(algo: str, method: Method, device: torch.device, windows: int = 10) -> Iterator[Row]:
    """Measures rule and exchange of `method`, named `algo`, at three sizes, in GB/s by EASGD's streams."""
    torch.set_num_threads(1)
    for net, size in _SIZES.items():
        name = f"{algo}, {net}"
        yield _rule(method, name, size, windows)
        if device.type != "cpu":
            yield _exchange_over_bus(method, name, size, device, windows)
        yield _exchange(method, name, size, device, windows)
        for masters in SEVERAL if device.type == "cpu" and slices.refusal(method, 2, 1) is None else ():
            yield _exchange(method, name, size, device, windows, masters)


def seconds_beside(method: Method, size: int, busy: int) -> float:
    """Returns the median seconds from a message [size] to its reply, beside `busy` other processes that compute as
    workers do.

    The median, since other programs of the machine would change a mean.
    """
    torch.set_num_threads(1)
    with ExitStack() as stack:
        logs = stack.enter_context(scratch_directory())
        for i in range(busy):
            stack.enter_context(_started(Child(f"busy_{i}", _Computing, None, logs / f"busy_{i}.log")))
        worker = stack.enter_context(_served(method, size, _HOST, center=_HOST))
        message, spent, clock = worker.vectors["x"], list[float](), itertools.count()
        for _ in range(_EXCHANGES):
            _compute()  # as a worker, which has just computed a gradient
            before = time.perf_counter()
            worker.post(message, next(clock))
            worker.collect()
            spent.append(time.perf_counter() - before)
    return statistics.median(spent)


class _Computing:
    """A process that computes until it is ended."""

    def __init__(self, start: Any, channel: Channel):
        torch.set_num_threads(1)
        self._channel = channel

    def run(self, began: float) -> None:
        while True:
            _compute()
            self._channel.receive()  # raises when the launcher has ended


def _center(method: Method) -> tuple[str, ...]:
    """Returns the names of the center's vectors; none for a method without exchange."""
    return method.variables[CENTER].state if not method.alone else ()


def _compute() -> None:
    """Computes for about a millisecond, on one core."""
    a = torch.ones(256, 256)
    for _ in range(4):
        torch.mm(a, a)


def _rule(method: Method, name: str, size: int, windows: int) -> Row:
    vectors = SharedTensors.of({n: torch.rand(size) for n in _center(method)})
    noted = Ledger.allocate(len(_center(method)), min(BLOCK, size), torch.float32, 1)
    center = Center(method.variables[CENTER], vectors.tensors, ledger=Ledger(noted, 1))
    lent = SharedTensors.of({"message": torch.rand(size), "reply": torch.rand(size)})
    blocks = center.lend(lent["message"], lent["reply"])
    rule = partial(center.receive, blocks)
    return _against_copy(f"the center's rule, {name}", rule, _RULE_STREAMS, size, windows, 0.8)


def _exchange(method: Method, name: str, size: int, device: torch.device, windows: int, masters: int = 1) -> Row:
    """Measures an exchange with a center on the worker's `device`; `masters`: how many share it in slices."""
    with _served(method, size, device, device, masters) as worker:
        x, clock = worker.vectors["x"], itertools.count()  # new for each message: no clock is served twice

        def exchange() -> None:
            worker.post(x, next(clock))
            x.lerp_(worker.collect().vector, 0.1)

        on = "" if device.type == "cpu" else f" with its center on {device},"
        on = on if masters == 1 else f" masters={masters},"
        what, streams = f"a whole exchange with its pull,{on} {name}", _RULE_STREAMS + _PULL_STREAMS
        return _against_copy(what, exchange, streams, size, windows, 0.7 if masters == 1 else None, device)


def _exchange_over_bus(method: Method, name: str, size: int, device: torch.device, windows: int) -> Row:
    """Measures an exchange of a worker on `device` with a center on the host, counted as two vectors over the bus."""
    seconds, pinned = 0.3 if size > 1_000_000 else 0.1, torch.empty(size, pin_memory=True)
    with _served(method, size, device, center=_HOST) as worker:
        x, clock = worker.vectors["x"], itertools.count()
        copied = torch.empty_like(x)

        def exchange() -> None:
            worker.post(x, next(clock))
            x.lerp_(worker.collect().vector, 0.1)
            torch.cuda.synchronize(device)

        def copies() -> None:
            pinned.copy_(x)
            copied.copy_(pinned)
            torch.cuda.synchronize(device)

        amount = 2 * 4 * size / 1e9
        return alternate(
            f"a whole exchange with its pull, from and to {device}, {name}", lambda: rate(exchange, amount, seconds),
            "down and up, pinned", lambda: rate(copies, amount, seconds), "GB/s", windows,
        )  # fmt: skip


def _against_copy(
    what: str, work: Callable[[], None], streams: int, size: int, windows: int, target: float | None,
    device: torch.device = _HOST,
) -> Row:  # fmt: skip
    shared = SharedTensors.of({"from": torch.rand(size), "to": torch.rand(size)})
    source, copied = (shared[name].to(device) for name in ("from", "to"))
    seconds, wait = 0.3 if size > 1_000_000 else 0.1, partial(torch.get_device_module(device).synchronize, device)

    def done() -> None:
        work()
        wait()

    def copy() -> None:
        copied.copy_(source)
        wait()

    def figure() -> float:
        return rate(done, streams * 4 * size / 1e9, seconds)

    def floor() -> float:
        return rate(copy, _COPY_STREAMS * 4 * size / 1e9, seconds)

    return alternate(what, figure, "memory copy", floor, "GB/s", windows, target if size > 10_000_000 else None)


@contextmanager
def _served(
    method: Method, size: int, device: torch.device, center: torch.device, masters: int = 1
) -> Iterator[SharedWorkerEnd]:
    """Starts masters with vectors on the device `center`, and yields the session of a worker on `device` with them."""
    with ExitStack() as stack:
        logs = stack.enter_context(scratch_directory())
        link = Link.new(0, method, size, torch.float32, masters=masters)
        for v in link.memory.tensors.values():
            v.uniform_()
        for place, entries in enumerate(slices.slices(size, masters)):
            own_size = entries.stop - entries.start
            vectors = SharedTensors.of({n: torch.rand(own_size) for n in _center(method)})
            links = [link.for_master(place, entries if masters > 1 else slice(None))]
            start = MasterStart(slices.of_slice(method, entries, size), None, vectors, links, None, device=str(center))
            if center.type == "cpu":  # as in a run
                start.ledger = Ledger.allocate(len(vectors.tensors), min(BLOCK, own_size), torch.float32, 1)
            master = Child(f"master_{place}", Master, start, logs / f"master_{place}.log")
            theirs = link.sockets[place][1]
            assert theirs is not None
            theirs.close()
            stack.enter_context(_started(master))
        own = link.for_worker()
        elsewhere: Elsewhere | None = None
        if device.type != "cpu":
            staged = center.type == "cpu"
            elsewhere = Staging(own.memory.tensors, device) if staged else DeviceVectors(own, device)
        yield SharedWorkerEnd(own, elsewhere)


@contextmanager
def _started(child: Child) -> Iterator[None]:
    """Has the child run during the block."""
    try:
        heard(child, "ready")
        child.channel.post({"kind": "start", "began": time.monotonic()})
        yield
    finally:
        child.kill()
        child.close()
