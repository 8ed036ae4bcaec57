"""A center whose masters are on different machines (launcher.masters_here), as network namespaces of this one: the same
runs and the same record; what a worker and a master say to each other does not pass the first machine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    said,
    start,
    summary,
    train,
    until,
    where,
)

from easgd_cli.algorithms.slices import slices

__all__ = ["machines"]  # a fixture

APART = ["masters=2", "launcher.masters_here=1"]


def carried(machine: Machine) -> int:
    """Bytes that its cable has carried so far, both ways."""
    done = subprocess.run([*machine.enter, "cat", "/proc/net/dev"], capture_output=True, text=True, timeout=20)
    [line] = [line for line in done.stdout.splitlines() if "eth0:" in line]
    figures = line.partition(":")[2].split()
    return int(figures[0]) + int(figures[8])


def joined(machine: Machine, directory: Path, name: str, *words: str) -> subprocess.Popen[Any]:
    return start(machine, directory, name, "join", where(directory), *words)


def process(directory: Path, name: str, who: str) -> int:
    return int(until(lambda: said(directory, name, rf"{who} runs here, process (\d+)"), who)[1])


def test_workers_reach_a_master_elsewhere_straight_and_the_record_gives_the_center(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    """Of two masters one is on another machine: half of what workers elsewhere exchange passes the first."""
    a, b, c = machines(3).hosts
    words = ["workers=2", "launcher.here=0", "algo=eamsgd", "tau=1", "steps=100", "model=nets:Gated"]
    run = train(a, tmp_path, *words, "+model.gate=gate", "+model.at=2", *APART, "average=polyak")
    hosts = [joined(b, tmp_path, "b"), joined(c, tmp_path, "c", "masters=0")]
    until(lambda: "training begins" in log(tmp_path), "training")
    before = carried(a)
    (tmp_path / "gate").touch()
    assert [ended(run, tmp_path, "train"), *(ended(p, tmp_path, n) for p, n in zip(hosts, "bc", strict=True))] == [
        0
    ] * 3
    told = summary(tmp_path)
    assert told["exchanges"] == 2 * 2 * 100 and set(told["steps"].values()) == {100}
    whole = 2 * 100 * 2 * 4 * told["parameters"]  # of all messages and replies
    assert 0.5 * whole < carried(a) - before < 0.65 * whole  # and evaluations, heads, states at the end
    [beside] = [name for name in told["links"] if " to " in name]
    between, links = told["links"].pop(beside), told["links"].values()
    assert 0.5 * whole < sum(link["bytes_up"] + link["bytes_down"] for link in links) < 0.65 * whole
    assert sorted(len(link["workers"]) for link in links) == [1, 1]
    # of c's worker with b's master; what b's worker says to it passes no cable
    assert re.fullmatch(r"\S+ \(10\.9\.0\.3\) to \S+ \(10\.9\.0\.2\)", beside) and len(between["workers"]) == 1
    part = slices(told["parameters"], 2)[1]
    assert between["bytes_up"] == between["bytes_down"] == 100 * 4 * (part.stop - part.start)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["link_bytes_up"] for row in rows if row.get("host") == beside][-1] == between["bytes_up"]
    replayed(tmp_path)


@pytest.mark.parametrize(("here", "wire"), [(0, "bf16"), (1, "fp32")])
def test_one_worker_with_masters_on_three_machines_is_one_with_one_here_bit_for_bit(
    here: int, wire: str, machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    """Also interrupted and resumed, with the machines' parts changed."""
    a, b, c = machines(3).hosts
    words = ["workers=1", "algo=eamsgd", "tau=3", "eta=0.05", "model=nets:Unhurried", f"wire={wire}"]
    apart = ["masters=3", "launcher.masters_here=1"]
    run = train(a, tmp_path, *words, f"launcher.here={here}", *apart, "steps=100000")
    for host, name in ((b, "b"), (c, "c")):
        joined(host, tmp_path, name, f"workers={int(name == 'c')}")
    until(lambda: "center at step 21:" in log(tmp_path), "twenty steps")
    os.kill(run.pid, signal.SIGINT)
    assert ended(run, tmp_path, "train") == 130
    steps = longer(tmp_path)
    again = start(a, tmp_path, "train", "train", "resume=run", steps)
    for host, name in ((c, "c2"), (b, "b2")):
        joined(host, tmp_path, name, f"workers={int(name == 'b2')}")
    assert ended(again, tmp_path, "train") == 0
    near = start(a, tmp_path, "near", "train", *SMALL, *words, steps, "hydra.run.dir=near")
    assert ended(near, tmp_path, "near") == 0
    far, one = center(tmp_path / "run"), center(tmp_path / "near")
    assert far.keys() == one.keys() and all(torch.equal(far[name], one[name]) for name in far)


def test_the_closing_exchange_is_with_masters_on_both_machines(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    run = train(a, tmp_path, "workers=3", "algo=async_diloco", "tau=5", "steps=23", "wire=bf16", *APART)
    other = joined(b, tmp_path, "b", "workers=2")
    assert (ended(run, tmp_path, "train"), ended(other, tmp_path, "b")) == (0, 0)
    order = struct.iter_unpack("<HH", (tmp_path / "run" / "exchanges.bin").read_bytes())
    of_masters: list[list[int]] = [[], []]
    for worker, place in order:
        of_masters[place].append(worker)
    assert [of[-3:] for of in of_masters] == [[0, 1, 2]] * 2
    assert [sorted(of) for of in of_masters] == [sorted([0, 1, 2] * (len(of_masters[0]) // 3))] * 2
    replayed(tmp_path)


def test_a_worker_that_comes_later_comes_to_all_masters_and_one_that_never_does_is_waited_for_by_none(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b, c = machines(3).hosts
    words = ["model=nets:Gated", "+model.gate=gate", "+model.at=40", "steps=60", "algo=easgd", "tau=2"]
    run = train(a, tmp_path, "workers=3", "launcher.least=1", *APART, *words)
    hosts = [joined(b, tmp_path, "b", "workers=0")]
    until(lambda: "training begins" in log(tmp_path), "training")
    until(lambda: (tmp_path / "run" / "exchanges.bin").stat().st_size >= 4 * 5, "exchanges of one")
    hosts.append(joined(c, tmp_path, "c", "masters=0"))
    until(lambda: "worker 1 has come, at its step" in log(tmp_path), "its coming")
    (tmp_path / "gate").touch()
    assert ended(run, tmp_path, "train") == 0
    assert [ended(host, tmp_path, name) for host, name in zip(hosts, "bc", strict=True)] == [0, 0]
    told = summary(tmp_path)
    assert told["steps"] == {"worker_00": 60, "worker_01": 60, "worker_02": 0}
    assert told["lost"] == {"worker_02": "no host has come for it"} and not told["restarts"]
    replayed(tmp_path)


def test_workers_that_are_killed_come_back_to_all_masters(machines: Callable[[int], Machines], tmp_path: Path) -> None:
    """One beside each of the masters; and the master of the first machine is followed by another, as everywhere."""
    a, b = machines(2).hosts
    words = ["workers=2", "algo=easgd", "tau=2", "steps=300"]
    run = train(a, tmp_path, *words, "model=nets:Unhurried", "+model.gate=gate", "+model.at=100", *APART)
    other = joined(b, tmp_path, "b")
    until(lambda: "training begins" in log(tmp_path), "training")
    own = until(lambda: re.search(r"INFO worker_00: process (\d+)", log(tmp_path)), "worker 0")
    for worker, pid in ((0, int(own[1])), (1, process(tmp_path, "b", "worker 1"))):
        os.kill(pid, signal.SIGKILL)
        until(lambda: f"worker {worker} is back" in log(tmp_path), "its return")  # noqa: B023
    master = until(lambda: re.search(r"INFO master: process (\d+)", log(tmp_path)), "the master")
    os.kill(int(master[1]), signal.SIGKILL)
    until(lambda: "the next master goes on" in log(tmp_path), "the next one")
    (tmp_path / "gate").touch()
    assert (ended(run, tmp_path, "train"), ended(other, tmp_path, "b")) == (0, 0)
    told = summary(tmp_path)
    assert set(told["steps"].values()) == {300}
    assert told["restarts"] == {"worker_00": 1, "worker_01": 1, "master": 1}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted((r["returned"], r["master"]) for r in rows if "returned" in r) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_worker_that_loses_its_way_to_one_of_the_masters_comes_back_to_all_once_there_is_one(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b, c = machines(3).hosts
    words = ["workers=2", "algo=easgd", "tau=2", *ENDLESS, "max_restarts=1000"]
    run = train(a, tmp_path, *words, *APART, "launcher.silence=3")
    joined(b, tmp_path, "b", "workers=0")
    other = joined(c, tmp_path, "c", "masters=0")
    until(lambda: "training begins" in log(tmp_path), "training")
    c.run("ip", "route", "add", "blackhole", f"{b.address}/32")
    told = "worker 1 died (its session with a master on another host is lost"
    until(lambda: told in log(tmp_path), "the news of its loss")
    c.run("ip", "route", "del", "blackhole", f"{b.address}/32")
    until(lambda: "worker 1 is back" in log(tmp_path), "its return")
    os.kill(run.pid, signal.SIGTERM)
    assert (ended(run, tmp_path, "train"), ended(other, tmp_path, "c")) == (143, 143)
    assert summary(tmp_path)["restarts"]["worker_01"] >= 1 and "master" not in summary(tmp_path)["restarts"]


@pytest.mark.parametrize("whole_machine", [True, False])
def test_a_master_elsewhere_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(
    whole_machine: bool, machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b, c = machines(3).hosts
    words = ["workers=1", "algo=eamsgd", "tau=2", "model=nets:Unhurried", "checkpoint.every=50 steps"]
    run = train(a, tmp_path, *words, "launcher.here=0", *APART, "steps=100000")
    joined(b, tmp_path, "b", "workers=0")
    other = joined(c, tmp_path, "c", "masters=0")
    until(lambda: any((tmp_path / "run" / "checkpoint").glob("*.pt")), "a checkpoint")
    if whole_machine:
        b.kill()
    else:
        os.kill(process(tmp_path, "b", "master_1"), signal.SIGKILL)
    assert (ended(run, tmp_path, "train"), ended(other, tmp_path, "c")) == (1, 1)
    how = r"its host \S+ \(10.9.0.2\) is lost: .*" if whole_machine else "killed by SIGKILL"
    told = rf"the master died \(master_1, with its slice, on \S+ \(10.9.0.2\): {how}\); go on .* easgd train resume="
    assert re.search(told, summary(tmp_path)["reason"])
    steps = longer(tmp_path)
    again = start(a, tmp_path, "train", "train", "resume=run", steps)
    joined(c, tmp_path, "c2")
    assert ended(again, tmp_path, "train") == 0
    whole = start(a, tmp_path, "whole", "train", *SMALL, *words, steps, "hydra.run.dir=whole")
    assert ended(whole, tmp_path, "whole") == 0
    one, other_center = center(tmp_path / "run"), center(tmp_path / "whole")
    assert all(torch.equal(one[name], other_center[name]) for name in one)


def test_what_several_masters_make_of_the_links_is_measured(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    """In one run for all numbers of them, beside gloo."""
    a, b, c = machines(3).hosts
    words = [f"launcher.address={a.address}:0", "launcher.masters_here=1", "masters=1,4", "model=small", "--hosts", "2"]
    bench = start(a, tmp_path, "train", "bench", "network", *words, "--gloo", "--windows", "1", "--json", "found.json")
    hosts = [joined(b, tmp_path, "b"), joined(c, tmp_path, "c")]
    assert ended(bench, tmp_path, "train") == 0
    assert [ended(host, tmp_path, name) for host, name in zip(hosts, "bc", strict=True)] == [0, 0]
    assert said(tmp_path, "train", r"4 masters on 3 hosts: [\d.,]+ exchanges of [\d,]+ floats a second of one worker")
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [(row["what"].rpartition(", ")[0], row["peer_name"]) for row in rows] == [
        ("an exchange, 1 master on 1 host", "gloo there and back"),
        ("one of 3 workers', 1 master on 1 host", "gloo's all-reduce of 3"),
        ("an exchange, 4 masters on 3 hosts", "gloo there and back"),
        ("one of 3 workers', 4 masters on 3 hosts", "gloo's all-reduce of 3"),
        ("one of 3 workers', 4 masters on 3 hosts", "1 master on 1 host"),
    ]
    assert all(row["figure"] > 0 and row["ratio"] > 0 and row["windows"] == 1 for row in rows)


def test_a_host_with_a_master_that_is_gone_ends_the_measuring(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b, c = machines(3).hosts
    words = [f"launcher.address={a.address}:0", "launcher.masters_here=1", "masters=1,2", "model=small", "--hosts", "2"]
    bench = start(a, tmp_path, "train", "bench", "network", *words, "--windows", "10000")
    joined(b, tmp_path, "b")
    until(lambda: carried(b) > 10_000, "the first host")
    other = joined(c, tmp_path, "c")
    until(lambda: carried(c) > 50 * 4 * 13_706, "exchanges")
    b.kill()
    assert ended(bench, tmp_path, "train") == 1
    assert said(tmp_path, "train", "bench network: a host has left while it was measured: ")
    assert ended(other, tmp_path, "c") == 0
