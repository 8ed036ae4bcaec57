"""The processes of a run on many machines, as its launcher has them: all are processes of this machine, and some are
stand-ins for workers and masters on other machines.
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
    """`wait`: seconds for which a worker or master may be without a host; without `need_all` the limit ends when
    training begins. `silence`: seconds after which a silent host is lost; `where`: a sentence on how to join.
    """

    wait: float
    silence: float
    where: str
    need_all: bool = True


class FarChildren(Children):
    """All workers and masters but those `here` are on other machines, which join at the `gate`. `secret`: the run's."""

    def __init__(self, logs: Path, gate: Gate, here: FirstHost, secret: bytes, waits: Timeouts):
        super().__init__(logs)
        self._gate, self._here, self._secret, self._waits = gate, here, secret, waits
        self._homeless: list[ProcessName] = []  # processes whose stand-ins wait for a host
        self._tickets: dict[ProcessName, int] = {}  # of processes that a host has been told to start
        self._called: set[ProcessName] = set()  # those of them whose connection has not come yet
        self._addresses: dict[int, tuple[str, int]] = {}  # where masters elsewhere are reached, by their places
        self._turns, self._lives = turns(), Counter[ProcessName]()
        self._states: dict[ProcessName, ProcessState | None] = {}
        self._links: dict[int, dict[str, Any]] = {}  # what each stand-in's connection has carried, by its ticket
        self._rooms: dict[ProcessName, str] = {}  # the host of each process whose connection has come
        # what each session between a worker and a master that are both elsewhere has carried, by the worker's ticket
        # and the master's place; and how fast the master sends, by worker and master's place
        self._between: dict[tuple[int, int], dict[str, Any]] = {}
        self._rates: dict[tuple[int, int], float | None] = {}
        self._longest: dict[str, float] = {}  # the most seconds so far in which nothing was heard of a host

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
        """Has the process wait for a host."""
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
        """Notes what a worker has sent to each master elsewhere, what came back, and how fast the worker sends; of a
        master, how fast it sends to each worker.
        """
        for other, sent, came, rate in links:
            if isinstance(party, str):
                self._rates[other, place_of(party)] = rate
                continue
            if (master := self._rooms.get(master_at(other))) is None:
                continue  # there is no such master
            ends, back = (self._rooms[party], master), self._rates.get((party, other))
            self._between[self._tickets.get(party, -1), other] = {
                "host": " to ".join(ends), "ends": ends, "party": party, "up": [sent, rate], "down": [came, back],
            }  # fmt: skip

    def state(self, party: ProcessName) -> ProcessState | None:
        """Returns the state of the process; of one elsewhere, as its host has told it, not the stand-in's."""
        return self._states.get(party) if self._elsewhere(party) else super().state(party)

    def forget_start(self, party: ProcessName) -> None:
        super().forget_start(party)
        if party in self._homeless:
            self._homeless.remove(party)

    def links(self) -> list[HostLink]:
        """Returns the links of the first host to each other one, and of hosts with workers to others with masters."""
        silent, found = self._gate.silent(), list[HostLink]()
        for host in sorted({*silent, *(str(link["host"]) for link in self._links.values())}):
            self._longest[host] = max(self._longest.get(host, 0.0), silent.get(host, 0.0))
            link = _link(host, list(self._links.values()), self._longest[host])
            link.carries, link.silent = self._gate.carries.get(host), silent.get(host)
            found.append(link)
        for one, other in sorted({link["ends"] for link in self._between.values()}):
            if one != other:  # sessions within a host cross no network
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
        """Finds hosts for processes that have none: masters first, since a worker is told where they are. Hands
        connections that have come to their stand-ins.
        """
        all_there = len(self._addresses) == self._here.elsewhere
        for party in sorted(self._homeless, key=lambda party: isinstance(party, int)):
            if self[party].gone:
                self._homeless.remove(party)
            elif isinstance(party, int) and not all_there:
                break
            elif (ticket := self._gate.assign(party)) is not None:  # the next party may find room
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
            if not self._gate.expects(party, self._tickets[party]):  # its host has left before the process connected
                self._called.discard(party)
                self._homeless.append(party)

    def _take_in(self, arrived: Arrival) -> None:
        """Hands a connection that has come to its stand-in; closes one whose ticket is no longer valid."""
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
    """Returns the link of this name, which sums those of `links` that belong to it."""
    there = [link for link in links if link["host"] == name]
    workers = sorted({of for link in there if isinstance(of := link["party"], int)})
    return HostLink(name, workers, _carried(there, "up"), _carried(there, "down"), longest=longest)


def _carried(links: list[dict[str, Any]], way: str) -> tuple[int, float | None]:
    """Returns what these connections have carried in the direction `way`: bytes of vectors, and the seconds in which
    these were on their way. A connection without a rate counts at the mean rate of the others; None where there is no
    rate at all.
    """
    rated = [(count, rate) for count, rate in (link[way] for link in links) if rate]
    seconds, total = sum(count / rate for count, rate in rated), sum(link[way][0] for link in links)
    known = sum(count for count, _ in rated)
    return total, seconds * total / known if known else None
