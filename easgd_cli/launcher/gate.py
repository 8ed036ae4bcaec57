"""Where a run on many machines is reached: hosts come in by it, offer places for workers, and are told to fill them.

It listens in threads of its own. Who does not know the secret is sent away before a byte of what he says is looked at,
and harms nobody but his own connection.
"""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from easgd_cli import __version__
from easgd_cli.launcher import probe
from easgd_cli.launcher.probe import Carries
from easgd_cli.transport.connection import Connection, ConnectionEnded, Refused, answer, read_exactly

log = logging.getLogger("easgd.launcher")

ROLE = struct.Struct("<BxxxIQ")  # what a connection is for; of a worker's: its number, and the ticket it was called by
AGENT, WORKER = 1, 2
HELLO_SECONDS = 5.0  # for a stranger to show that it is none
_MOST_STRANGERS = 64  # connections at a time that have not yet


@dataclass
class Host:
    """A machine that offers places. `running`: the tickets of the workers it has been given."""

    name: str
    places: int
    connection: Connection
    running: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrived:
    """A worker's connection: of which worker, called by which ticket, and from which host."""

    worker: int
    ticket: int
    host: str
    socket: socket.socket


class Gate:
    """The hosts of a run. `settings`: of the run, in plain data; `vectors`: how long they are and of what type;
    `silence`: seconds without a word after which a host is gone.
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, settings: Mapping[str, Any],
        vectors: tuple[int, str], silence: float,
    ):  # fmt: skip
        self._listener, self._secret, self._settings, self._silence = listener, secret, settings, silence
        self._size, self._dtype = vectors
        self._lock = threading.Lock()
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._hosts: list[Host] = []
        self._ended: dict[str, Any] | None = None
        self.carries: dict[str, Carries] = {}  # what the link to each host does, also to those that have left
        self.arrived: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- what the launcher asks for

    def place(self, worker: int) -> int | None:
        """Gives the worker to a host that has room for it; the ticket by which its connection will be known, None
        where there is no room.
        """
        with self._lock:
            free = [host for host in self._hosts if len(host.running) < host.places]
            if not free:
                return None
            host = min(free, key=lambda host: len(host.running))
            ticket = host.running[worker] = secrets.randbits(63)
            host.connection.say({"kind": "start", "worker": worker, "ticket": ticket})
        log.info("worker %d: on host %s", worker, host.name)
        return ticket

    def release(self, worker: int) -> None:
        """The worker has ended, and its place is free."""
        with self._lock:
            for host in self._hosts:
                host.running.pop(worker, None)

    def expects(self, worker: int, ticket: int) -> bool:
        """Whether the host that was given the worker by this ticket is still there."""
        with self._lock:
            return any(host.running.get(worker) == ticket for host in self._hosts)

    def silent(self) -> dict[str, float]:
        """Of each host that is there, by its name: how many seconds ago anything was heard of it."""
        now = time.monotonic()
        with self._lock:
            return {host.name: now - host.connection.heard for host in self._hosts}

    def close(self, outcome: Mapping[str, Any]) -> None:
        """The run has ended so: tells all hosts, and nobody comes in any more."""
        with self._lock:
            self._ended = {"kind": "end", **outcome}
            hosts = list(self._hosts)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for host in hosts:
            host.connection.say(self._ended)
        ends = time.monotonic() + self._silence  # as long as a host may be silent, all of them together
        for host in hosts:
            host.connection.finish(max(0.0, ends - time.monotonic()))

    # ---------------------------------------------------------------- who comes

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
                role, worker, ticket = ROLE.unpack(read_exactly(sock, ROLE.size, HELLO_SECONDS))
            finally:
                self._strangers.release()
        except (Refused, OSError) as e:
            log.warning("a connection from %s is refused: %s", address, e)
            sock.close()
            return
        if role == WORKER:
            self._let_in(sock, worker, ticket)
        else:
            self._serve(Connection(sock, self._silence, probe.MOST), address)

    def _let_in(self, sock: socket.socket, worker: int, ticket: int) -> None:
        with self._lock:
            host = next((host for host in self._hosts if host.running.get(worker) == ticket), None)
        if host is None:  # it has been given to another since
            sock.close()
        else:
            self.arrived.put(Arrived(worker, ticket, host.name, sock))

    def _serve(self, connection: Connection, address: str) -> None:
        """A host, from its hello to its end."""
        host: Host | None = None
        try:
            while True:
                _, text, _ = connection.next()
                message, _ = connection.message(text)
                if message["kind"] == "host":
                    host = Host(f"{str(message['name'])[:64]} ({address})", int(message["places"]), connection)
                    self._introduce(connection, str(message["version"]))
                elif message["kind"] == "ready" and host is not None:
                    self._admit(host, message)
                elif message["kind"] == "failed" and host is not None:
                    log.warning("host %s cannot take part: %s", host.name, str(message["text"])[:1000])
        except (ConnectionEnded, KeyError, ValueError, TypeError) as e:
            connection.close()
            with self._lock:
                if host in self._hosts and host is not None:
                    self._hosts.remove(host)
                    log.info("host %s has left: %s", host.name, e)

    def _introduce(self, connection: Connection, version: str) -> None:
        """What it is to know, or why it cannot take part."""
        if version != __version__:
            connection.say({"kind": "refused", "why": f"the run is of easgd {__version__}, and here is {version}"})
        else:
            connection.say({"kind": "run", "settings": self._settings, "silence": self._silence})

    def _admit(self, host: Host, message: Mapping[str, Any]) -> None:
        if (message["size"], message["dtype"]) != (self._size, self._dtype):
            why = (
                f"its net has {message['size']} numbers of {message['dtype']}, the run's {self._size} of {self._dtype}"
            )
            log.warning("host %s cannot take part: %s", host.name, why)
            host.connection.say({"kind": "refused", "why": why})
            return
        carries = probe.measured(host.connection)
        with self._lock:
            if self._ended is not None:
                host.connection.say(self._ended)
                return
            self._hosts.append(host)
            self.carries[host.name] = carries
        up, down = carries.up / 1e6, carries.down / 1e6
        log.info("host %s offers %d places; its link carries %.4g MB/s up, %.4g down", host.name, host.places, up, down)
