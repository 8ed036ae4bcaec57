"""Where a host of a run listens. A caller first has to prove that it knows the run's secret; one that cannot loses its
own connection and disturbs no other.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from functools import partial

from easgd_cli.errors import why
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.transport.connection import Refused, answer, call, read_exactly
from easgd_cli.transport.meeting import Meeting

CALLER = struct.Struct("<BxxxIQ")  # a role, a number and a ticket (Role)
LIFE = 16  # in a session's ticket: the master's place below this bit, the worker's life (1 + its losses) above
CONNECT_SECONDS = 10.0  # for one attempt to connect
HELLO_SECONDS = 5.0  # for a caller to prove that it knows the secret
_MOST_STRANGERS = 64  # connections at a time whose callers have not proved it yet
_AGAIN_SECONDS = 0.1  # after a failure, until the next attempt to accept or to connect
_QUIET_SECONDS = 60.0  # between two complaints in the log


class Role(IntEnum):
    """What a connection is for; number and ticket of CALLER depend on it."""

    AGENT = 1  # a host joins; no number, no ticket
    WORKER = 2  # a worker of this number, which its host was told to start by this ticket
    MASTER = 3  # a master of this place, likewise
    SESSION = 4  # the worker's number; the ticket is the master's place and the worker's life (LIFE)
    MEETING = 5  # a worker looks for the others, with whose messages its own are summed


class Door:
    """Listens in threads of its own. `enters` is called, in one of them, for each caller that knows the secret, with
    the socket, the caller's address, and the role, number and ticket that it gives (CALLER).
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, enters: Callable[[socket.socket, str, int, int, int], None]
    ):
        self._listener, self._secret, self._enters = listener, secret, enters
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._closed, self._told, self._untold = threading.Event(), -math.inf, 0
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Lets nobody in any more."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError as e:  # the caller may have gone, or no descriptor may be left
                if self._closed.wait(_AGAIN_SECONDS):
                    return
                self._complain(f"a connection could not be taken: {why(e)}")
                continue
            if not self._strangers.acquire(blocking=False):
                sock.close()
                continue
            try:
                threading.Thread(target=self._greet, args=(sock, address[0]), daemon=True).start()
            except RuntimeError:  # no more threads
                self._strangers.release()
                sock.close()

    def _complain(self, text: str) -> None:
        """Logs `text`, at most once a minute: callers without the secret could fill the log."""
        now = time.monotonic()
        if now - self._told < _QUIET_SECONDS:
            self._untold += 1
            return
        log.warning("%s%s", text, f" (and {self._untold} before that)" if self._untold else "")
        self._told, self._untold = now, 0

    def _greet(self, sock: socket.socket, address: str) -> None:
        """Refuses a caller that does not know the secret, and hands the connection of any other to `enters`."""
        try:
            try:
                answer(sock, self._secret, HELLO_SECONDS)
                role, number, ticket = CALLER.unpack(read_exactly(sock, CALLER.size, HELLO_SECONDS))
            finally:
                self._strangers.release()
        except (Refused, OSError) as e:
            self._complain(f"a connection from {address} is refused: {e}")
            sock.close()
            return
        self._enters(sock, address, role, number, ticket)


def connect(
    address: tuple[str, int], secret: bytes, seconds: float, role: Role, number: int = 0, ticket: int = 0
) -> socket.socket:
    """Returns a connection to the host that listens at `address`, which is told role, number and ticket. Raises Refused
    and OSError, after so many seconds at most.
    """
    sock = call(address, secret, seconds)
    sock.sendall(CALLER.pack(role, number, ticket))
    return sock


def connect_patiently(
    address: tuple[str, int], secret: bytes, seconds: float, patience: float, leaves: threading.Event, role: Role,
    number: int, ticket: int,
) -> socket.socket:  # fmt: skip
    """Returns a connection as `connect` does. After an OSError it tries again, until `patience` seconds are over or
    `leaves` is set: a cable may be out for a while, and of many callers at once some are sent away. Raises Refused and
    OSError.
    """
    ends = time.monotonic() + patience
    while True:
        try:
            return connect(address, secret, seconds, role, number, ticket)
        except OSError:
            if time.monotonic() > ends or leaves.wait(_AGAIN_SECONDS):
                raise


def meeting_at(address: tuple[str, int], secret: bytes, own: str) -> Meeting:
    """Returns how a worker finds the others for its sums: at the board of the host at `address`. They reach it at
    `own`.
    """
    return Meeting(partial(connect, address, secret, CONNECT_SECONDS, Role.MEETING), own)
