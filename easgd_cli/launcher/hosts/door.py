"""Where a host of a run listens. Who does not know the secret is sent away before a byte of what he says is looked at,
and harms nobody but his own connection.
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

CALLER = struct.Struct("<BxxxIQ")  # a role, of whom, and by which ticket
LIFE = 16  # from which bit of that on it is which of the worker's lives: the first, or one after it was lost
CONNECT_SECONDS = 10.0  # for one attempt
HELLO_SECONDS = 5.0  # for a stranger to show that it is none
_MOST_STRANGERS = 64  # connections at a time that have not yet
_AGAIN_SECONDS = 0.1  # after which one listens again that could not
_QUIET_SECONDS = 60.0  # between two complaints


class Role(IntEnum):
    """What a connection is for."""

    AGENT = 1  # of a host
    WORKER = 2  # of this number, and the ticket it was called by
    MASTER = 3  # of this place, and so
    SESSION = 4  # of the worker of this number; its ticket is the place of the master, and which of its lives this is
    MEETING = 5  # of a worker that looks for the others, whose messages go into a sum with its own


class Door:
    """Listens in threads of its own. `enters` is called, in one of them, with the connection of whoever belongs to the
    run: the socket, the address it comes from, and who it says it is (CALLER).
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, enters: Callable[[socket.socket, str, int, int, int], None]
    ):
        self._listener, self._secret, self._enters = listener, secret, enters
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._closed, self._told, self._untold = threading.Event(), -math.inf, 0
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Nobody comes in any more."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError as e:  # who called may have gone, or there is no descriptor left for him
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
        """At most once a minute: whoever comes without a secret could fill the log."""
        now = time.monotonic()
        if now - self._told < _QUIET_SECONDS:
            self._untold += 1
            return
        log.warning("%s%s", text, f" (and {self._untold} before that)" if self._untold else "")
        self._told, self._untold = now, 0

    def _greet(self, sock: socket.socket, address: str) -> None:
        """Finds out who that is, and lets in who belongs to the run."""
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
    """A connection to who listens there, who is told what it is for. Raises Refused and OSError, after so many seconds
    at most.
    """
    sock = call(address, secret, seconds)
    sock.sendall(CALLER.pack(role, number, ticket))
    return sock


def connect_patiently(
    address: tuple[str, int], secret: bytes, seconds: float, patience: float, leaves: threading.Event, role: Role,
    number: int, ticket: int,
) -> socket.socket:  # fmt: skip
    """The same, called again for so long where it fails, unless one `leaves`: a cable may be out for a while, and of
    many that call at once some are sent away. Raises Refused and OSError.
    """
    ends = time.monotonic() + patience
    while True:
        try:
            return connect(address, secret, seconds, role, number, ticket)
        except OSError:
            if time.monotonic() > ends or leaves.wait(_AGAIN_SECONDS):
                raise


def meeting_at(address: tuple[str, int], secret: bytes, own: str) -> Meeting:
    """Where a worker that others reach at its `own` address finds them."""
    return Meeting(partial(connect, address, secret, CONNECT_SECONDS, Role.MEETING), own)
