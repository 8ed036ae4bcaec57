"""Killed workers come back and killed masters are followed by others, in runs of real processes; their record says so,
and from it the run can be gone through again, bit for bit.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import METHODS, Watch, gated, recorded_order, rows, run, settings, wait_until

from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.processes import local
from easgd_cli.launcher.supervisor.course import Patience
from easgd_cli.record import checkpoint
from easgd_cli.record.reader import Entries, by_variable, newest_checkpoint, read_order
from easgd_cli.settings.schema import Eval, Settings
from easgd_cli.system.channel import Channel
from easgd_cli.training.worker import WorkerLoop

UNHURRIED = {"name": "unhurried", "target": "nets:Unhurried", "seconds": 0.01}
STAGE = 20  # steps of a process between two that are killed


def lasting(algo: str, **values: Any) -> Settings:
    given = {"workers": 3, "steps": 200, "model": UNHURRIED, "max_restarts": 3, "tau": 4}
    s = settings("easgd", **(given | {"eval": Eval(every="100 steps", train_images=100)} | values))
    s.algo = {"name": algo, "target": f"easgd_cli.algorithms:{METHODS.get(algo, algo)}"}
    return s


class Killer:
    """Kills processes of a run while it trains: each party of `order` in turn, when training has gone on since. Of
    a `lasting` run that has its `gate`, nobody gets to the end before the last has been killed and is back.
    """

    def __init__(self, directory: Path, order: list[str]):
        self.directory, self.log, self.killed = directory, directory / "logs" / "launcher.log", 0
        self.gate = directory.with_name(f"{directory.name}_gate")
        self._order = order
        self._watch = Watch(self._act)

    def _act(self) -> None:
        wait_until(lambda: self.log.exists() and "training begins" in self.log.read_text())
        so_far = 0
        for stage, party in enumerate(self._order, 1):
            wait_until(lambda so_far=so_far: len(recorded_order(self.directory)) > so_far + 6)
            before = self.log.read_text()
            pids = dict(re.findall(r"INFO (\w+): process (\d+)", before))
            so_far = len(recorded_order(self.directory))
            os.kill(int(pids[party]), signal.SIGKILL)
            self.killed += 1
            self.gate.with_suffix(f".{stage}").touch()
            back = "INFO the next master goes on" if party.startswith("master") else f"worker {int(party[-2:])} is back"
            wait_until(lambda back=back, before=before: self.log.read_text().count(back) > before.count(back))
        self.gate.touch()

    def __enter__(self) -> Killer:
        self._watch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._watch.over.set()
        self._watch.join()
        if self._watch.raised:
            raise self._watch.raised[0]


def replayed(s: Settings, source: Path, directory: Path) -> Outcome:
    directory.mkdir()
    s.launcher = {"name": "simulated", "target": "easgd_cli.launcher.kinds:Simulated"}
    s.replay = str(source)
    return kinds.launcher(s)(Job(directory), build.prepare(s))


@pytest.mark.parametrize(("algo", "fragments"), [("eamsgd", 1), ("downpour", 1), ("sync_easgd", 1), ("easgd", 3)])
def test_whoever_is_killed_the_run_takes_all_its_steps_and_its_record_gives_its_center(
    algo: str, fragments: int, tmp_path: Path
) -> None:
    # in rounds nobody can be held: who is back begins with the next one, which the others make
    held, steps = (0, 400) if algo == "sync_easgd" else (STAGE, 200)
    s = lasting(algo, steps=steps, fragments=fragments)
    order = ["worker_01", "master", "worker_01"]
    with Killer(tmp_path / "run", order) as killer:
        outcome = run(gated(s, killer.gate, held), tmp_path / "run")
    assert killer.killed == len(order)
    assert outcome.status == "completed" and set(outcome.summary["steps"].values()) == {steps}
    assert outcome.summary["lost"] == {}
    assert outcome.summary["restarts"] == {"master": 1, "worker_01": 2}
    system = rows(tmp_path / "run", "system")
    assert [r["lost"] for r in system if "lost" in r] == [1, 1]
    assert [r["returned"] for r in system if "returned" in r] == [1, 1]
    assert [r["restarts"] for r in system if "restarts" in r][-1] == 3
    assert [r["workers_alive"] for r in system if "workers_alive" in r][-1] == 3
    assert replayed(s, tmp_path / "run", tmp_path / "again").status == "completed"
    assert recorded_order(tmp_path / "run") == recorded_order(tmp_path / "again")
    ours, theirs = (torch.load(tmp_path / d / "center.pt", weights_only=True) for d in ("run", "again"))
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


@pytest.mark.parametrize(
    ("algo", "options"), [("GossipPull", {}), ("GossipPush", {}), ("EASGDTree", {"degree": 2}), ("GroupedEASGD", {})]
)
def test_a_master_of_several_variables_is_followed_by_another(
    algo: str, options: dict[str, int], tmp_path: Path
) -> None:
    s = lasting(algo, workers=4, steps=150)
    s.algo |= options
    with Killer(tmp_path / "run", ["master", "master"]) as killer:
        outcome = run(gated(s, killer.gate, STAGE), tmp_path / "run")
    assert outcome.status == "completed" and outcome.summary["restarts"] == {"master": 2}
    assert replayed(s, tmp_path / "run", tmp_path / "again").status == "completed"
    entries = Entries.of(build.method(s), s.workers)
    orders = [read_order(tmp_path / d / "exchanges.bin", entries) for d in ("run", "again")]
    recorded, again = (by_variable(order, entries.variables) for order in orders)
    assert recorded == again, "there is one order a variable"
    ours, theirs = (torch.load(tmp_path / d / "center.pt", weights_only=True) for d in ("run", "again"))
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


def test_the_only_worker_comes_back_to_its_center(tmp_path: Path) -> None:
    with Killer(tmp_path / "run", ["worker_00"]) as killer:
        outcome = run(gated(lasting("easgd", workers=1, tau=2), killer.gate, STAGE), tmp_path / "run")
    assert outcome.status == "completed" and outcome.summary["restarts"] == {"worker_00": 1}


def test_masters_that_get_no_further_are_not_started_for_ever(tmp_path: Path) -> None:
    """Killed whenever one appears: after `max_restarts` in a row the run has failed, and says what to do."""
    log, over = tmp_path / "logs" / "launcher.log", threading.Event()

    def kill_them_all() -> None:
        seen: set[str] = set()
        while not over.is_set():
            text = log.read_text() if log.exists() else ""
            for pid in re.findall(r"INFO master: process (\d+)", text) if exchanged(text) else ():
                if pid not in seen:
                    seen.add(pid)
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.005)

    def exchanged(text: str) -> bool:
        return "training begins" in text and len(recorded_order(tmp_path)) > 9

    watch = threading.Thread(target=kill_them_all)
    watch.start()
    try:
        outcome = run(lasting("easgd", max_restarts=2, steps=20_000), tmp_path)
    finally:
        over.set()
        watch.join()
    assert outcome.status == "failed" and outcome.reason is not None
    assert "the master died (killed by SIGKILL)" in outcome.reason and "checkpoint" in outcome.reason
    assert log.read_text().count("INFO master: process") >= 3


def test_a_worker_that_raises_at_the_same_step_each_time_is_given_up(tmp_path: Path) -> None:
    none = {"name": "none", "target": None}
    problem = {"name": "raises", "target": "nets:RaisesAt", "worker": 1, "step": 30}
    s = lasting("easgd", steps=60, problem=problem, dataset=none, model=none)
    outcome = run(s, tmp_path)
    assert outcome.status == "completed"
    assert list(outcome.summary["lost"]) == ["worker_01"] and "at step 30" in outcome.summary["lost"]["worker_01"]
    assert outcome.summary["restarts"]["worker_01"] >= 3  # more where it was known to have got a step further
    assert outcome.summary["steps"]["worker_00"] == 60


def test_interrupted_while_somebody_comes_back_a_run_ends_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PATIENCE", Patience(interrupted=60.0))  # a busy machine is not what is tried here
    log = tmp_path / "logs" / "launcher.log"

    def act() -> None:
        wait_until(lambda: log.exists() and "training begins" in log.read_text() and len(recorded_order(tmp_path)) > 9)
        pids = dict(re.findall(r"INFO (\w+): process (\d+)", log.read_text()))
        os.kill(int(pids["worker_01"]), signal.SIGKILL)
        os.kill(int(pids["master"]), signal.SIGKILL)
        wait_until(lambda: "another goes on" in log.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    watch: Any = Watch(act)
    watch.start()
    try:
        outcome = run(lasting("eamsgd", steps=20_000), tmp_path)
    finally:
        watch.over.set()
        watch.join()
    assert not watch.raised and (outcome.status, outcome.exit_code) == ("interrupted", 130)
    assert len(list((tmp_path / "checkpoint").glob("*.pt"))) == 1 and (tmp_path / "center.pt").exists()
    more = lasting("eamsgd", steps=max(json.loads((tmp_path / "summary.json").read_text())["steps"].values()) + 20)
    assert run(more, tmp_path, resume=True).status == "completed"


def test_a_session_that_comes_while_a_worker_computes_is_the_one_it_goes_on_with() -> None:
    """It is given at once when a master has died, and the worker may notice that only at its next exchange."""
    ours, theirs = socket.socketpair()
    launcher, worker = Channel(ours), WorkerLoop.__new__(WorkerLoop)
    worker._channel, worker._heard, worker._given, worker._stop = Channel(theirs), [], [], False
    one, other = socket.socketpair()
    launcher.post({"kind": "session", "place": 0}, one)
    launcher.post({"kind": "stop"})
    worker._listen(None)  # type: ignore[arg-type]
    assert worker._stop
    worker._next_session(0).sendall(b"here")
    assert other.recv(4) == b"here"


def test_a_worker_that_had_never_come_begins_with_the_mean_clock_when_its_run_goes_on(tmp_path: Path) -> None:
    """As in a run that began with launcher.least, for which no host was there."""
    run(lasting("easgd", workers=2, steps=40), tmp_path)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    clocks = {**found.owner.moment.clocks, 1: 0}
    found.owner.moment = replace(found.owner.moment, clocks=clocks)
    del found.workers[1]
    checkpoint.write(tmp_path / "checkpoint", found, keep=1)
    outcome = run(lasting("easgd", workers=2, steps=80), tmp_path, resume=True)
    assert outcome.status == "completed"
    [back] = [row for row in rows(tmp_path, "system") if "returned" in row]
    assert back["returned"] == 1 and 40 <= back["returned_at"] <= 80
    assert "worker 1 has come, at its step" in (tmp_path / "logs" / "launcher.log").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == {"worker_00": 80, "worker_01": 80}
