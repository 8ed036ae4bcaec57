"""The processes of a run on many machines, as its launcher has them: all of this machine, some of them stand-ins for
workers of other machines.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easgd_cli.launcher.children import Children, Message
from easgd_cli.launcher.gate import Gate
from easgd_cli.launcher.links import HostLink
from easgd_cli.launcher.parties import Process
from easgd_cli.launcher.stand_in import StandIn, StandInStart
from easgd_cli.launcher.standstill import State
from easgd_cli.training.worker import WorkerStart
from easgd_cli.transport.turn import turns


class FarChildren(Children):
    """Workers from number `here` on are on other machines, which come in by the `gate`. `wait`: seconds that one may be
    without a host, of a run that has begun and does not `need_all` as long as it takes; `where`: a sentence on how to
    come in.
    """

    def __init__(
        self, logs: Path, gate: Gate, here: int, wait: float, silence: float, where: str, need_all: bool = True
    ):  # fmt: skip
        super().__init__(logs)
        self._gate, self._here, self._wait, self._silence, self._where = gate, here, wait, silence, where
        self._needs_all = need_all
        self._homeless: list[int] = []  # workers whose stand-ins wait for a host
        self._tickets: dict[int, int] = {}
        self._called: set[int] = set()  # those that have been given to a host, and have not come yet
        self._turns = turns()
        self._states: dict[int, State | None] = {}
        self._links: dict[int, dict[str, Any]] = {}  # what each connection has carried, by its ticket
        self._longest: dict[str, float] = {}  # seconds in which nothing was heard of a host, the most so far

    def start(self, party: Process, maker: Any, start: Any) -> None:
        if isinstance(party, int) and party >= self._here:
            assert isinstance(start, WorkerStart)
            self._gate.release(party)
            self._tickets.pop(party, None)
            self._called.discard(party)
            self._states.pop(party, None)
            if party not in self._homeless:
                self._homeless.append(party)
            wait = self._wait if self.began is None or self._needs_all else math.inf
            stands_in = StandInStart.of(start, wait, self._silence, self._where, self._turns)
            super().start(party, StandIn, stands_in)
        else:
            super().start(party, maker, start)

    def listen(self, party: Process) -> Iterator[Message]:
        for message, enclosed in super().listen(party):
            if isinstance(party, int) and message["kind"] == "process":
                self._states[party] = State(str(message["letter"]), int(message["ticks"]))
            elif isinstance(party, int) and message["kind"] == "link":
                self._links[self._tickets.get(party, -1)] = {**message, "worker": party}
            else:
                yield message, enclosed

    def state(self, party: Process) -> State | None:
        """Of a worker elsewhere its own, not its stand-in's."""
        return self._states.get(party) if isinstance(party, int) and party >= self._here else super().state(party)

    def forget_start(self, party: Process) -> None:
        super().forget_start(party)
        if party in self._homeless:
            self._homeless.remove(party)

    def links(self) -> list[HostLink]:
        silent, found = self._gate.silent(), list[HostLink]()
        for host in sorted({*silent, *(str(link["host"]) for link in self._links.values())}):
            there = [link for link in self._links.values() if link["host"] == host]
            self._longest[host] = max(self._longest.get(host, 0.0), silent.get(host, 0.0))
            found.append(HostLink(
                host, sorted({link["worker"] for link in there}), _carried(there, "up"), _carried(there, "down"),
                self._gate.carries.get(host), silent.get(host), self._longest[host],
            ))  # fmt: skip
        return found

    def homeless(self) -> list[int]:
        return self._homeless

    def facts(self) -> dict[str, Any]:
        return {"links": {link.host: link.facts() for link in self.links() if link.workers}}

    def heard(self, seconds: float) -> list[Process]:
        self._house()
        return super().heard(seconds)

    def _house(self) -> None:
        """Finds hosts for those that have none, and brings those that have come together with their stand-ins."""
        for worker in list(self._homeless):
            if self[worker].gone:
                self._homeless.remove(worker)
            elif (ticket := self._gate.place(worker)) is None:
                break
            else:
                self._tickets[worker] = ticket
                self._homeless.remove(worker)
                self._called.add(worker)
        for party, child in self.items():
            if isinstance(party, int) and child.gone:
                self._gate.release(party)
        while True:
            try:
                arrived = self._gate.arrived.get_nowait()
            except queue.Empty:
                break
            if self._tickets.get(arrived.worker) == arrived.ticket:
                self._called.discard(arrived.worker)
                self.tell(arrived.worker, {"kind": "connection", "host": arrived.host}, arrived.socket)
            else:
                arrived.socket.close()
        for worker in sorted(self._called):
            if not self._gate.expects(worker, self._tickets[worker]):  # its host has left before it came from there
                self._called.discard(worker)
                self._homeless.append(worker)


def _carried(links: list[dict[str, Any]], way: str) -> tuple[int, float | None]:
    """What these connections have carried: bytes of vectors, and the seconds in which they were on their way."""
    rated = [(count, rate) for count, rate in (link[way] for link in links) if rate]
    seconds = sum(count / rate for count, rate in rated) if rated else None
    return sum(link[way][0] for link in links), seconds
