"""Large replies leave a machine one after another.

Sessions that began together would stay together: all send, then all receive, and half of the network is idle. When
replies take turns, the first worker to have its reply sends the next message while the others receive, and both
directions fill. No reply waits longer than it takes itself, so one slow link does not hold the others up.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from easgd_cli.system.shared_memory import SharedTensors

LARGE = 4 << 20  # bytes; fewer are sent before it is worth while to wait
_POLL_SECONDS = 0.001


def turns() -> SharedTensors:
    """Allocates what all senders that take turns share, in this process and others. Raises MemoryError."""
    return SharedTensors.allocate({"turn": ((1,), torch.uint8)})


class SendTurn:
    """A sender that takes turns. Its lock ends with its process, however that ends."""

    def __init__(self, common: SharedTensors):
        self._fd = os.open(f"/proc/self/fd/{common.fd}", os.O_RDWR)  # opened anew: each opening has a lock of its own
        self._took = 0.1  # seconds of the last sending

    @contextmanager
    def taken(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Waits for this sender's turn, at most for as long as its last sending took, and calls `waiting` meanwhile.
        The turn lasts as long as the context.
        """
        ends = time.monotonic() + self._took
        while not (mine := self._try()) and time.monotonic() < ends:
            waiting()
            time.sleep(_POLL_SECONDS)
        began = time.monotonic()
        try:
            yield
        finally:
            self._took = time.monotonic() - began
            if mine:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)
