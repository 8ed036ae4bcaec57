"""A connection between two machines: a hello in which each side proves that it knows the secret, then frames.

A frame is a kind, a text and the bytes of vectors, which go from the memory they lie in to the memory they are for.
Nothing that comes from the network is unpickled, and nothing of a frame is kept before its sizes have been checked.
Both sides say something twice a second or more often, so a machine that is gone is noticed, whatever it was doing.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from easgd_cli.errors import why
from easgd_cli.system.shared_memory import Layout, SharedTensors
from easgd_cli.transport.turn import LARGE, SendTurn

_MAGIC = b"easgd-1\n"  # with the version of what follows
_NONCE = _MAC = 32
_HEAD = struct.Struct("<BxxxIQ")  # kind, bytes of its text, bytes of its vectors
_MOST_TEXT = 1 << 24
_CONNECT_SECONDS = 10.0  # to connect; the hello may take longer
_TCP_INFO, _ACKNOWLEDGED_AND_BUSY = 11, (120, 168)  # of linux/tcp.h: bytes, and microseconds
_LOOKS = 5  # a wait of `silence` seconds is made in so many parts
_BEATS, _SHORTEST_SILENCE = 4, 2.0  # signs of life in the seconds of `silence`; the least `silence` of any side


class ConnectionEnded(Exception):
    """The other side has gone, is silent, or breaks the rules."""


class RulesBroken(ConnectionEnded):
    """The other side has sent what the rules do not allow."""

    def __init__(self, how: str = "it said what nobody says who keeps to the rules"):
        super().__init__(how)


class Refused(Exception):
    """The other side is not of this run: it does not know the secret, or is no easgd of this version."""


class FrameKind(IntEnum):
    """What a frame is."""

    ALIVE = 0  # nothing to say
    MESSAGE = 1  # JSON, and the vectors that its layout names
    REQUEST = 2  # of a worker to its master
    REPLY = 3
    PROBE = 4  # bytes that are sent to see how long they take


def answer(sock: socket.socket, secret: bytes, seconds: float) -> None:
    """Makes the hello of the side that was called. Raises Refused and OSError, after at most `seconds`."""
    ends = time.monotonic() + seconds
    ours = os.urandom(_NONCE)
    sock.settimeout(seconds)
    sock.sendall(_MAGIC + ours)
    said = read_exactly(sock, len(_MAGIC) + _NONCE + _MAC, ends - time.monotonic())
    magic, theirs, mac = said[: len(_MAGIC)], said[len(_MAGIC) : -_MAC], said[-_MAC:]
    if magic != _MAGIC:
        raise Refused("it is no easgd of this version")
    if not hmac.compare_digest(mac, _proof(secret, b"caller", ours, theirs)):
        raise Refused("its secret is another")
    sock.sendall(_proof(secret, b"called", ours, theirs))


def call(address: tuple[str, int], secret: bytes, seconds: float) -> socket.socket:
    """Returns a connection to that address, after the hello. Raises Refused and OSError, after at most `seconds`."""
    ends = time.monotonic() + seconds
    sock = socket.create_connection(address, timeout=min(seconds, _CONNECT_SECONDS))
    try:
        said = read_exactly(sock, len(_MAGIC) + _NONCE, ends - time.monotonic())
        if said[: len(_MAGIC)] != _MAGIC:
            raise Refused("what listens there is no easgd of this version")
        theirs, ours = said[len(_MAGIC) :], os.urandom(_NONCE)
        sock.sendall(_MAGIC + ours + _proof(secret, b"caller", theirs, ours))
        try:
            mac = read_exactly(sock, _MAC, ends - time.monotonic())
        except ConnectionError as e:
            raise Refused("its secret is another") from e
        if not hmac.compare_digest(mac, _proof(secret, b"called", theirs, ours)):
            raise Refused("its secret is another")
    except BaseException:
        sock.close()
        raise
    return sock


def _proof(secret: bytes, who: bytes, called: bytes, caller: bytes) -> bytes:
    return hmac.digest(secret, who + called + caller, "sha256")


def read_exactly(sock: socket.socket, count: int, seconds: float) -> bytes:
    """Reads `count` bytes. Raises ConnectionResetError if the connection ends before, TimeoutError after `seconds`."""
    found, ends = b"", time.monotonic() + seconds
    while len(found) < count:
        sock.settimeout(max(0.001, ends - time.monotonic()))
        if not (more := sock.recv(count - len(found))):
            raise ConnectionResetError("the connection has ended")
        found += more
    return found


class Connection:
    """One end of a connection, after its hello. A thread of its own sends what is posted, so that only those who read
    from the connection wait for the network.

    `silence`: seconds without a byte after which the other side counts as gone; `most`: bytes of vectors in a frame
    that is read; `turn`: taken to send large vectors.
    """

    def __init__(self, sock: socket.socket, silence: float, most: int = 0, turn: SendTurn | None = None):
        self._socket, self._left = sock, 0
        self._beats = min(silence, _SHORTEST_SILENCE) / _BEATS  # the other side may be less patient
        self._turn, self._said = turn, 0.0
        self.sent = self.received = 0  # bytes of vectors
        self.heard = time.monotonic()  # when a byte came last
        self.most = most
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.be_patient(silence)
        self._out: queue.SimpleQueue[tuple[FrameKind, bytes, Sequence[Tensor]] | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    @property
    def own_address(self) -> str:
        """The address of this end."""
        return str(self._socket.getsockname()[0])

    @property
    def their_address(self) -> str:
        """The address of the other end."""
        return str(self._socket.getpeername()[0])

    def be_patient(self, silence: float) -> None:
        """Sets the seconds without a byte after which the other side counts as gone."""
        self._silence = silence
        self._socket.settimeout(silence / _LOOKS)

    # ---------------------------------------------------------------- out

    def post(self, kind: FrameKind, text: bytes = b"", vectors: Sequence[Tensor] = ()) -> None:
        """Queues a frame. The vectors are read when they are sent."""
        self._out.put((kind, text, vectors))

    def say(self, message: Mapping[str, Any], enclosed: SharedTensors | None = None) -> None:
        """Queues a message, with the memory `enclosed`, which belongs to the message from now on."""
        vectors: list[Tensor] = []
        if enclosed is not None:
            layout = {n: [*shape, str(t).removeprefix("torch.")] for n, (shape, t) in enclosed.layout.items()}
            message, vectors = {**message, "layout": layout}, list(enclosed.tensors.values())
            enclosed.close()
        self.post(FrameKind.MESSAGE, json.dumps(message).encode(), vectors)

    def _send(self) -> None:
        try:
            while True:
                try:
                    frame = self._out.get(timeout=self._beats)
                except queue.Empty:
                    frame = (FrameKind.ALIVE, b"", ())
                if frame is None:
                    break
                kind, text, vectors = frame
                parts = [_bytes(v) for v in vectors]
                count = sum(map(len, parts))
                frame_parts = [memoryview(_HEAD.pack(kind, len(text), count) + text), *parts]
                with self._turn.taken(self._beat) if self._turn and count >= LARGE else nullcontext():
                    self._send_all(frame_parts)
                self.sent += count
        except OSError:  # the shutdown tells the reader
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _beat(self) -> None:
        """Sends a sign of life, if it is time to."""
        if time.monotonic() - self._said > self._beats:
            self._send_all([memoryview(_HEAD.pack(FrameKind.ALIVE, 0, 0))])

    def _send_all(self, parts: list[memoryview]) -> None:
        while parts:
            sent = self._patiently(partial(self._socket.sendmsg, parts))
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][sent:]
        self._said = time.monotonic()

    def rate(self) -> float | None:
        """Returns the bytes a second that have reached the other side while some were on their way, as the system
        counts them; None if it does not, or if there were none yet.
        """
        try:
            said = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
            acknowledged, busy = (struct.unpack_from("<Q", said, at)[0] for at in _ACKNOWLEDGED_AND_BUSY)
        except (OSError, struct.error):
            return None
        return 1e6 * acknowledged / busy if busy else None

    # ---------------------------------------------------------------- in

    def next(self) -> tuple[FrameKind, bytes, int]:
        """Returns the next frame: its kind, its text, and the bytes of its vectors, which are to be read next. Raises
        ConnectionEnded.
        """
        self.fill([])
        while True:
            head = bytearray(_HEAD.size)
            self._read_into(memoryview(head))
            number, text, self._left = _HEAD.unpack(head)
            if number not in set(FrameKind) or text > _MOST_TEXT or self._left > self.most:
                raise RulesBroken
            said = bytearray(text)
            self._read_into(memoryview(said))
            if number != FrameKind.ALIVE:
                return FrameKind(number), bytes(said), self._left

    def fill(self, vectors: Sequence[Tensor]) -> None:
        """Reads the frame's vectors into these. Raises ConnectionEnded, also if their size is another."""
        parts = [_bytes(v) for v in vectors]
        if sum(map(len, parts)) != self._left:
            raise RulesBroken("it sent vectors of another size")
        for part in parts:
            self._read_into(part)
        self.received += self._left
        self._left = 0

    def message(self, text: bytes) -> tuple[dict[str, Any], SharedTensors | None]:
        """Returns what a frame of kind MESSAGE says, and its vectors. Raises ConnectionEnded and MemoryError."""
        try:
            message = json.loads(text)
            layout: Layout = {
                str(name): (tuple(int(side) for side in shape), _TYPES[of])
                for name, (*shape, of) in message.pop("layout", {}).items()
            }
            if not isinstance(message["kind"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise RulesBroken from e
        size = sum(math.prod(shape) * of.itemsize for shape, of in layout.values())
        if size != self._left or any(side < 0 for shape, _ in layout.values() for side in shape):
            raise RulesBroken("it sent vectors of another size")
        if not layout:
            return message, None
        enclosed = SharedTensors.allocate(layout)
        self.fill(list(enclosed.tensors.values()))
        return message, enclosed

    def _read_into(self, part: memoryview) -> None:
        at = 0
        try:
            while at < len(part):
                if not (got := self._patiently(partial(self._socket.recv_into, part[at:]))):
                    raise ConnectionEnded("the connection has ended")
                at += got
                self.heard = time.monotonic()
        except TimeoutError as e:
            raise ConnectionEnded(f"nothing has been heard of it for {self._silence:g} s") from e
        except OSError as e:
            raise ConnectionEnded(f"the connection has ended ({why(e)})") from e

    def _patiently(self, act: Callable[[], int]) -> int:
        """Calls `act`, which waits, for the seconds of `silence`, in parts. When a machine has stood still, and the
        other one with it, one of the parts may be over at once, but not all of them. Raises TimeoutError.
        """
        for _ in range(_LOOKS - 1):
            with suppress(TimeoutError):
                return act()
        return act()

    def finish(self, seconds: float) -> None:
        """Ends the connection in order: sends what has been posted, and waits until the other side has read it and
        ends, too; for at most `seconds`.
        """
        ends = time.monotonic() + seconds
        self._out.put(None)
        self._sender.join(seconds)
        with suppress(OSError, ValueError):  # the connection may have ended meanwhile
            self._socket.shutdown(socket.SHUT_WR)
            gone = select.poll()
            gone.register(self._socket, select.POLLRDHUP)
            gone.poll(1000 * max(0.0, ends - time.monotonic()))
        self.close()

    def close(self) -> None:
        """Ends the connection at once. What the other side has not read yet may be lost: a system that gets more on a
        closed connection throws away what it has not delivered.
        """
        self._out.put(None)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._sender.join()
        self._socket.close()


_TYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}


def _bytes(v: Tensor) -> memoryview:
    """Returns the memory of a tensor, in one piece."""
    array: Any = v.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
