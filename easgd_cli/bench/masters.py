"""How well several masters (masters=k) use the links between hosts: seconds of one worker's exchange with all masters,
and of exchanges of a worker on each host at once. Every window measures all numbers of masters in turn.

Where asked for, torch's gloo is measured beside them on the same links with the same bytes: a vector to the first host
and one back, and an all-reduce of all hosts.
"""

from __future__ import annotations

import socket
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from easgd_cli.algorithms.slices import slices
from easgd_cli.bench.measure import Row, number, spread
from easgd_cli.bench.network import ALGO, Session, accepted, ask_gloo, dismiss, joined, together
from easgd_cli.launcher.hosts.far_sessions import OutgoingSession
from easgd_cli.launcher.hosts.measured_end import SILENCE, MasterProcess, exchange, link_of, memory_of
from easgd_cli.launcher.hosts.measured_gloo import Gloo
from easgd_cli.transport.connection import Connection
from easgd_cli.transport.shared import SharedWorkerEnd
from easgd_cli.transport.turn import SendTurn, turns

_ALONE, _TOGETHER = 0.5, 1.0  # seconds of a window, about
_LEAST = 3  # exchanges of all workers at once in a window: the first ones are made before any worker receives


@dataclass(frozen=True)
class Layout:
    """Where workers and masters are. There is a worker on each of the `joined` hosts, and one on the first host if
    `worker_here`. `counts`: the numbers of masters to measure; each time `masters_here` of them at most are on the
    first host, the others on the joined hosts in turn.
    """

    counts: Sequence[int]
    masters_here: int
    worker_here: bool
    joined: int

    @property
    def workers(self) -> int:
        return self.joined + self.worker_here

    def here(self, masters: int) -> int:
        return min(masters, self.masters_here)

    def hosts(self, masters: int) -> int:
        """Returns how many hosts have a master, of `masters` in all."""
        return 1 + min(masters - self.here(masters), self.joined)


@dataclass(frozen=True)
class Found:
    """Seconds in each window: of one worker's exchange `alone`, of one of every worker `at_once`, and of gloo's two."""

    layout: Layout
    masters: int
    size: int
    alone: list[float] = field(default_factory=list)
    at_once: list[float] = field(default_factory=list)
    back_and_forth: list[float] = field(default_factory=list)
    all_reduce: list[float] = field(default_factory=list)

    def line(self) -> str:
        """Returns the rates of exchanges, in a sentence."""
        p, alone, at_once = self.layout.workers, statistics.median(self.alone), statistics.median(self.at_once)
        return (
            f"{self._what}: {number(1 / alone)} exchanges of {self.size:,} floats a second of one worker, "
            f"{number(p / at_once)} of {p} at once"
        )

    @property
    def _what(self) -> str:
        hosts = self.layout.hosts(self.masters)
        many = "1 master" if self.masters == 1 else f"{self.masters} masters"
        return f"{many} on {hosts} host{'' if hosts == 1 else 's'}"

    def rows(self, first: Found) -> Iterator[Row]:
        """Yields the rates of a worker in MB/s, alone and while all exchange at once: against gloo where that was
        measured, and against `first`, the figures with the first number of masters.
        """
        one, all_ = "an exchange", f"one of {self.layout.workers} workers'"
        if self.back_and_forth:
            yield self._row(one, self.alone, "gloo there and back", self.back_and_forth)
            yield self._row(all_, self.at_once, f"gloo's all-reduce of {self.layout.joined + 1}", self.all_reduce)
        if self is not first:
            yield self._row(all_, self.at_once, first._what, first.at_once)

    def _row(self, what: str, ours: list[float], peer: str, theirs: list[float]) -> Row:
        amount = 2 * 4 * self.size / 1e6
        ratios = spread(them / us for us, them in zip(ours, theirs, strict=True))
        figure, other = (amount / statistics.median(seconds) for seconds in (ours, theirs))
        return Row(f"{what}, {self._what}, {self.size:,} floats", figure, peer, other, "MB/s", *ratios, len(ours))


def run(
    listener: socket.socket, secret: bytes, layout: Layout, size: int, windows: int, wait: float, *, gloo: bool
) -> list[Found]:
    """Waits for the hosts, and measures. Raises RunError if none joins in `wait` seconds, ConnectionEnded if a host
    leaves, and ValueError for more masters than vectors [size] can be cut for.
    """
    found = [Found(layout, count, size) for count in layout.counts]
    with ExitStack() as stack:
        hosts = []
        for _ in range(layout.joined):
            hosts.append(joined(listener, secret, wait)[0])
            stack.callback(dismiss, hosts[-1])
        beside = _gloo(stack, hosts, size) if gloo else None
        sets = _Sets(stack, listener, secret, layout, hosts, size)
        made = [sets.made(count) for count in layout.counts]
        for window in range(windows + 1):
            for of, exchanges in zip(found, made, strict=True):
                _window(of, exchanges, window == 0)
            if beside is not None:
                ours = statistics.median(of.alone[-1] for of in found)
                found[0].back_and_forth.append(beside.back_and_forth(_times(_ALONE, ours, window == 0)))
                found[0].all_reduce.append(beside.all_reduce(_times(_TOGETHER, ours, window == 0)))
    for of in found:
        of.back_and_forth[:], of.all_reduce[:] = found[0].back_and_forth, found[0].all_reduce
    for of in found:
        for seconds in (of.alone, of.at_once, of.back_and_forth, of.all_reduce):
            del seconds[:1]  # the first window only warms up
    return found


Exchanges = Callable[[int], object]  # makes so many exchanges of one worker, one after another


def _window(of: Found, exchanges: Sequence[Exchanges], first: bool) -> None:
    alone, at_once = (seconds[-1] if seconds else 0.0 for seconds in (of.alone, of.at_once))
    of.alone.append(together(exchanges[-1:], _times(_ALONE, alone, first)))
    of.at_once.append(together(exchanges, max(1 if first else _LEAST, _times(_TOGETHER, at_once, first))))


def _times(seconds: float, each: float, first: bool) -> int:
    return 1 if first else max(1, int(seconds / each))


def _gloo(stack: ExitStack, hosts: Sequence[Connection], size: int) -> Gloo:
    beside = Gloo(hosts[0].own_address, size, len(hosts) + 1)
    stack.callback(beside.close)
    for rank, host in enumerate(hosts, 1):
        ask_gloo(host, beside, size, rank, len(hosts) + 1)
    beside.begin()
    return beside


class _Sets:
    """Makes the sessions of all workers with all masters, a set for each number of masters, with the same vectors."""

    def __init__(
        self, stack: ExitStack, listener: socket.socket, secret: bytes, layout: Layout, hosts: Sequence[Connection],
        size: int,
    ):  # fmt: skip
        self._stack, self._listener, self._secret = stack, listener, secret
        self._layout, self._hosts, self._size = layout, hosts, size
        self._memory = [memory_of(size) for _ in range(layout.workers)]
        self._turns = turns()

    def made(self, masters: int) -> list[Exchanges]:
        """Starts so many masters and returns each worker's `Exchanges`, those of the first host's worker first."""
        parts, here = slices(self._size, masters), self._layout.here(masters)
        far = [self._far_master(place, part) for place, part in list(enumerate(parts))[here:]]
        near = int(self._layout.worker_here)
        links = [
            link_of(worker, memory, masters if worker < near else here) for worker, memory in enumerate(self._memory)
        ]
        for place in range(here):
            part = parts[place]
            master = MasterProcess([link.for_master(place, part) for link in links], part.stop - part.start, ALGO)
            self._stack.callback(master.close)
        made: list[Exchanges] = []
        for link in links[:near]:
            worker = SharedWorkerEnd(link.for_worker())
            for place, first, last, name, port in far:
                end = link.for_master(place, slice(first, last))
                out = OutgoingSession((name, port), self._secret, SILENCE, place, end, lambda how, of=worker: of.lose())  # type: ignore[misc]
                self._stack.callback(out.end)
            self._stack.callback(worker.lose)  # ends the session's threads before the interpreter ends
            made.append(partial(exchange, worker))
        there = parts[here - 1].stop
        for host, link in zip(self._hosts, links[near:], strict=True):
            sizes = {"size": self._size, "here": there}
            host.say({"kind": "measure", "number": link.worker, **sizes, "masters": far})
            sock, _, _ = accepted(self._listener, self._secret, None, SILENCE)
            far_worker = Session(link, sock, SendTurn(self._turns))
            self._stack.callback(far_worker.connection.close)
            far_worker.stand_in(slice(0, there))
            made.append(far_worker.exchange)
        return made

    def _far_master(self, place: int, part: slice) -> tuple[int, int, int, str, int]:
        """Has a joined host begin a master of the slice `part`. Returns place, first and last entry, host and port."""
        host = self._hosts[(place - self._layout.masters_here) % len(self._hosts)]
        host.say({"kind": "serve", "size": part.stop - part.start, "workers": self._layout.workers, "algo": ALGO})
        _, text, _ = host.next()
        return place, part.start, part.stop, host.their_address, int(host.message(text)[0]["port"])
