"""The gate of a run on many machines: hosts join there, offer places for workers and masters, and are told to fill
them.
"""

from __future__ import annotations

import itertools
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easgd_cli import __version__
from easgd_cli.launcher.hosts import probe
from easgd_cli.launcher.hosts.door import Door, Role, meeting_at
from easgd_cli.launcher.hosts.probe import Carries
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.supervisor.parties import ProcessName, master_at, place_of, title_on_hosts
from easgd_cli.transport.connection import Connection, ConnectionEnded
from easgd_cli.transport.meeting import Board


@dataclass
class Host:
    """A machine that offers `places` for workers and for `masters`. `running`: the tickets of the workers and masters
    that it has been given; `unfit`: those that it is not given again, since they could not begin there; `address`:
    where its masters are reached, None if all masters are on the first host.
    """

    name: str
    places: int
    masters: int
    connection: Connection
    running: dict[ProcessName, int] = field(default_factory=dict)
    unfit: set[ProcessName] = field(default_factory=set)
    address: tuple[str, int] | None = None

    def taken(self, party: ProcessName) -> int:
        """Returns how many of the places for workers are taken, or of those for masters: whichever `party` is."""
        return sum(isinstance(other, int) == isinstance(party, int) for other in self.running)

    def has_room(self, party: ProcessName) -> bool:
        """Returns whether the host can take `party`, too."""
        masters = 0 if self.address is None else self.masters
        return party not in self.unfit and self.taken(party) < (self.places if isinstance(party, int) else masters)

    def give_back(self, party: ProcessName) -> None:
        """Frees the party's place; the host is not given the party again."""
        if self.running.pop(party, None) is not None:
            self.unfit.add(party)


@dataclass(frozen=True)
class Arrival:
    """A connection of a worker or master elsewhere: which, by which ticket, from which host, and where that host's
    masters are reached.
    """

    party: ProcessName
    ticket: int
    host: str
    address: tuple[str, int] | None
    socket: socket.socket


class Gate:
    """The hosts of a run. `settings`: the run's, as plain data; `vectors`: their length and type; `silence`: seconds
    without a word after which a host is gone; `sums`: True if messages go into a sum.
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, settings: Mapping[str, Any],
        vectors: tuple[int, str], silence: float, sums: bool = False,
    ):  # fmt: skip
        self._settings, self._silence, self._sums = settings, silence, sums
        self._size, self._dtype = vectors
        self._lock = threading.Lock()
        self._hosts: list[Host] = []
        self._connections: set[Connection] = set()  # of all hosts that know the secret, ready or not
        self._last: dict[ProcessName, Host] = {}  # the host that each party was given to last
        self._ended: dict[str, Any] | None = None
        self.carries: dict[str, Carries] = {}  # what the link to each host carries, also of hosts that have left
        self.arrived: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        host, port = listener.getsockname()
        self.meeting, self._board = meeting_at((host, port), secret, host), Board()
        self._door = Door(listener, secret, self._enters)

    # ---------------------------------------------------------------- what the launcher asks for

    def assign(self, party: ProcessName) -> int | None:
        """Gives the worker or master to a host that has room for it. Returns the ticket by which its connection will be
        known, None where no host has room.
        """
        with self._lock:
            free = [host for host in self._hosts if host.has_room(party)]
            if not free:
                return None
            # a party that died comes back on its host; a sum goes round by the workers' numbers, so neighbours on one
            # host spare its link
            last, before = self._last.get(party), party - 1 if self._sums and isinstance(party, int) else None
            host = self._last[party] = min(
                free, key=lambda host: (host is not last, before not in host.running, host.taken(party))
            )
            ticket = host.running[party] = secrets.randbits(63)
            of = {"worker": party} if isinstance(party, int) else {"master": place_of(party)}
            host.connection.say({"kind": "start", **of, "ticket": ticket})
        log.info("%s: on host %s", title_on_hosts(party), host.name)
        return ticket

    def release(self, party: ProcessName) -> None:
        """Frees the place of a party that has ended."""
        with self._lock:
            for host in self._hosts:
                host.running.pop(party, None)

    def lost(self, party: ProcessName) -> None:
        """Takes the party away from the host that has it; that host is not given it again."""
        with self._lock:
            for host in self._hosts:
                host.give_back(party)

    def expects(self, party: ProcessName, ticket: int) -> bool:
        """Returns whether the host that was given the party by this ticket is still there and still has it."""
        with self._lock:
            return any(host.running.get(party) == ticket for host in self._hosts)

    def silent(self) -> dict[str, float]:
        """Returns, for each host that is there, by its name, how many seconds ago anything was heard of it."""
        now = time.monotonic()
        with self._lock:
            return {host.name: now - host.connection.heard for host in self._hosts}

    def close(self, outcome: Mapping[str, Any]) -> None:
        """Tells all hosts that the run has ended, with this `outcome`; lets nobody in any more."""
        with self._lock:
            self._ended = {"kind": "end", **outcome}
            connections = list(self._connections)  # also of hosts that are not ready yet
        self._door.close()
        for connection in connections:
            connection.say(self._ended)
        ends = time.monotonic() + self._silence  # all of them together get as long as a host may be silent
        for connection in connections:
            connection.finish(max(0.0, ends - time.monotonic()))

    # ---------------------------------------------------------------- who comes

    def _enters(self, sock: socket.socket, address: str, role: int, number: int, ticket: int) -> None:
        if role in (Role.WORKER, Role.MASTER):
            self._let_in(sock, number if role == Role.WORKER else master_at(number), ticket)
        elif role == Role.AGENT:
            self._serve(Connection(sock, self._silence, probe.MOST), address)
        elif role == Role.MEETING:
            self._board.serve(sock)
        else:
            sock.close()

    def _let_in(self, sock: socket.socket, party: ProcessName, ticket: int) -> None:
        with self._lock:
            host = next((host for host in self._hosts if host.running.get(party) == ticket), None)
        if host is None:  # the party has been given to another host since
            sock.close()
        else:
            self.arrived.put(Arrival(party, ticket, host.name, host.address, sock))

    def _serve(self, connection: Connection, address: str) -> None:
        """Serves the connection of a host, from its hello to its end."""
        host: Host | None = None
        with self._lock:
            ended = self._ended
            self._connections.add(connection)
        if ended is not None:
            connection.say(ended)
        try:
            while True:
                _, text, _ = connection.next()
                message, _ = connection.message(text)
                if message["kind"] == "host" and host is None:
                    name = f"{str(message['name'])[:64]} ({address})"
                    host = Host(name, int(message["places"]), int(message["masters"]), connection)
                    self._introduce(connection, str(message["version"]))
                elif message["kind"] == "ready" and host is not None and host not in self._hosts:
                    self._admit(host, message)
                elif message["kind"] == "cannot" and host is not None:
                    self._cannot(host, int(message["ticket"]), str(message["text"])[:1000])
                elif message["kind"] == "failed" and host is not None:
                    log.warning("host %s cannot take part: %s", host.name, str(message["text"])[:1000])
        except Exception as e:  # whatever the host said costs its own connection and nothing else
            connection.close()
            with self._lock:
                self._connections.discard(connection)
                there = host is not None and host in self._hosts
                if host is not None and there:
                    self._hosts.remove(host)
            if there or not isinstance(e, ConnectionEnded):
                log.info("host %s has left: %s", "?" if host is None else host.name, e)

    def _cannot(self, host: Host, ticket: int, text: str) -> None:
        """Takes a party back that cannot begin on this host: another host is to have it."""
        with self._lock:
            parties = [party for party, of in host.running.items() if of == ticket]
            for party in parties:
                host.give_back(party)
        for party in parties:
            log.warning("%s: cannot begin on host %s: %s", title_on_hosts(party), host.name, text)

    def _introduce(self, connection: Connection, version: str) -> None:
        """Tells a host the run's settings, or why it cannot take part."""
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
        carries = probe.measure(host.connection)
        with self._lock:
            if self._ended is not None:  # close() has told the host
                return
            names = [other.name for other in self._hosts]
            if host.name in names:  # two agents on one machine
                host.name = next(name for i in itertools.count(2) if (name := f"{host.name}, {i}") not in names)
            self._hosts.append(host)
            self.carries[host.name] = carries
        up, down = carries.up / 1e6, carries.down / 1e6
        log.info("host %s offers %d places; its link carries %.4g MB/s up, %.4g down", host.name, host.places, up, down)
