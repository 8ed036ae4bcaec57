"""Rounds whose messages travel by an all-reduce: replicas that are the center bit for bit, whoever dies when; the five
synchronous methods as over sessions; interrupted, stopped, killed, resumed and replayed runs.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch import Tensor

from easgd_cli.algorithms import AllReduce, DiLoCo, Method, SyncEASGD
from easgd_cli.algorithms.base import CENTER
from easgd_cli.training.center import Center
from easgd_cli.training.gathering import Round
from easgd_cli.training.replica import ReplicatedCenter
from easgd_cli.transport.base import Kind, Mark, Request, Withdrawn
from easgd_cli.transport.collective import CollectiveMasterEnd, CollectiveWorkerEnd
from easgd_cli.transport.replica import Replica
from easgd_cli.transport.shared import Link

SIZE = 70_001  # more than one block


def message(worker: int, t: int, size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1000 * worker + t))


def digest(*vectors: Tensor) -> str:
    found = hashlib.sha1()
    for v in vectors:
        found.update(v.numpy().tobytes())
    return found.hexdigest()


Act = Callable[[int, int, str], None]  # what happens to a worker at its step t, before and after its post


def nothing(worker: int, t: int, when: str) -> None:
    pass


@dataclass
class Told:
    """By a worker: of every round the digest of its replica and its reply."""

    rounds: list[tuple[int, str, str]] = field(default_factory=list)
    withdrawn: bool = False
    ended: bool = False


class Party:
    """A master in this process and its workers in theirs, which take `rounds` rounds, and then close."""

    def __init__(self, method: Method, p: int, rounds: int, size: int = SIZE, act: Act = nothing):
        self.size, self.method, self.p = size, method, p
        variable = method.variables[CENTER]
        self.links = [
            replace(Link.new(i, method, size, torch.float32), replica=r)
            for i, r in enumerate(Replica.new(variable.state, size, torch.float32, p))
        ]
        start = torch.linspace(-1, 1, size)
        vectors = {name: start.clone() if name == "x" else torch.zeros(size) for name in variable.state}
        self.center = Center(variable, vectors)
        for link in self.links:
            assert link.replica is not None
            link.replica.begin(vectors)
        self.stopped = False
        self.master = CollectiveMasterEnd([link.for_master() for link in self.links], vectors, lambda: self.stopped)
        self.gathering = Round(range(p))
        self.order: list[list[int]] = []
        self.digests: list[tuple[str, str]] = []  # of the center and of the reply after each update
        self.pipes, self.processes = [], []
        context = multiprocessing.get_context("fork")
        for link in self.links:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(self.links, link.worker, method, rounds, size, act, theirs))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        for link in self.links:
            assert link.worker_socket is not None
            link.worker_socket.close()

    def serve(self) -> None:
        waiting: dict[int, Request] = {}
        while self.master.open:
            for request in self.master.requests(0.05):
                if request.kind is Kind.EXCHANGE:
                    if self.gathering.over:
                        self.master.reply(request, 0, 0, Mark.WITHDRAWN)
                        continue
                    waiting[request.worker] = request
                    self.gathering.arrive(request.worker)
                elif request.kind is Kind.LOST:
                    waiting.pop(request.worker, None)
                    self.gathering.lose(request.worker)
                elif request.kind is Kind.CLOSE:
                    for worker in self.gathering.finish():
                        self.master.reply(waiting.pop(worker), 0, 0, Mark.WITHDRAWN)
                while members := self.gathering.next():
                    self.round([waiting.pop(member) for member in members])

    def round(self, asked: list[Request]) -> None:
        members = self.master.summed(asked)
        for request in asked if not members else ():
            self.master.reply(request, 0, 0, Mark.WITHDRAWN)
        if members:
            self.center.serve([(r.worker, *self.master.lent(r)) for r in members], summed=True)
            self.order.append([r.worker for r in members])
            reply = self.master.lent(members[0])[1]
            self.digests.append((digest(*self.center.vectors.values()), digest(reply)))
        for request in members:
            self.master.reply(request, self.center.clock, 0)

    def told(self) -> list[Told]:
        """What the workers have said, all of which have ended."""
        found = []
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            told = Told()
            with pipe:
                try:
                    while True:
                        said = pipe.recv()
                        if said == "withdrawn":
                            told.withdrawn = True
                        elif said == "ended":
                            told.ended = True
                        else:
                            told.rounds.append(said)
                except EOFError:
                    pass
            process.join()
            found.append(told)
        return found

    def check(self) -> list[Told]:
        """Serves to the end: whatever happened, whoever has an answer has the center and the reply, bit for bit, and
        the center is what the recorded rounds make of the messages.
        """
        self.serve()
        found = self.told()
        for told in found:
            for clock, replica, reply in told.rounds:
                assert (replica, reply) == self.digests[clock - 1]
        variable = self.method.variables[CENTER]
        vectors = {n: torch.linspace(-1, 1, self.size) if n == "x" else torch.zeros(self.size) for n in variable.state}
        again, reply = Center(variable, vectors), torch.empty(self.size)
        for t, members in enumerate(self.order):
            again.serve([(i, message(i, t, self.size), reply) for i in members])
        for name, v in vectors.items():
            torch.testing.assert_close(self.center.vectors[name], v, rtol=1e-5, atol=1e-5)
        return found


def _work(
    links: list[Link], worker: int, method: Method, rounds: int, size: int, act: Act, pipe: Connection
) -> None:
    torch.set_num_threads(1)
    for link in links:
        assert link.master_socket is not None and link.worker_socket is not None
        link.master_socket.close()
        if link.worker != worker:
            link.worker_socket.close()
    link = links[worker]
    assert link.replica is not None
    replica = ReplicatedCenter(method.variables[CENTER], link.replica.center.tensors)
    end = CollectiveWorkerEnd(link.for_worker(), link.replica, replica.update)
    x = end.vectors["x"]
    try:
        for t in range(rounds):
            x.copy_(message(worker, t, size))
            act(worker, t, "before")
            end.post(x, t)
            act(worker, t, "after")
            reply = end.collect()
            pipe.send((reply.clock, digest(*link.replica.center.tensors.values()), digest(reply.vector)))
    except Withdrawn:
        pipe.send("withdrawn")
    end.close(rounds)
    pipe.send("ended")
    os._exit(0)


METHODS = [SyncEASGD(alpha=0.3), AllReduce(delta=0.9, tau=1), DiLoCo()]


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_worker_has_the_center_and_the_reply_bit_for_bit_after_every_round(method: Method, p: int) -> None:
    party = Party(method, p, rounds=6)
    found = party.check()
    assert [len(told.rounds) for told in found] == [6] * p and all(told.ended for told in found)
    assert party.order == [list(range(p))] * 6


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_others_go_on_without_one_that_dies(victim: int, when: str) -> None:
    def die(worker: int, t: int, at: str) -> None:
        if (worker, t, at) == (victim, 3, when):
            os.kill(os.getpid(), signal.SIGKILL)

    party = Party(DiLoCo(), 3, rounds=6, act=die)
    found = party.check()
    assert [told.ended for told in found] == [i != victim for i in range(3)]
    assert party.order[2] == [0, 1, 2] and party.order[-1] == [i for i in range(3) if i != victim]
    assert len(party.order) == 6


@pytest.mark.parametrize("seed", range(int(os.environ.get("EASGD_TRIES", "6"))))
def test_whoever_dies_at_whatever_moment_no_replica_is_another(seed: int) -> None:
    """Two of four, at random moments in the middle of their rounds."""
    draw = random.Random(seed)
    deaths = {worker: (draw.randrange(5), draw.random() * 0.02) for worker in draw.sample(range(4), 2)}

    def die(worker: int, t: int, at: str) -> None:
        if worker in deaths and t == deaths[worker][0] and at == "before":
            threading.Timer(deaths[worker][1], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    party = Party(DiLoCo(), 4, rounds=6, size=1_000_003, act=die)
    found = party.check()
    for worker, told in enumerate(found):
        assert told.ended or worker in deaths
    assert len(party.order) == 6
