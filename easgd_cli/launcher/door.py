"""Where a host of a run listens. Who does not know the secret is sent away before a byte of what he says is looked at,
and harms nobody but his own connection.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from easgd_cli.transport.connection import Refused, answer, call, read_exactly
from easgd_cli.transport.meeting import Meeting

log = logging.getLogger("easgd.launcher")

ROLE = struct.Struct("<BxxxIQ")  # what a connection is for, of whom, and by which ticket
AGENT = 1  # of a host
WORKER, MASTER = 2, 3  # of the one with this number, or this place, and the ticket it was called by
SESSION = 4  # of the worker of this number with the master of the place that is in place of a ticket
MEETING = 5  # of a worker that looks for the others, whose messages go into a sum with its own
CONNECT_SECONDS = 10.0  # for one attempt
HELLO_SECONDS = 5.0  # for a stranger to show that it is none
_MOST_STRANGERS = 64  # connections at a time that have not yet


class Door:
    """Listens in threads of its own. `enters` is called, in one of them, with the connection of whoever belongs to the
    run: the socket, the address it comes from, and what it says it is (ROLE).
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, enters: Callable[[socket.socket, str, int, int, int], None]
    ):
        self._listener, self._secret, self._enters = listener, secret, enters
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Nobody comes in any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError:
                return
            if not self._strangers.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(target=self._greet, args=(sock, address[0]), daemon=True).start()

    def _greet(self, sock: socket.socket, address: str) -> None:
        """Finds out who that is, and lets in who belongs to the run."""
        try:
            try:
                answer(sock, self._secret, HELLO_SECONDS)
                role, number, ticket = ROLE.unpack(read_exactly(sock, ROLE.size, HELLO_SECONDS))
            finally:
                self._strangers.release()
        except (Refused, OSError) as e:
            log.warning("a connection from %s is refused: %s", address, e)
            sock.close()
            return
        self._enters(sock, address, role, number, ticket)


def called(
    address: tuple[str, int], secret: bytes, seconds: float, role: int, number: int = 0, ticket: int = 0
) -> socket.socket:
    """A connection to who listens there, who is told what it is for. Raises Refused and OSError, after so many seconds
    at most.
    """
    sock = call(address, secret, seconds)
    sock.sendall(ROLE.pack(role, number, ticket))
    return sock


def met_by_call(address: tuple[str, int], secret: bytes, own: str) -> Meeting:
    """Where a worker that others reach at its `own` address finds them."""
    return Meeting(partial(called, address, secret, CONNECT_SECONDS, MEETING), own)
