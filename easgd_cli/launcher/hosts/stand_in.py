"""The process on the first host that stands for a worker or master, the party, on another host.

To launcher, supervisor and sessions it is that worker or master: it says what the party says, and ends as the party
ends, of the same signal or with the same words.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any, Protocol

from easgd_cli.launcher.hosts.far_sessions import OutgoingSession
from easgd_cli.launcher.hosts.words import Words
from easgd_cli.launcher.supervisor.parties import master_at
from easgd_cli.system.channel import Channel, ChannelClosed
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.master import MasterStart
from easgd_cli.training.worker import WorkerStart
from easgd_cli.transport.base import SessionEnded
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind, Refused, RulesBroken
from easgd_cli.transport.relay import Relay, SummedWorkerRelay, WorkerRelay
from easgd_cli.transport.shared import Link, SharedWorkerEnd
from easgd_cli.transport.turn import SendTurn

_LOOK_UP_SECONDS = 1.0
_LINK_SECONDS = 1.0  # between two reports on what its connection carries
_LONGEST_SECONDS = 3600.0  # the longest wait that a system call is asked for
_LAST_SECONDS = 10.0  # for the master to take the worker's last request

OF_CENTER = "center."  # put before the names of a replica's vectors


class Sessions(Protocol):
    """The sessions of the party with processes of this host."""

    def begin(self, connection: Connection, where: Mapping[str, Any]) -> None:
        """Begins them when the connection to the party's host is there; `where`: the launcher's message that came with
        the connection. Raises Refused and OSError.
        """

    def give(self, message: Mapping[str, Any], session: socket.socket) -> None:
        """Takes the socket of another session, which `message` tells of. Raises Refused and OSError."""

    def request(self, text: bytes, count: int) -> None:
        """Takes a request of the party from its connection. Raises ConnectionEnded."""

    def join(self, seconds: float) -> None:
        """Waits until all that the party has asked for has been passed on, at most so long."""

    def carried(self) -> tuple[int, int]:
        """Returns the bytes of vectors that have come and gone on other connections than the party's own."""


class OfWorker:
    """A worker's sessions with the masters of this host, by the worker's own connection."""

    def __init__(self, link: Link, lost: Callable[[str], None]):
        self._link = link
        # the sockets of sessions with next masters, by their places
        self._next = [queue.SimpleQueue[socket.socket]() for _ in link.sockets]

    def begin(self, connection: Connection, where: Mapping[str, Any]) -> None:
        link, entries = self._link, self._link.entries
        if link.replica is not None:
            self._asks: Relay = SummedWorkerRelay(link, connection)
            return
        vectors = {name: v[entries] for name, v in link.memory.tensors.items()}
        end = SharedWorkerEnd(link, None, lambda place: self._next[place].get())
        self._asks = WorkerRelay(end, vectors, link.variables, link.packing, connection)

    def give(self, message: Mapping[str, Any], session: socket.socket) -> None:
        self._next[message["place"]].put(session)

    def request(self, text: bytes, count: int) -> None:
        self._asks.request(text, count)

    def join(self, seconds: float) -> None:
        self._asks.join(seconds)

    def carried(self) -> tuple[int, int]:
        return 0, 0


class OfMaster:
    """A master's sessions with the workers of this host, by a connection each. `links`: the workers'."""

    def __init__(self, place: int, links: list[Link], secret: bytes, silence: float, lost: Callable[[str], None]):
        self._links = {link.worker: link for link in links}
        self._place, self._secret, self._silence, self._lost = place, secret, silence, lost
        self._open: dict[int, OutgoingSession] = {}
        self._lives = Counter[int]()  # of each worker, how many have ended; each next life has a session of its own
        self._carried = (0, 0)

    def begin(self, connection: Connection, where: Mapping[str, Any]) -> None:
        self._connection, [host, port] = connection, where["masters"][-1]
        self._address = (str(host), int(port))
        for worker, link in self._links.items():
            self._begin(worker, link)

    def _begin(self, worker: int, link: Link) -> None:
        lost = partial(self._lose, worker)
        self._open[worker] = OutgoingSession(
            self._address, self._secret, self._silence, self._place, link, lost, 1 + self._lives[worker]
        )  # fmt: skip

    def _lose(self, worker: int, how: str) -> None:
        self._lost(f"{how}, in its session with worker {worker}")

    def give(self, message: Mapping[str, Any], session: socket.socket) -> None:
        self._lives[worker := message["worker"]] += 1
        if (link := self._links.get(worker)) is None:
            session.close()  # the worker is on another host, and connects to the master from there
            self._connection.say({"kind": "again", "worker": worker, "life": self._lives[worker]})
            return
        before = self._open.pop(worker)
        before.end()  # or its last reply would overwrite what the next session is told
        came, went = self._carried
        self._carried = (came + before.connection.received, went + before.connection.sent)
        self._begin(worker, link.with_sockets(master=session))

    def request(self, text: bytes, count: int) -> None:
        raise RulesBroken

    def join(self, seconds: float) -> None:
        """Returns at once: a master asks for nothing."""

    def carried(self) -> tuple[int, int]:
        open_ = [session.connection for session in list(self._open.values())]  # copied, since another thread may ask
        return (
            self._carried[0] + sum(one.received for one in open_), self._carried[1] + sum(one.sent for one in open_)
        )  # fmt: skip


@dataclass(frozen=True)
class StandInStart:
    """What a stand-in begins with. `sessions`: makes the party's; `begin`: what the party begins with, as plain data;
    `held`: the party's vectors, with a key that is put before their names; `most`: the most bytes of vectors that the
    party sends at once; `wait`: seconds in which a host has to be found, and `where`, the sentence for when none is;
    `turns`: common to all stand-ins; `words`: what the party's host may say; `again`: whether another host may have the
    party where its host is lost before the party begins.
    """

    sessions: Callable[[Callable[[str], None]], Sessions]
    begin: dict[str, Any]
    held: Mapping[str, SharedTensors]
    most: int
    wait: float
    silence: float
    where: str
    turns: SharedTensors
    words: Words
    again: bool = False

    @classmethod
    def of_worker(
        cls, start: WorkerStart, life: int, masters: int, entries: slice, wait: float, silence: float, where: str,
        turns: SharedTensors,
    ) -> StandInStart:  # fmt: skip
        """Stands for the worker with this start, in this `life`. The first `masters`, of these `entries`, are here."""
        interval, link = start.interval, start.link
        begin = {name: getattr(start, name) for name in WorkerStart.plain} | {
            "worker": link.worker, "life": life, "seen": astuple(start.seen),
            "interval": None if interval is None else astuple(interval),
        }  # fmt: skip
        again = len(link.further) == masters - 1  # not where a master elsewhere has seen the worker begin
        link = replace(link, further=link.further[: masters - 1], entries=entries)
        held = {"": link.memory}
        if (replica := link.replica) is not None:
            held[OF_CENTER] = replica.center
        most = sum(memory.nbytes() for memory in held.values())
        if start.returns:
            held = {}  # a worker that returns takes all from the center
        words = Words(link.worker, start.recipe.settings.workers, link.memory.layout, alone=not link.variables)
        return cls(partial(OfWorker, link), begin, held, most, wait, silence, where, turns, words, again)

    @classmethod
    def of_master(
        cls, start: MasterStart, place: int, here: int, secret: bytes, wait: float, silence: float, where: str,
        turns: SharedTensors,
    ) -> StandInStart:  # fmt: skip
        """Stands for the master with this start. The first `here` workers are on this host."""
        begin = {name: getattr(start, name) for name in MasterStart.plain} | {"master": place, "clocks": start.clocks}
        sessions = partial(OfMaster, place, [link for link in start.links if link.worker < here], secret, silence)
        words = Words(master_at(place), len(start.links), start.center.layout)
        return cls(sessions, begin, {"": start.center}, start.center.nbytes(), wait, silence, where, turns, words)


class StandIn:
    """Passes on messages between launcher and party, and vectors between the party's host and the sessions here."""

    def __init__(self, start: StandInStart, channel: Channel):
        self._start, self._channel, self._wait = start, channel, start.wait
        self._wake, self._woken = socket.socketpair()
        self._sessions = start.sessions(self._lose)
        self._told, self._rate_up = 0.0, None  # the rate up is what the party's host tells
        self._ready, self._end = threading.Event(), dict[str, Any]()
        self._send_turn, self._asked, self._lost_host = SendTurn(start.turns), False, ""
        self._begin(*self._wait_for_host())
        for number in (signal.SIGCONT, signal.SIGQUIT):
            signal.signal(number, lambda number, _: self._connection.say({"kind": "signal", "number": number}))
        self._ready.wait()
        self._find_another()

    def _begin(self, sock: socket.socket, where: dict[str, Any]) -> None:
        """Begins the party on a host, by this connection to it. Raises SessionEnded."""
        start, self._host = self._start, where["host"]
        self._connection = Connection(sock, start.silence, start.most, self._send_turn)
        vectors = [(key + name, v) for key, of in start.held.items() for name, v in of.tensors.items()]
        held = {name: v for name, v in vectors if v.any()}
        begin = {"kind": "begin", "masters": where["masters"], **start.begin}
        self._connection.say(begin, SharedTensors.of(held) if held else None)
        try:
            self._sessions.begin(self._connection, where)
        except (Refused, OSError) as e:
            raise self._give_up(f"its host {self._host} is not reached: {e}") from e
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _find_another(self) -> None:
        """Waits until a host has the party ready. Where its host is lost before the party has asked for anything, the
        next host begins it in the same way. Raises SessionEnded and ChannelClosed.
        """
        while self._end:
            if not self._start.again or "lost" not in self._end or self._asked:
                return self._leave()
            self._connection.close()
            self._listener.join()
            self._woken.recv(1)
            self._lost_host = f"its host {self._host} is lost: {self._end['lost']}"
            self._channel.post({"kind": "homeless", "why": self._lost_host})
            self._end = {}
            self._ready.clear()
            self._begin(*self._wait_for_host())
            self._ready.wait()

    def _wait_for_host(self) -> tuple[socket.socket, dict[str, Any]]:
        """Returns the connection to the host that the launcher has found, and the launcher's message. Raises
        ChannelClosed, and SessionEnded where no host is found.
        """
        began = time.monotonic()
        host, begins = None, None
        while host is None and (left := began + self._wait - time.monotonic()) > 0:
            select.select([self._channel], [], [], min(left, _LONGEST_SECONDS))
            for message, enclosed in self._channel.receive():
                if message["kind"] == "connection":
                    host = (enclosed, message)
                elif message["kind"] == "session":
                    self._sessions.give(message, enclosed)
                elif message["kind"] != "start":
                    raise ChannelClosed  # told to stop
                elif self._lost_host and not self._start.begin["returns"]:
                    raise self._give_up(self._lost_host)  # training has begun: it comes back as a lost one
                else:
                    begins = (message, enclosed)  # training is under way
        self._wait -= time.monotonic() - began
        if begins is not None:
            self._channel.put_back(begins)
        if host is not None:
            return host
        why = f"{self._lost_host}, and " if self._lost_host else ""
        raise self._give_up(f"{why}no host has had a place for it for {self._start.wait:g} s; {self._start.where}")

    def wait_for_start(self) -> float:
        """Returns the monotonic time of training second 0. Raises SessionEnded where the party's host is lost before
        that and no other has the party, and ChannelClosed where the stand-in is told to stop.
        """
        while True:
            for message, _ in self._channel.receive():
                if message["kind"] == "start":
                    return float(message["began"])
                raise ChannelClosed
            if self._end:
                self._find_another()
                self._channel.post({"kind": "ready"})
            watched: list[Any] = [self._channel, self._woken]
            select.select(watched, [], [])

    def run(self, began: float) -> None:
        """Passes on messages until the party has ended. Raises SessionEnded where it is not done, and ChannelClosed."""
        self._connection.say({"kind": "start", "elapsed": time.monotonic() - began})
        while not self._end:
            self._pass_on()
        self._leave()

    def _tell_link(self) -> None:
        """Tells the launcher what the party's connections have carried so far."""
        link, self._told = self._connection, time.monotonic()
        came, went = self._sessions.carried()
        # both rates are those of the party's own connection, and not those of its sessions'
        up, down = (None, None) if came or went else (self._rate_up, link.rate())
        carried = {"up": [came + link.received, up], "down": [went + link.sent, down]}
        with suppress(ChannelClosed):
            self._channel.post({"kind": "link", "host": self._host, **carried})

    def _pass_on(self) -> None:
        """Passes on what the launcher says, and sends the launcher what it has not taken yet."""
        said_all = self._channel.flush()
        watched: list[Any] = [self._channel, self._woken]
        select.select(watched, [] if said_all else [self._channel], [], _LOOK_UP_SECONDS)
        for message, enclosed in self._channel.receive():
            if message["kind"] == "session":
                self._give(message, enclosed)
            else:
                self._connection.say(message)
        if time.monotonic() - self._told > _LINK_SECONDS:
            self._tell_link()

    def _give(self, message: dict[str, Any], session: socket.socket) -> None:
        try:
            self._sessions.give(message, session)
        except (Refused, OSError) as e:
            self._lose(str(e))

    def _lose(self, how: str) -> None:
        self._end = self._end or {"lost": how}
        self._ready.set()
        self._wake.send(b"x")

    def _leave(self) -> None:
        """Ends as the party has ended: returns, dies of the same signal, or raises SessionEnded."""
        end = self._end
        if end.get("done"):
            self._sessions.join(_LAST_SECONDS)
            return
        if "lost" in end:
            why = f"its host {self._host} is lost: {end['lost']}"
            if end.get("broken"):  # the host may be there still, and is not to be given the party again
                self._channel.post({"kind": "unfit", "why": why})
            raise self._give_up(why)
        with suppress(ChannelClosed):
            while not self._channel.flush():
                select.select([], [self._channel], [])
        if number := end.get("signal"):
            signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
            os.kill(os.getpid(), number)
        raise SessionEnded(f"it has {end.get('how', 'ended')}")

    def _give_up(self, text: str) -> SessionEnded:
        self._channel.post({"kind": "error", "text": text, "refused": False})
        return SessionEnded(text)

    # ---------------------------------------------------------------- what comes from its host

    def _listen(self) -> None:
        try:
            while not self._end:
                kind, text, count = self._connection.next()
                if kind is FrameKind.REQUEST:
                    self._asked = True
                    self._sessions.request(text, count)
                elif kind is FrameKind.MESSAGE:
                    self._hear(*self._connection.message(text))
                else:
                    raise RulesBroken
        except (ConnectionEnded, MemoryError) as e:
            self._end = {"lost": str(e), "broken": isinstance(e, RulesBroken)}
        except ChannelClosed:
            self._end = {"how": "no launcher any more"}
        except Exception as e:
            self._end = {"lost": f"it said what cannot be ({type(e).__name__})", "broken": True}
        self._ready.set()
        self._wake.send(b"x")

    def _hear(self, message: dict[str, Any], enclosed: SharedTensors | None) -> None:
        self._start.words.check(message, enclosed)
        kind = message["kind"]
        if kind == "ready":
            self._ready.set()
        elif kind == "log":
            print(message["text"], end="", flush=True)
        elif kind == "ended":
            self._end = message
        elif kind == "cannot":
            self._end = {"lost": message["text"]}
        elif kind != "done":  # `ended` repeats it, and only then it counts
            if kind == "process":
                self._rate_up = message.pop("rate")
            if kind in ("state", "snapshot"):  # after it the launcher may listen no more
                self._tell_link()
            self._channel.post(message, enclosed)
