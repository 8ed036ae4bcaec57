"""The closing exchange: it is made once, by all that have taken their steps, after the checkpoint; whoever is killed
meanwhile, the record gives the center.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_recovery import replayed
from test_runs import (
    by_hand,
    disturbed,
    gated,
    recorded_order,
    rows,
    run,
    saved_center,
    settings,
    unhurried,
    wait_until,
)

from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.settings.schema import Checkpoint, Eval, Settings
from easgd_cli.training.master import Master
from easgd_cli.transport.base import Kind, Request

STEPS = 23  # of which tau = 3 leaves two steps after the last exchange


def closing(algo: str, **values: Any) -> Settings:
    return settings(
        algo, **({"workers": 3, "steps": STEPS, "max_restarts": 3, "eval": Eval(train_images=100)} | values)
    )


def simulated(s: Settings, directory: Path, resume: bool = False) -> Outcome:
    directory.mkdir(exist_ok=True)
    launcher = {"name": "simulated", "target": "easgd_cli.launcher.kinds:Simulated", "spread": 0.3, "service": 0.002}
    s = replace(s, launcher=launcher)
    return kinds.launcher(s)(Job(directory, resume=resume), build.prepare(s))


RUNS: dict[str, Callable[..., Outcome]] = {"local": run, "simulated": simulated}


@pytest.mark.parametrize("launcher", RUNS)
@pytest.mark.parametrize("algo", ["model_averaging", "diloco"])
def test_rounds_that_close_are_rounds_by_hand_and_go_on_as_if_they_had_not(
    algo: str, launcher: str, tmp_path: Path
) -> None:
    """center.pt, the last evaluation and the summary are of what came after; what goes on is of before."""
    s, made = closing(algo), RUNS[launcher]
    outcome = made(s, tmp_path / "parts")
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    for _ in range(STEPS):
        driver.round()
    before = driver.vectors()["x"].clone()
    driver.close()
    center = saved_center(tmp_path / "parts", prepared)
    assert torch.equal(driver.vectors()["x"], center) and not torch.equal(before, center)
    assert recorded_order(tmp_path / "parts") == driver.order and outcome.summary["exchanges"] == len(driver.order)
    last = rows(tmp_path / "parts", "center")[-1]
    assert (last["step"], last["exchanges"]) == (STEPS, len(driver.order))
    assert last["test_loss"] == pytest.approx(prepared.problem.evaluate(center)["test_loss"], rel=1e-5)
    replay = replayed(replace(s), tmp_path / "parts", tmp_path / "replayed")
    assert replay.status == "completed"
    assert torch.equal(saved_center(tmp_path / "replayed", prepared), center)
    assert made(replace(s, steps=40), tmp_path / "parts", resume=True).status == "completed"
    made(replace(s, steps=40), tmp_path / "whole")
    for name in ("parts", "whole"):
        assert not [r for r in rows(tmp_path / name, "center") if 0 < r["step"] <= STEPS and r["exchanges"] > 24]
    assert recorded_order(tmp_path / "parts") == recorded_order(tmp_path / "whole")
    assert torch.equal(*(saved_center(tmp_path / name, prepared) for name in ("parts", "whole")))


def test_a_virtual_run_without_rounds_closes_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    s = closing("async_diloco")
    simulated(s, tmp_path / "parts")
    prepared = build.prepare(s)
    order = recorded_order(tmp_path / "parts")
    assert order[-3:] == [0, 1, 2]
    driver = by_hand(s, prepared)
    driver.replay(order, steps=STEPS)
    assert torch.equal(driver.vectors()["x"], saved_center(tmp_path / "parts", prepared))
    simulated(replace(s, steps=40), tmp_path / "parts", resume=True)
    simulated(replace(s, steps=40), tmp_path / "whole")
    assert recorded_order(tmp_path / "parts") == recorded_order(tmp_path / "whole")
    assert torch.equal(*(saved_center(tmp_path / name, prepared) for name in ("parts", "whole")))


def others_wait(directory: Path, steps: int) -> Callable[[], bool]:
    """Whether workers 0 and 1 have taken their last step."""
    return lambda: (
        {r["party"] for r in rows(directory) if r["party"] in ("worker_00", "worker_01") and r["step"] == steps}
        == {"worker_00", "worker_01"}
    )


def while_others_wait(s: Settings, directory: Path, act: Callable[[dict[str, int]], None]) -> Outcome:
    """Runs, keeps worker 2 from its end until the others wait for it there, lets `act`, and has it go on."""
    gate = directory.with_name(f"{directory.name}_gate")
    s = gated(s, gate, (s.steps or 0) // 2)

    def at_the_end(pids: dict[str, int]) -> None:
        os.kill(pids["worker_02"], signal.SIGSTOP)
        gate.touch()
        assert s.steps is not None
        wait_until(others_wait(directory, s.steps))
        act(pids)
        os.kill(pids["worker_02"], signal.SIGCONT)

    return disturbed(s, directory, at_the_end, lambda d: 2 in recorded_order(d))


@pytest.mark.parametrize("victim", ["master", "worker_00"])
def test_whoever_is_killed_while_the_others_wait_to_close_the_record_gives_the_center(
    victim: str, tmp_path: Path
) -> None:
    s = replace(
        unhurried("async_diloco", seconds=0.01, workers=3, steps=80, max_restarts=3), eval=Eval(train_images=100)
    )
    log = tmp_path / "logs" / "launcher.log"
    told = {"master": "the next master goes on", "worker_00": "worker_00: "}[victim]

    def kill(pids: dict[str, int]) -> None:
        before = log.read_text().count(told)
        os.kill(pids[victim], signal.SIGKILL)
        wait_until(lambda: log.read_text().count(told) > before)

    assert while_others_wait(s, tmp_path, kill).status == "completed"
    order, prepared = recorded_order(tmp_path), build.prepare(s)
    assert order[-3:] == [0, 1, 2] if victim == "master" else order[-2:] == [1, 2]
    driver = by_hand(s, prepared)
    driver.replay(order, steps=s.steps)
    assert torch.equal(driver.vectors()["x"], saved_center(tmp_path, prepared))


def test_a_run_that_is_told_to_end_does_not_close_and_does_so_when_it_goes_on(tmp_path: Path) -> None:
    s = replace(unhurried("async_diloco", seconds=0.01, workers=3, steps=80), eval=Eval(train_images=100))
    s.checkpoint = Checkpoint()
    outcome = while_others_wait(s, tmp_path, lambda pids: os.kill(os.getpid(), signal.SIGINT))
    assert outcome.status == "interrupted"
    order, prepared = recorded_order(tmp_path), build.prepare(s)
    driver = by_hand(s, prepared)
    driver.replay(order)
    assert torch.equal(driver.vectors()["x"], saved_center(tmp_path, prepared))
    assert [order.count(i) for i in range(2)] == [27, 27] and order.count(2) < 27
    assert run(s, tmp_path, resume=True).status == "completed"
    assert [recorded_order(tmp_path).count(i) for i in range(3)] == [28, 28, 28]
    assert recorded_order(tmp_path)[-3:] == [0, 1, 2]


def test_the_closing_exchange_waits_for_who_may_come_back() -> None:
    master: Any = Master.__new__(Master)
    master._closing, master._sessions = {0}, SimpleNamespace(open={0: None})
    master._centers = [SimpleNamespace(variable=SimpleNamespace(in_rounds=False))]
    master._waiting = {0: Request(0, Kind.CLOSING, 4, 0)}
    for away, updates in (({1}, []), (set(), [[0]])):
        master._away = away
        assert master._closing_updates() == updates
