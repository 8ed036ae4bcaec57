"""Where workers whose messages go into a sum find each other: what one of them says under a key, all can read."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import distributed

from easgd_cli.system.shared_memory import AnonymousFile

_AGAIN_SECONDS = 0.05  # between two looks for a key that is not there yet
_MOST = 1 << 12  # bytes of a line


@dataclass(frozen=True)
class Meeting:
    """One worker's way to the others. `place`: a file of this machine, or a function that connects to the `Board` of
    all; `own`: the address at which the others reach this worker.
    """

    place: AnonymousFile | Callable[[], socket.socket]
    own: str = "127.0.0.1"

    def store(self) -> Any:
        """Returns the meeting as a store of torch's. Raises what `place` raises when it is called."""
        if isinstance(self.place, AnonymousFile):
            return distributed.FileStore(self.place.path, -1)
        return BoardStore(self.place())

    def close(self) -> None:
        """Gives the file's descriptor back."""
        if isinstance(self.place, AnonymousFile):
            self.place.close()


class Board:
    """What workers of all machines have said. Its connections have been checked: they are of the run."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def serve(self, sock: socket.socket) -> None:
        """Answers one worker, until its connection ends."""
        with suppress(OSError, ValueError, TypeError), sock, sock.makefile("rw", encoding="ascii") as lines:
            sock.settimeout(None)
            while len(line := lines.readline(_MOST)):
                key, value = json.loads(line)
                if value is not None:
                    self._said[str(key)] = str(value)
                lines.write(json.dumps(self._said.get(key)) + "\n")
                lines.flush()


class BoardStore(distributed.Store):
    """A store of torch's that asks a `Board` over a connection."""

    def __init__(self, sock: socket.socket):
        super().__init__()
        sock.settimeout(None)
        self._closed = False
        self._socket, self._lines, self._asking = sock, sock.makefile("rw", encoding="ascii"), threading.Lock()

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]  # as torch calls it
        self._asked(key, value.hex())

    def get(self, key: str) -> bytes:
        self.wait([key])
        return bytes.fromhex(self._asked(key) or "")

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        ends = math.inf if timeout is None else time.monotonic() + timeout.total_seconds()
        for key in keys:
            while self._asked(key) is None:
                if self._closed or time.monotonic() > ends:
                    raise RuntimeError(f"{key} has not come")
                time.sleep(_AGAIN_SECONDS)

    def close(self) -> None:
        """Ends every wait for a key."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _asked(self, key: str, value: str | None = None) -> str | None:
        with self._asking:
            self._lines.write(json.dumps([key, value]) + "\n")
            self._lines.flush()
            if not (line := self._lines.readline()):
                raise ConnectionResetError("where the others are is not told any more")
            found: str | None = json.loads(line)
            return found
