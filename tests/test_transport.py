"""Every transport keeps the contract of transport/base.py: order, wholeness, and a lost worker harms nobody."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from easgd_cli.algorithms import DOWNPOUR, EAMSGD, EASGD, MDOWNPOUR, SGD, Method
from easgd_cli.algorithms.base import WHOLE, Seen, Worker
from easgd_cli.algorithms.fragments import InFragments
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.algorithms.slices import slices
from easgd_cli.algorithms.wire import WIRES, OnTheWire
from easgd_cli.launcher.hosts.door import LIFE, Door, Role, connect
from easgd_cli.launcher.hosts.far_sessions import IncomingSession, OutgoingSession
from easgd_cli.launcher.hosts.hosted_master import HostedMaster
from easgd_cli.settings.schema import Eval
from easgd_cli.system.channel import Channel, ChannelClosed
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training import drive
from easgd_cli.training.center import Center
from easgd_cli.training.master import MasterStart
from easgd_cli.transport.base import Kind, Mark, MasterEnd, Reply, SessionEnded, Withdrawn, WorkerEnd
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind, answer, call, read_exactly
from easgd_cli.transport.on_device import DeviceVectors, hand_out
from easgd_cli.transport.relay import MasterRelay, WorkerRelay
from easgd_cli.transport.shared import Elsewhere, Link, SharedMasterEnd, SharedWorkerEnd
from easgd_cli.transport.simulated import Events, Network, Wire
from easgd_cli.transport.staging import Staging
from easgd_cli.transport.turn import SendTurn, turns

SIZE = 70_001  # more than one block, and not a multiple of anything
CPU = torch.device("cpu")


class Star:
    """A master, its sessions, and somebody who serves: every request on any transport, in the order in which they come.
    `seen` notes them.
    """

    masters = 1

    def __init__(self, method: Method, p: int, center: Center, master: MasterEnd, workers: Sequence[WorkerEnd]):
        self.center, self.master, self.workers, self.seen = center, master, workers, list[tuple[int, Kind, int]]()
        self.admitted: queue.Queue[tuple[int, socket.socket]] = queue.Queue()

    def serve(self, timeout: float) -> None:
        for request in self.master.requests(timeout):
            self.seen.append((request.worker, request.kind, request.t))
            if request.kind is Kind.EXCHANGE:
                self.center.serve([(request.worker, *self.master.lent(request))], fragment=request.fragment)
                self.master.reply(request, self.center.clock, self.center.clock)
            elif request.kind is Kind.JOIN:
                _, reply = self.master.lent(request)
                reply.copy_(self.center.vectors["x"])
                self.master.reply(request, self.center.clock, self.center.clock, t=request.t + 5)

    def exchange(self, worker: int, name: str = "x", t: int = 0, fragment: int = WHOLE) -> Reply:
        """One exchange of that worker's vector, to its end."""
        end = self.workers[worker]
        end.post(end.vectors[name], t, fragment=fragment)
        return end.collect()

    def lose(self, worker: int) -> None:
        """The worker is gone without a word."""
        end = self.workers[worker]
        assert isinstance(end, SharedWorkerEnd)
        end._lines[0].socket.close()

    def come_back(self, worker: int, t: int) -> Reply:
        """It was lost, and is there again with its vectors where they were."""
        assert isinstance(self.master, SharedMasterEnd)
        ours, theirs = socket.socketpair()
        end = self.workers[worker]
        assert isinstance(end, SharedWorkerEnd)
        end._lines[0].socket = ours
        self.admitted.put((worker, theirs))
        end.join(t)
        return end.collect()

    def wait(self) -> None:
        """Until every session has ended."""


class RealStar(Star):
    """Served in a thread."""

    def begin(self) -> RealStar:
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def _serve(self) -> None:
        assert isinstance(self.master, SharedMasterEnd)
        while self.master.open:
            with suppress(queue.Empty):
                worker, sock = self.admitted.get_nowait()
                for request in self.master.rest(worker):
                    self.seen.append((worker, request.kind, request.t))
                self.master.admit(worker, sock)
            self.serve(0.05)

    def wait(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


class FarStar(RealStar):
    """Its workers are on another machine, as far as they know: between each of them and the master is a wire."""

    def __init__(self, method: Method, p: int):
        center, master, stood_in = ends(method, p)
        links = [Link.new(i, method, SIZE, torch.float32) for i in range(p)]
        self.asking: dict[int, WorkerRelay] = {}
        for link, end in zip(links, stood_in, strict=True):
            self.connect(link, end)
        super().__init__(method, p, center, master, [SharedWorkerEnd(link.for_worker()) for link in links])
        self.links, self.stood_in = links, stood_in

    def connect(self, link: Link, end: SharedWorkerEnd) -> None:
        ours, theirs = wires(4 * SIZE)
        names = {name: end.vectors.get(name, end.reply) for name in link.memory.tensors}
        self.asking[link.worker] = asks = WorkerRelay(
            end, {n: v for n, v in names.items() if v is not None}, link.variables, link.packing, ours
        )
        says = MasterRelay(SharedMasterEnd([link.for_master()]), link.packing, theirs)
        for wire, hear in ((ours, asks.request), (theirs, says.reply)):
            threading.Thread(target=self.read, args=(wire, hear), daemon=True).start()

    @staticmethod
    def read(wire: Connection, hear: Callable[[bytes, int], Kind | None]) -> None:
        with suppress(ConnectionEnded):
            while True:
                _, text, count = wire.next()
                hear(text, count)

    def come_back(self, worker: int, t: int) -> Reply:
        """As another process on its machine, with a session of its own on either machine."""
        self.asking[worker].join()
        ours, theirs = socket.socketpair()
        near, far = socket.socketpair()
        self.stood_in[worker]._lines[0].socket = ours
        self.admitted.put((worker, theirs))
        self.links[worker] = link = self.links[worker].with_sockets(worker=near, master=far)
        self.connect(link, self.stood_in[worker])
        self.workers[worker]._lines[0].socket = near
        self.workers[worker].join(t)
        return self.workers[worker].collect()


def wires(most: int) -> tuple[Connection, Connection]:
    """Both ends of a connection that has been through its hello."""
    called: list[socket.socket] = []

    def take() -> None:
        called.append(listener.accept()[0])
        answer(called[0], b"secret", 10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=take)
        thread.start()
        caller = call(listener.getsockname(), b"secret", 10)
        thread.join()
    return Connection(called[0], 30, most), Connection(caller, 30, most)


def test_of_a_worker_elsewhere_whose_method_has_no_variables_the_end_is_heard_and_nothing_else() -> None:
    link = Link.new(0, SGD(), SIZE, torch.float32)
    ours, theirs = wires(4 * SIZE)
    end = SharedWorkerEnd(link.for_worker())
    asks = WorkerRelay(end, end.vectors, link.variables, link.packing, ours)
    for kind in set(Kind) - {Kind.LOST}:
        with pytest.raises(ConnectionEnded):
            asks.request(struct.pack("<HhHhq", kind, 0, 0, WHOLE, 0), 0)
    assert asks.request(struct.pack("<HhHhq", Kind.LOST, 0, 0, WHOLE, -1), 0) is Kind.LOST
    asks.join(10)
    for wire in (ours, theirs):
        wire.close()


def test_a_clock_that_no_worker_has_is_no_request_of_one() -> None:
    link = Link.new(0, EASGD(alpha=0.2), SIZE, torch.float32)
    ours, theirs = wires(4 * SIZE)
    end = SharedWorkerEnd(link.for_worker())
    asks = WorkerRelay(end, end.vectors, link.variables, link.packing, ours)
    for t in (-2, 1 << 53, -(1 << 63)):
        with pytest.raises(ConnectionEnded):
            asks.request(struct.pack("<HhHhq", Kind.CLOSE, 0, 0, WHOLE, t), 0)
    assert asks.request(struct.pack("<HhHhq", Kind.CLOSE, 0, 0, WHOLE, (1 << 53) - 1), 0) is Kind.CLOSE
    for wire in (ours, theirs):
        wire.close()
    asks.lost()
    asks.join(10)


class ShardedStar(Star):
    """Several masters, each of a slice of the center and served in a thread of its own; `seen` is what the first has.
    `center`: the whole of it.
    """

    masters = 3

    def __init__(self, method: Method, p: int):
        links = [Link.new(i, method, SIZE, torch.float32, masters=self.masters) for i in range(p)]
        variable = method.variables["center"]
        whole = Center(variable, {name: torch.zeros(SIZE) for name in variable.state})
        self.stars: list[RealStar] = []
        for place, entries in enumerate(slices(SIZE, self.masters)):
            center = Center(variable, {name: v[entries] for name, v in whole.vectors.items()})
            master = SharedMasterEnd([link.for_master(place, entries) for link in links])
            self.stars.append(RealStar(method, p, center, master, ()).begin())
        super().__init__(method, p, whole, self.stars[0].master, [SharedWorkerEnd(link.for_worker()) for link in links])
        self.seen = self.stars[0].seen

    def lose(self, worker: int) -> None:
        self.workers[worker].lose()

    def come_back(self, worker: int, t: int) -> Reply:
        end = self.workers[worker]
        for line, run in zip(end._lines, self.stars, strict=True):
            ours, theirs = socket.socketpair()
            line.socket = ours
            run.admitted.put((worker, theirs))
        end.join(t)
        return end.collect()

    def wait(self) -> None:
        for run in self.stars:
            run.wait()


class ApartStar(ShardedStar):
    """The masters but the first are on another machine, as far as anybody knows, and reached there at its door."""

    def __init__(self, method: Method, p: int):
        self.cuts, variable = slices(SIZE, self.masters), method.variables["center"]
        self.links = [Link.new(i, method, SIZE, torch.float32, masters=self.masters) for i in range(p)]
        whole = Center(variable, {name: torch.zeros(SIZE) for name in variable.state})
        self.hosted: dict[int, HostedMaster] = {}
        self.stars = []
        for place, entries in enumerate(self.cuts):
            center = Center(variable, {name: v[entries] for name, v in whole.vectors.items()})
            ends = self.hosts(method, place, p) if place else [link.for_master(0, entries) for link in self.links]
            self.stars.append(RealStar(method, p, center, SharedMasterEnd(ends), ()).begin())
        self.door = Door(socket.create_server(("127.0.0.1", 0)), b"secret", self.enters)
        self.out = {(place, link.worker): self.goes(place, link) for place in self.hosted for link in self.links}
        ends_here = [SharedWorkerEnd(link.for_worker()) for link in self.links]
        Star.__init__(self, method, p, whole, self.stars[0].master, ends_here)
        self.seen = self.stars[0].seen

    def hosts(self, method: Method, place: int, p: int) -> list[Link]:
        """A machine with that master, whose process is a thread of ours; its ends of the sessions."""
        run = SimpleNamespace(slices=self.cuts, method=method, average=None, size=SIZE, dtype=torch.float32, steps=None)
        run.settings, run.parts = SimpleNamespace(eval=Eval(), tau=1), SimpleNamespace(schedule=None)
        host: Any = SimpleNamespace(experiment=run, silence=30.0, turns=turns())
        its: Any = SimpleNamespace(post=lambda said, sock: self.stars[place].admitted.put((said["worker"], sock)))
        hosted = self.hosted[place] = HostedMaster(host, place)
        hosted.prepare()
        said = dict(zip(MasterStart.plain, ({}, 0, 0.0, None, True, 0.0, []), strict=True))
        _, start = hosted.begin(its, {"clocks": {str(i): 0 for i in range(p)}, **said}, None)
        hosted._begun.set()
        return start.links

    def enters(self, sock: socket.socket, _: str, role: int, worker: int, of: int) -> None:
        assert role == Role.SESSION
        life, place = divmod(of, 1 << LIFE)
        self.hosted[place].admit(worker, life, sock)

    def goes(self, place: int, link: Link, life: int = 1) -> OutgoingSession:
        end = link.for_master(place, self.cuts[place])
        return OutgoingSession(self.door._listener.getsockname(), b"secret", 30.0, place, end, pytest.fail, life)

    def come_back(self, worker: int, t: int, life: int = 2) -> Reply:
        end = self.workers[worker]
        assert isinstance(end, SharedWorkerEnd)
        pairs = [socket.socketpair() for _ in self.stars]
        self.stars[0].admitted.put((worker, pairs[0][1]))
        link = replace(self.links[worker], further=tuple(pairs[1:]))
        for line, (ours, _) in zip(end._lines, pairs, strict=True):
            line.socket = ours
        for place in self.hosted:
            self.out[place, worker].end()
            self.out[place, worker] = self.goes(place, link, life)
        end.join(t)
        return end.collect()

    def wait(self) -> None:
        for out in self.out.values():
            out.end()
        super().wait()
        self.door.close()
        for hosted in self.hosted.values():
            hosted.close()


class VirtualStar(Star):
    """Served event by event."""

    def __init__(self, method: Method, p: int):
        self.events = Events()
        network = Network(4 * SIZE, latency=(0.25, 0.5), bandwidth=(4.0 * SIZE, None))
        wire = Wire(network, self.events, method.variables)
        names = (*method.state, *method.scratch)
        workers = [wire.end(i, {name: torch.zeros(SIZE) for name in names}, torch.zeros(SIZE)) for i in range(p)]
        center = Center(
            method.variables["center"], {name: torch.zeros(SIZE) for name in method.variables["center"].state}
        )
        self.wire = wire
        super().__init__(method, p, center, wire.master(), workers)

    def exchange(self, worker: int, name: str = "x", t: int = 0, fragment: int = WHOLE) -> Reply:
        end = self.workers[worker]
        end.post(end.vectors[name], t, fragment=fragment)
        kinds = []
        while self.events:
            event = self.events.next()
            kinds.append(event.kind)
            self.wire.deliver(event)
            self.serve(0)
        assert kinds == ["arrive", "reply"]
        return end.collect()

    def lose(self, worker: int) -> None:
        self.workers[worker].lose()

    def come_back(self, worker: int, t: int) -> Reply:
        end = self.workers[worker]
        end.join(t)
        while self.events:
            self.wire.deliver(self.events.next())
            self.serve(0)
        return end.collect()

    def wait(self) -> None:
        self.serve(0)


def ends(method: Method, p: int, where: str = "shared") -> tuple[Center, SharedMasterEnd, list[SharedWorkerEnd]]:
    links = [Link.new(i, method, SIZE, torch.float32) for i in range(p)]
    assert not method.alone
    center = Center(method.variables["center"], {n: torch.zeros(SIZE) for n in method.variables["center"].state})
    theirs, own = [link.for_master() for link in links], [link.for_worker() for link in links]
    master = SharedMasterEnd(theirs, hand_out(theirs, CPU) if where == "handed out" else None)
    elsewhere: dict[str, Callable[[Link], Elsewhere | None]] = {
        "shared": lambda link: None, "staged": lambda link: Staging(link.memory.tensors, CPU),
        "handed out": lambda link: DeviceVectors(link, CPU),
    }  # fmt: skip
    return center, master, [SharedWorkerEnd(link, elsewhere[where](link)) for link in own]


def star(where: str, method: Method, p: int) -> Star:
    """Of each transport there is; the next one belongs here."""
    if where in ("simulated", "sharded", "apart"):
        return {"simulated": VirtualStar, "sharded": ShardedStar, "apart": ApartStar}[where](method, p)
    return (FarStar(method, p) if where == "far" else RealStar(method, p, *ends(method, p, where))).begin()


TRANSPORTS = ["shared", "staged", "handed out", "far", "simulated"]
EVERYWHERE = pytest.mark.parametrize("where", TRANSPORTS)
ALSO_IN_SLICES = pytest.mark.parametrize("where", [*TRANSPORTS, "sharded", "apart"])


@ALSO_IN_SLICES
@pytest.mark.parametrize(
    "method", [EASGD(alpha=0.3), EAMSGD(alpha=0.3, delta=0.5), DOWNPOUR(), MDOWNPOUR(delta=0.5, tau=1)]
)
def test_what_arrives_is_the_rule_applied_in_the_order_served(method: Method, where: str) -> None:
    """Also where a worker's vectors are not the shared ones: its messages and replies are copied, or lie where the
    master has handed them out.
    """
    run = star(where, method, 3)
    expected = Center(method.variables["center"], {name: torch.zeros(SIZE) for name in method.center})
    lent = "m" if method.scratch == ("m",) else "v" if isinstance(method, DOWNPOUR) else "x"
    order = random.Random(0)
    for t in range(40):
        i = order.randrange(3)
        w = run.workers[i]
        w.vectors[lent].normal_()
        reply = run.exchange(i, lent, t)
        wanted = torch.empty(SIZE)
        expected.receive(expected.lend(w.vectors[lent], wanted))
        assert torch.equal(reply.vector, wanted) and reply.vector is w.reply
        assert (reply.clock, reply.served, reply.mark) == (expected.clock, run.masters * (t + 1), Mark.NONE)
    for w in run.workers:
        w.close(7)
    run.wait()
    assert torch.equal(run.center.vectors["x"], expected.vectors["x"])
    assert [t for _, kind, t in run.seen if kind is Kind.EXCHANGE] == list(range(40))
    assert sorted((worker, t) for worker, kind, t in run.seen if kind is Kind.CLOSE) == [(0, 7), (1, 7), (2, 7)]


@EVERYWHERE
def test_a_message_of_a_fragment_leaves_every_bit_of_the_others(where: str) -> None:
    """Of the center and of the reply; and the whole is all of them."""
    method = EASGD(alpha=0.3)
    run = star(where, InFragments(method, (method,) * 3), 1)
    [w], center = run.workers, run.center
    cuts = (0, SIZE // 3, 2 * SIZE // 3, SIZE)
    wanted, before = torch.zeros(SIZE), torch.zeros(SIZE)
    for t, f in enumerate((1, 0, 2, 1)):
        w.vectors["x"].normal_()
        entries = slice(cuts[f], cuts[f + 1])
        before[entries] = wanted[entries]
        wanted[entries] = torch.lerp(wanted[entries], w.vectors["x"][entries], 0.3)
        reply = run.exchange(0, "x", t, f)
        torch.testing.assert_close(center.vectors["x"], wanted, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(reply.vector, before, rtol=1e-6, atol=1e-7)
        wanted.copy_(center.vectors["x"])
        assert reply.clock == center.clock == t + 1
    assert center.clocks == [1, 2, 1]
    run.exchange(0, "x", 9)
    torch.testing.assert_close(center.vectors["x"], torch.lerp(wanted, w.vectors["x"], 0.3), rtol=1e-6, atol=1e-7)
    assert center.clocks == [2, 3, 2]
    if isinstance(run, VirtualStar):  # a third of a second for each fragment, a second for the whole, and the latency
        assert run.events.now == pytest.approx(4 / 3 + 1 + 5 * 0.75)
    w.close(9)
    run.wait()


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("name", ["bf16", "fp16", "int8"])
def test_what_crosses_in_fewer_bits_is_what_was_rounded(
    name: str, fragments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine center and worker get the numbers that they get on one; the bytes are those of `nbytes`."""
    inner: Method = EASGD(alpha=0.3)
    if fragments > 1:
        inner = InFragments(inner, (inner,) * fragments)
    wire = WIRES[name]
    assert wire is not None
    method = OnTheWire(inner, wire, seed=4)
    crossed: list[int] = []
    post = Connection.post

    def noted(connection: Connection, kind: FrameKind, text: bytes = b"", vectors: Sequence[Tensor] = ()) -> None:
        crossed.extend(v.nbytes for v in vectors)
        post(connection, kind, text, vectors)

    monkeypatch.setattr(Connection, "post", noted)
    found = {}
    for where in ("shared", "far"):
        run = star(where, method, 2)
        torch.manual_seed(3)
        for t in range(6):
            end = run.workers[t % 2]
            end.vectors["x"].normal_()
            w = Worker(end.vectors, fragments, Constant(0.1), t, t % 2)
            drive.take_step(method, w, StillGradients(), end)
            found.setdefault(where, []).append(w.x.clone())
        for w in run.workers:
            w.close(6)
        run.wait()
        found[where].append(run.center.vectors["x"].clone())
    assert all(torch.equal(a, b) for a, b in zip(found["shared"], found["far"], strict=True))
    assert sum(crossed) == pytest.approx(12 * wire.nbytes(SIZE) / fragments, rel=0.01)


class StillGradients:
    """Of a function that is flat."""

    def load(self, worker: int, t: int) -> None:
        pass

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), torch.zeros(())


@pytest.mark.parametrize("where", ["shared", "staged", "handed out"])
def test_a_worker_begins_with_what_was_put_into_its_memory(where: str) -> None:
    """Where its vectors are not the shared ones, too; from then on they are its own."""
    link = Link.new(0, EAMSGD(alpha=0.3, delta=0.5), SIZE, torch.float32)
    for name in ("x", "v"):
        link.memory[name].normal_()
    before = {name: v.clone() for name, v in link.memory.tensors.items()}
    handed = hand_out([link.for_master()], CPU) if where == "handed out" else None
    elsewhere = (
        Staging(link.memory.tensors, CPU)
        if where == "staged"
        else DeviceVectors(link.for_worker(), CPU)
        if handed is not None
        else None
    )
    end = SharedWorkerEnd(link.for_worker(), elsewhere)
    assert all(torch.equal(end.vectors[name], before[name]) for name in ("x", "v"))
    end.vectors["x"].zero_()
    assert torch.equal(link.memory["x"], torch.zeros(SIZE) if where == "shared" else before["x"])


@ALSO_IN_SLICES
def test_a_mark_for_a_checkpoint_keeps_its_place_between_two_exchanges(where: str) -> None:
    run = star(where, EASGD(alpha=0.5), 1)
    run.exchange(0, t=4)
    run.workers[0].checkpoint(5)
    run.exchange(0, t=8)
    run.workers[0].close(9)
    run.wait()
    assert run.seen == [(0, Kind.EXCHANGE, 4), (0, Kind.CHECKPOINT, 5), (0, Kind.EXCHANGE, 8), (0, Kind.CLOSE, 9)]


@ALSO_IN_SLICES
def test_a_worker_that_was_lost_comes_back_to_the_center_and_its_return_is_no_exchange(where: str) -> None:
    run = star(where, EASGD(alpha=0.5), 2)
    for i in (0, 1):
        run.workers[i].vectors["x"].normal_()
        run.exchange(i, t=4)
    run.lose(0)
    center = run.center.vectors["x"].clone()
    reply = run.come_back(0, 6)
    assert torch.equal(reply.vector, center) and torch.equal(run.center.vectors["x"], center)
    assert (reply.clock, reply.served, reply.mark, reply.t) == (2, 2 * run.masters, Mark.NONE, 11)
    again = run.exchange(0, t=11)
    assert torch.equal(again.vector, center) and (again.clock, again.t) == (3, 11)
    run.workers[0].close(12)
    run.workers[1].close(5)
    run.wait()
    mine = [(kind, t) for worker, kind, t in run.seen if worker == 0]
    assert mine == [
        (Kind.EXCHANGE, 4), (Kind.LOST, -1), (Kind.JOIN, 6), (Kind.EXCHANGE, 11), (Kind.CLOSE, 12),
    ]  # fmt: skip


@ALSO_IN_SLICES
def test_a_worker_that_ends_without_a_word_is_one_lost_session_and_disturbs_no_other(where: str) -> None:
    run = star(where, EASGD(alpha=0.5), 2)
    run.exchange(0)
    run.exchange(1)
    run.lose(1)
    assert run.exchange(0).clock == 3
    run.workers[0].close(2)
    run.wait()
    assert [worker for worker, kind, _ in run.seen if kind is Kind.LOST] == [1]
    assert not run.master.open


def test_a_worker_elsewhere_that_dies_while_it_waits_for_its_reply_is_lost_after_its_message() -> None:
    run = FarStar(EASGD(alpha=0.5), 1)
    end = run.workers[0]
    end.post(end.vectors["x"], 4)
    run.lose(0)
    while run.asking[0]._asked.empty():  # until its end is known, behind the message that nobody has served yet
        time.sleep(0.001)
    run.begin().wait()
    assert run.seen == [(0, Kind.EXCHANGE, 4), (0, Kind.LOST, -1)]


def test_a_master_elsewhere_hears_of_a_workers_end_also_while_it_keeps_its_message() -> None:
    """As it does until all are there for the closing exchange."""
    here, there = (Link.new(0, EASGD(alpha=0.5), SIZE, torch.float32) for _ in range(2))
    master, came = SharedMasterEnd([there.for_master()]), queue.SimpleQueue[IncomingSession]()
    turn = SendTurn(turns())
    door = Door(
        socket.create_server(("127.0.0.1", 0)), b"secret",
        lambda sock, *_: came.put(IncomingSession(Connection(sock, 30.0, 0, turn), turn, there.for_worker())),
    )  # fmt: skip
    out = OutgoingSession(door._listener.getsockname(), b"secret", 30.0, 1, here.for_master(), pytest.fail)
    worker = SharedWorkerEnd(here.for_worker())
    worker.vectors["x"].fill_(3.0)
    worker.post(worker.vectors["x"], 4)
    [message] = master.requests(None)
    assert message.kind is Kind.EXCHANGE and torch.equal(there.memory["x"], worker.vectors["x"])
    worker.lose()
    assert [request.kind for request in master.requests(None)] == [Kind.LOST]
    out.end()
    came.get().end(30.0)
    door.close()


@pytest.mark.parametrize("told", [(), (1,), (2,), (1, 2)])
def test_the_news_of_a_life_in_which_a_worker_never_came_to_a_master_elsewhere_ends_no_later_one(
    told: tuple[int, ...],
) -> None:
    """It is told on another way than that by which its sessions come, so before or after the next."""
    run = ApartStar(EASGD(alpha=0.5), 2)
    run.exchange(0, t=4)
    run.lose(0)
    for after in (False, True):
        for life in (1, 2):
            for hosted in run.hosted.values() if (life in told) != after else ():
                assert not hosted.told({"kind": "again", "worker": 0, "life": life})
        if not after:
            assert run.come_back(0, 6, life=3).t == 11
    assert run.exchange(0, t=11).t == 11
    run.lose(0)
    for hosted in run.hosted.values():
        hosted.told({"kind": "again", "worker": 0, "life": 3})
    late = connect(run.door._listener.getsockname(), b"secret", 10, Role.SESSION, 0, 1 | 3 << LIFE)
    while late.recv(64):  # of a life that is known to have ended: it is closed
        pass
    assert 0 not in run.hosted[1]._sessions
    assert run.come_back(0, 12, life=4).t == 17
    for worker in run.workers:
        worker.close(18)
    run.wait()
    late.close()


def test_a_master_elsewhere_that_waits_for_its_slice_is_heard_by_the_workers_that_have_come() -> None:
    """However long that takes."""
    host: Any = SimpleNamespace(silence=2.0, turns=turns())
    master = HostedMaster(host, 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    admitting = threading.Thread(target=master.admit, args=(0, 1, theirs))
    admitting.start()
    assert len(read_exactly(ours, 16, 30)) == 16  # that it is there
    assert admitting.is_alive()
    master.close()  # the run has ended meanwhile
    admitting.join()
    ours.close()


@ALSO_IN_SLICES
def test_a_message_that_is_not_the_workers_own_vector_is_refused(where: str) -> None:
    run = star(where, EASGD(alpha=0.5), 1)
    with pytest.raises(ValueError, match="own vectors"):
        run.workers[0].post(torch.zeros(SIZE), 0)
    run.workers[0].close(0)
    run.wait()


def test_a_message_that_is_given_back_raises_withdrawn() -> None:
    for where in ("shared", "simulated"):
        virtual = VirtualStar(EASGD(alpha=0.5), 1) if where == "simulated" else None
        master, worker = (
            (virtual.master, virtual.workers[0])
            if virtual is not None
            else (lambda e: (e[1], e[2][0]))(ends(EASGD(alpha=0.5), 1))
        )
        worker.post(worker.vectors["x"], 3)
        if virtual is not None:
            virtual.wire.deliver(virtual.events.next())
        [request] = master.requests(5)
        master.reply(request, 0, 0, Mark.WITHDRAWN)
        with pytest.raises(Withdrawn):
            worker.collect()


def test_virtual_events_that_are_restored_come_in_their_order_in_whichever_they_are_kept() -> None:
    events = Events()
    for time_ in (3.0, 1.0, 2.0, 1.0):
        events.add(time_, "step", 0)
    state = events.state()
    for kept in (state["events"], state["events"][::-1]):
        again = Events()
        again.restore({**state, "events": kept})
        assert [again.next()[:2] for _ in kept] == [(1.0, 2), (1.0, 4), (2.0, 3), (3.0, 1)]


def test_a_message_on_a_virtual_link_takes_its_latency_and_its_bytes_and_arrives_in_that_order() -> None:
    run = VirtualStar(EASGD(alpha=0.5), 1)
    run.exchange(0)
    assert run.events.now == pytest.approx(0.25 + 1.0 + 0.5)  # up, 4 SIZE bytes at 4 SIZE bytes a second, down


@pytest.mark.parametrize("where", ["staged", "handed out"])
def test_a_message_from_a_device_is_told_of_once_it_is_there_and_a_worker_that_ends_before_is_lost(where: str) -> None:
    """Between post and collect the device may still be copying, so the master must not read the message yet."""
    _, master, workers = ends(EASGD(alpha=0.5), 1, where)
    workers[0].post(workers[0].vectors["x"], 0)
    assert master.requests(0.05) == []
    workers[0]._lines[0].socket.close()
    assert [request.kind for request in master.requests(5)] == [Kind.LOST]


def test_staleness_counts_the_updates_of_others_between_two_exchanges() -> None:
    seen = Seen()
    assert [seen.note(clock, served) for clock, served in ((1, 1), (4, 4), (5, 5))] == [0, 2, 0]
    assert (seen.clock, seen.served, seen.exchanges) == (5, 5, 3)


def test_the_end_of_the_master_is_seen_by_a_waiting_worker() -> None:
    _, master, workers = ends(EASGD(alpha=0.5), 1)
    workers[0].post(workers[0].vectors["x"], 0)
    for sock in master._sockets.values():
        sock.close()
    with pytest.raises(SessionEnded):
        workers[0].collect()
        workers[0].post(workers[0].vectors["x"], 0)


def _exchange_for_ever(link: Link) -> None:
    w = SharedWorkerEnd(link)
    while True:
        w.post(w.vectors["x"], 0)
        w.collect()


def test_a_worker_killed_at_any_moment_is_one_lost_session_and_every_exchange_is_whole() -> None:
    """kill -9 in the middle of exchanges: the center is what the served exchanges make of it, bit for bit."""
    method = EASGD(alpha=0.25)
    context = multiprocessing.get_context("forkserver")
    for delay in (0.02, 0.05, 0.1):
        links = [Link.new(i, method, SIZE, torch.float32) for i in range(2)]
        for i, link in enumerate(links):
            link.memory["x"].fill_(i + 1.0)
        center = Center(method.variables["center"], {"x": torch.zeros(SIZE)})
        master = SharedMasterEnd([link.for_master() for link in links])
        victims = [context.Process(target=_exchange_for_ever, args=(link.for_worker(),), daemon=True) for link in links]
        for v, link in zip(victims, links, strict=True):
            v.start()
            assert link.worker_socket is not None
            link.worker_socket.close()
        run = RealStar(method, 2, center, master, []).begin()
        seen = run.seen
        while not any(kind is Kind.EXCHANGE for _, kind, _ in seen):
            time.sleep(0.001)
        victims[0].join(delay)
        for v in victims:
            assert v.pid is not None
            os.kill(v.pid, signal.SIGKILL)
            v.join()
        run.wait()
        assert sorted(worker for worker, kind, _ in seen if kind is Kind.LOST) == [0, 1]
        chain = Center(method.variables["center"], {"x": torch.zeros(SIZE)})
        reply = torch.empty(SIZE)
        lent = [chain.lend(link.memory["x"], reply) for link in links]
        for worker, kind, _ in seen:
            if kind is Kind.EXCHANGE:
                chain.receive(lent[worker])
        assert torch.equal(center.vectors["x"], chain.vectors["x"])


def test_shared_tensors_start_as_zeros_are_the_same_in_a_child_and_leave_no_name() -> None:
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()
    shared = SharedTensors.allocate(
        {"a": ((3, 5), torch.float32), "b": ((7,), torch.uint8), "none": ((0,), torch.float32)}
    )
    assert not shared["a"].any() and shared["none"].numel() == 0
    child = multiprocessing.get_context("forkserver").Process(target=_fill, args=(shared,))
    child.start()
    child.join(30)
    assert torch.equal(shared["a"], torch.full((3, 5), 2.5)) and torch.equal(
        shared["b"], torch.full((7,), 9, dtype=torch.uint8)
    )
    assert (set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()) == before


def _fill(shared: SharedTensors) -> None:
    shared["a"].fill_(2.5)
    shared["b"].fill_(9)


def test_more_shared_memory_than_there_is_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(MemoryError, match="could not be had"):
        SharedTensors.allocate({"x": ((2**62,), torch.uint8)})


def test_several_threads_say_something_on_one_channel_and_every_word_arrives_whole() -> None:
    left, right = (Channel(end) for end in socket.socketpair())
    count, threads = 3000, 4

    def says(thread: int) -> None:
        for n in range(count):
            left.post({"thread": thread, "n": n})

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        talking = [threading.Thread(target=says, args=(thread,)) for thread in range(threads)]
        for thread in talking:
            thread.start()
        heard: list[list[int]] = [[] for _ in range(threads)]
        while sum(map(len, heard)) < count * threads:
            left.flush()
            for message, _ in right.receive():
                heard[message["thread"]].append(message["n"])
        for thread in talking:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        left.close()
        right.close()
    assert heard == [list(range(count))] * threads


def test_a_channel_carries_messages_and_memory_in_order_without_blocking() -> None:
    a, b = socket.socketpair()
    left, right = Channel(a), Channel(b)
    sent: list[Tensor] = []
    for i in range(300):  # far more than the socket takes at once
        t = torch.full((10,), float(i))
        sent.append(t)
        left.post({"kind": "x", "i": i, "filler": "y" * 3000}, SharedTensors.of({"x": t}) if i % 3 == 0 else None)
    got = []
    while len(got) < 300:
        left.flush()
        got += right.receive()
    for i, (message, tensors) in enumerate(got):
        assert message["i"] == i
        assert (tensors is not None) == (i % 3 == 0)
        if tensors is not None:
            assert torch.equal(tensors["x"], sent[i])
            tensors.close()
    left.close()
    with pytest.raises(ChannelClosed):
        right.receive()
    right.close()
    gc.collect()


def test_a_socket_that_never_reaches_its_party_ends() -> None:
    """Else whoever has its other end would wait for a process that was never told of it."""
    ours, theirs = socket.socketpair()
    one, other = socket.socketpair()
    channel = Channel(ours)
    theirs.close()
    with pytest.raises(ChannelClosed):
        channel.post({"kind": "session"}, one)
    other.settimeout(5)
    assert other.recv(1) == b""
