"""The vectors of a master and its workers on one GPU, so that an exchange moves nothing over the bus.

The master allocates all of them and hands each worker its own through CUDA's interprocess memory: so the memory of a
worker that is killed stays valid for the master that may be reading it. Each side waits for its own device before it
tells the other, in the few bytes that go through the socket as ever; no stream or event is shared.

Not run on a GPU yet; the tests go through it with the shared memory of a CPU, which torch hands out by the same calls,
and on a device that works as late as it may.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch
import torch.multiprocessing  # teaches ForkingPickler to send where a tensor lies instead of what is in it
from torch import Tensor

from easgd_cli.transport.base import SessionEnded
from easgd_cli.transport.shared import Link

_LENGTH = struct.Struct("<q")


def hand_out(links: Sequence[Link], device: torch.device) -> dict[int, dict[str, Tensor]]:
    """The master's part: allocates vectors on `device` for every worker, with anything in them, and tells each worker
    where its own lie. Returns them by the worker's number.
    """
    handed = {}
    for link in links:
        assert link.master_socket is not None
        vectors = {name: torch.empty_like(v, device=device) for name, v in link.memory.tensors.items()}
        told = bytes(ForkingPickler.dumps(vectors))
        with suppress(BrokenPipeError, ConnectionResetError):  # a worker killed at its start: the first poll says LOST
            link.master_socket.sendall(_LENGTH.pack(len(told)) + told)
        handed[link.worker] = vectors
    if device.type == "cuda":
        _unname()
    return handed


def _unname() -> None:
    """Removes the name of the file in which torch counts who holds CUDA memory. Torch removes it when all have given
    the memory back, which a killed process never does.

    The file's mapping stays as it is; processes that look for the name later find nothing, which torch lets pass.
    """
    for named in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):
        named.unlink(missing_ok=True)


class DeviceVectors:
    """A worker's part: the vectors that the master has handed out, filled from the `link`'s memory.

    Waits for the master to hand them out. Raises SessionEnded when the master has ended.
    """

    def __init__(self, link: Link, device: torch.device):
        assert link.worker_socket is not None
        [length] = _LENGTH.unpack(_read(link.worker_socket, _LENGTH.size))
        self.vectors: dict[str, Tensor] = ForkingPickler.loads(_read(link.worker_socket, length))
        for name, v in link.memory.tensors.items():
            self.vectors[name].copy_(v)
        # torch.cuda; torch.cpu has the same names
        self._runtime, self._device = torch.get_device_module(device), device
        self._ready = self._runtime.Event()

    def send(self, name: str) -> None:
        """Notes the moment on the device from which that vector can be read."""
        self._ready.record(self._runtime.current_stream(self._device))

    def sent(self) -> None:
        """Waits until the vector can be read; what was asked of the device after `send` goes on."""
        self._ready.synchronize()

    def receive(self) -> None:
        """Does nothing: the master has waited until the reply was there."""


def _read(source: socket.socket, size: int) -> bytes:
    data = source.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise SessionEnded("the master has ended")
    return data
