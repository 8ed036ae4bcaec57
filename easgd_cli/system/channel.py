"""A wire between the launcher and one child: JSON lines over a Unix socket, each with at most one descriptor, of memory
or of a socket.

Only `wait` blocks. A child posts and goes on training; what the socket does not take stays in a buffer until the next
flush. Each child has a socket of its own and children share nothing, so a kill harms no other connection.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from easgd_cli.system.shared_memory import Layout, SharedTensors

_CHUNK = 1 << 16
_AT_ONCE = 32  # messages taken in one go: each may hold descriptors, of which a process has only so many

Message = tuple[dict[str, Any], Any]  # and what came with the message: SharedTensors, a socket, or None


class ChannelClosed(Exception):
    """The other side has ended."""


class Channel:
    """One end. Any thread may call `post`, which queues a message, and `flush`, which sends what the socket takes. One
    thread calls `receive` and `wait`, which return what has arrived.
    """

    def __init__(self, sock: socket.socket):
        self._socket = sock
        sock.setblocking(False)
        self._sending = threading.Lock()
        self._out: deque[tuple[memoryview, SharedTensors | socket.socket | None]] = deque()
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self._inbox: deque[Message] = deque()
        # asking costs a worker a microsecond a step; a read that finds nothing, with its buffer, up to a thousand
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def post(self, message: Mapping[str, Any], enclosed: SharedTensors | socket.socket | None = None) -> None:
        """Queues a message, and with it memory or a socket, which belongs to the message from now on: this end closes
        it.
        """
        if isinstance(enclosed, SharedTensors):
            layout = enclosed.layout.items()
            told = {name: [list(shape), str(dtype).removeprefix("torch.")] for name, (shape, dtype) in layout}
            message = {**message, "layout": told}
        elif enclosed is not None:
            message = {**message, "layout": "socket"}
        data = memoryview(json.dumps(message).encode() + b"\n")
        with self._sending:
            self._out.append((data, enclosed))
            self._flush()

    def flush(self) -> bool:
        """Sends what the socket takes now; True when nothing is left. Raises ChannelClosed at the other side's end."""
        with self._sending:
            return self._flush()

    def _flush(self) -> bool:
        while self._out:
            data, enclosed = self._out[0]
            try:
                if enclosed is None:
                    sent = self._socket.send(data)
                else:
                    sent = socket.send_fds(self._socket, [data], [enclosed.fileno()])
                    enclosed.close()
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError) as e:
                self._drop_unsent()
                raise ChannelClosed from e
            if sent < len(data):
                self._out[0] = (data[sent:], None)
            else:
                self._out.popleft()
        return True

    def receive(self) -> list[Message]:
        """Returns whole messages that have arrived; none only when all have been returned. Raises ChannelClosed at the
        end, after all messages before it.

        One call returns only so many, however many keep arriving. When the other side has ended, call until there are
        none.
        """
        self._fill()
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    def put_back(self, message: Message) -> None:
        """Puts a message back: it is returned again, before all others."""
        self._inbox.appendleft(message)

    def wait(self) -> Message:
        """Waits for the next message and returns it. Raises ChannelClosed at the end."""
        while not self._inbox:
            self._poll.poll()
            self._fill()
        return self._inbox.popleft()

    def _fill(self) -> None:
        while len(self._inbox) < _AT_ONCE and self._poll.poll(0):
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _CHUNK, 32)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds = b"", []
            self._fds.extend(fds)
            if not data:
                if self._inbox:
                    return
                raise ChannelClosed
            self._in += data
            *lines, rest = self._in.split(b"\n")
            self._in = bytearray(rest)
            for line in lines:
                message = json.loads(line)
                layout = message.pop("layout", None)
                self._inbox.append((message, None if layout is None else self._open(layout)))

    def _open(self, layout: Any) -> SharedTensors | socket.socket:
        if layout == "socket":
            return socket.socket(fileno=self._fds.popleft())
        known: Layout = {name: (tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in layout.items()}
        return SharedTensors(known, self._fds.popleft())

    def _drop_unsent(self) -> None:
        """Closes what was never delivered, so that the holder of a socket's other end sees it end."""
        for _, enclosed in self._out:
            if enclosed is not None:
                enclosed.close()
        self._out.clear()

    def close(self) -> None:
        self._drop_unsent()
        for fd in self._fds:
            os.close(fd)
        self._socket.close()
