"""How much the link to a host carries, measured briefly before it is used: messages of twice the size each time, until
one takes long enough to tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from easgd_cli.launcher.journal.links import Carries
from easgd_cli.transport.connection import Connection, FrameKind, RulesBroken

_PART = 1 << 16  # bytes of the first message; the others are that many times the same memory
MOST = 1 << 25  # bytes of the last
_ENOUGH_SECONDS = 0.1
_WORDS = 3  # there and back without a byte, of which the quickest counts


def measure(connection: Connection) -> Carries:
    """What the link carries; half a second each way, about, and on one that is slower than a Mbit/s as long as 64 KB
    take. Raises ConnectionEnded.
    """
    part = torch.zeros(_PART, dtype=torch.uint8)

    def seconds(up: int, down: int) -> float:
        began = time.monotonic()
        connection.post(FrameKind.PROBE, b"%d" % up, [part] * (down // _PART))
        kind, _, count = connection.next()
        if kind is not FrameKind.PROBE or count != up:
            raise RulesBroken
        connection.fill([part] * (count // _PART))
        return time.monotonic() - began

    empty = min(seconds(0, 0) for _ in range(_WORDS))
    return Carries(_rate(lambda size: seconds(size, 0), empty), _rate(lambda size: seconds(0, size), empty))


def _rate(seconds: Callable[[int], float], empty: float) -> float:
    size = _PART
    while (took := seconds(size)) < _ENOUGH_SECONDS + _WORDS * empty and size < MOST:
        size *= 2  # by then the connection has found its speed, too
    return size / max(took - empty, 1e-9)


def respond(connection: Connection, text: bytes, count: int) -> None:
    """The other end: takes what comes, and gives as much as was asked for. Raises ConnectionEnded."""
    part = torch.zeros(_PART, dtype=torch.uint8)
    connection.fill([part] * (count // _PART))
    asked = int(text) if text.isdigit() and len(text) <= len(str(MOST)) else -1
    if not 0 <= asked <= MOST:
        raise RulesBroken
    connection.post(FrameKind.PROBE, b"", [part] * (asked // _PART))
