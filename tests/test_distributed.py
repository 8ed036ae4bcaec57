"""Many machines, as network namespaces of this one: the same runs, the same record, and whoever dies harms nobody
else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import Machine, Machines

HERE = Path(__file__).parent
PATIENCE = 100.0  # of a test on a busy machine, which is ended after 120
ENDLESS = ["model=nets:Unhurried", "+model.seconds=0.02", "minutes=10"]  # until somebody ends it
SMALL = ["threads=1", "device=cpu", "batch_size=16", "eval.every=20 steps", "eval.train_images=100"]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[int], Machines]]:
    """Makes some. What was said on them is shown with a test that fails."""
    made: list[Machines] = []

    def make(count: int) -> Machines:
        try:
            made.append(Machines(count))
        except PermissionError as e:
            pytest.skip(f"network namespaces: {e}")
        return made[-1]

    yield make
    for one in made:
        one.close()
    for file in sorted({*tmp_path.glob("*.txt"), *tmp_path.glob("*/logs/*.log")}):
        print(f"---- {file.relative_to(tmp_path)}\n{file.read_text(errors='replace')[-5000:]}")


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE), "EASGD_SECRET": "between us", **values}


def start(machine: Machine, directory: Path, name: str, *words: str, **values: str) -> subprocess.Popen[Any]:
    """`easgd` there; what it says is in `name`.txt."""
    program = [sys.executable, "-m", "easgd_cli", *words]
    return machine.start(program, directory / f"{name}.txt", cwd=directory, env=environment(**values))


def train(machine: Machine, directory: Path, *words: str, port: int = 0) -> subprocess.Popen[Any]:
    """A run there, in the directory `run`."""
    at = f"launcher.address={machine.address}:{port}"
    return start(machine, directory, "train", "train", "launcher=distributed", at, *SMALL, "hydra.run.dir=run", *words)


def until(reached: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + PATIENCE
    while not (found := reached()):
        assert time.monotonic() < ends, f"{what} has not come"
        time.sleep(0.02)
    return found


def said(directory: Path, name: str, pattern: str) -> re.Match[str] | None:
    file = directory / f"{name}.txt"
    return re.search(pattern, file.read_text()) if file.exists() else None


def where(directory: Path) -> str:
    """Where the run is reached."""
    return str(until(lambda: said(directory, "train", r"easgd join (\S+)"), "its address")[1])


def ended(process: subprocess.Popen[Any], directory: Path, name: str) -> int:
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        pytest.fail((directory / f"{name}.txt").read_text())


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run" / "summary.json").read_text())


def log(directory: Path) -> str:
    file = directory / "run" / "logs" / "launcher.log"
    return file.read_text() if file.exists() else ""


def served(directory: Path, worker: int | None = None) -> int:
    """Exchanges that are recorded, of that worker or of all."""
    file = directory / "run" / "exchanges.bin"
    entries = file.read_bytes() if file.exists() else b""
    return sum(worker in (None, entries[i]) for i in range(0, len(entries), 2))


def longer(directory: Path) -> str:
    """A length of the run that was broken off, wherever that was, to which it can go on."""
    return f"steps={max(summary(directory)['steps'].values()) + 100}"


def center(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "center.pt")


def replayed(directory: Path) -> None:
    """The record of the run gives its center, bit for bit."""
    program = [sys.executable, "-m", "easgd_cli", "train", "replay=run", "hydra.run.dir=again"]
    done = subprocess.run(program, cwd=directory, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert "is that of" in done.stdout and "bit for bit" in done.stdout, done.stdout + done.stderr


def test_workers_on_two_machines_make_one_run_whose_record_gives_its_center(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    of = machines(2)
    a, b = of.hosts
    of.limit("100mbit")
    run = train(a, tmp_path, "workers=3", "launcher.here=1", "algo=eamsgd", "tau=5", "steps=60")
    joined = start(b, tmp_path, "join", "join", where(tmp_path), "workers=2")
    assert (ended(run, tmp_path, "train"), ended(joined, tmp_path, "join")) == (0, 0)
    told = summary(tmp_path)
    assert told["status"] == "completed" and told["exchanges"] == 3 * 12
    assert told["steps"] == {"worker_00": 60, "worker_01": 60, "worker_02": 60}
    [(host, link)] = told["links"].items()
    size = told["parameters"] * 4
    assert host.endswith(f"({b.address})") and link["workers"] == [1, 2]
    # each message and each reply, and beside them what workers say of their state at the end
    assert 24 * size <= link["bytes_up"] < 40 * size and 24 * size <= link["bytes_down"] < 30 * size
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    of_link = [row for row in rows if row.get("host") == host]
    assert of_link and all(row["link_silent"] < 60 and row["link_share_up"] >= 0 for row in of_link)
    assert 0 < link["measured_up"] < 2e7 and 0 < link["measured_down"] < 2e7  # of 12.5 MB/s, and what its bucket holds
    assert {row["party"] for row in rows} >= {"worker_00", "worker_01", "worker_02", "center"}
    assert "process" in (tmp_path / "run" / "logs" / "worker_02.log").read_text()
    replayed(tmp_path)


@pytest.mark.parametrize("masters", [1, 3])
def test_one_worker_on_another_machine_is_one_here_bit_for_bit(
    masters: int, machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    words = ["workers=1", "algo=eamsgd", "tau=3", "steps=40", "eta=0.05"]
    run = train(a, tmp_path, "launcher.here=0", f"masters={masters}", *words)
    start(b, tmp_path, "join", "join", where(tmp_path))
    assert ended(run, tmp_path, "train") == 0
    here = start(a, tmp_path, "here", "train", *SMALL, *words, "hydra.run.dir=local")
    assert ended(here, tmp_path, "here") == 0
    far, near = center(tmp_path / "run"), center(tmp_path / "local")
    assert far.keys() == near.keys() and all(torch.equal(far[name], near[name]) for name in far)


@pytest.mark.parametrize("algo", ["sync_easgd", "diloco"])
def test_rounds_with_workers_on_two_machines_are_those_of_one_bit_for_bit(
    algo: str, machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    """Messages are summed in the order of the workers' numbers, wherever they come from; diloco has a closing round."""
    a, b = machines(2).hosts
    words = ["workers=3", f"algo={algo}", "tau=4", "steps=24", "eta=0.05"]
    run = train(a, tmp_path, *words)
    start(b, tmp_path, "join", "join", where(tmp_path), "workers=2")
    here = start(a, tmp_path, "here", "train", *SMALL, *words, "hydra.run.dir=local")
    assert (ended(run, tmp_path, "train"), ended(here, tmp_path, "here")) == (0, 0)
    assert "died" not in log(tmp_path), log(tmp_path)
    far, near = center(tmp_path / "run"), center(tmp_path / "local")
    assert all(torch.equal(far[name], near[name]) for name in far)


def test_a_worker_elsewhere_that_is_stopped_is_told_of_killed_is_started_again_and_without_its_machine_is_lost(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    words = ["workers=2", "algo=easgd", "tau=2", *ENDLESS, "launcher.wait=3"]
    run = train(a, tmp_path, *words)
    start(b, tmp_path, "join", "join", where(tmp_path))
    until(lambda: "training begins" in log(tmp_path), "training")
    pid = int(until(lambda: said(tmp_path, "join", r"worker 1 runs here, process (\d+)"), "worker 1")[1])
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "its process is stopped, and SIGCONT lets it go on" in log(tmp_path), "the news that it is stopped")
    os.kill(pid, signal.SIGCONT)
    until(lambda: "worker 1 goes on after" in log(tmp_path), "the news that it goes on")
    os.kill(pid, signal.SIGKILL)
    until(lambda: "worker 1 died (killed by SIGKILL); it is started again" in log(tmp_path), "the news of its end")
    until(lambda: "worker 1 is back" in log(tmp_path), "its return")
    b.kill()
    until(lambda: "worker 1 died (its host" in log(tmp_path), "the news of its machine's end")
    until(lambda: "the run goes on with 1 of 2" in log(tmp_path), "going on alone")
    os.kill(run.pid, signal.SIGTERM)
    assert ended(run, tmp_path, "train") == 143
    assert summary(tmp_path)["restarts"]["worker_01"] >= 1


@pytest.mark.parametrize("victims", [("master", "master"), ("master_1", "master")])
def test_a_master_that_is_killed_is_followed_by_another_with_the_same_workers(
    victims: tuple[str, str], machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    masters, entry = (2, b"\1\0\1\0") if "master_1" in victims else (1, b"\1\0")
    run = train(
        a,
        tmp_path,
        "workers=2",
        "algo=eamsgd",
        "tau=2",
        "model=nets:Unhurried",
        "+model.seconds=0.024",
        "+model.gate=gate",
        "+model.at=125",
        "steps=300",
        f"masters={masters}",
    )
    start(b, tmp_path, "join", "join", where(tmp_path))
    until(lambda: "training begins" in log(tmp_path), "training")
    for deaths, victim in enumerate(victims, 1):
        deaths_of_it = victims[:deaths].count(victim)

        def of(pattern: str, deaths: int) -> list[str]:
            return re.findall(pattern, log(tmp_path))[deaths - 1 :]

        master = until(lambda: of(rf"INFO {victim}: process (\d+)", deaths_of_it), "the master")[0]  # noqa: B023
        until(lambda: entry in (tmp_path / "run" / "exchanges.bin").read_bytes()[-80:], "exchanges from elsewhere")
        os.kill(int(master), signal.SIGKILL)
        until(lambda: of("the next master goes on", deaths), "the next one")  # noqa: B023
    (tmp_path / "gate").touch()
    assert ended(run, tmp_path, "train") == 0
    assert set(summary(tmp_path)["steps"].values()) == {300} and summary(tmp_path)["restarts"] == {"master": 2}
    replayed(tmp_path)


def test_a_run_that_is_interrupted_keeps_what_workers_elsewhere_have_and_goes_on(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    words = ["workers=1", "algo=eamsgd", "tau=2", "model=nets:Unhurried"]
    run = train(a, tmp_path, *words, "launcher.here=0", "steps=100000")
    start(b, tmp_path, "join", "join", where(tmp_path))
    until(lambda: "center at step 20:" in log(tmp_path), "twenty steps")
    os.kill(run.pid, signal.SIGINT)
    assert ended(run, tmp_path, "train") == 130
    steps = longer(tmp_path)
    again = start(a, tmp_path, "train", "train", "resume=run", steps)
    start(b, tmp_path, "join2", "join", where(tmp_path))
    assert ended(again, tmp_path, "train") == 0
    whole = start(a, tmp_path, "whole", "train", *SMALL, *words, steps, "hydra.run.dir=whole")
    assert ended(whole, tmp_path, "whole") == 0
    one, other = center(tmp_path / "run"), center(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_begins_with_the_worker_that_is_there_and_another_comes_at_its_step(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    words = ["model=nets:Gated", "+model.gate=gate", "+model.at=40", "steps=60", "algo=easgd", "tau=2"]
    run = train(a, tmp_path, "workers=3", "launcher.least=1", *words)
    until(lambda: served(tmp_path) >= 20, "its waiting at the gate")
    joined = start(b, tmp_path, "join", "join", where(tmp_path))
    until(lambda: "worker 1 has come, at its step 38" in log(tmp_path), "its coming")
    (tmp_path / "gate").touch()
    assert (ended(run, tmp_path, "train"), ended(joined, tmp_path, "join")) == (0, 0)
    told = summary(tmp_path)
    assert told["steps"] == {"worker_00": 60, "worker_01": 60, "worker_02": 0}
    assert told["lost"] == {"worker_02": "no host has come for it"} and not told["restarts"]
    replayed(tmp_path)


def test_in_rounds_too_a_worker_comes_later_and_its_run_goes_on_and_is_replayed(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    run = train(a, tmp_path, "workers=2", "launcher.least=1", *ENDLESS, "algo=sync_easgd", "tau=2")
    until(lambda: served(tmp_path) > 5, "rounds of one")
    joined = start(b, tmp_path, "join", "join", where(tmp_path))
    until(lambda: "worker 1 has come, at its step" in log(tmp_path), "its coming")
    many = served(tmp_path)
    until(lambda: served(tmp_path) > many + 5, "rounds of both")
    os.kill(run.pid, signal.SIGTERM)
    assert (ended(run, tmp_path, "train"), ended(joined, tmp_path, "join")) == (143, 143)
    assert summary(tmp_path)["lost"] == {}
    replayed(tmp_path)


def test_a_machine_joins_in_the_place_of_one_that_is_gone(machines: Callable[[int], Machines], tmp_path: Path) -> None:
    a, b, c = machines(3).hosts
    run = train(
        a,
        tmp_path,
        "workers=2",
        "algo=easgd",
        "tau=2",
        "model=nets:Unhurried",
        "+model.gate=gate",
        "+model.at=50",
        "steps=200",
        "launcher.here=0",
    )
    for host, name in ((b, "join"), (c, "other")):
        start(host, tmp_path, name, "join", where(tmp_path))
    until(lambda: "training begins" in log(tmp_path), "training")
    b.kill()
    until(lambda: "it is started again" in log(tmp_path), "the news of its end")
    third = start(a, tmp_path, "third", "join", where(tmp_path))
    until(lambda: "is back" in log(tmp_path), "its return")
    (tmp_path / "gate").touch()
    assert (ended(run, tmp_path, "train"), ended(third, tmp_path, "third")) == (0, 0)
    assert set(summary(tmp_path)["steps"].values()) == {200}


def test_a_cable_that_is_out_for_a_while_only_delays_and_one_that_stays_out_loses_its_machine(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    of = machines(2)
    a, b = of.hosts
    words = ["workers=2", "algo=easgd", "tau=2", *ENDLESS, "launcher.wait=2"]
    run = train(a, tmp_path, *words, "launcher.silence=6")
    joined = start(b, tmp_path, "join", "join", where(tmp_path))
    until(lambda: "training begins" in log(tmp_path), "training")

    until(lambda: served(tmp_path, 1) > 5, "exchanges")
    of.cut(1)
    time.sleep(2.0)  # for as long as the cable is out
    before = served(tmp_path, 1)
    of.join(1)
    until(lambda: served(tmp_path, 1) > before + 5, "exchanges after the cable is back")
    assert "died" not in log(tmp_path)
    of.cut(1)
    until(lambda: "nothing has been heard of it for 6 s" in log(tmp_path), "the news of its silence")
    assert ended(joined, tmp_path, "join") == 1  # over there the run is lost, and nobody stays
    os.kill(run.pid, signal.SIGTERM)
    assert ended(run, tmp_path, "train") == 143


def test_two_runs_on_the_same_machines_whose_cable_is_out_for_five_seconds_go_on_as_if_alone(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    """With the usual settings; each has a secret of its own, and who knows the other's is sent away."""
    of = machines(2)
    a, b = of.hosts
    words = ["launcher=distributed", f"launcher.address={a.address}", "workers=2", "algo=eamsgd", "tau=2"]
    words += [*SMALL, "model=nets:Gated", "+model.gate=gate", "+model.at=10", "steps=60", "hydra.run.dir=run"]
    runs, joined, places = [], [], []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        runs.append(start(a, tmp_path / name, "train", "train", *words, f"seed={len(runs)}", EASGD_SECRET=name))
        places.append(where(tmp_path / name))
    wrong = start(b, tmp_path, "wrong", "join", places[0], EASGD_SECRET="two")
    assert ended(wrong, tmp_path, "wrong") == 2 and said(tmp_path, "wrong", "its secret is another")
    for name, place in zip(("one", "two"), places, strict=True):
        joined.append(start(b, tmp_path / name, "join", "join", place, EASGD_SECRET=name))
    for name in ("one", "two"):
        until(lambda name=name: "training begins" in log(tmp_path / name), "training")
    of.cut(1)
    for name in ("one", "two"):
        (tmp_path / name / "gate").touch()
    time.sleep(5.0)  # for as long as the cable is out
    of.join(1)
    for name, run, host in zip(("one", "two"), runs, joined, strict=True):
        assert (ended(run, tmp_path / name, "train"), ended(host, tmp_path / name, "join")) == (0, 0)
        told = summary(tmp_path / name)
        assert told["steps"] == {"worker_00": 60, "worker_01": 60} and "died" not in log(tmp_path / name)
        [link] = told["links"].values()
        assert link["longest_silence"] > 2
    replayed(tmp_path / "one")


def test_when_the_masters_machine_is_gone_nothing_stays_on_the_others(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    train(a, tmp_path, "workers=2", "algo=easgd", "tau=2", *ENDLESS)
    joined = start(b, tmp_path, "join", "join", where(tmp_path))
    until(lambda: "training begins" in log(tmp_path), "training")
    pid = int(until(lambda: said(tmp_path, "join", r"worker 1 runs here, process (\d+)"), "worker 1")[1])
    a.kill()
    assert ended(joined, tmp_path, "join") == 1
    assert said(tmp_path, "join", "the run at .* is lost")
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of its worker")


def test_the_links_to_another_machine_are_measured(machines: Callable[[int], Machines], tmp_path: Path) -> None:
    """On a cable of a known rate, which no figure exceeds."""
    of = machines(2)
    a, b = of.hosts
    of.limit("100mbit")
    words = ["bench", "network", f"launcher.address={a.address}:0", "model=small", "--step", "0.05", "--windows", "1"]
    words += ["--gloo"]
    bench = start(a, tmp_path, "train", *words, "--json", "found.json")
    joined = start(b, tmp_path, "join", "join", where(tmp_path))
    assert (ended(bench, tmp_path, "train"), ended(joined, tmp_path, "join")) == (0, 0)
    assert said(tmp_path, "train", r"MB/s up, [\d.]+ MB/s down; an exchange of [\d,]+ floats takes")
    assert said(tmp_path, "train", r"tau=\d+: an exchange that is not hidden takes at most 5 %")
    one, two, *beside = json.loads((tmp_path / "found.json").read_text())
    assert 0 < one["peer"] < 100  # megabytes a second: beyond what the cable carries, with room for its bucket
    assert one["ratio"] > 0 and two["ratio"] > 0
    assert [row["peer_name"] for row in beside] == ["gloo there and back", "gloo's all-reduce"]
    assert all(0 < row["peer"] < 400 and row["ratio"] > 0 for row in beside)  # both directions, the bucket full


def test_a_host_takes_part_in_one_job_of_a_sweep_after_another(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    words = [
        "launcher=distributed",
        f"launcher.address={a.address}",
        "launcher.here=0",
        "workers=1",
        "steps=20",
        *SMALL,
    ]
    sweep = start(a, tmp_path, "train", "train", "-m", *words, "tau=2", "eta=0.01,0.02", "hydra.sweep.dir=sweep")
    joined = start(b, tmp_path, "join", "join", where(tmp_path))
    assert (ended(sweep, tmp_path, "train"), ended(joined, tmp_path, "join")) == (0, 0)
    for job in ("eta=0.01", "eta=0.02"):
        told = json.loads((tmp_path / "sweep" / job / "summary.json").read_text())
        assert told["status"] == "completed" and told["steps"] == {"worker_00": 20}
    text = (tmp_path / "join.txt").read_text()
    assert text.count("this host offers 1 place") == text.count("has ended: completed") == 2
    assert "no further run follows there" in text


def test_the_short_runs_of_tau_auto_are_on_the_same_machines(
    machines: Callable[[int], Machines], tmp_path: Path
) -> None:
    a, b = machines(2).hosts
    words = ["workers=1", "launcher.here=0", "steps=200", "tau=auto", "auto.seconds=0.5", "auto.share=0.9"]
    run = train(a, tmp_path, *words)
    joined = start(b, tmp_path, "join", "join", where(tmp_path))
    assert (ended(run, tmp_path, "train"), ended(joined, tmp_path, "join")) == (0, 0)
    told = summary(tmp_path)
    assert told["status"] == "completed" and told["steps"] == {"worker_00": 200}
    probes = len(told["tau_chosen"]["probes"])
    text = (tmp_path / "join.txt").read_text()
    assert text.count("this host offers 1 place") == text.count("has ended: completed") == probes + 1
    assert "no further run" not in text  # the last has said that it is the last


def test_torchrun_on_two_machines(machines: Callable[[int], Machines], tmp_path: Path) -> None:
    """One command on each; workers are as many as processes, and each machine has its own."""
    hosts = machines(2).hosts
    at = ["--nnodes=2", "--nproc-per-node=2", f"--master-addr={hosts[0].address}", "--master-port=29400"]
    words = ["launcher=distributed", "algo=eamsgd", "tau=5", "steps=40", *SMALL, "hydra.run.dir=run"]
    for rank, host in enumerate(hosts):
        program = [sys.executable, "-m", "torch.distributed.run", *at, f"--node-rank={rank}"]
        program += ["-m", "easgd_cli", "train", *words]
        host.start(program, tmp_path / f"node{rank}.txt", cwd=tmp_path, env=environment())
    codes = [ended(host.started[0], tmp_path, f"node{rank}") for rank, host in enumerate(hosts)]
    assert codes == [0, 0], (tmp_path / "node0.txt").read_text() + (tmp_path / "node1.txt").read_text()
    assert set(summary(tmp_path)["steps"].values()) == {40} and len(summary(tmp_path)["steps"]) == 4
    assert said(tmp_path, "node1", "offers 2 places")
