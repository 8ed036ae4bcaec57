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
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import pytest
import test_runs
import torch
from test_recovery import replayed
from test_runs import (
    by_hand,
    disturbed,
    gated,
    hurried,
    longer,
    recorded_order,
    rows,
    run,
    settings,
    unhurried,
    wait_until,
)  # fmt: skip
from torch import Tensor

from easgd_cli.__main__ import main
from easgd_cli.algorithms import AllReduce, DiLoCo, Method, SyncEASGD
from easgd_cli.algorithms.base import CENTER
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.processes import local
from easgd_cli.settings.schema import Checkpoint, Eval, Settings
from easgd_cli.training.center import Center
from easgd_cli.training.gathering import Round
from easgd_cli.training.replica import ReplicatedCenter
from easgd_cli.transport import collective
from easgd_cli.transport.base import Kind, Mark, Request, Withdrawn
from easgd_cli.transport.collective import CollectiveMasterEnd, CollectiveWorkerEnd, SumLost
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind
from easgd_cli.transport.relay import SummedMasterRelay, SummedWorkerRelay
from easgd_cli.transport.replica import Replica
from easgd_cli.transport.shared import Link, SharedMasterEnd
from easgd_cli.transport.staging import Staging

SIZE = 70_001  # more than one block


def message(worker: int, t: int, size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1000 * worker + t))


def digest(*vectors: Tensor) -> str:
    found = hashlib.sha1()
    for v in vectors:
        found.update(v.numpy().tobytes())
    return found.hexdigest()


# what happens to a worker at its step t, before and after its post
Act = Callable[[int, int, str, CollectiveWorkerEnd], None]


def nothing(worker: int, t: int, when: str, end: CollectiveWorkerEnd) -> None:
    pass


@dataclass
class Told:
    """By a worker: of every round the digest of its replica and its reply."""

    rounds: list[tuple[int, str, str]] = field(default_factory=list)
    withdrawn: bool = False
    ended: bool = False


def relay(near: Link, far: Link) -> list[Connection]:
    """The session of a worker that has the `far` link, with a master that has the `near` one; in between a network,
    whose ends are returned.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sockets = [socket.create_connection(listener.getsockname()), listener.accept()[0]]
    here, there = ends = [Connection(sock, 20.0, 10 * near.memory.nbytes()) for sock in sockets]
    asks, says = SummedWorkerRelay(near, here), SummedMasterRelay(SharedMasterEnd([far.for_master()]), far, there)

    def read(connection: Connection, kind: FrameKind, heard: Callable[[bytes, int], object]) -> None:
        with suppress(ConnectionEnded):
            while (said := connection.next())[0] is kind:
                heard(*said[1:])

    for of in ((here, FrameKind.REQUEST, asks.request), (there, FrameKind.REPLY, says.reply)):
        threading.Thread(target=read, args=of, daemon=True).start()
    return ends


class Party:
    """A master in this process and its workers in theirs, which take `rounds` rounds, and then close; `far`: those with
    a network in between.
    """

    def __init__(
        self, method: Method, p: int, rounds: int, size: int = SIZE, act: Act = nothing, staged: bool = False,
        far: Collection[int] = (),
    ):  # fmt: skip
        self.size, self.method, self.p = size, method, p
        variable = method.variables[CENTER]
        self.links = [
            replace(Link.new(i, method, size, torch.float32), replica=r)
            for i, r in enumerate(Replica.new(variable.state, size, torch.float32, p))
        ]
        start = torch.linspace(-1, 1, size)
        vectors = {name: start.clone() if name == "x" else torch.zeros(size) for name in variable.state}
        self.center = Center(variable, vectors)
        self.connections: list[Connection] = []
        theirs = [self._far(link) if link.worker in far else link for link in self.links]
        for link in (*self.links, *theirs):
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
            ours, pipe = context.Pipe()
            others = [of for of in (*self.links, *theirs) if of is not theirs[link.worker]]
            process = context.Process(
                target=_work, args=(theirs[link.worker], others, method, rounds, size, act, pipe, staged)
            )
            process.start()
            pipe.close()
            self.pipes.append(ours)
            self.processes.append(process)
        for link, mine in zip(self.links, theirs, strict=True):
            assert mine.worker_socket is not None
            mine.worker_socket.close()
            if mine is not link:
                self.connections += relay(link, mine)
        self.all = [*self.links, *theirs]

    def _far(self, link: Link) -> Link:
        """Its own where it is."""
        assert link.replica is not None
        state = self.method.variables[CENTER].state
        [replica] = Replica.new(state, self.size, torch.float32, 1, link.replica.meeting)
        replica.workers = self.p
        return replace(Link.new(link.worker, self.method, self.size, torch.float32), replica=replica)

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
                elif request.kind is Kind.CLOSE and not self.gathering.over:
                    for worker in self.gathering.finish():
                        self.master.reply(waiting.pop(worker), 0, 0, Mark.WITHDRAWN)
                while members := self.gathering.next():
                    self.round([waiting.pop(member) for member in members])

    def round(self, asked: list[Request]) -> None:
        members = self.master.summed(asked)
        for request in asked if not members else ():
            self.master.reply(request, 0, 0, Mark.WITHDRAWN)
        clock = self.center.clock + 1
        for request in members:  # as the master does
            self.master.reply(request, clock, 0)
        if members:
            self.center.serve([(r.worker, *self.master.lent(r)) for r in members], summed=True)
            self.order.append([r.worker for r in members])
            reply = self.master.lent(members[0])[1]
            self.digests.append((digest(*self.center.vectors.values()), digest(reply)))

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
        for connection in self.connections:
            connection.close()
        for link in self.all:
            link.close_sockets()
            link.close_memory()
        for told in found:
            for clock, replica, reply in told.rounds:
                assert (replica, reply) == self.digests[clock - 1]
        variable = self.method.variables[CENTER]
        vectors = {n: torch.linspace(-1, 1, self.size) if n == "x" else torch.zeros(self.size) for n in variable.state}
        again, written = Center(variable, vectors), torch.empty(self.size)
        for t, members in enumerate(self.order):
            again.serve([(i, message(i, t, self.size), written) for i in members])
        for name, v in vectors.items():
            torch.testing.assert_close(self.center.vectors[name], v, rtol=1e-5, atol=1e-5)
        return found


def _work(
    link: Link, others: list[Link], method: Method, rounds: int, size: int, act: Act, pipe: Pipe, staged: bool
) -> None:
    torch.set_num_threads(1)
    assert link.replica is not None and link.master_socket is not None
    link.master_socket.close()
    for other in others:
        other.close_sockets()
    worker = link.worker
    replica = ReplicatedCenter(method.variables[CENTER], link.replica.center.tensors)
    staging = Staging(link.memory.tensors, torch.device("cpu")) if staged else None
    end = CollectiveWorkerEnd(link.for_worker(), link.replica, replica.update, staging)
    x = end.vectors["x"]
    try:
        for t in range(rounds):
            x.copy_(message(worker, t, size))
            act(worker, t, "before", end)
            end.post(x, t)
            act(worker, t, "after", end)
            reply = end.collect()
            pipe.send((reply.clock, digest(*link.replica.center.tensors.values()), digest(reply.vector)))
    except Withdrawn:
        pipe.send("withdrawn")
    end.close(rounds)
    pipe.send("ended")
    os._exit(0)


METHODS = [SyncEASGD(alpha=0.3), AllReduce(delta=0.9, tau=1), DiLoCo()]


FAR = pytest.mark.parametrize("far", [(), (1, 2), (0, 1, 2, 3)], ids=["near", "some far", "all far"])


@FAR
@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_worker_has_the_center_and_the_reply_bit_for_bit_after_every_round(
    method: Method, p: int, far: Collection[int]
) -> None:
    party = Party(method, p, rounds=6, far=far)
    found = party.check()
    assert [len(told.rounds) for told in found] == [6] * p and all(told.ended for told in found)
    assert party.order == [list(range(p))] * 6


def test_after_a_death_those_that_are_there_wait_for_one_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than it may take until a master knows of the death."""
    monkeypatch.setattr(collective, "_KNOWN_BY", 1.0)

    def act(worker: int, t: int, at: str, end: CollectiveWorkerEnd) -> None:
        if (worker, t, at) == (1, 3, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif (worker, t, at) == (2, 3, "before"):
            time.sleep(2.5)

    party = Party(DiLoCo(), 3, rounds=5, act=act)
    assert [told.ended for told in party.check()] == [True, False, True]
    assert party.order == [[0, 1, 2]] * 3 + [[0, 2]] * 2


def test_messages_and_replies_of_a_device_go_through_the_hosts_memory() -> None:
    found = Party(DiLoCo(), 3, rounds=4, staged=True).check()
    assert [len(told.rounds) for told in found] == [4] * 3


@FAR
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_others_go_on_without_one_that_dies(victim: int, when: str, far: Collection[int]) -> None:
    def die(worker: int, t: int, at: str, end: CollectiveWorkerEnd) -> None:
        if (worker, t, at) == (victim, 3, when):
            os.kill(os.getpid(), signal.SIGKILL)

    party = Party(DiLoCo(), 3, rounds=6, act=die, far=far)
    found = party.check()
    assert [told.ended for told in found] == [i != victim for i in range(3)]
    assert party.order[2] == [0, 1, 2] and party.order[-1] == [i for i in range(3) if i != victim]
    assert len(party.order) == 6


@FAR
@pytest.mark.parametrize("worker", [1, 2])
def test_one_whose_sum_is_lost_when_the_round_is_whole_has_the_same_bits_from_its_master(
    worker: int, far: Collection[int]
) -> None:
    def lose(number: int, t: int, at: str, end: CollectiveWorkerEnd) -> None:
        def lost(seconds: float) -> bool:
            raise SumLost

        if (number, t, at) == (worker, 3, "after"):
            assert end._group is not None
            end._group.done = lost  # type: ignore[method-assign]

    found = Party(DiLoCo(), 3, rounds=6, act=lose, far=far).check()
    assert [len(told.rounds) for told in found] == [6] * 3


def test_a_round_that_is_given_back_has_not_happened() -> None:
    """One stands still in the middle; the others are told to end."""

    def stop(worker: int, t: int, at: str, end: CollectiveWorkerEnd) -> None:
        if (worker, t, at) == (1, 1, "after"):
            os.kill(os.getpid(), signal.SIGSTOP)

    party = Party(DiLoCo(), 3, rounds=2, size=5_000_000, act=stop)

    def told_to_end() -> bool:
        party.stopped = len(party.order) == 1
        if party.stopped:
            os.kill(party.processes[1].pid or 0, signal.SIGCONT)
        return party.stopped

    party.master._gives_up = told_to_end
    found = party.check()
    assert all(told.withdrawn and told.ended for told in found) and len(party.order) == 1


@FAR
@pytest.mark.parametrize("seed", range(int(os.environ.get("EASGD_TRIES", "6"))))
def test_whoever_dies_at_whatever_moment_no_replica_is_another(seed: int, far: Collection[int]) -> None:
    """Two of four, at random moments in the middle of their rounds."""
    draw = random.Random(seed)
    deaths = {worker: (draw.randrange(5), draw.random() * 0.005) for worker in draw.sample(range(4), 2)}

    def die(worker: int, t: int, at: str, end: CollectiveWorkerEnd) -> None:
        if worker in deaths and t == deaths[worker][0] and at == "before":
            threading.Timer(deaths[worker][1], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    party = Party(DiLoCo(), 4, rounds=6, size=250_007, act=die, far=far)
    found = party.check()
    for worker, told in enumerate(found):
        assert told.ended or worker in deaths
    assert len(party.order) == 6


# ---------------------------------------------------------------- runs

FIVE = ["allreduce", "model_averaging", "sync_easgd", "sync_eamsgd", "diloco"]


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test, but for those over `sessions`, go by sums."""

    def launch(job: Job, experiment: build.Experiment) -> Outcome:
        return local.launch(job, experiment, collective=True)

    monkeypatch.setattr(test_runs, "launch", launch)


def over_sessions(s: Settings, directory: Path) -> None:
    directory.mkdir()
    assert local.launch(Job(directory), build.prepare(s)).status == "completed"


def centers(directory: Path, *names: str) -> list[Tensor]:
    return [
        torch.cat([v.flatten() for v in torch.load(directory / name / "center.pt", weights_only=True).values()])
        for name in names
    ]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("algo", FIVE)
def test_a_run_by_sums_is_the_run_over_sessions(algo: str, workers: int, tmp_path: Path, summed: None) -> None:
    """To the bit where a sum is of two; with more it is taken in another order, and equal within rounding."""
    s = settings(algo, workers=workers, steps=23, average=test_runs.POLYAK)
    over_sessions(s, tmp_path / "sessions")
    outcome = run(s, tmp_path / "sums")
    assert outcome.status == "completed"
    assert recorded_order(tmp_path / "sessions") == recorded_order(tmp_path / "sums")
    one, other = centers(tmp_path, "sessions", "sums")
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6 if workers > 2 else 0)
    assert replayed(replace(s), tmp_path / "sums", tmp_path / "replayed").status == "completed"
    assert torch.equal(one, *centers(tmp_path, "replayed"))
    keys = ("step", "exchanges")
    assert [[r[k] for k in keys] for r in rows(tmp_path / "sums", "center")] == [
        [r[k] for k in keys] for r in rows(tmp_path / "sessions", "center")
    ]


@pytest.mark.parametrize("algo", FIVE)
def test_in_float64_four_workers_are_a_run_by_hand(algo: str, tmp_path: Path, summed: None) -> None:
    problem = {"name": "quadratic", "target": "easgd_cli.problems.quadratic:Quadratic", "dimension": 1001}
    none = {"name": "none", "target": None}
    s = settings(algo, workers=4, steps=40, problem=problem, dataset=none, model=none, l2=0.0, eta=0.1)
    assert run(s, tmp_path / "run").status == "completed"
    prepared = build.prepare(s)
    assert prepared.dtype is torch.float64
    driver = by_hand(s, prepared)
    for _ in range(40):
        driver.round()
    driver.close()
    [center] = centers(tmp_path, "run")
    torch.testing.assert_close(center, driver.vectors()["x"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("algo", ["sync_eamsgd", "diloco"])
def test_interrupted_and_resumed_it_is_the_run_that_was_not(algo: str, tmp_path: Path, summed: None) -> None:
    s = replace(unhurried(algo, workers=3), eval=Eval(train_images=100))
    outcome = disturbed(
        s, tmp_path / "parts", lambda _: os.kill(os.getpid(), signal.SIGINT), lambda d: len(recorded_order(d)) > 12
    )
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    s = longer(hurried(s), outcome)
    assert run(s, tmp_path / "parts", resume=True).status == "completed"
    assert run(s, tmp_path / "whole").status == "completed"
    assert recorded_order(tmp_path / "parts") == recorded_order(tmp_path / "whole")
    assert torch.equal(*centers(tmp_path, "parts", "whole"))


@pytest.mark.parametrize("further", ["sums", "sessions"])
def test_either_way_goes_on_from_the_others_checkpoint(further: str, tmp_path: Path, summed: None) -> None:
    s = settings("diloco", workers=2, steps=40, checkpoint=Checkpoint(every="10 steps"))
    assert run(replace(s, steps=30), tmp_path / "parts").status == "completed"
    resumed = local.launch(Job(tmp_path / "parts", resume=True), build.prepare(s), collective=further == "sums")
    assert resumed.status == "completed"
    assert run(s, tmp_path / "whole").status == "completed"
    assert torch.equal(*centers(tmp_path, "parts", "whole"))


def lasting(gate: Path, workers: int, **more: Any) -> Settings:
    """A run of some seconds, which forgets nothing by its end, and whose workers wait at step 100 for the gate."""
    problem = {"name": "slow", "target": "nets:TakesItsTime", "seconds": 0.01, "dimension": 1001}
    problem |= {"gate": str(gate), "at": 100}
    none = {"name": "none", "target": None}
    return settings("sync_eamsgd", workers=workers, problem=problem, dataset=none, model=none, l2=0.0, eta=3e-4, **more)


@pytest.mark.parametrize("victims", [["worker_00"], ["worker_02"], ["worker_00", "worker_01"]])
def test_a_worker_that_is_killed_comes_back_in_a_later_round(victims: list[str], tmp_path: Path, summed: None) -> None:
    s = lasting(tmp_path / "gate", 3, steps=300, max_restarts=3)
    log = tmp_path / "run" / "logs" / "launcher.log"

    def kill(pids: dict[str, int]) -> None:
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
        wait_until(lambda: all(log.read_text().count(f"INFO {victim}: process ") == 2 for victim in victims))
        (tmp_path / "gate").touch()

    outcome = disturbed(s, tmp_path / "run", kill, lambda d: len(recorded_order(d)) > 30)
    assert outcome.status == "completed" and set(outcome.summary["restarts"]) == set(victims)
    assert recorded_order(tmp_path / "run")[-3:] == [0, 1, 2] and set(outcome.summary["steps"].values()) == {300}
    assert replayed(replace(s), tmp_path / "run", tmp_path / "again").status == "completed"
    torch.testing.assert_close(*centers(tmp_path, "run", "again"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("victim", ["worker_00", "worker_02"])
def test_a_run_goes_on_without_a_worker_that_is_killed(victim: str, tmp_path: Path, summed: None) -> None:
    s = lasting(tmp_path / "gate", 3, steps=150, max_restarts=0)

    def kill(pids: dict[str, int]) -> None:
        os.kill(pids[victim], signal.SIGKILL)
        (tmp_path / "gate").touch()

    outcome = disturbed(s, tmp_path / "run", kill, lambda d: len(recorded_order(d)) > 30)
    assert outcome.status == "completed" and outcome.summary["lost"] == {victim: "killed by SIGKILL"}
    number = int(victim[-2:])
    others = [i for i in range(3) if i != number]
    order = recorded_order(tmp_path / "run")
    assert order[:3] == [0, 1, 2] and order[-2:] == others and len(order) == 3 * 50 - (50 - order.count(number))
    assert replayed(replace(s), tmp_path / "run", tmp_path / "again").status == "completed"
    torch.testing.assert_close(*centers(tmp_path, "run", "again"), rtol=1e-10, atol=1e-10)


def test_a_killed_master_ends_the_run_with_a_sentence_and_it_goes_on(tmp_path: Path, summed: None) -> None:
    s = replace(
        unhurried("diloco", seconds=0.01, workers=2, steps=120), checkpoint=Checkpoint(every="12 steps"), max_restarts=3
    )
    s = gated(s, tmp_path / "gate", 40)
    outcome = disturbed(
        s, tmp_path / "run", lambda pids: os.kill(pids["master"], signal.SIGKILL),
        lambda d: any((d / "checkpoint").glob("*.pt")),
    )  # fmt: skip
    assert outcome.status == "failed" and outcome.reason is not None
    assert "the master died (killed by SIGKILL)" in outcome.reason and "resume=" in outcome.reason
    assert run(hurried(s), tmp_path / "run", resume=True).status == "completed"
    assert run(hurried(s), tmp_path / "whole").status == "completed"
    assert torch.equal(*centers(tmp_path, "run", "whole"))


def test_one_that_stands_still_in_a_round_keeps_nobody_from_ending(tmp_path: Path, summed: None) -> None:
    s = unhurried("model_averaging", workers=3)

    def stop(pids: dict[str, int]) -> None:
        os.kill(pids["worker_01"], signal.SIGSTOP)
        so_far = len(recorded_order(tmp_path))
        wait_until(lambda: len(recorded_order(tmp_path)) == so_far)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = disturbed(s, tmp_path, stop, lambda d: len(recorded_order(d)) > 30)
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    assert run(replace(s, steps=max(outcome.summary["steps"].values()) + 9), tmp_path, resume=True).status == (
        "completed"
    )


def test_workers_end_by_the_clock(tmp_path: Path, summed: None) -> None:
    """They finish at different steps, with a round begun that will not be whole, and then close."""
    s = unhurried("model_averaging", seconds=0.01, workers=3, steps=None, minutes=0.02)
    outcome = run(s, tmp_path)
    assert outcome.status == "completed"
    assert recorded_order(tmp_path)[-3:] == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["algo=easgd"], "algo=easgd: a sum is of the messages of all workers together"),
        (["algo=grouped_easgd"], "algo=grouped_easgd: a sum is of"),
        (["algo=diloco", "fragments=2"], "fragments=2"),
        (["algo=diloco", "wire=bf16"], "wire=bf16"),
        (["algo=diloco", "masters=2"], "masters=2"),
        (["algo=diloco", "on_nan=rejoin"], "on_nan=rejoin"),
        (["algo=diloco", "workers=49"], "at most 48 workers"),
        (["algo=diloco", "launcher.transport=pigeons"], "is sessions or collective"),
    ],
)
def test_what_it_cannot_do_is_refused(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = given if any("transport" in word for word in given) else ["launcher.transport=collective", *given]
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
