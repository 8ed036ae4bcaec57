"""The shared-memory transport keeps the contract of transport/base.py: order, wholeness, and a lost worker harms nobody."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from easgd_cli.algorithms import DOWNPOUR, EAMSGD, EASGD, MDOWNPOUR, Method
from easgd_cli.system.channel import Channel, ChannelClosed
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.center import Center
from easgd_cli.transport.base import Kind, Reply, SessionEnded
from easgd_cli.transport.on_device import Handed, hand_out
from easgd_cli.transport.shared import Elsewhere, Link, SharedMasterEnd, SharedWorkerEnd
from easgd_cli.transport.staging import Staging

SIZE = 70_001  # more than one block, and not a multiple of anything
CPU = torch.device("cpu")


def sessions(method: Method, p: int, where: str = "shared") -> tuple[Center, SharedMasterEnd, list[SharedWorkerEnd]]:
    links = [Link.new(i, method, SIZE, torch.float32) for i in range(p)]
    center = Center(method, {name: torch.zeros(SIZE) for name in method.center})
    theirs, own = [link.for_master() for link in links], [link.for_worker() for link in links]
    master = SharedMasterEnd(theirs, center, hand_out(theirs, CPU) if where == "handed out" else None)
    elsewhere: dict[str, Callable[[Link], Elsewhere | None]] = {
        "shared": lambda link: None, "staged": lambda link: Staging(link.memory.tensors, CPU), "handed out": lambda link: Handed(link, CPU),
    }  # fmt: skip
    return center, master, [SharedWorkerEnd(link, elsewhere[where](link)) for link in own]


def serve(center: Center, master: SharedMasterEnd, seen: list[tuple[int, Kind, int]]) -> None:
    while master.open:
        for request in master.requests(0.05):
            seen.append((request.worker, request.kind, request.t))
            if request.kind is Kind.EXCHANGE:
                center.receive(master.lent(request))
                master.reply(request, Reply(center.clock, center.clock))


@pytest.mark.parametrize("where", ["shared", "staged", "handed out"])
@pytest.mark.parametrize("method", [EASGD(alpha=0.3), EAMSGD(alpha=0.3, delta=0.5), DOWNPOUR(), MDOWNPOUR(delta=0.5, tau=1)])
def test_what_arrives_is_the_rule_applied_in_the_order_served(method: Method, where: str) -> None:
    """Also where a worker's vectors are not the shared ones: its messages and replies are copied, or lie where the master has handed them out."""
    center, master, workers = sessions(method, 3, where)
    seen: list[tuple[int, Kind, int]] = []
    thread = threading.Thread(target=serve, args=(center, master, seen))
    thread.start()
    expected = Center(method, {name: torch.zeros(SIZE) for name in method.center})
    lent = "m" if method.scratch == ("m",) else "v" if isinstance(method, DOWNPOUR) else "x"
    order = random.Random(0)
    for t in range(40):
        i = order.randrange(3)
        w = workers[i]
        w.t = t
        w.vectors[lent].normal_()
        w.post(w.vectors[lent])
        reply = w.collect()
        wanted = torch.empty(SIZE)
        expected.receive(expected.lend(w.vectors[lent], wanted))
        assert torch.equal(reply, wanted)
        assert w.center_clock == expected.clock
    for w in workers:
        w.close(7)
    thread.join(10)
    assert torch.equal(center.vectors["x"], expected.vectors["x"])
    assert [t for _, kind, t in seen if kind is Kind.EXCHANGE] == list(range(40))
    assert sorted(worker for worker, kind, _ in seen if kind is Kind.CLOSE) == [0, 1, 2]


@pytest.mark.parametrize("where", ["staged", "handed out"])
def test_a_message_from_a_device_is_told_of_once_it_is_there_and_a_worker_that_ends_before_is_lost(where: str) -> None:
    """Between post and collect the device may still be copying, so the master must not read the message yet."""
    _, master, workers = sessions(EASGD(alpha=0.5), 1, where)
    workers[0].post(workers[0].vectors["x"])
    assert master.requests(0.05) == []
    workers[0]._socket.close()
    assert [request.kind for request in master.requests(5)] == [Kind.LOST]


def test_staleness_counts_the_updates_of_others_between_two_exchanges() -> None:
    center, master, workers = sessions(EASGD(alpha=0.5), 2)
    thread = threading.Thread(target=serve, args=(center, master, []))
    thread.start()
    for i in (0, 1, 1, 1, 0, 0):
        workers[i].post(workers[i].vectors["x"])
        workers[i].collect()
    assert (workers[0].staleness, workers[1].staleness) == (0, 0)
    workers[1].post(workers[1].vectors["x"])
    workers[1].collect()
    assert workers[1].staleness == 2
    for w in workers:
        w.close(0)
    thread.join(10)


def test_a_message_that_is_not_the_workers_own_vector_is_refused() -> None:
    _, _, workers = sessions(EASGD(alpha=0.5), 1)
    with pytest.raises(ValueError, match="own vectors"):
        workers[0].post(torch.zeros(SIZE))


def test_the_end_of_the_master_is_seen_by_a_waiting_worker() -> None:
    _, master, workers = sessions(EASGD(alpha=0.5), 1)
    workers[0].post(workers[0].vectors["x"])
    for sock in master._sockets.values():
        sock.close()
    with pytest.raises(SessionEnded):
        workers[0].collect()
        workers[0].post(workers[0].vectors["x"])


def _exchange_for_ever(link: Link) -> None:
    w = SharedWorkerEnd(link)
    while True:
        w.post(w.vectors["x"])
        w.collect()


def test_a_worker_killed_at_any_moment_is_one_lost_session_and_every_exchange_is_whole() -> None:
    """kill -9 in the middle of exchanges: the center is what the served exchanges make of it, bit for bit."""
    method = EASGD(alpha=0.25)
    context = multiprocessing.get_context("forkserver")
    for delay in (0.02, 0.05, 0.1):
        links = [Link.new(i, method, SIZE, torch.float32) for i in range(2)]
        for i, link in enumerate(links):
            link.memory["x"].fill_(i + 1.0)
        center = Center(method, {"x": torch.zeros(SIZE)})
        master = SharedMasterEnd([link.for_master() for link in links], center)
        victims = [context.Process(target=_exchange_for_ever, args=(link.for_worker(),), daemon=True) for link in links]
        for v, link in zip(victims, links, strict=True):
            v.start()
            assert link.worker_socket is not None
            link.worker_socket.close()
        seen: list[tuple[int, Kind, int]] = []
        thread = threading.Thread(target=serve, args=(center, master, seen))
        thread.start()
        while not any(kind is Kind.EXCHANGE for _, kind, _ in seen):
            time.sleep(0.001)
        victims[0].join(delay)
        for v in victims:
            assert v.pid is not None
            os.kill(v.pid, signal.SIGKILL)
            v.join()
        thread.join(10)
        assert not thread.is_alive()
        assert sorted(worker for worker, kind, _ in seen if kind is Kind.LOST) == [0, 1]
        chain = Center(method, {"x": torch.zeros(SIZE)})
        reply = torch.empty(SIZE)
        lent = [chain.lend(link.memory["x"], reply) for link in links]
        for worker, kind, _ in seen:
            if kind is Kind.EXCHANGE:
                chain.receive(lent[worker])
        assert torch.equal(center.vectors["x"], chain.vectors["x"])


def test_shared_tensors_start_as_zeros_are_the_same_in_a_child_and_leave_no_name() -> None:
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()
    shared = SharedTensors.allocate({"a": ((3, 5), torch.float32), "b": ((7,), torch.uint8), "none": ((0,), torch.float32)})
    assert not shared["a"].any() and shared["none"].numel() == 0
    child = multiprocessing.get_context("forkserver").Process(target=_fill, args=(shared,))
    child.start()
    child.join(30)
    assert torch.equal(shared["a"], torch.full((3, 5), 2.5)) and torch.equal(shared["b"], torch.full((7,), 9, dtype=torch.uint8))
    assert (set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()) == before


def _fill(shared: SharedTensors) -> None:
    shared["a"].fill_(2.5)
    shared["b"].fill_(9)


def test_more_shared_memory_than_there_is_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(MemoryError, match="could not be had"):
        SharedTensors.allocate({"x": ((2**62,), torch.uint8)})


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
