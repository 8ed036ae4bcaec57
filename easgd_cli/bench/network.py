"""What the links between machines carry, and what an exchange over them costs, compared with the bytes alone.

"One way" is a vector in one direction and a word back that it has arrived. An exchange sends one vector each way, one
after the other, and a master applies the rule in between. Two sessions at once can fill both directions. Where asked
for, torch's gloo is measured beside them on the same link with the same bytes: a vector there and one back, and an
all-reduce of two processes, each of which sends and gets a vector, as in a step of DistributedDataParallel.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from easgd_cli.bench.measure import Row, number, spread
from easgd_cli.errors import RunError
from easgd_cli.launcher.hosts.door import CALLER, HELLO_SECONDS, Role
from easgd_cli.launcher.hosts.measured_end import SILENCE, MasterProcess, link_of, memory_of
from easgd_cli.launcher.hosts.measured_gloo import Gloo
from easgd_cli.transport.connection import Connection, FrameKind, Refused, answer, read_exactly
from easgd_cli.transport.relay import WorkerRelay
from easgd_cli.transport.shared import Link, SharedWorkerEnd
from easgd_cli.transport.turn import SendTurn, turns

ALGO = {"target": "easgd_cli.algorithms:EASGD", "alpha": 0.1}  # the masters' method
_SESSIONS = 2
_TOGETHER = 10  # least exchanges of two sessions at once: the first ones are made while both still send
_LEAST_SECONDS = 0.5  # of a window


@dataclass(frozen=True)
class Gloos:
    """Seconds of a vector there and one back by gloo's sends and receives, and of gloo's all-reduce. `spread`: the
    rates of an exchange, and of one of two sessions' exchanges, divided by gloo's: median, least, greatest.
    """

    back_and_forth: float
    all_reduce: float
    spread: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Costs:
    """The costs of the link to one host: seconds of a word there and back, of a vector up and down, of an exchange, and
    of two sessions' exchanges at once (`both`).
    """

    name: str
    size: int
    round_trip: float
    up: float
    down: float
    exchange: float
    both: float
    spread: tuple[tuple[float, float, float], tuple[float, float, float]]  # of the two ratios: median, least, greatest
    windows: int
    gloo: Gloos | None = None

    def rows(self) -> Iterator[Row]:
        """Yields rates in MB/s of one exchange and of two at once, each against the bytes alone, and against gloo where
        that was measured: an exchange and its peer of gloo's both carry a vector in each direction.
        """
        amount, one_way = 4 * self.size / 1e6, max(self.up, self.down)
        for what, seconds, many, peer, capacity, (ratio, least, greatest), target in (
            ("an exchange", self.exchange, 1, "one way", 1, self.spread[0], 2 / 2.2),
            ("two sessions at once", self.both, 2, "both directions", 2, self.spread[1], 0.8),
        ):
            yield Row(
                f"{what}, {self.name}, {self.size:,} floats", 2 * many * amount / seconds, peer,
                capacity * amount / one_way, "MB/s", ratio, least, greatest, self.windows, round(target, 2),
            )  # fmt: skip

        if self.gloo is not None:
            for what, seconds, peer, theirs, (ratio, least, greatest) in (
                ("an exchange", self.exchange, "gloo there and back", self.gloo.back_and_forth, self.gloo.spread[0]),
                ("one of two sessions'", self.both / 2, "gloo's all-reduce", self.gloo.all_reduce, self.gloo.spread[1]),
            ):
                yield Row(
                    f"{what}, {self.name}, {self.size:,} floats", 2 * amount / seconds, peer, 2 * amount / theirs,
                    "MB/s", ratio, least, greatest, self.windows,
                )  # fmt: skip

    def line(self) -> str:
        """Returns the costs of the link, in a sentence."""
        rate = 4 * self.size / 1e6
        return (
            f"{self.name}: {1000 * self.round_trip:.3g} ms there and back, {number(rate / self.up)} MB/s up, "
            f"{number(rate / self.down)} MB/s down; an exchange of {self.size:,} floats takes "
            f"{1000 * self.exchange:.4g} ms"
        )


def simulated(costs: Costs) -> str:
    """Returns the settings of a virtual cluster with such links."""
    rates = ",".join(f"{4 * costs.size / seconds:.0f}" for seconds in (costs.up, costs.down))
    return f"launcher=simulated launcher.latency={costs.round_trip / 2:.6f} launcher.bandwidth=[{rates}]"


def proposed(costs: Costs, step: float, share: float, workers: int) -> str:
    """Returns a sentence with the tau at which exchanges that are not hidden take the `share` of a worker's time, and
    the tau below which the master's link is full. `step`: seconds of a local step.
    """
    alone = max(1, -(-costs.exchange * (1 - share) // (share * step)))
    full = workers * max(costs.up, costs.down) / step
    return (
        f"tau={alone:.0f}: an exchange that is not hidden takes at most {100 * share:g} % of a worker's time, at "
        f"{1000 * step:.4g} ms a step; with {workers} workers on such links the master's is full below tau={full:.3g}"
    )


def run(
    listener: socket.socket, secret: bytes, hosts: int, size: int, windows: int, wait: float, *, gloo: bool = False
) -> Iterator[Costs]:
    """Waits for so many hosts to join, and measures the link to each, one after another; `gloo`: also with torch's
    gloo. Raises RunError.
    """
    for _ in range(hosts):
        connection, name = joined(listener, secret, wait)
        try:
            with ExitStack() as stack:
                beside = None
                if gloo:
                    beside = Gloo(connection.own_address, size)
                    stack.callback(beside.close)
                    ask_gloo(connection, beside, size, 1, 2)
                    beside.begin()
                # after gloo has begun: a session that the host calls must be accepted within seconds
                for number in range(_SESSIONS):
                    connection.say({"kind": "measure", "number": number, "size": size, "here": size, "masters": []})
                yield _costs(name, listener, secret, size, windows, beside)
        finally:
            dismiss(connection)


def joined(listener: socket.socket, secret: bytes, wait: float) -> tuple[Connection, str]:
    """Waits for the next host to join; returns its connection and its name. Raises RunError and ConnectionEnded."""
    sock, address, _ = accepted(listener, secret, Role.AGENT, wait)
    connection = Connection(sock, SILENCE)
    _, text, _ = connection.next()
    return connection, f"{str(connection.message(text)[0]['name'])[:64]} ({address})"


def dismiss(connection: Connection) -> None:
    """Tells a host that nothing more is measured, and closes its connection."""
    connection.say({"kind": "end", "status": "measured", "exit_code": 0})
    connection.finish(SILENCE)


def ask_gloo(connection: Connection, beside: Gloo, size: int, rank: int, ranks: int) -> None:
    """Has a host begin its end of gloo's connections."""
    connection.say({"kind": "gloo", "port": beside.port, "size": size, "rank": rank, "ranks": ranks})


def accepted(listener: socket.socket, secret: bytes, wanted: int | None, wait: float) -> tuple[socket.socket, str, int]:
    """Accepts the next caller that knows the secret and is an agent (`wanted` is Role.AGENT) or a session of an agent's
    (None). Returns its socket, address and number. Raises RunError after `wait` seconds without such a caller.
    """
    ends = time.monotonic() + wait
    while (left := ends - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            sock, (address, _) = listener.accept()
            answer(sock, secret, HELLO_SECONDS)
            role, number, _ = CALLER.unpack(read_exactly(sock, CALLER.size, HELLO_SECONDS))
            if (role == Role.AGENT) == (wanted == Role.AGENT):
                return sock, address, number
        except (Refused, OSError):
            continue
    raise RunError(f"no host has joined within {wait:g} s.")


def _costs(name: str, listener: socket.socket, secret: bytes, size: int, windows: int, gloo: Gloo | None) -> Costs:
    with ExitStack() as stack:
        common = turns()
        called = [accepted(listener, secret, None, SILENCE)[0] for _ in range(_SESSIONS)]
        links = [link_of(number, memory_of(size)) for number in range(_SESSIONS)]
        sessions = [Session(link, sock, SendTurn(common)) for link, sock in zip(links, called, strict=True)]
        stack.callback(MasterProcess([link.for_master() for link in links], size, ALGO).close)
        for session in sessions:
            session.stand_in()
            stack.callback(session.connection.close)
        first = sessions[0]
        round_trip = statistics.median(_timed(lambda: first.word(b"word")) for _ in range(20))
        found: list[tuple[float, ...]] = []
        for window in range(windows + 1):
            up = _rated(lambda: first.word(b"give"))
            down = _rated(first.take)
            times = max(2, int(_LEAST_SECONDS / (up + down)))
            alone = first.exchange(times)
            if window:  # the first warms up
                both = together([session.exchange for session in sessions], max(_TOGETHER, times))
                theirs = () if gloo is None else (gloo.back_and_forth(times), gloo.all_reduce(times))
                found.append((up, down, alone, both, *theirs))
            elif gloo is not None:
                gloo.back_and_forth(2)
                gloo.all_reduce(2)
        return _of(name, size, round_trip, found)


def _of(name: str, size: int, round_trip: float, found: list[tuple[float, ...]]) -> Costs:
    up, down, alone, both, *theirs = (statistics.median(column) for column in zip(*found, strict=True))
    ratios = (spread((u + d) / a for u, d, a, *_ in found), spread((u + d) / b for u, d, _, b, *_ in found))
    beside = None
    if theirs:
        theirs_too = (spread(f[4] / f[2] for f in found), spread(2 * f[5] / f[3] for f in found))
        beside = Gloos(theirs[0], theirs[1], theirs_too)
    return Costs(name, size, round_trip, up, down, alone, both, ratios, len(found), beside)


class Session:
    """The end of a session on this host; the worker is at the other end."""

    def __init__(self, link: Link, sock: socket.socket, turn: SendTurn):
        self.link = link
        self.connection = Connection(sock, SILENCE, link.memory.nbytes(), turn)

    def stand_in(self, entries: slice = slice(None)) -> None:
        """Takes the worker's place with the masters of these entries, which have been started."""
        vectors = {name: v[entries] for name, v in self.link.memory.tensors.items()}
        end = SharedWorkerEnd(self.link.for_worker())
        self._asks = WorkerRelay(end, vectors, self.link.variables, self.link.packing, self.connection)

    def word(self, text: bytes) -> None:
        """Sends the word `text`, and waits for the answer and the vector in it, if there is one."""
        self.connection.post(FrameKind.MESSAGE, text)
        _, _, count = self.connection.next()
        if count:
            self.connection.fill([self.link.memory["x"]])

    def take(self) -> None:
        """Sends a vector, and waits until it has arrived."""
        self.connection.post(FrameKind.MESSAGE, b"take", [self.link.memory["reply"]])
        self.connection.next()

    def exchange(self, times: int) -> float:
        """Has the worker make so many exchanges, and returns the seconds of one, as the worker sees it."""
        self.connection.post(FrameKind.MESSAGE, b"exchange %d" % times)
        while True:
            kind, text, count = self.connection.next()
            if kind is FrameKind.MESSAGE:
                return float(text) / times
            self._asks.request(text, count)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rated(work: Callable[[], object]) -> float:
    """Returns the mean seconds of a call over a window."""
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < _LEAST_SECONDS:
        work()
        calls += 1
    return (time.perf_counter() - began) / calls


def together(exchanges: Iterable[Callable[[int], object]], times: int) -> float:
    """Returns the seconds in which each of `exchanges` makes an exchange, all at once. Raises their errors."""
    made = list(exchanges)
    with ThreadPoolExecutor(len(made)) as pool:
        began = time.perf_counter()
        for done in [pool.submit(exchange, times) for exchange in made]:
            done.result()
        return (time.perf_counter() - began) / times
