"""Torch's own transport over measured links: gloo's send and receive of a vector between the first two hosts, and its
all-reduce between all hosts.

Each end is a process of its own, since gloo ends the process that it is in when something goes wrong. Gloo's ports let
everybody in, and are open while the measurement lasts.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from easgd_cli.errors import RunError
from easgd_cli.launcher.processes.child import Child
from easgd_cli.system.channel import Channel, ChannelClosed
from easgd_cli.system.files import scratch_directory
from easgd_cli.transport.collective import gloo_group

_TIMEOUT = timedelta(seconds=60)  # for all ends to meet
_EVER = timedelta(days=1)  # one end waits while others fill the link; an end that is gone is noticed anyway
BUCKET = 25 << 20  # bytes, as in DistributedDataParallel, which has several buckets on their way at once
_BACK_AND_FORTH, _ALL_REDUCE = range(2)


@dataclass
class GlooStart:
    """What the end of this `rank`, of so many `ranks`, begins with. `own`: its address; `store`: where all ends meet,
    None for the first end, which opens the store and tells its port; `size`: of the vector.
    """

    own: str
    store: tuple[str, int] | None
    size: int
    rank: int = 0
    ranks: int = 2


class GlooEnd:
    """One end. The first measures what it is asked for; the others take part until the first has ended."""

    def __init__(self, start: GlooStart, channel: Channel):
        torch.set_num_threads(1)
        self._channel, self._rank, self._ranks = channel, start.rank, start.ranks
        self._x = torch.rand(start.size)
        self._buckets = self._x.split(max(1, BUCKET // self._x.element_size()))
        self._group = gloo_group(self._store(start), start.rank, start.ranks, start.own, _EVER)

    def _store(self, start: GlooStart) -> dist.TCPStore:
        if start.store is not None:
            return dist.TCPStore(*start.store, start.ranks, False, _TIMEOUT)
        listener = socket.create_server((start.own, 0))  # or the store would listen on every interface
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            start.own, port, start.ranks, True, _TIMEOUT, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._channel.post({"kind": "store", "port": port})
        self._channel.flush()
        return store

    def run(self, began: float) -> None:
        """Takes part until nothing more is to be measured. Raises ChannelClosed when the launcher has ended."""
        if self._rank:
            while self._follow():
                pass
            return
        while (message := self._channel.wait()[0])["kind"] == "measure":
            what, times = int(message["what"]), int(message["times"])
            for rank in range(1, self._ranks):
                self._group.send([torch.tensor([what, times])], rank, 0).wait()
            before = time.perf_counter()
            for _ in range(times):
                self._take_part(what)
            self._channel.post({"kind": "measured", "seconds": (time.perf_counter() - before) / times})

    def _follow(self) -> bool:
        order = torch.zeros(2, dtype=torch.int64)
        try:
            self._group.recv([order], 0, 0).wait()
        except RuntimeError:  # the first has ended
            return False
        for _ in range(int(order[1])):
            self._take_part(int(order[0]))
        return True

    def _take_part(self, what: int) -> None:
        if what == _ALL_REDUCE:
            for work in [self._group.allreduce([bucket]) for bucket in self._buckets]:
                work.wait()
        elif self._rank > 1:
            return  # back and forth is between ranks 0 and 1
        elif self._rank:
            self._group.recv([self._x], 0, 1).wait()
            self._group.send([self._x], 0, 2).wait()
        else:
            back = self._group.recv([self._x], 1, 2)
            self._group.send([self._x], 1, 1).wait()
            back.wait()


class Gloo:
    """The first of so many ends; `own`: the address at which the others reach it. Raises RunError."""

    def __init__(self, own: str, size: int, ranks: int = 2):
        self._stack = ExitStack()
        logs = self._stack.enter_context(scratch_directory())
        self._child = Child("gloo", GlooEnd, GlooStart(own, None, size, 0, ranks), logs / "gloo.log")
        self.port = int(self._wait_for("store")["port"])

    def begin(self) -> None:
        """Waits until all ends are there; the others are to have been told the port before."""
        self._wait_for("ready")
        self._child.channel.post({"kind": "start", "began": time.monotonic()})

    def back_and_forth(self, times: int) -> float:
        """Returns the seconds that a vector takes to the second end and another one back, the mean of so many times."""
        return self._measure(_BACK_AND_FORTH, times)

    def all_reduce(self, times: int) -> float:
        """Returns the seconds until all ends have the sum of all vectors, the mean of so many times."""
        return self._measure(_ALL_REDUCE, times)

    def _measure(self, what: int, times: int) -> float:
        self._child.channel.post({"kind": "measure", "what": what, "times": times})
        return float(self._wait_for("measured")["seconds"])

    def _wait_for(self, kind: str) -> dict[str, Any]:
        while True:
            try:
                message, _ = self._child.channel.wait()
            except ChannelClosed:
                self._child.process.join()
                raise RunError(f"gloo: {self._child.how}") from None
            if message["kind"] == kind:
                return message
            if message["kind"] == "error":
                raise RunError(f"gloo: {message['text']}")

    def close(self) -> None:
        self._child.kill()
        self._child.close()
        self._stack.close()


class FarGloo:
    """Another end, on this host, which has joined; `own`: this host's address."""

    def __init__(self, own: str, store: tuple[str, int], size: int, rank: int, ranks: int):
        self._stack = ExitStack()
        logs = self._stack.enter_context(scratch_directory())
        self._child = Child("gloo", GlooEnd, GlooStart(own, store, size, rank, ranks), logs / "gloo.log")
        self._child.channel.post({"kind": "start", "began": time.monotonic()})

    def end(self) -> None:
        """Ends its process."""
        self._child.kill()
        self._child.close()
        self._stack.close()
