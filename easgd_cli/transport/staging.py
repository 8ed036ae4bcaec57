"""A worker's vectors on a device of its own, its messages and replies staged through the shared memory of the host.

The copies run on a stream of their own, beside the gradient, and neither side waits for the gradient: the host waits
until the message is down, before it tells the master, and the device waits until the reply is up. So an exchange posted
before a gradient is launched is carried out while the device computes it.

Not run on a GPU yet; the tests go through it on a CPU, where a stream does nothing, and on a device that works as late
as it may.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Staging:
    """Copies of the `shared` vectors on `device`, made here, and the copying of messages down and of replies up.

    Raises RuntimeError where memory of the device, or the pinning of memory of the host, is refused.
    """

    def __init__(self, shared: Mapping[str, Tensor], device: torch.device):
        self._shared = shared
        self._streams = torch.get_device_module(device)  # torch.cuda; torch.cpu has the same names
        self._device = device
        self.vectors = {name: v.to(device, copy=True) for name, v in shared.items()}
        self._stream = self._streams.Stream() if device.type == "cpu" else self._streams.Stream(device)
        self._down = self._streams.Event()
        if hasattr(self._streams, "cudart"):
            _pin(self, list(shared.values()), self._streams)

    def send(self, name: str) -> None:
        """Begins to copy that vector down, as it is after all that has been asked of the device so far."""
        self._stream.wait_stream(self._streams.current_stream(self._device))
        with self._streams.stream(self._stream):
            self._shared[name].copy_(self.vectors[name], non_blocking=True)
            self._down.record(self._stream)

    def sent(self) -> None:
        """Waits until the vector is down; what was asked of the device after `send` goes on."""
        self._down.synchronize()

    def receive(self) -> None:
        """Copies the reply up; what is asked of the device from here on comes after the copy.

        The last use of the reply before was asked of the device before `send`, for which this stream has waited. The
        next message follows this copy on the stream, so the master does not write the next reply before this one is up.
        """
        with self._streams.stream(self._stream):
            self.vectors["reply"].copy_(self._shared["reply"], non_blocking=True)
        self._streams.current_stream(self._device).wait_stream(self._stream)


def _pin(owner: Staging, tensors: list[Tensor], cuda: Any) -> None:
    """Pins the memory of `tensors` for as long as `owner` lives: without it a copy takes twice as long, and the host
    waits for it.
    """
    for v in tensors:
        if v.numel():
            cuda.check_error(cuda.cudart().cudaHostRegister(v.data_ptr(), v.nbytes, 0))
            # The finalizer holds v, so that its memory is not given back while it is pinned. A process that ends needs
            # none.
            weakref.finalize(owner, _unpin, v, cuda).atexit = False


def _unpin(v: Tensor, cuda: Any) -> None:
    cuda.check_error(cuda.cudart().cudaHostUnregister(v.data_ptr()))
