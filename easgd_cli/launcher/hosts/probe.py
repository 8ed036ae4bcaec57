"""How much the link to a host carries, measured before the link is used: by messages of which each is twice as large as
the one before, until one takes long enough to tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from easgd_cli.launcher.journal.links import Carries
from easgd_cli.transport.connection import Connection, FrameKind, RulesBroken

_PART = 1 << 16  # bytes of the first message; larger ones send the same memory several times
MOST = 1 << 25  # bytes of the largest message
_ENOUGH_SECONDS = 0.1
_WORDS = 3  # messages there and back without a vector; the quickest counts


def measure(connection: Connection) -> Carries:
    """Returns what the link carries. Takes about half a second each way; on a link slower than 1 Mbit/s, as long as 64
    KB take. Raises ConnectionEnded.
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
        size *= 2  # TCP needs some messages, too, until it has found its speed
    return size / max(took - empty, 1e-9)


def respond(connection: Connection, text: bytes, count: int) -> None:
    """Does the other side's part: takes what comes, and sends as many bytes as asked for. Raises ConnectionEnded."""
    part = torch.zeros(_PART, dtype=torch.uint8)
    connection.fill([part] * (count // _PART))
    asked = int(text) if text.isdigit() and len(text) <= len(str(MOST)) else -1
    if not 0 <= asked <= MOST:
        raise RulesBroken
    connection.post(FrameKind.PROBE, b"", [part] * (asked // _PART))
