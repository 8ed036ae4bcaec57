"""A master killed at any moment leaves its center to the next, which ends what it has begun: nothing is served twice,
nothing is lost, and not a bit differs. Every store of an update is one such moment, and all of them are tried.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from easgd_cli.algorithms import (
    EASGD,
    MDOWNPOUR,
    AsyncDiLoCo,
    EASGDTree,
    GaussSeidelEASGD,
    Gossip,
    GossipPull,
    GossipPush,
    GroupedEASGD,
    Method,
    SyncEASGD,
    Vectors,
    Worker,
)  # fmt: skip
from easgd_cli.algorithms.average import Polyak
from easgd_cli.algorithms.base import WHOLE, Courier, Receive, Rule, Variable
from easgd_cli.algorithms.fragments import InFragments
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training import center as centers
from easgd_cli.training import serving
from easgd_cli.training.couriers import Couriers
from easgd_cli.training.ledger import ORDER, Ledger
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.training.variables import Variables, clocks_of
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

    def __init__(
        self, memory: SharedTensors, workers: int, fragments: Sequence[int] = (1,), carried: Sequence[int] = ()
    ):
        super().__init__(memory, workers, fragments, carried)
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

    def home(self, worker: int) -> str:
        return self.method.home(worker)

    @property
    def couriers(self) -> Mapping[str, Courier]:
        return self.method.couriers

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        return {name: _in_halves(variable) for name, variable in self.method.variables.items()}


def _in_halves(variable: Variable) -> Variable:
    def halved(rule: Receive) -> Receive:
        def receive(center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
            for part in (slice(0, 2), slice(2, None)):
                part_of = Vectors({v: t[part] for v, t in vars(center).items()})
                part_of.t = center.t
                rule(part_of, m[part], reply[part], n)
                MOMENTS.pass_()

        return receive

    own = None if variable.own is None else halved(variable.own)
    return replace(variable, receive=halved(variable.receive), own=own)


class Ask(NamedTuple):
    """What some workers ask of one variable at their clock t."""

    workers: list[int]
    t: int
    to: str = "center"
    fragment: int = WHOLE
    pull: bool = False


class Run:
    """Workers and their master in one process and one thread. `next_master` takes over when one has been killed."""

    def __init__(self, method: Method):
        g = torch.Generator().manual_seed(0)
        self.method = InHalves(method)
        of = self.method.variables
        self.average = Polyak(start=0) if "center" in of else None
        self.names = Variables.names(self.method, average=self.average is not None)
        self.fragments = [variable.fragments for variable in of.values()]
        vectors = max(len(variable.state) for variable in of.values()) + 1
        self.memory = SharedTensors.of({n: torch.rand(SIZE, dtype=DTYPE, generator=g) for n in self.names})
        self.links = [Link.new(i, self.method, SIZE, DTYPE) for i in range(WORKERS)]
        for link in self.links:
            for v in link.memory.tensors.values():
                v.copy_(torch.rand(SIZE, dtype=DTYPE, generator=g))
        beside = dict.fromkeys(Couriers.vectors_of(method), ((SIZE,), DTYPE))
        self.carried = [list(of).index(name) for name in method.couriers]
        self.ledger = Ledger.allocate(vectors, BLOCK, DTYPE, WORKERS, self.fragments, len(method.couriers), beside)
        self.noted().begin_run(4, [[2] * n for n in self.fragments], [2] * len(method.couriers))
        self.renewed: dict[int, socket.socket] = {}
        self.ends = [
            SharedWorkerEnd(link, renew=lambda _, i=i: self.renewed.pop(i)) for i, link in enumerate(self.links)
        ]
        self.deaths = 0
        self.heard: list[int] = []  # the order as the launcher hears it: of a killed master from its ledger
        self.master = self._master(self.links)

    def _master(self, links: list[Link]) -> Master:
        channel: Any = SimpleNamespace(post=lambda *_: None, receive=list)
        start = MasterStart(
            self.method, self.average, self.memory, links, None, {}, 4, ledger=self.ledger, returns=True,
            schedule=Constant(0.1), couriers=dict.fromkeys(self.method.couriers, 3),
        )  # fmt: skip
        master = Master(start, channel)
        master._snapshots = SimpleNamespace(seconds=lambda: 0.0, changed=lambda *_: None)  # type: ignore[assignment]
        return master

    def noted(self) -> Ledger:
        return Ledger(self.ledger, WORKERS, self.fragments, self.carried)

    def next_master(self) -> None:
        self.deaths += 1
        self.heard += self.noted().order(4 + len(self.heard))
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
                self.heard += self.noted().order(4 + len(self.heard))

    def serve(self) -> None:
        """Until nobody waits that can be served."""
        while requests := self.master._sessions.requests(0):
            for request in requests:
                self.master._answer(request)

    def exchange(self, ask: Ask) -> list[Reply]:
        """The messages of these workers, to their end, whoever dies on the way."""
        workers = ask.workers
        for i in workers:
            end = self.ends[i]
            message = None if ask.pull else end.vectors["m" if "m" in end.vectors else "x"]
            end.post(message, ask.t, ask.to, fragment=ask.fragment)
        try:
            self.serve()
        except Killed:
            self.next_master()
            for i in workers:  # as `collect` does when it finds its master gone
                [line] = self.ends[i]._lines
                line._next_master()
                line._repeat()
            self.serve()
        replies = []
        for i in workers:
            reply = self.ends[i].collect()
            replies.append(replace(reply, vector=reply.vector.clone()))
            x = self.ends[i].vectors["x"]
            x.lerp_(reply.vector, 0.3).mul_(1.01)
        return replies


def asked_of(method: Method) -> list[Ask]:
    """A few exchanges: in turn, in rounds, of fragments in their turn and of the whole, of several variables."""
    everybody = list(range(WORKERS))
    if method.in_rounds:
        return [Ask(everybody, t, method.home(0)) for t in range(4)]
    turns = [Ask([worker], t) for t, worker in enumerate((0, 2, 2, 1))]
    if isinstance(method, InFragments):
        return [ask._replace(fragment=f) for ask, f in zip(turns, (0, 1, 2, WHOLE), strict=True)]
    if isinstance(method, Gossip):
        pull = isinstance(method, GossipPull)
        own = [ask._replace(to=method.home(ask.workers[0])) for ask in turns]
        others = [ask._replace(to=method.home((ask.workers[0] + 1 + ask.t % 2) % WORKERS), pull=pull) for ask in turns]
        return [ask for pair in zip(own, others, strict=True) for ask in pair]
    return [ask._replace(to=method.home(ask.workers[0])) for ask in turns]


def script(method: Method) -> tuple[list[Any], dict[str, Tensor], list[int], int]:
    """A few updates; returns replies, the center's vectors, the order, and how many masters have died."""
    run, replies = Run(method), []
    for ask in asked_of(method):
        for reply in run.exchange(ask):
            replies.append((reply.vector.tolist(), reply.clock, reply.served, reply.t))
    clocks = run.master._serving.variables.clocks
    replies.append(clocks)
    assert [run.noted().clocks(i) for i in range(len(run.fragments))] == [
        clocks_of(clocks, name, n) for name, n in zip(run.method.variables, run.fragments, strict=True)
    ]
    order = run.noted().order(4)
    assert run.heard + run.master._serving.order == order, "what a master before it has left in the middle is told, too"
    return replies, {name: v.clone() for name, v in run.memory.tensors.items()}, order, run.deaths


@pytest.fixture(autouse=True)
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(serving, "Ledger", Mortal)
    monkeypatch.setattr(centers, "BLOCK", BLOCK)
    yield
    MOMENTS.last = -1
    torch.set_num_threads(threads)


TREE = EASGDTree(workers=WORKERS, tau=1, tau2=1, degree=2, depth=3)


def fragments_of(method: Method) -> Method:
    return InFragments(method, (method,) * 3)


@pytest.mark.parametrize(
    "method",
    [
        EASGD(0.2), MDOWNPOUR(0.9, 1), SyncEASGD(0.2), GaussSeidelEASGD(0.2), fragments_of(EASGD(0.2)),
        fragments_of(AsyncDiLoCo(workers=WORKERS)), GossipPull(workers=WORKERS, seed=1),
        GossipPush(workers=WORKERS, seed=1), TREE,
        EASGDTree(workers=WORKERS, tau=1, tau_up=1, tau_down=2, degree=2), GroupedEASGD(workers=WORKERS, groups=1),
    ],
    ids=repr,
)  # fmt: skip
def test_a_master_killed_at_any_moment_leaves_nothing_half_done_and_nothing_twice(method: Method) -> None:
    MOMENTS.now, MOMENTS.last = 0, -1
    replies, center, order, deaths = script(method)
    moments = MOMENTS.now
    assert deaths == 0 and moments > 100
    places = list(method.variables)
    asked = [worker + (places.index(ask.to) << 16) for ask in asked_of(method) for worker in ask.workers]
    assert [entry for entry in order if entry & 0xFFFF < WORKERS] == asked
    assert (len(order) > len(asked)) is bool(method.couriers)
    for moment in range(1, moments + 1):
        MOMENTS.now, MOMENTS.last = 0, moment
        again = script(method)
        assert again[3] == 1, moment
        assert again[0] == replies and again[2] == order, moment
        assert all(torch.equal(again[1][name], v) for name, v in center.items()), moment


@pytest.mark.parametrize("method", [EASGD(0.2), TREE], ids=repr)
def test_the_next_master_may_be_killed_while_it_ends_an_update(method: Method) -> None:
    MOMENTS.now, MOMENTS.last = 0, -1
    replies, center, order, _ = script(method)
    moments = (14, 22, 30) if not method.couriers else range(40, MOMENTS.now, 61)
    twice = 0
    for moment in moments:
        for after in range(1, 9):
            MOMENTS.now, MOMENTS.last = 0, moment
            before = Run.next_master

            def killed_again(run: Run, after: int = after, before: Any = before) -> None:
                if run.deaths == 0:
                    MOMENTS.last = MOMENTS.now + after
                before(run)
                MOMENTS.last = -1  # there may have been less to end

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Run, "next_master", killed_again)
                again = script(method)
            twice += again[3] == 2
            assert again[0] == replies and again[2] == order
            assert all(torch.equal(again[1][name], v) for name, v in center.items())
    assert twice == 24 if not method.couriers else twice > 24


def test_an_order_that_is_no_longer_kept_is_not_made_up() -> None:
    memory = Ledger.allocate(1, BLOCK, DTYPE, WORKERS)
    ledger = Ledger(memory, WORKERS)
    ledger.begin_run(ORDER + 10, [[5]])
    assert ledger.order(ORDER + 10) == []
    assert len(ledger.order(10)) == ORDER
    with pytest.raises(ValueError, match="exchanges have not been reported"):
        ledger.order(9)
