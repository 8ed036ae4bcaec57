"""Where a run on many machines is reached: hosts come in by it, offer places for workers and for masters, and are told
to fill them.
"""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easgd_cli import __version__
from easgd_cli.launcher import probe
from easgd_cli.launcher.door import AGENT, MASTER, MEETING, WORKER, Door, met_by_call
from easgd_cli.launcher.parties import Process, master_at, place_of
from easgd_cli.launcher.probe import Carries
from easgd_cli.transport.connection import Connection, ConnectionEnded
from easgd_cli.transport.meeting import Board

log = logging.getLogger("easgd.launcher")


@dataclass
class Host:
    """A machine that offers places for workers and for `masters`. `running`: the tickets of those it has been given;
    `address`: where its masters are reached, if it may have any.
    """

    name: str
    places: int
    masters: int
    connection: Connection
    running: dict[Process, int] = field(default_factory=dict)
    address: tuple[str, int] | None = None

    def taken(self, party: Process) -> int:
        """Its places for one like this party that are taken."""
        return sum(isinstance(other, int) == isinstance(party, int) for other in self.running)

    def has_room(self, party: Process) -> bool:
        """For another like this."""
        masters = 0 if self.address is None else self.masters
        return self.taken(party) < (self.places if isinstance(party, int) else masters)


@dataclass(frozen=True)
class Arrived:
    """A connection of a worker or master: of which, called by which ticket, from which host, and where that is
    reached.
    """

    party: Process
    ticket: int
    host: str
    address: tuple[str, int] | None
    socket: socket.socket


class Gate:
    """The hosts of a run. `settings`: of the run, in plain data; `vectors`: how long they are and of what type;
    `silence`: seconds without a word after which a host is gone; `sums`: whether messages go into a sum.
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, settings: Mapping[str, Any],
        vectors: tuple[int, str], silence: float, sums: bool = False,
    ):  # fmt: skip
        self._settings, self._silence, self._sums = settings, silence, sums
        self._size, self._dtype = vectors
        self._lock = threading.Lock()
        self._hosts: list[Host] = []
        self._ended: dict[str, Any] | None = None
        self.carries: dict[str, Carries] = {}  # what the link to each host does, also to those that have left
        self.arrived: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
        host, port = listener.getsockname()
        self.meeting, self._board = met_by_call((host, port), secret, host), Board()
        self._door = Door(listener, secret, self._enters)

    # ---------------------------------------------------------------- what the launcher asks for

    def place(self, party: Process) -> int | None:
        """Gives the worker or master to a host that has room for it; the ticket by which its connection will be known,
        None where there is no room.
        """
        with self._lock:
            free = [host for host in self._hosts if host.has_room(party)]
            if not free:
                return None
            # a sum goes round by the workers' numbers, so that neighbours on one host spare its link
            before = party - 1 if self._sums and isinstance(party, int) else None
            host = min(free, key=lambda host: (before not in host.running, host.taken(party)))
            ticket = host.running[party] = secrets.randbits(63)
            of = {"worker": party} if isinstance(party, int) else {"master": place_of(party)}
            host.connection.say({"kind": "start", **of, "ticket": ticket})
        log.info("%s: on host %s", f"worker {party}" if isinstance(party, int) else party, host.name)
        return ticket

    def release(self, party: Process) -> None:
        """It has ended, and its place is free."""
        with self._lock:
            for host in self._hosts:
                host.running.pop(party, None)

    def expects(self, party: Process, ticket: int) -> bool:
        """Whether the host that was given it by this ticket is still there."""
        with self._lock:
            return any(host.running.get(party) == ticket for host in self._hosts)

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
        self._door.close()
        for host in hosts:
            host.connection.say(self._ended)
        ends = time.monotonic() + self._silence  # as long as a host may be silent, all of them together
        for host in hosts:
            host.connection.finish(max(0.0, ends - time.monotonic()))

    # ---------------------------------------------------------------- who comes

    def _enters(self, sock: socket.socket, address: str, role: int, number: int, ticket: int) -> None:
        if role in (WORKER, MASTER):
            self._let_in(sock, number if role == WORKER else master_at(number), ticket)
        elif role == AGENT:
            self._serve(Connection(sock, self._silence, probe.MOST), address)
        elif role == MEETING:
            self._board.serve(sock)
        else:
            sock.close()

    def _let_in(self, sock: socket.socket, party: Process, ticket: int) -> None:
        with self._lock:
            host = next((host for host in self._hosts if host.running.get(party) == ticket), None)
        if host is None:  # it has been given to another since
            sock.close()
        else:
            self.arrived.put(Arrived(party, ticket, host.name, host.address, sock))

    def _serve(self, connection: Connection, address: str) -> None:
        """A host, from its hello to its end."""
        host: Host | None = None
        try:
            while True:
                _, text, _ = connection.next()
                message, _ = connection.message(text)
                if message["kind"] == "host":
                    name = f"{str(message['name'])[:64]} ({address})"
                    host = Host(name, int(message["places"]), int(message["masters"]), connection)
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
        if message["port"] is not None:
            host.address = (host.connection.their_address, int(message["port"]))
        carries = probe.measured(host.connection)
        with self._lock:
            if self._ended is not None:
                host.connection.say(self._ended)
                return
            self._hosts.append(host)
            self.carries[host.name] = carries
        up, down = carries.up / 1e6, carries.down / 1e6
        log.info("host %s offers %d places; its link carries %.4g MB/s up, %.4g down", host.name, host.places, up, down)
