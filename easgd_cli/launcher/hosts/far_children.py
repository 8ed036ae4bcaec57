"""The processes of a run on many machines, as its launcher has them: all of this machine, some of them stand-ins for
workers and masters of other machines.
"""

from __future__ import annotations

import math
import queue
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easgd_cli.launcher.hosts.first_host import FirstHost
from easgd_cli.launcher.hosts.gate import Arrival, Gate
from easgd_cli.launcher.hosts.stand_in import StandIn, StandInStart
from easgd_cli.launcher.journal.links import HostLink
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.processes.children import Children, Message
from easgd_cli.launcher.processes.standstill import ProcessState
from easgd_cli.launcher.supervisor.parties import EVALUATOR, ProcessName, master_at, place_of
from easgd_cli.training.master import MasterStart
from easgd_cli.training.worker import WorkerStart
from easgd_cli.transport.turn import turns


@dataclass(frozen=True)
class Timeouts:
    """`wait`: seconds that one may be without a host, in a run that has begun and does not `need_all` as long as it
    takes; `silence`: after which a host is lost; `where`: a sentence on how to come in.
    """

    wait: float
    silence: float
    where: str
    need_all: bool = True


class FarChildren(Children):
    """All but those `here` are on other machines, which come in by the `gate`. `secret`: of the run."""

    def __init__(self, logs: Path, gate: Gate, here: FirstHost, secret: bytes, waits: Timeouts):
        super().__init__(logs)
        self._gate, self._here, self._secret, self._waits = gate, here, secret, waits
        self._homeless: list[ProcessName] = []  # those whose stand-ins wait for a host
        self._tickets: dict[ProcessName, int] = {}
        self._called: set[ProcessName] = set()  # those that have been given to a host, and have not come yet
        self._addresses: dict[int, tuple[str, int]] = {}  # where masters elsewhere are reached, by their places
        self._turns, self._lives = turns(), Counter[ProcessName]()
        self._states: dict[ProcessName, ProcessState | None] = {}
        self._links: dict[int, dict[str, Any]] = {}  # what each connection has carried, by its ticket
        self._rooms: dict[ProcessName, str] = {}  # the host of each that has come
        # what each session of a worker elsewhere with a master elsewhere has carried: by the worker's ticket and the
        # master's place; and how fast the master sends
        self._between: dict[tuple[int, int], dict[str, Any]] = {}
        self._rates: dict[tuple[int, int], float | None] = {}
        self._longest: dict[str, float] = {}  # seconds in which nothing was heard of a host, the most so far

    def start(self, party: ProcessName, maker: Any, start: Any) -> None:
        if not self._elsewhere(party):
            super().start(party, maker, start)
            return
        self._gate.release(party)
        self._forget_host(party)
        self._lives[party] += 1
        here, waits = self._here, self._waits
        wait = waits.wait if self.began is None or waits.need_all else math.inf
        common = (wait, waits.silence, waits.where, self._turns)
        if isinstance(start, WorkerStart):
            stands_in = StandInStart.of_worker(start, self._lives[party], here.masters, here.entries, *common)
        else:
            assert isinstance(start, MasterStart) and isinstance(party, str)
            stands_in = StandInStart.of_master(start, place_of(party), here.workers, self._secret, *common)
        super().start(party, StandIn, stands_in)

    def _forget_host(self, party: ProcessName) -> None:
        """It waits for one."""
        self._tickets.pop(party, None)
        self._called.discard(party)
        self._states.pop(party, None)
        if party not in self._homeless:
            self._homeless.append(party)

    def _elsewhere(self, party: ProcessName) -> bool:
        if isinstance(party, int):
            return party >= self._here.workers
        return party != EVALUATOR and place_of(party) >= self._here.masters

    def far_host(self, party: ProcessName) -> str | None:
        return self._rooms.get(party, "no host") if self._elsewhere(party) else None

    def listen(self, party: ProcessName) -> Iterator[Message]:
        for message, enclosed in super().listen(party):
            if message["kind"] == "process":
                self._states[party] = ProcessState(message["letter"], message["ticks"])
            elif message["kind"] == "link":
                self._links[self._tickets.get(party, -1)] = {**message, "party": party}
            elif message["kind"] == "homeless":
                log.warning("%s: %s; another host is to have it", self[party].name, message["why"])
                self._gate.lost(party)
                self._forget_host(party)
            elif message["kind"] == "unfit":
                log.warning("%s: %s; that host is not to have it again", self[party].name, message["why"])
                self._gate.lost(party)
            elif message["kind"] == "carried":
                self._note(party, message["links"])
            else:
                yield message, enclosed

    def _note(self, party: ProcessName, links: list[tuple[int, int, int, float | None]]) -> None:
        """What this worker has sent to each master elsewhere and got from it, and how fast it sends; or the same of a
        master and workers.
        """
        for other, sent, came, rate in links:
            if isinstance(party, str):
                self._rates[other, place_of(party)] = rate
                continue
            if (master := self._rooms.get(master_at(other))) is None:
                continue  # there is none
            ends, back = (self._rooms[party], master), self._rates.get((party, other))
            self._between[self._tickets.get(party, -1), other] = {
                "host": " to ".join(ends), "ends": ends, "party": party, "up": [sent, rate], "down": [came, back],
            }  # fmt: skip

    def state(self, party: ProcessName) -> ProcessState | None:
        """Of one elsewhere its own, not its stand-in's."""
        return self._states.get(party) if self._elsewhere(party) else super().state(party)

    def forget_start(self, party: ProcessName) -> None:
        super().forget_start(party)
        if party in self._homeless:
            self._homeless.remove(party)

    def links(self) -> list[HostLink]:
        """To each host; and from each host with workers to each other one with masters, but for the first."""
        silent, found = self._gate.silent(), list[HostLink]()
        for host in sorted({*silent, *(str(link["host"]) for link in self._links.values())}):
            self._longest[host] = max(self._longest.get(host, 0.0), silent.get(host, 0.0))
            link = _link(host, list(self._links.values()), self._longest[host])
            link.carries, link.silent = self._gate.carries.get(host), silent.get(host)
            found.append(link)
        for one, other in sorted({link["ends"] for link in self._between.values()}):
            if one != other:  # what a host says to itself takes no way
                longest = max(self._longest.get(host, 0.0) for host in (one, other))
                link = _link(f"{one} to {other}", list(self._between.values()), longest)
                link.silent = max(silent[one], silent[other]) if one in silent and other in silent else None
                found.append(link)
        return found

    def homeless(self) -> list[int]:
        return [party for party in self._homeless if isinstance(party, int)]

    def facts(self) -> dict[str, Any]:
        return {"links": {link.host: link.facts() for link in self.links() if link.workers or link.up[0]}}

    def wait(self, seconds: float) -> list[ProcessName]:
        self._house()
        return super().wait(seconds)

    def _house(self) -> None:
        """Finds hosts for those that have none, and brings those that have come together with their stand-ins: masters
        first, since a worker is told where they are.
        """
        all_there = len(self._addresses) == self._here.elsewhere
        for party in sorted(self._homeless, key=lambda party: isinstance(party, int)):
            if self[party].gone:
                self._homeless.remove(party)
            elif isinstance(party, int) and not all_there:
                break
            elif (ticket := self._gate.assign(party)) is not None:  # what is no place for one may be for the next
                self._tickets[party] = ticket
                self._homeless.remove(party)
                self._called.add(party)
        for party, child in self.items():
            if child.gone and self._elsewhere(party):
                self._gate.release(party)
        while True:
            try:
                self._take_in(self._gate.arrived.get_nowait())
            except queue.Empty:
                break
        for party in sorted(self._called, key=str):
            if not self._gate.expects(party, self._tickets[party]):  # its host has left before it came from there
                self._called.discard(party)
                self._homeless.append(party)

    def _take_in(self, arrived: Arrival) -> None:
        """One has come: its stand-in is told."""
        party = arrived.party
        if self._tickets.get(party) != arrived.ticket:
            arrived.socket.close()
            return
        self._called.discard(party)
        self._rooms[party] = arrived.host
        if isinstance(party, str):
            assert arrived.address is not None
            self._addresses[place_of(party)] = arrived.address
        masters = [self._addresses[place] for place in sorted(self._addresses)]
        told = {"kind": "connection", "host": arrived.host, "masters": masters}
        self.tell(party, told | ({"masters": [arrived.address]} if isinstance(party, str) else {}), arrived.socket)


def _link(name: str, links: list[dict[str, Any]], longest: float) -> HostLink:
    """Of this name, by what of these belongs to it."""
    there = [link for link in links if link["host"] == name]
    workers = sorted({of for link in there if isinstance(of := link["party"], int)})
    return HostLink(name, workers, _carried(there, "up"), _carried(there, "down"), longest=longest)


def _carried(links: list[dict[str, Any]], way: str) -> tuple[int, float | None]:
    """What these connections have carried: bytes of vectors, and the seconds in which they were on their way, where
    nobody says it at the others' rate.
    """
    rated = [(count, rate) for count, rate in (link[way] for link in links) if rate]
    seconds, total = sum(count / rate for count, rate in rated), sum(link[way][0] for link in links)
    known = sum(count for count, _ in rated)
    return total, seconds * total / known if known else None
