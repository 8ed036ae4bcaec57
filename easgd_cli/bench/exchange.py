"""What an exchange costs: the center's rule, and the whole of it as a worker sees it, against copying memory.

Counted in streams, each a pass over the vector in main memory: EASGD's rule reads the message, reads and writes the
center and writes the reply (4); the worker's pull reads the reply, reads and writes x (3); a copy reads and writes (2).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from easgd_cli.algorithms.base import Method
from easgd_cli.bench.measure import Row, alternate, rate
from easgd_cli.center import Center
from easgd_cli.launcher.children import Child
from easgd_cli.master import Master, MasterStart
from easgd_cli.memory import SharedTensors
from easgd_cli.transport.shared import Link, SharedWorkerEnd

_RULE_STREAMS, _PULL_STREAMS, _COPY_STREAMS = 4, 3, 2
_SIZES = {"352 k (the paper's CIFAR net)": 351_946, "5 M": 5_000_000, "60 M (the paper's ImageNet net)": 61_128_808}


def run(method: Method, windows: int = 10) -> Iterator[Row]:
    """The rule and the exchange of `method` (counted with EASGD's streams) at three sizes, in GB/s."""
    torch.set_num_threads(1)
    for name, size in _SIZES.items():
        seconds = 0.3 if size > 1_000_000 else 0.1
        one = SharedTensors.of({"from": torch.rand(size), "to": torch.rand(size)})
        copy_bytes = _COPY_STREAMS * 4 * size

        def copy(one: SharedTensors = one, copy_bytes: int = copy_bytes, seconds: float = seconds) -> float:
            return rate(lambda: one["to"].copy_(one["from"]), copy_bytes / 1e9, seconds)

        vectors = SharedTensors.of({n: torch.rand(size) for n in method.center})
        center = Center(method, vectors.tensors)
        two = SharedTensors.of({"message": torch.rand(size), "reply": torch.rand(size)})
        lent = center.lend(two["message"], two["reply"])
        yield alternate(
            f"the center's rule, {name}", lambda: rate(lambda: center.receive(lent), _RULE_STREAMS * 4 * size / 1e9, seconds),
            "memory copy", copy, "GB/s", windows, 0.8 if size > 10_000_000 else None,
        )  # fmt: skip
        del vectors, center, two, lent
        with _served(method, size) as worker:
            x = worker.vectors["x"]

            def exchange(worker: SharedWorkerEnd = worker, x: torch.Tensor = x) -> None:
                worker.post(x)
                x.lerp_(worker.collect(), 0.1)

            yield alternate(
                f"a whole exchange with its pull, {name}", lambda: rate(exchange, (_RULE_STREAMS + _PULL_STREAMS) * 4 * size / 1e9, seconds),
                "memory copy", copy, "GB/s", windows, 0.7 if size > 10_000_000 else None,
            )  # fmt: skip


@contextmanager
def _served(method: Method, size: int) -> Iterator[SharedWorkerEnd]:
    """A session with a master in a process of its own."""
    with tempfile.TemporaryDirectory() as logs:
        link = Link.new(0, method, size, torch.float32)
        for v in link.memory.tensors.values():
            v.uniform_()
        center = SharedTensors.of({n: torch.rand(size) for n in method.center})
        master = Child("master", Master, MasterStart(method, center, [link.for_master()], None), Path(logs) / "master.log")
        assert link.master_socket is not None
        link.master_socket.close()
        while master.channel.wait()[0]["kind"] != "ready":
            pass
        master.channel.post({"kind": "start", "began": time.monotonic()})
        worker = SharedWorkerEnd(link.for_worker(), torch.device("cpu"))
        try:
            yield worker
        finally:
            master.kill()
            master.process.join()
