"""A master killed at any moment leaves its center to the next, which ends what it has begun: nothing is served twice,
nothing is lost, and not a bit differs. Every store of an update is one such moment, and all of them are tried.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from easgd_cli.algorithms import EASGD, MDOWNPOUR, GaussSeidelEASGD, Method, SyncEASGD, Vectors, Worker
from easgd_cli.algorithms.average import Polyak
from easgd_cli.algorithms.base import Rule, Variable
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training import center as centers
from easgd_cli.training import master as masters
from easgd_cli.training.ledger import ORDER, Ledger
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.transport.base import Reply
from easgd_cli.transport.shared import Link, SharedWorkerEnd

WORKERS, SIZE, BLOCK = 3, 7, 3
DTYPE = torch.float64


class Killed(BaseException):
    """In place of a SIGKILL."""


class Moments:
    """Counts them; at the one numbered `last` the owner dies."""

    def __init__(self) -> None:
        self.now, self.last = 0, -1

    def pass_(self) -> None:
        self.now += 1
        if self.now == self.last:
            raise Killed


MOMENTS = Moments()


class Stores:
    """Numbers in memory: before each store is a moment."""

    def __init__(self, numbers: Any):
        self._numbers = numbers

    def __getitem__(self, at: Any) -> Any:
        found = self._numbers[at]
        return Stores(found) if isinstance(at, slice) else found

    def __setitem__(self, at: int, value: int) -> None:
        MOMENTS.pass_()
        self._numbers[at] = value


class Mortal(Ledger):
    """A ledger whose owner may be killed before any store, and in the middle of a copy."""

    def __init__(self, memory: SharedTensors, workers: int, fragments: Sequence[int] = (1,)):
        super().__init__(memory, workers, fragments)
        for name, value in vars(self).items():
            if isinstance(value, memoryview):
                setattr(self, name, Stores(value))

    def change(self, block: int, pairs: Any) -> None:
        for v, kept in pairs:
            kept[:1].copy_(v[:1])
            MOMENTS.pass_()
        super().change(block, pairs)


@dataclass(frozen=True)
class InHalves(Method):
    """Another method's rules, the center's applied to half a block at a time: in between its owner may be killed."""

    method: Method

    def step(self, w: Worker) -> Rule:
        return self.method.step(w)

    @property
    def state(self) -> tuple[str, ...]:
        return self.method.state

    @property
    def scratch(self) -> tuple[str, ...]:
        return self.method.scratch

    @property
    def variables(self) -> Mapping[str, Variable]:
        [(name, variable)] = self.method.variables.items()

        def receive(center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
            for part in (slice(0, 2), slice(2, None)):
                part_of = Vectors({v: t[part] for v, t in vars(center).items()})
                variable.receive(part_of, m[part], reply[part], n)
                MOMENTS.pass_()

        return {name: replace(variable, receive=receive)}


class Run:
    """Workers and their master in one process and one thread. `next_master` takes over when one has been killed."""

    def __init__(self, method: Method):
        g = torch.Generator().manual_seed(0)
        self.method = InHalves(method)
        self.names = (*method.variables["center"].state, "average")
        self.memory = SharedTensors.of({n: torch.rand(SIZE, dtype=DTYPE, generator=g) for n in self.names})
        self.links = [Link.new(i, self.method, SIZE, DTYPE) for i in range(WORKERS)]
        for link in self.links:
            for v in link.memory.tensors.values():
                v.copy_(torch.rand(SIZE, dtype=DTYPE, generator=g))
        self.ledger = Ledger.allocate(len(self.names), BLOCK, DTYPE, WORKERS)
        Ledger(self.ledger, WORKERS).begin_run(served=4, clocks=[[2]])
        self.renewed: dict[int, socket.socket] = {}
        self.ends = [SharedWorkerEnd(link, renew=lambda i=i: self.renewed.pop(i)) for i, link in enumerate(self.links)]
        self.deaths = 0
        self.heard: list[int] = []  # the order as the launcher hears it: of a killed master from its ledger
        self.master = self._master(self.links)

    def _master(self, links: list[Link]) -> Master:
        channel: Any = SimpleNamespace(post=lambda *_: None, receive=list)
        start = MasterStart(
            self.method,
            Polyak(start=0),
            self.memory,
            links,
            None,
            {"center": 2},
            4,
            ledger=self.ledger,
            returns=True,
        )
        master = Master(start, channel)
        master._snapshots = SimpleNamespace(seconds=lambda: 0.0, changed=lambda *_: None)  # type: ignore[assignment]
        return master

    def next_master(self) -> None:
        self.deaths += 1
        self.heard += Ledger(self.ledger, WORKERS).order(4 + len(self.heard))
        for sock in list(self.master._sessions._sockets.values()):
            sock.close()
        links = []
        for link in self.links:
            ours, theirs = socket.socketpair()
            self.renewed[link.worker] = ours
            links.append(Link(link.worker, link.memory, None, theirs))
        while True:  # it may be killed while it ends what the one before has left
            try:
                self.master = self._master(links)
                return
            except Killed:
                self.deaths += 1
                self.heard += Ledger(self.ledger, WORKERS).order(4 + len(self.heard))

    def serve(self) -> None:
        """Until nobody waits that can be served."""
        while requests := self.master._sessions.requests(0):
            for request in requests:
                self.master._answer(request)

    def exchange(self, workers: list[int], t: int) -> list[Reply]:
        """The messages of these workers, to their end, whoever dies on the way."""
        for i in workers:
            end = self.ends[i]
            end.post(end.vectors["m" if "m" in end.vectors else "x"], t)
        try:
            self.serve()
        except Killed:
            self.next_master()
            for i in workers:  # as `collect` does when it finds its master gone
                self.ends[i]._next_master()
                self.ends[i]._repeat()
            self.serve()
        replies = []
        for i in workers:
            reply = self.ends[i].collect()
            replies.append(replace(reply, vector=reply.vector.clone()))
            x = self.ends[i].vectors["x"]
            x.lerp_(reply.vector, 0.3).mul_(1.01)
        return replies


def script(method: Method) -> tuple[list[Any], dict[str, Tensor], list[int], int]:
    """A few updates; returns replies, the center's vectors, the order, and how many masters have died."""
    run, replies = Run(method), []
    rounds = not method.alone and method.in_rounds
    for t, worker in enumerate((0, 2, 2, 1)):
        for reply in run.exchange([0, 1, 2] if rounds else [worker], t):
            replies.append((reply.vector.tolist(), reply.clock, reply.served, reply.t))
    order = Ledger(run.ledger, WORKERS).order(4)
    assert run.heard + run.master._order == order, "what a master before it has left in the middle is told, too"
    return replies, {name: v.clone() for name, v in run.memory.tensors.items()}, order, run.deaths


@pytest.fixture(autouse=True)
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(masters, "Ledger", Mortal)
    monkeypatch.setattr(centers, "BLOCK", BLOCK)
    yield
    MOMENTS.last = -1
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", [EASGD(0.2), MDOWNPOUR(0.9, 1), SyncEASGD(0.2), GaussSeidelEASGD(0.2)], ids=repr)
def test_a_master_killed_at_any_moment_leaves_nothing_half_done_and_nothing_twice(method: Method) -> None:
    MOMENTS.now, MOMENTS.last = 0, -1
    replies, center, order, deaths = script(method)
    moments = MOMENTS.now
    assert deaths == 0 and moments > 100
    assert order == [0, 1, 2] * 4 if len(order) == 12 else order == [0, 2, 2, 1]
    for moment in range(1, moments + 1):
        MOMENTS.now, MOMENTS.last = 0, moment
        again = script(method)
        assert again[3] == 1, moment
        assert again[0] == replies and again[2] == order, moment
        assert all(torch.equal(again[1][name], v) for name, v in center.items()), moment


def test_the_next_master_may_be_killed_while_it_ends_an_update() -> None:
    MOMENTS.now, MOMENTS.last = 0, -1
    replies, center, order, _ = script(EASGD(0.2))
    for moment in (14, 22, 30):
        for after in range(1, 9):
            MOMENTS.now, MOMENTS.last = 0, moment
            before = Run.next_master

            def killed_again(run: Run, after: int = after, before: Any = before) -> None:
                if run.deaths == 0:
                    MOMENTS.last = MOMENTS.now + after
                before(run)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Run, "next_master", killed_again)
                again = script(EASGD(0.2))
            assert again[3] == 2, (moment, after)
            assert again[0] == replies and again[2] == order
            assert all(torch.equal(again[1][name], v) for name, v in center.items())


def test_an_order_that_is_no_longer_kept_is_not_made_up() -> None:
    memory = Ledger.allocate(1, BLOCK, DTYPE, WORKERS)
    ledger = Ledger(memory, WORKERS)
    ledger.begin_run(ORDER + 10, [[5]])
    assert ledger.order(ORDER + 10) == []
    assert len(ledger.order(10)) == ORDER
    with pytest.raises(ValueError, match="exchanges have not been reported"):
        ledger.order(9)
