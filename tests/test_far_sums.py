"""Rounds by an all-reduce among workers on several machines (launcher.transport=collective), as network namespaces of
this one: the bits of one machine, what the cables carry, and whoever dies.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from machines import Machine, Machines
from test_distributed import (
    ENDLESS,
    SMALL,
    center,
    ended,
    log,
    longer,
    machines,
    replayed,
    served,
    start,
    summary,
    train,
    until,
)  # fmt: skip
from test_far_masters import carried, joined, process

from easgd_cli.__main__ import main

__all__ = ["machines"]  # a fixture

SUMS = "launcher.transport=collective"


def all_ended(directory: Path, run: subprocess.Popen[bytes], hosts: list[subprocess.Popen[bytes]]) -> None:
    names = ["train", *"bcd"[: len(hosts)]]
    assert [ended(p, directory, name) for p, name in zip([run, *hosts], names, strict=True)] == [0] * len(names)


def local(machine: Machine, directory: Path, *words: str) -> Path:
    """The same on one machine."""
    here = start(machine, directory, "local", "train", *SMALL, *words, "hydra.run.dir=local")
    assert ended(here, directory, "local") == 0
    return directory / "local"


def assert_same(one: Path, other: Path) -> None:
    a, b = center(one), center(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("algo", ["sync_easgd", "diloco"])
def test_sums_among_machines_have_the_bits_of_one_machine_and_pass_no_host_p_times(
    algo: str, machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    """Four workers on three hosts. A message each to the master would be 4 vectors on its cable each way."""
    a, b, c = machines(3).hosts
    words = [SUMS, "workers=4", f"algo={algo}", "tau=2", "steps=60", "eta=0.05"]
    run = train(a, tmp_path, *words, "model=nets:Gated", "+model.gate=gate", "+model.at=2")
    hosts = [joined(b, tmp_path, "b", "workers=2"), joined(c, tmp_path, "c")]
    until(lambda: "training begins" in log(tmp_path), "training")
    before = carried(a)
    (tmp_path / "gate").touch()
    all_ended(tmp_path, run, hosts)
    told = summary(tmp_path)
    assert told["status"] == "completed" and told["restarts"] == {} and set(told["steps"].values()) == {60}
    rounds = 30 + (algo == "diloco")
    assert told["exchanges"] == 4 * rounds
    vector = 4 * told["parameters"]
    assert 2 * 1.5 * rounds * vector < carried(a) - before < 2 * 1.9 * rounds * vector
    hosts_of = dict(re.findall(r"worker (\d): on host (.*)", log(tmp_path)))
    assert hosts_of["2"] in (hosts_of["1"], hosts_of["3"])  # neighbours in the ring
    assert_same(tmp_path / "run", local(a, tmp_path, *words))


def test_the_lead_may_be_on_another_machine(machines: Callable[[int], Machines], tmp_path: Path) -> None:
    """Nobody of the sum is on the master's; a run of two replays bit for bit, one of one is the local one."""
    a, b, c = machines(3).hosts
    words = [SUMS, "workers=2", "algo=sync_eamsgd", "tau=2", "steps=60", "eta=0.05"]
    run = train(a, tmp_path, *words, "launcher.here=0")
    all_ended(tmp_path, run, [joined(b, tmp_path, "b"), joined(c, tmp_path, "c")])
    replayed(tmp_path)
    assert_same(tmp_path / "run", local(a, tmp_path, *words))


def test_one_worker_elsewhere_is_one_here_bit_for_bit(machines: Callable[[int], Machines], tmp_path: Path) -> None:
    a, b = machines(2).hosts
    words = ["workers=1", "algo=diloco", "tau=3", "steps=40", "eta=0.05"]
    run = train(a, tmp_path, SUMS, *words, "launcher.here=0")
    all_ended(tmp_path, run, [joined(b, tmp_path, "b")])
    assert_same(tmp_path / "run", local(a, tmp_path, *words))


def test_whoever_is_killed_is_back_and_the_lead_may_be_another(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b, c = machines(3).hosts
    words = [SUMS, "workers=3", "algo=sync_eamsgd", "tau=2", "steps=500"]
    words += [
        "problem=nets:TakesItsTime",
        "+problem.seconds=0.02",
        "+problem.dimension=1001",
        "eta=0.0003",
    ]  # which forgets nothing
    run = train(a, tmp_path, *words)
    hosts = [joined(b, tmp_path, "b"), joined(c, tmp_path, "c")]
    until(lambda: served(tmp_path) > 30, "rounds")
    os.kill(process(tmp_path, "b", r"worker \d"), signal.SIGKILL)
    until(lambda: re.search(r"worker \d is back", log(tmp_path)), "its return")
    os.kill(int(re.findall(r"worker_00: process (\d+)", log(tmp_path))[0]), signal.SIGKILL)
    until(lambda: "worker 0 is back" in log(tmp_path), "the return of the lead")
    all_ended(tmp_path, run, hosts)
    told = summary(tmp_path)
    assert set(told["steps"].values()) == {500} and told["restarts"].keys() >= {"worker_00"}
    assert told["lost"] == {}
    program = ["train", "replay=run", "hydra.run.dir=again"]
    assert ended(start(a, tmp_path, "again", *program), tmp_path, "again") == 0
    torch.testing.assert_close(center(tmp_path / "run"), center(tmp_path / "again"), rtol=1e-10, atol=1e-10)


def test_a_host_that_loses_its_power_is_left_out_and_its_worker_comes_back_on_another(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    """Four machines, one of them a spare; then all of them, and nobody is left but the first."""
    a, b, c, d = machines(4).hosts
    words = [SUMS, "workers=3", "algo=model_averaging", "tau=2", "launcher.silence=3", *ENDLESS]
    run = train(a, tmp_path, *words)
    joined(b, tmp_path, "b")
    joined(c, tmp_path, "c")
    until(lambda: served(tmp_path) > 30, "rounds")
    b.kill()
    until(lambda: re.search(r"worker \d died \(its host", log(tmp_path)), "the news of its end")
    so_far = served(tmp_path)
    until(lambda: served(tmp_path) > so_far + 20, "rounds without it")
    joined(d, tmp_path, "d")
    until(lambda: re.search(r"worker \d is back", log(tmp_path)), "its return from the spare")
    c.kill()
    d.kill()
    until(lambda: all(f"worker {i} died" in log(tmp_path).partition("is back")[2] for i in (1, 2)), "the news of both")
    so_far = served(tmp_path)
    until(lambda: served(tmp_path) > so_far + 5, "rounds of one")
    os.kill(run.pid, signal.SIGTERM)
    assert ended(run, tmp_path, "train") == 143


def test_a_cable_that_is_out_for_a_while_costs_that_while_and_one_that_stays_out_a_worker(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    of = machines(3)
    a, b, c = of.hosts
    words = [SUMS, "workers=3", "algo=sync_easgd", "tau=2", "launcher.silence=6", "max_restarts=0"]
    run = train(a, tmp_path, *words, *ENDLESS)
    hosts = [joined(b, tmp_path, "b"), joined(c, tmp_path, "c")]
    until(lambda: served(tmp_path) > 30, "rounds")
    of.cut(1)
    time.sleep(2.0)  # for as long as the cable is out
    of.join(1)
    so_far = served(tmp_path)
    until(lambda: served(tmp_path) > so_far + 30, "rounds of all")
    assert "died" not in log(tmp_path)
    of.cut(1)
    until(lambda: "nothing has been heard of it for 6 s" in log(tmp_path), "the news of the cable")
    until(lambda: "the run goes on with 2 of 3" in log(tmp_path), "going on without")
    so_far = served(tmp_path)
    until(lambda: served(tmp_path) > so_far + 30, "rounds of two")
    assert ended(hosts[0], tmp_path, "b") == 1
    os.kill(run.pid, signal.SIGTERM)
    assert ended(run, tmp_path, "train") == 143


def test_interrupted_and_resumed_it_is_the_run_that_was_not_and_a_killed_master_ends_it(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    words = [SUMS, "workers=3", "algo=diloco", "tau=2", "model=nets:Unhurried", "+model.seconds=0.01"]
    run = train(a, tmp_path, *words, "steps=100000", "checkpoint.every=20 steps")
    host = joined(b, tmp_path, "b", "workers=2")
    until(lambda: "center at step 20:" in log(tmp_path), "twenty steps")
    os.kill(run.pid, signal.SIGINT)
    assert (ended(run, tmp_path, "train"), ended(host, tmp_path, "b")) == (130, 130)
    run, so_far = start(a, tmp_path, "train", "train", "resume=run"), served(tmp_path)
    host = joined(b, tmp_path, "b2", "workers=2")
    until(lambda: served(tmp_path) > so_far + 30, "rounds")
    os.kill(int(re.findall(r" master: process (\d+)", log(tmp_path))[-1]), signal.SIGKILL)
    assert ended(run, tmp_path, "train") == 1 and ended(host, tmp_path, "b2") == 1
    assert "the master died (killed by SIGKILL)" in summary(tmp_path)["reason"]
    steps = longer(tmp_path)
    run = start(a, tmp_path, "train", "train", "resume=run", steps)
    host = joined(b, tmp_path, "b3", "workers=2")
    assert (ended(run, tmp_path, "train"), ended(host, tmp_path, "b3")) == (0, 0)
    assert_same(tmp_path / "run", local(a, tmp_path, *words, steps))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["workers=4", "algo=easgd"], "algo=easgd: a sum is of the messages of all workers together"),
        (
            ["workers=4", "algo=diloco", "launcher.least=2"],
            "launcher.least=2 launcher.transport=collective: the first sum",
        ),
        (["algo=diloco", "wire=bf16"], "wire=bf16: is for messages"),
        (["algo=diloco", "workers=49"], "at most 48 workers"),
    ],
)
def test_what_it_cannot_do_is_refused(
    given: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "launcher=distributed", SUMS, *given]) == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())
