"""The process on the master's machine that stands for a worker on another one.

Launcher, supervisor and master have it as the worker: what it says is what the worker says, its session is the
worker's, and it ends as the worker ends, of the same signal or with the same words.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from easgd_cli.system.channel import Channel, ChannelClosed
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.worker import WorkerStart
from easgd_cli.transport.base import SessionEnded
from easgd_cli.transport.connection import Connection, ConnectionEnded, Sort
from easgd_cli.transport.relay import WorkerStandIn
from easgd_cli.transport.shared import Link, SharedWorkerEnd
from easgd_cli.transport.turn import Turn

_LOOK_UP_SECONDS = 1.0
_LINK_SECONDS = 1.0  # between two words on what its connection carries
_LONGEST_SECONDS = 3600.0  # that a system call is asked to wait
_LAST_SECONDS = 10.0  # for the master to hear the worker's last word


@dataclass(frozen=True)
class StandInStart:
    """`link.memory`: the worker's vectors as they are to be; `begin`: what else the worker begins with, as plain data;
    `wait`: seconds until a host has to be found for it, and `where` that is said; `turns`: of all stand-ins.
    """

    link: Link
    begin: dict[str, Any]
    wait: float
    silence: float
    where: str
    turns: SharedTensors

    @classmethod
    def of(cls, start: WorkerStart, wait: float, silence: float, where: str, turns: SharedTensors) -> StandInStart:
        """In the place of the worker that was to begin so."""
        interval, seen = start.interval, start.seen
        begin = {
            "worker": start.link.worker, "t": start.t, "seen": [seen.clock, seen.served, seen.exchanges],
            "interval": None if interval is None else [interval.steps, interval.seconds],
            "meter": start.meter, "pace": None if start.pace is None else list(start.pace),
            "returns": start.returns, "new": start.new, "spared": start.spared,
        }  # fmt: skip
        return cls(start.link, begin, wait, silence, where, turns)


class StandIn:
    """Passes on what is said, and stands between two sessions."""

    def __init__(self, start: StandInStart, channel: Channel):
        self._channel, self._posting = channel, threading.Lock()
        self._wake, self._woken = socket.socketpair()
        # with next masters, by their places
        self._sessions = [queue.SimpleQueue[socket.socket]() for _ in start.link.sockets]
        self._told, self._rate_up = 0.0, None  # the other side knows how fast it sends
        self._ready, self._end = threading.Event(), dict[str, Any]()
        sock, self._host = self._connected(start)
        memory = start.link.memory
        self._connection = Connection(sock, start.silence, memory.nbytes(), Turn(start.turns))
        for number in (signal.SIGCONT, signal.SIGQUIT):
            signal.signal(number, lambda number, _: self._connection.say({"kind": "signal", "number": number}))
        end = SharedWorkerEnd(start.link, None, lambda place: self._sessions[place].get())
        self._asks = WorkerStandIn(end, memory.tensors, start.link.variables, start.link.packing, self._connection)
        # one that comes back takes everything from the center
        held = {} if start.begin["returns"] else {n: v for n, v in memory.tensors.items() if v.any()}
        self._connection.say({"kind": "begin", **start.begin}, SharedTensors.of(held) if held else None)
        threading.Thread(target=self._listen, daemon=True).start()
        self._ready.wait()
        if self._end:
            self._leave()

    def _connected(self, start: StandInStart) -> tuple[socket.socket, str]:
        """The connection to its worker's host, which the launcher has found. Raises ChannelClosed, and SessionEnded
        where none is found.
        """
        ends = time.monotonic() + start.wait
        host, begins = None, None
        while host is None and (left := ends - time.monotonic()) > 0:
            select.select([self._channel], [], [], min(left, _LONGEST_SECONDS))
            for message, enclosed in self._channel.receive():
                if message["kind"] == "connection":
                    host = (enclosed, message["host"])
                elif message["kind"] == "session":
                    self._sessions[message["place"]].put(enclosed)
                elif message["kind"] == "start":  # of a run that is under way
                    begins = (message, enclosed)
                else:
                    raise ChannelClosed  # told to stop
        if host is not None:
            if begins is not None:
                self._channel.put_back(begins)
            return host
        raise self._given_up(f"no host has had a place for it for {start.wait:g} s; {start.where}")

    def run(self, began: float) -> None:
        """Until the worker has ended. Raises SessionEnded where it has ended before its time, and ChannelClosed."""
        self._connection.say({"kind": "start", "elapsed": time.monotonic() - began})
        while not self._end:
            self._turn()
        self._leave()

    def _tell_link(self) -> None:
        """What its connection has carried so far."""
        link, self._told = self._connection, time.monotonic()
        carried = {"up": [link.received, self._rate_up], "down": [link.sent, link.rate()]}
        with suppress(ChannelClosed), self._posting:
            self._channel.post({"kind": "link", "host": self._host, **carried})

    def _turn(self) -> None:
        """Passes on what the launcher says, and what it has not yet taken."""
        with self._posting:
            said_all = self._channel.flush()
        watched: list[Any] = [self._channel, self._woken]
        select.select(watched, [] if said_all else [self._channel], [], _LOOK_UP_SECONDS)
        for message, enclosed in self._channel.receive():
            if message["kind"] == "session":
                self._sessions[message["place"]].put(enclosed)
            else:
                self._connection.say(message)
        if time.monotonic() - self._told > _LINK_SECONDS:
            self._tell_link()

    def _leave(self) -> None:
        """Ends as the worker has ended."""
        end = self._end
        if end.get("done"):
            self._asks.join(_LAST_SECONDS)
            return
        if "lost" in end:
            raise self._given_up(f"its host {self._host} is lost: {end['lost']}")
        with suppress(ChannelClosed), self._posting:
            while not self._channel.flush():
                select.select([], [self._channel], [])
        if number := end.get("signal"):
            signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
            os.kill(os.getpid(), number)
        raise SessionEnded(f"the worker has {end.get('how', 'ended')}")

    def _given_up(self, text: str) -> SessionEnded:
        with self._posting:
            self._channel.post({"kind": "error", "text": text, "refused": False})
        return SessionEnded(text)

    # ---------------------------------------------------------------- what comes from the worker's host

    def _listen(self) -> None:
        try:
            while not self._end:
                sort, text, count = self._connection.next()
                if sort is Sort.REQUEST:
                    self._asks.request(text, count)
                elif sort is Sort.MESSAGE:
                    self._hear(*self._connection.message(text))
        except (ConnectionEnded, MemoryError) as e:
            self._end = {"lost": str(e)}
        except ChannelClosed:
            self._end = {"how": "no launcher any more"}
        self._ready.set()
        self._wake.send(b"x")

    def _hear(self, message: dict[str, Any], enclosed: SharedTensors | None) -> None:
        kind = message["kind"]
        if kind == "ready":
            self._ready.set()
        elif kind == "log":
            print(message["text"], end="", flush=True)
        elif kind == "ended":
            self._end = message
        elif kind != "done":  # which is to be believed once the process has ended
            if kind == "process":
                self._rate_up = message.pop("rate")
            if kind == "state":  # it may be its last word that is listened to
                self._tell_link()
            with self._posting:
                self._channel.post(message, enclosed)
