"""Real runs, of real processes, run the paper: what they record leads step by step to what they saved."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import imported
import pytest
import torch
import warm
from listings import Listing
from torch import Tensor

from easgd_cli.errors import RunError
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.processes import fork_server
from easgd_cli.launcher.processes.child import Child
from easgd_cli.launcher.processes.local import Processes, launch
from easgd_cli.launcher.supervisor.course import Patience
from easgd_cli.models.convnet_digits import ConvNetDigits
from easgd_cli.problems.net import NetProblem
from easgd_cli.record.checkpoint import steps_taken
from easgd_cli.record.reader import newest_checkpoint as newest
from easgd_cli.settings.schema import Checkpoint, Eval, Settings
from easgd_cli.training.drive import ByHand

METHODS = {
    "easgd": "EASGD", "eamsgd": "EAMSGD", "downpour": "DOWNPOUR", "mdownpour": "MDOWNPOUR", "sgd": "SGD",
    "msgd": "MSGD",
    "sync_easgd": "SyncEASGD", "sync_eamsgd": "SyncEAMSGD", "gauss_seidel_easgd": "GaussSeidelEASGD",
    "pull_then_step": "PullThenStep", "model_averaging": "ModelAveraging", "diloco": "DiLoCo",
    "async_diloco": "AsyncDiLoCo", "allreduce": "AllReduce",
}  # fmt: skip
ROUNDS = ["sync_easgd", "sync_eamsgd", "gauss_seidel_easgd", "pull_then_step"]
POLYAK = {"name": "polyak", "target": "easgd_cli.algorithms.average:Polyak"}
MOVING = {"name": "moving", "target": "easgd_cli.algorithms.average:Moving", "rate": 0.1}
# Its gradient costs four times that of the net that `settings` has.
CONVNET = {"name": "small", "target": "easgd_cli.models.convnet_digits:ConvNetDigits"}


def settings(algo: str, **values: Any) -> Settings:
    given: dict[str, Any] = {
        "workers": 1 if algo in ("sgd", "msgd") else 4, "tau": 1 if algo in ("mdownpour", "allreduce") else 3,
        "eta": 0.01 if algo == "mdownpour" else 0.05,
        "delta": 0.9, "batch_size": 16, "steps": 40, "threads": 1, "device": "cpu", "l2": 1e-4, "max_restarts": 0,
        "eval": Eval(every="20 steps", train_images=100),
        "problem": {"name": "dataset", "target": "easgd_cli.problems.net:NetProblem"},
        "dataset": {"name": "digits", "target": "easgd_cli.data.digits:digits"},
        "model": {"name": "mlp", "target": "easgd_cli.models.mlp:MLP", "hidden": [24]}, **values,
    }  # fmt: skip
    return Settings(
        algo={"name": algo, "target": f"easgd_cli.algorithms:{METHODS[algo]}"},
        schedule={"name": "decay", "target": "easgd_cli.algorithms.schedule:Decay"},
        launcher={"name": "local", "target": "easgd_cli.launcher.processes.local:launch"},
        **given,
    )


def unhurried(algo: str, seconds: float = 0.004, **values: Any) -> Settings:
    """Of a run that is watched and stopped while it trains. A step takes at least so many seconds; the bits are the
    same with others. Without a length it would take over a minute.
    """
    model = {"name": "unhurried", "target": "nets:Unhurried", "seconds": seconds}
    return settings(algo, **{"steps": 20_000, "model": model, **values})


def hurried(s: Settings) -> Settings:
    """The same run, which nobody has to watch."""
    return replace(s, model=s.model | {"seconds": 0.0, "at": 0})


def gated(s: Settings, gate: Path, at: int) -> Settings:
    """The same run, whose workers wait at each so many steps of their processes, until the file `gate` is there: what
    is to happen before its end does, however late that is.
    """
    return replace(s, model=s.model | {"gate": str(gate), "at": at})


def longer(s: Settings, outcome: Outcome) -> Settings:
    """The same run with some steps more than the workers of one had taken that was broken off, wherever that was."""
    return replace(s, steps=max(outcome.summary["steps"].values()) + 20)


def run(s: Settings, directory: Path, resume: bool = False) -> Outcome:
    directory.mkdir(exist_ok=True)
    return launch(Job(directory, resume=resume), build.prepare(s))


@cache
def four_workers(algo: str, kept: Path) -> tuple[Settings, Path]:
    """A run of four processes, made once. Its rate decays and it keeps an average."""
    s, directory = settings(algo, gamma=1e-2, average=POLYAK, model=CONVNET), kept / f"four_{algo}"
    assert run(s, directory).status == "completed"
    return s, directory


@cache
def one_worker(algo: str, kept: Path) -> tuple[Settings, Path]:
    """A run of one worker, made once. It keeps an average."""
    s, directory = settings(algo, workers=1, average=MOVING), kept / f"one_{algo}"
    assert run(s, directory).status == "completed"
    return s, directory


def by_hand(s: Settings, prepared: build.Experiment) -> ByHand:
    starts = [prepared.problem.start(i) for i in range(s.workers)]
    return ByHand(
        prepared.method, prepared.problem, clip=s.clip, workers=s.workers, tau=s.tau,
        schedule=build.schedule(s, prepared.steps),
        start=prepared.start, starts=starts, average=prepared.average,
    )  # fmt: skip


def recorded_order(directory: Path) -> list[int]:
    file = directory / "exchanges.bin"
    data = file.read_bytes() if file.exists() else b""
    return [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]


def saved_center(directory: Path, prepared: build.Experiment) -> Tensor:
    return saved(directory, "center", prepared)


def saved(directory: Path, party: str, prepared: build.Experiment) -> Tensor:
    assert isinstance(prepared.problem, NetProblem)
    return prepared.problem.flat.load(torch.load(directory / f"{party}.pt", weights_only=True))


def rows(directory: Path, party: str | None = None) -> list[dict[str, Any]]:
    *lines, _ = (directory / "metrics.jsonl").read_text().split("\n")  # the last is empty, or not whole yet
    found = [json.loads(line) for line in lines]
    return [r for r in found if party is None or r["party"] == party]


def what_four_processes_did(s: Settings, directory: Path) -> tuple[build.Experiment, list[int], Tensor]:
    """The run prepared again, the order of its exchanges and its center."""
    assert run(s, directory).status == "completed"
    return what_was_recorded(s, directory)


def what_was_recorded(s: Settings, directory: Path) -> tuple[build.Experiment, list[int], Tensor]:
    """The same of a run that has been."""
    order = recorded_order(directory)
    assert sorted(set(order)) == [0, 1, 2, 3] and len(order) == 4 * -(-40 // s.tau)
    prepared = build.prepare(s)
    return prepared, order, saved_center(directory, prepared)


def test_processes_differentiate_in_bf16_and_repeat_bit_for_bit(tmp_path: Path) -> None:
    s = settings("eamsgd", precision="bf16", model=CONVNET)
    prepared, order, center = what_four_processes_did(s, tmp_path)
    driver = by_hand(s, prepared)
    driver.replay(order)
    assert torch.equal(driver.vectors()["x"], center) and center.dtype == torch.float32
    # How far rounding takes them apart depends on the order: four times as far where one worker comes after all others.
    exact = build.prepare(replace(s, precision="fp32"))
    drivers = [by_hand(s, prepared), by_hand(s, exact)]
    for driver in drivers:
        driver.replay([0, 1, 2, 3] * 14)
    rounded, fine = (driver.vectors()["x"] for driver in drivers)
    assert not torch.equal(rounded, fine)
    torch.testing.assert_close(fine, rounded, rtol=0.1, atol=0.02)
    assert exact.problem.evaluate(center) == prepared.problem.evaluate(center)


@pytest.mark.parametrize("algo", ["downpour", "sync_eamsgd"])
def test_batch_norms_statistics_are_averaged_between_processes_bit_for_bit(algo: str, tmp_path: Path) -> None:
    """Of DOWNPOUR's, whose messages are sums, too; they are in center.pt, and what is measured uses them."""
    residual = {"name": "residual", "target": "nets:Residual"}
    problem = {"name": "dataset", "target": "easgd_cli.problems.net:NetProblem", "batch_norm": "average"}
    s = settings(algo, workers=2, steps=30, clip=2.0, model=residual, problem=problem)
    assert run(s, tmp_path).status == "completed"
    prepared = build.prepare(s)
    assert isinstance(prepared.problem, NetProblem)
    driver = by_hand(s, prepared)
    if algo == "downpour":
        driver.replay(recorded_order(tmp_path))
    else:
        for _ in range(30):
            driver.round()
    x, state = driver.vectors()["x"], torch.load(tmp_path / "center.pt", weights_only=True)
    assert_measured(rows(tmp_path, "center")[-1], prepared, x)
    expected = prepared.problem.state_dict(x)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    d, mean = prepared.problem.flat.size, state["stem.1.running_mean"]
    assert torch.equal(mean, x[d:][: len(mean)]) and float(mean.abs().min()) > 0
    assert json.loads((tmp_path / "summary.json").read_text())["parameters"] == d
    for w, session in zip(driver.workers, driver._sessions, strict=True) if algo == "sync_eamsgd" else ():
        distance = rows(tmp_path, f"worker_{w.number:02d}")[-1]["distance_to_center"]
        assert distance == pytest.approx(float(torch.dist(w.x[:d], session.collect().vector[:d])))
        assert distance != pytest.approx(float(torch.dist(w.x, session.collect().vector)), rel=1e-3)


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour"])
def test_the_recorded_order_of_four_processes_gives_their_center_bit_for_bit(algo: str, kept: Path) -> None:
    """And the average of its values, and what was measured of it on the way: each evaluation is of the center at that
    count of exchanges.
    """
    s, directory = four_workers(algo, kept)
    prepared, order, center = what_was_recorded(s, directory)
    evaluated = rows(directory, "center")
    assert len(evaluated) == 3 and evaluated[-1]["exchanges"] == len(order)
    driver = by_hand(s, prepared)
    assert driver.center is not None
    for row in evaluated:
        driver.replay(order[len(driver.order) : row["exchanges"]])
        assert_measured(row, prepared, driver.vectors()["x"])
    assert torch.equal(driver.center.vectors["x"], center)
    assert torch.equal(driver.center.vectors["average"], saved(directory, "average", prepared))


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour"])
def test_the_printed_listing_gone_through_in_the_recorded_order_gives_the_center_of_four_processes(
    algo: str, tmp_path: Path
) -> None:
    """Within the rounding of float64: the listing is an independent program and sums in another order."""
    s = settings(algo, gamma=1e-2, model={"name": "double", "target": "nets:double"})
    prepared, order, center = what_four_processes_did(s, tmp_path)

    def gradient(i: int, t: int, x: Tensor) -> Tensor:
        prepared.problem.load(i, t)
        return prepared.problem.gradient(x.clone()).clone()

    listing = Listing(prepared.start, 4, s.eta, s.tau, gradient, alpha=0.9 / 4, delta=s.delta)
    schedule = build.schedule(s, s.steps)
    for i in order:  # each exchange is that worker's next step that exchanges
        exchanged = False
        while not exchanged:
            listing.eta = schedule(listing.t[i])
            exchanged = getattr(listing, algo)(i)
    torch.testing.assert_close(listing.center, center, rtol=1e-9, atol=1e-9)
    assert float((center - prepared.start).abs().max()) > 1e-3  # it has moved, and far beyond rounding


NONE = {"name": "none", "target": None}


def on_function(target: str, **options: Any) -> dict[str, Any]:
    """Settings of a run without data and net."""
    return {
        "problem": {"name": "function", "target": f"easgd_cli.problems.{target}", **options},
        "dataset": NONE,
        "model": NONE,
    }


@pytest.mark.parametrize("algo", ["easgd", "downpour", "msgd", "sync_easgd"])
def test_processes_on_a_function_begin_where_they_are_told_and_give_the_replayed_center_bit_for_bit(
    algo: str, tmp_path: Path
) -> None:
    starts = [[1.0, 2.0], 3.0, -1.0, [0.0, 5.0]]
    p = 1 if algo == "msgd" else 4
    quadratic = on_function(
        "quadratic:Quadratic", dimension=2, spectrum=[0.5, 2.0], noise=0.5, start=4.0, starts=starts[:p]
    )
    s = settings(algo, average=POLYAK, **quadratic)
    outcome = run(s, tmp_path)
    assert outcome.status == "completed"
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    assert [w.x.tolist() for w in driver.workers] == [[1, 2], [3, 3], [-1, -1], [0, 5]][:p]
    if algo in ("easgd", "downpour"):
        driver.replay(recorded_order(tmp_path))
    else:
        for _ in range(40):
            driver.round() if algo in ROUNDS else driver.step(0)
    center, average = (torch.load(tmp_path / f"{party}.pt", weights_only=True) for party in ("center", "average"))
    assert set(center) == {"x"} and center["x"].dtype == torch.float64
    assert torch.equal(center["x"], driver.vectors()["x"])
    if driver.center is not None:
        assert torch.equal(average["x"], driver.vectors()["average"])
    evaluated = rows(tmp_path, "center")
    # what begins is what is evaluated
    assert [evaluated[0][f"coordinate_{i}"] for i in range(2)] == ([1, 2] if algo == "msgd" else [4, 4])
    assert evaluated[-1] == {**evaluated[-1], **prepared.problem.evaluate(center["x"])}
    assert outcome.summary["average"] == prepared.problem.evaluate(average["x"])
    assert outcome.summary["center"] == prepared.problem.evaluate(center["x"])
    assert outcome.summary["samples_per_second"] == pytest.approx(p * 40 / outcome.summary["wall_seconds"])


def test_a_run_of_one_worker_on_a_function_goes_on_bit_for_bit(tmp_path: Path) -> None:
    s = settings("easgd", workers=1, **on_function("double_well:DoubleWell", dimension=3, starts=[-0.2]))
    run(s, tmp_path / "whole")
    run(replace(s, steps=17), tmp_path / "parts")
    assert run(s, tmp_path / "parts", resume=True).status == "completed"
    whole, parts = (torch.load(tmp_path / d / "center.pt", weights_only=True)["x"] for d in ("whole", "parts"))
    assert torch.equal(whole, parts)
    assert rows(tmp_path / "parts", "center")[0]["coordinate_0"] == 0.5


def test_processes_clip_the_gradients_of_a_net(tmp_path: Path) -> None:
    """Their recorded order with clipped gradients gives their center bit for bit, and without another."""
    s = settings("eamsgd", clip=0.5)
    prepared, order, center = what_four_processes_did(s, tmp_path)
    driver = by_hand(s, prepared)
    driver.replay(order)
    assert torch.equal(driver.vectors()["x"], center)
    s.clip = None
    driver = by_hand(s, prepared)
    driver.replay(order)
    assert not torch.allclose(driver.vectors()["x"], center, atol=1e-3)


@pytest.mark.parametrize(("algo", "steps", "recorded"), [("easgd", 40, 7), ("msgd", 40, 7), ("easgd", 9, 4)])
def test_a_profile_is_of_as_many_steps_of_one_worker_as_asked_for_and_shows_its_parts(
    algo: str, steps: int, recorded: int, tmp_path: Path
) -> None:
    """Of a run that ends before, what there is of them. The run itself is the same."""
    s = settings(algo, workers=1 if algo == "msgd" else 2, steps=steps, profile="7 steps", model=CONVNET)
    assert run(s, tmp_path).status == "completed"
    assert [p.name for p in (tmp_path / "logs").glob("*trace*")] == ["trace_worker_00.json"]
    events = [
        e
        for e in json.loads((tmp_path / "logs" / "trace_worker_00.json").read_text())["traceEvents"]
        if e.get("ph") == "X"
    ]
    names = [e["name"] for e in events]
    marks = sorted(int(name.partition("#")[2]) for name in names if name.startswith("ProfilerStep#"))
    assert marks == list(range(5, 5 + recorded + (recorded < 7))), (
        "where the run ends, the next step has begun and is empty"
    )
    assert names.count("load") == names.count("gradient") == recorded
    due = sum(t % s.tau == 0 for t in range(5, 5 + recorded)) if algo == "easgd" else 0
    assert names.count("post") == names.count("collect") == due
    convolutions = [e for e in events if e["name"] == "aten::convolution"]
    assert len(convolutions) == recorded * sum(
        isinstance(m, torch.nn.Conv2d) for m in ConvNetDigits((1, 8, 8), 10).modules()
    )
    assert convolutions[0]["args"]["Input Dims"][0] == [16, 1, 8, 8]
    if algo == "easgd" and steps == 40:
        driver = by_hand(s, prepared := build.prepare(s))
        driver.replay(recorded_order(tmp_path))
        assert torch.equal(driver.vectors()["x"], saved_center(tmp_path, prepared))


def assert_measured(row: dict[str, Any], prepared: build.Experiment, x: Tensor) -> None:
    expected = prepared.problem.evaluate(x)
    assert row["test_error"] == pytest.approx(expected["test_error"], abs=1e-9)
    assert row["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)
    assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


def test_what_is_evaluated_of_a_sequential_method_is_its_worker(tmp_path: Path) -> None:
    s = settings("sgd")
    run(s, tmp_path)
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    evaluated = rows(tmp_path, "center")
    assert [row["step"] for row in evaluated] == [0, 20, 40]
    for row in evaluated:
        while driver.workers[0].t < row["step"]:
            driver.step(0)
        assert_measured(row, prepared, driver.vectors()["x"])


@pytest.mark.parametrize("algo", ROUNDS)
def test_rounds_of_four_processes_are_the_same_rounds_in_one_bit_for_bit(algo: str, tmp_path: Path) -> None:
    """Nothing is left to chance, so no order need be known. The order that is recorded is that of the workers' numbers
    in each round.
    """
    s = settings(algo, average=POLYAK)
    assert run(s, tmp_path).status == "completed"
    assert recorded_order(tmp_path) == [0, 1, 2, 3] * -(-40 // s.tau)
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    for _ in range(40):
        driver.round()
    assert driver.center is not None
    assert torch.equal(driver.center.vectors["x"], saved_center(tmp_path, prepared))
    assert torch.equal(driver.center.vectors["average"], saved(tmp_path, "average", prepared))
    # the first round after 20
    assert (
        [r["step"] for r in rows(tmp_path, "center")] == [r["step"] for r in rows(tmp_path, "average")] == [0, 21, 40]
    )


def test_rounds_interrupted_twice_end_as_if_never_stopped(tmp_path: Path) -> None:
    """Workers stop at whatever step they are in; a round that can no longer be complete is given back."""
    s = unhurried("sync_eamsgd", steps=200)
    run(hurried(s), tmp_path / "whole")
    broken = unhurried("sync_eamsgd", seconds=0.02, steps=200, checkpoint=Checkpoint(every="25 steps"))
    gate = tmp_path / "gate"
    broken = gated(broken, gate, 75)

    def interrupt(_: dict[str, int]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: "SIGINT" in (tmp_path / "broken" / "logs" / "launcher.log").read_text())
        gate.touch()

    outcome = disturbed(broken, tmp_path / "broken", interrupt, training)
    assert outcome.status == "interrupted"
    gate.unlink()

    before = checkpoints_written(tmp_path / "broken")

    def another_checkpoint(directory: Path) -> bool:
        return checkpoints_written(directory) > before + 1

    outcome = disturbed(
        broken,
        tmp_path / "broken",
        lambda pids: os.kill(pids["master"], signal.SIGKILL),
        another_checkpoint,
        resume=True,
    )
    assert outcome.status == "failed"
    assert run(hurried(broken), tmp_path / "broken", resume=True).status == "completed"
    a, b = (torch.load(tmp_path / d / "center.pt", weights_only=True) for d in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "broken")
    same = ("step", "train_loss", "test_loss", "distance_to_center", "staleness", "exchanges")
    for party in ("worker_00", "worker_03", "center"):
        one, other = (
            [{k: v for k, v in r.items() if k in same} for r in rows(tmp_path / d, party)] for d in ("whole", "broken")
        )
        assert one == other


def test_a_killed_worker_leaves_the_rounds_of_the_others(tmp_path: Path) -> None:
    def kill_one(pids: dict[str, int]) -> None:
        os.kill(pids["worker_01"], signal.SIGKILL)
        wait_until_others_go_on(tmp_path, 1)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = disturbed(unhurried("sync_easgd"), tmp_path, kill_one, exchanging)
    assert outcome.status == "interrupted" and outcome.summary["lost"] == {"worker_01": "killed by SIGKILL"}
    order = recorded_order(tmp_path)
    last = len(order) - 1 - order[::-1].index(1)  # worker 1's last exchange, in a round of four
    assert order[: last + 3] == [0, 1, 2, 3] * (len(order[: last + 3]) // 4)
    assert order[last + 3 :] == [0, 2, 3] * (len(order[last + 3 :]) // 3) != []


def test_a_moving_average_is_that_of_the_recorded_order(tmp_path: Path) -> None:
    s = settings("downpour", average=MOVING)
    run(s, tmp_path)
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    driver.replay(recorded_order(tmp_path))
    assert driver.center is not None
    kept = saved(tmp_path, "average", prepared)
    assert torch.equal(driver.center.vectors["average"], kept)
    assert not torch.equal(kept, saved_center(tmp_path, prepared))
    last = rows(tmp_path, "average")[-1]
    assert last["test_loss"] == pytest.approx(prepared.problem.evaluate(kept)["test_loss"], rel=1e-5)
    assert json.loads((tmp_path / "summary.json").read_text())["average"]["test_error"] == last["test_error"]


@pytest.mark.parametrize("algo", METHODS)
def test_one_worker_stopped_and_resumed_goes_on_bit_for_bit(algo: str, tmp_path: Path, kept: Path) -> None:
    s, whole = one_worker(algo, kept)
    parts = tmp_path / "parts"
    run(replace(s, steps=17), parts)
    assert run(s, parts, resume=True).status == "completed"
    for file in ("center.pt", "average.pt"):
        a, b = (torch.load(d / file, weights_only=True) for d in (whole, parts))
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert recorded_order(whole) == recorded_order(parts)
    for directory in (whole, parts):
        steps = [r["step"] for r in rows(directory, "worker_00") if "train_loss" in r]
        assert steps == sorted(set(steps)) and steps[-1] == 40


@pytest.mark.parametrize("algo", ["eamsgd", "msgd"])
def test_one_worker_killed_goes_on_from_its_last_checkpoint_as_if_nothing_had_been(algo: str, tmp_path: Path) -> None:
    """The launcher's record after the checkpoint is thrown away and made again, without gap or repeat."""
    evaluation = Eval(every="16 steps", train_images=100)
    whole = unhurried(algo, workers=1, steps=120, eval=evaluation)
    run(hurried(whole), tmp_path / "whole")
    broken = unhurried(
        algo, seconds=0.01, workers=1, steps=120, eval=evaluation, checkpoint=Checkpoint(every="12 steps")
    )
    broken = gated(broken, tmp_path / "gate", 40)

    def kill_the_master_or_worker(pids: dict[str, int]) -> None:
        os.kill(pids.get("master", pids["worker_00"]), signal.SIGKILL)

    outcome = disturbed(
        broken, tmp_path / "broken", kill_the_master_or_worker, when=lambda d: any((d / "checkpoint").glob("*.pt"))
    )
    assert outcome.status == "failed" and outcome.exit_code == 1 and "resume=" in (outcome.reason or "")
    assert run(hurried(broken), tmp_path / "broken", resume=True).status == "completed"
    a, b = (torch.load(tmp_path / d / "center.pt", weights_only=True) for d in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    same = ("step", "train_loss", "eta", "test_loss", "test_error", "distance_to_center", "staleness", "party")
    for party in ("worker_00", "center"):
        one, other = (
            [{k: v for k, v in r.items() if k in same} for r in rows(tmp_path / d, party)] for d in ("whole", "broken")
        )
        assert one == other


class Watch(threading.Thread):
    """Does `act` while a run is going on in the main thread. `raised`: what it raised, after which the run is
    interrupted.
    """

    def __init__(self, act: Callable[[], None]):
        super().__init__(daemon=True)
        self._act, self.over, self.raised = act, threading.Event(), list[BaseException]()

    def run(self) -> None:
        try:
            self._act()
        except BaseException as e:
            self.raised.append(e)
            if not self.over.is_set():  # afterwards nobody but pytest would listen
                os.kill(os.getpid(), signal.SIGINT)


def wait_until(reached: Callable[[], bool]) -> None:
    """Of a Watch: returns when something is reached, however long that takes. Raises AssertionError when the run has
    ended without it.
    """
    watch = threading.current_thread()
    assert isinstance(watch, Watch)
    while not reached():
        if watch.over.wait(0.01) and not reached():
            raise AssertionError("the run has ended before what was waited for")


def disturbed(
    s: Settings,
    directory: Path,
    act: Callable[[dict[str, int]], None],
    when: Callable[[Path], bool],
    resume: bool = False,
    run: Callable[..., Outcome] = run,
) -> Outcome:
    """Runs, and lets `act` do something to the processes, once training and `when`."""
    log = directory / "logs" / "launcher.log"
    before = len(log.read_text()) if log.exists() else 0  # of a run that goes on

    def later() -> None:
        wait_until(lambda: log.exists() and "training begins" in log.read_text()[before:] and when(directory))
        act({name: int(pid) for name, pid in re.findall(r"INFO (\w+): process (\d+)", log.read_text()[before:])})

    watch = Watch(later)
    watch.start()
    try:
        outcome = run(s, directory, resume=resume)
    finally:
        watch.over.set()
        watch.join()
    if watch.raised:
        raise watch.raised[0]
    return outcome


def checkpoints_written(directory: Path) -> int:
    return (directory / "logs" / "launcher.log").read_text().count("INFO checkpoint")


def evaluated_at(directory: Path) -> float:
    """The mean step of the last evaluation."""
    return max((r["step"] for r in rows(directory, "center")), default=0)


def interrupt_after(steps: int, directory: Path) -> None:
    """Ctrl-C when evaluations have gone on by so many steps: a run of any speed is then where it is wanted."""
    so_far = evaluated_at(directory)
    wait_until(lambda: evaluated_at(directory) >= so_far + steps)
    os.kill(os.getpid(), signal.SIGINT)


def wait_until_others_go_on(directory: Path, worker: int, exchanges: int = 15) -> None:
    """Returns when each of four workers but that one has exchanged so often since its last exchange."""

    def gone_on() -> bool:
        order = recorded_order(directory)
        since = order[len(order) - order[::-1].index(worker) :] if worker in order else order
        return all(since.count(other) >= exchanges for other in range(4) if other != worker)

    wait_until(gone_on)


def training(directory: Path) -> bool:
    """Each of four workers has told of steps."""
    told = rows(directory) if (directory / "metrics.jsonl").exists() else []
    return len({r["party"] for r in told if r["party"].startswith("worker")}) == 4


def exchanging(directory: Path) -> bool:
    """Each of four workers has exchanged."""
    return set(recorded_order(directory)) == {0, 1, 2, 3}


def test_a_killed_worker_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    s = unhurried("easgd")

    def kill_one(pids: dict[str, int]) -> None:
        os.kill(pids["worker_02"], signal.SIGKILL)
        wait_until_others_go_on(tmp_path, 2)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = disturbed(s, tmp_path, kill_one, lambda d: evaluated_at(d) > 0)
    assert outcome.status == "interrupted"
    assert outcome.summary["lost"] == {"worker_02": "killed by SIGKILL"}
    assert [r["workers_alive"] for r in rows(tmp_path, "system") if "workers_alive" in r][-1] == 3
    assert "worker 2 died (killed by SIGKILL)" in (tmp_path / "logs" / "launcher.log").read_text()
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    driver.replay(recorded_order(tmp_path))
    assert driver.center is not None
    assert torch.equal(driver.center.vectors["x"], saved_center(tmp_path, prepared))  # the kill tore nothing


def test_a_run_that_lost_a_worker_goes_on_without_a_step_back(tmp_path: Path) -> None:
    """The lost worker comes back with its old clock, far behind; neither the record nor the newest checkpoint goes back
    with it.
    """
    s = unhurried("easgd", seconds=0.01, eval=Eval(every="20 steps", train_images=10))

    def lose_one(pids: dict[str, int]) -> None:
        os.kill(pids["worker_03"], signal.SIGKILL)
        so_far = evaluated_at(tmp_path)
        wait_until(lambda: evaluated_at(tmp_path) >= 2 * so_far + 180)
        os.kill(os.getpid(), signal.SIGINT)

    stopped = disturbed(s, tmp_path, lose_one, lambda d: evaluated_at(d) > 0)
    assert (stopped.status, stopped.summary["lost"]) == ("interrupted", {"worker_03": "killed by SIGKILL"})
    before, known = newest(tmp_path).owner, len(rows(tmp_path, "system"))
    assert before.moment.clocks[3] < before.moment.step - 100
    last = rows(tmp_path, "center")[-1]
    assert stopped.summary["evaluated"] == {key: last[key] for key in ("seconds", "step", "exchanges")}
    # what is shown is older than center.pt, if there was time for an exchange after it
    assert last["exchanges"] < before.moment.exchanges or before.moment.step - last["step"] < s.tau
    assert last["exchanges"] <= stopped.summary["exchanges"] == before.moment.exchanges

    again = disturbed(
        s,
        tmp_path,
        lambda _: os.kill(os.getpid(), signal.SIGINT),
        lambda d: len(rows(d, "system")) > known,
        resume=True,
    )
    after = newest(tmp_path).owner
    assert (
        again.status == "interrupted"
        and after.moment.clocks[3] == again.summary["steps"]["worker_03"] > before.moment.clocks[3]
    )
    assert after.moment.exchanges > before.moment.exchanges and after.moment.step >= before.moment.step
    for party in ("center", "system"):
        steps = [r["step"] for r in rows(tmp_path, party)]
        assert steps == sorted(steps)
    [lost_at] = [r["step"] for r in rows(tmp_path, "system") if "lost" in r]
    assert (again.summary["lost"], again.summary["lost_before"]) == ({}, {"worker_03": [lost_at]})


def test_the_end_of_the_master_ends_the_run_and_says_so(tmp_path: Path) -> None:
    outcome = disturbed(unhurried("easgd"), tmp_path, lambda pids: os.kill(pids["master"], signal.SIGKILL), training)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.reason is not None and "the master died (killed by SIGKILL)" in outcome.reason


def test_a_launcher_that_does_not_listen_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything has been said and the master and the workers have ended before it listens again."""
    listen = Processes.handle_next

    def late(run: Processes) -> None:
        if "training begins" in (tmp_path / "logs" / "launcher.log").read_text():
            for child in multiprocessing.active_children():
                if child.name != "easgd-evaluator":
                    child.join(60)
        listen(run)

    monkeypatch.setattr(Processes, "handle_next", late)
    outcome = run(settings("easgd", eval=Eval(every="1 step", train_images=10)), tmp_path)
    assert outcome.status == "completed", outcome.reason
    evaluated = [r["step"] for r in rows(tmp_path, "center")]
    assert len(evaluated) > 35 and evaluated[-1] == 40  # more than is taken in one go
    assert len(recorded_order(tmp_path)) == 4 * 14
    # training ended then, not when that was heard
    assert outcome.summary["wall_seconds"] == newest(tmp_path).owner.moment.seconds


def test_a_killed_evaluator_is_started_again_and_no_point_is_missing(tmp_path: Path) -> None:
    def kill_it(pids: dict[str, int]) -> None:
        os.kill(pids["evaluator"], signal.SIGKILL)
        interrupt_after(80, tmp_path)

    s = unhurried("easgd", eval=Eval(every="20 steps", train_images=100))
    outcome = disturbed(s, tmp_path, kill_it, lambda d: evaluated_at(d) > 0)
    assert outcome.status == "interrupted"
    assert (tmp_path / "logs" / "launcher.log").read_text().count("INFO evaluator: process") == 2
    evaluated = [r["step"] for r in rows(tmp_path, "center")]
    assert [int(step // 20) for step in evaluated] == list(range(len(evaluated)))


def test_a_stopped_worker_does_not_stop_the_others(tmp_path: Path) -> None:
    def freeze(pids: dict[str, int]) -> None:
        os.kill(pids["worker_01"], signal.SIGSTOP)
        try:
            wait_until_others_go_on(tmp_path, 1)
        finally:
            os.kill(pids["worker_01"], signal.SIGCONT)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = disturbed(unhurried("easgd"), tmp_path, freeze, lambda d: evaluated_at(d) > 0)
    assert (outcome.status, outcome.summary["lost"]) == ("interrupted", {})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_from_it(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    s = unhurried("eamsgd")
    outcome = disturbed(s, tmp_path, lambda _: os.kill(os.getpid(), number), training)
    assert (outcome.status, outcome.exit_code) == ("interrupted", code)
    told = [rows(tmp_path, f"worker_{i:02d}")[-1] for i in range(4)]
    parts = ("compute", "data", "communication", "other")
    # also of the steps since
    assert sum(outcome.summary["seconds"].values()) > sum(row[f"seconds_{part}"] for row in told for part in parts) / 4
    taken = max(outcome.summary["steps"].values())
    assert steps_taken(newest(tmp_path)) == taken  # a shorter run is refused by it
    s.steps = taken + 50
    assert run(s, tmp_path, resume=True).status == "completed"
    for i in range(4):
        steps = [r["step"] for r in rows(tmp_path, f"worker_{i:02d}")]
        assert steps == sorted(set(steps)) and steps[-1] == s.steps
    seconds = [r["seconds"] for r in rows(tmp_path, "center")]
    assert seconds == sorted(seconds)
    assert len(recorded_order(tmp_path)) == json.loads((tmp_path / "summary.json").read_text())["exchanges"]


def test_a_run_ends_when_its_center_reaches_the_error_asked_for(tmp_path: Path) -> None:
    s = unhurried("eamsgd", until={"test_error": 40.0}, batch_size=32)
    outcome = run(s, tmp_path)
    assert outcome.status == "completed"
    evaluated = [r["test_error"] for r in rows(tmp_path, "center") if "test_error" in r]
    assert evaluated[-1] <= 40.0 < min(evaluated[:-1])
    prepared = build.prepare(s)
    assert prepared.problem.evaluate(saved_center(tmp_path, prepared))["test_error"] == pytest.approx(evaluated[-1])
    last = [r for r in rows(tmp_path, "center") if "test_error" in r][-1]
    assert len(recorded_order(tmp_path)) == last["exchanges"]
    assert all(r["seconds"] <= last["seconds"] for r in rows(tmp_path))
    assert_steps_are_those_of_the_exchanges(outcome, tmp_path)


def assert_steps_are_those_of_the_exchanges(outcome: Outcome, directory: Path) -> None:
    """Of a run whose record was cut where it reached its level, with tau = 3."""
    for i in range(4):
        exchanges = recorded_order(directory).count(i)
        assert 3 * (exchanges - 1) <= outcome.summary["steps"][f"worker_{i:02d}"] <= 3 * exchanges


def test_a_completed_run_resumed_with_another_level_repeats_nothing(tmp_path: Path) -> None:
    s = settings("easgd", workers=2, until={"test_error": 0.0})
    assert run(s, tmp_path).status == "completed"
    parties = ("center", "worker_00", "worker_01")
    before = [rows(tmp_path, party) for party in parties]
    assert before[0][-1]["step"] == 40
    s.until = {"test_error": 0.1}
    assert run(s, tmp_path, resume=True).status == "completed"
    assert [rows(tmp_path, party) for party in parties] == before


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    outcome = run(settings("downpour", eta=1e6, steps=5000), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("diverged", 0)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "diverged"


def test_no_process_and_no_shared_memory_is_left(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.exists() else set()
    run(settings("easgd"), tmp_path)
    pids = re.findall(r"process (\d+)$", (tmp_path / "logs" / "launcher.log").read_text(), re.MULTILINE)
    assert len(pids) >= 6
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    others = (set(shared.iterdir()) if shared.exists() else set()) - before
    while any(path.exists() for path in others):  # of tests beside this one, which end; what this run has left stays
        time.sleep(0.05)


def test_ctrl_c_while_processes_are_starting_ends_cleanly(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to every process of the group, the server that is still importing torch among them."""
    command = [sys.executable, "-m", "easgd_cli", "train", "steps=100000", f"hydra.run.dir={tmp_path / 'run'}"]
    with warm.cold():
        process = subprocess.Popen(
            command, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    while not (tmp_path / "run" / "logs" / "launcher.log").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"


def test_ctrl_c_from_the_first_line_of_the_log_on_leaves_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Journal.__init__

    def interrupted(journal: Journal, job: Job, prepared: build.Experiment) -> None:
        begin(journal, job, prepared)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Journal, "__init__", interrupted)
    outcome = run(settings("easgd"), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"


def test_an_evaluator_that_keeps_dying_stops_the_run_but_loses_nothing(tmp_path: Path) -> None:
    s = unhurried("easgd", seconds=0.02, eval=Eval(every="20 steps", train_images=1347))

    def kill_each(pids: dict[str, int]) -> None:
        killed: set[str] = set()

        def died_3_times() -> bool:  # one that had measured something first does not count
            log = (tmp_path / "logs" / "launcher.log").read_text()
            for pid in set(re.findall(r"INFO evaluator: process (\d+)", log)) - killed:
                os.kill(int(pid), signal.SIGKILL)
                killed.add(pid)
            return "evaluator died 3 times" in log

        wait_until(died_3_times)

    outcome = disturbed(s, tmp_path, kill_each, training)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert "evaluator died 3 times" in (outcome.reason or "")
    s.steps = max(outcome.summary["steps"].values()) + 20
    assert run(s, tmp_path, resume=True).status == "completed"
    evaluated = [r["step"] for r in rows(tmp_path, "center")]
    assert [int(step // 20) for step in evaluated][:-1] == sorted({int(step // 20) for step in evaluated[:-1]})


def test_a_silent_worker_does_not_keep_checkpoints_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easgd_cli.launcher.processes.local._PATIENCE", Patience(usual=1.5))
    s = unhurried("easgd", seconds=0.02, checkpoint=Checkpoint(every="20 steps"))

    def freeze(pids: dict[str, int]) -> None:
        os.kill(pids["worker_03"], signal.SIGSTOP)
        try:
            before = checkpoints_written(tmp_path)
            wait_until(lambda: checkpoints_written(tmp_path) >= before + 2)
        finally:
            os.kill(pids["worker_03"], signal.SIGCONT)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = disturbed(s, tmp_path, freeze, lambda d: evaluated_at(d) > 0)
    assert (outcome.status, outcome.summary["lost"]) == ("interrupted", {})
    assert "the checkpoint does not wait for workers [3] any longer" in (tmp_path / "logs" / "launcher.log").read_text()
    assert newest(tmp_path).workers.keys() == {0, 1, 2, 3}  # the last one


def test_a_run_that_has_its_result_does_not_wait_for_a_silent_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easgd_cli.launcher.processes.local._PATIENCE", Patience(usual=4.0))
    s = unhurried("eamsgd", until={"test_error": 15.0}, batch_size=32)
    outcome = disturbed(s, tmp_path, lambda pids: os.kill(pids["worker_02"], signal.SIGSTOP), lambda _: True)
    assert (outcome.status, outcome.exit_code) == ("completed", 0)
    assert outcome.summary["lost"] == {"worker_02": "did not finish its step when the run ended"}
    said = [
        line
        for line in (tmp_path / "logs" / "launcher.log").read_text().splitlines()
        if "worker 2 has not" in line and "WARNING" in line
    ]
    assert len(said) == 1 and "has not finished its step within 4 s; the run ends without it" in said[0]
    assert newest(tmp_path).workers.keys() == {0, 1, 3}
    assert_steps_are_those_of_the_exchanges(outcome, tmp_path)  # far apart, with one silent for nearly all of it


def test_one_worker_that_is_silent_when_its_level_is_reached_costs_nothing_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It owns what is kept at an end, so there is no checkpoint of that, but the center that reached the level is
    saved.
    """
    monkeypatch.setattr("easgd_cli.launcher.processes.local._PATIENCE", Patience(usual=0.5))
    s = unhurried("msgd", until={"test_error": 50.0}, batch_size=32)
    evaluated = Journal.evaluation

    def freeze_when_reached(journal: Journal, *of: Any) -> None:
        evaluated(journal, *of)
        if journal.reached:
            [worker] = [c.pid for c in multiprocessing.active_children() if c.name == "easgd-worker_00"]
            os.kill(worker or 0, signal.SIGSTOP)

    monkeypatch.setattr(Journal, "evaluation", freeze_when_reached)
    outcome = run(s, tmp_path)
    assert (outcome.status, outcome.summary["lost"]) == (
        "completed",
        {"worker_00": "did not finish its step when the run ended"},
    )
    prepared = build.prepare(s)
    assert prepared.problem.evaluate(saved_center(tmp_path, prepared))["test_error"] == pytest.approx(
        rows(tmp_path, "center")[-1]["test_error"]
    )


@pytest.fixture
def not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is let go on by SIGCONT, as one that a debugger or the system holds is not."""
    send = fork_server.Process.send_signal

    def send_all_but(process: fork_server.Process, number: int) -> None:
        if number != signal.SIGCONT:
            send(process, number)

    monkeypatch.setattr(fork_server.Process, "send_signal", send_all_but)


def test_a_worker_that_cannot_be_woken_does_not_take_the_others_of_its_round_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_woken: None
) -> None:
    """They wait for its message when the end comes, and are given theirs back."""
    monkeypatch.setattr("easgd_cli.launcher.processes.local._PATIENCE", Patience(interrupted=4.0))

    def freeze_and_interrupt(pids: dict[str, int]) -> None:
        os.kill(pids["worker_02"], signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = disturbed(unhurried("sync_eamsgd"), tmp_path, freeze_and_interrupt, lambda d: evaluated_at(d) > 0)
    assert (outcome.status, outcome.summary["lost"]) == (
        "interrupted",
        {"worker_02": "did not finish its step when the run ended"},
    )
    assert newest(tmp_path).workers.keys() == {0, 1, 3}


def frozen_master(s: Settings, directory: Path) -> Outcome:
    """What becomes of a run whose master stands still and cannot be woken when a signal ends it."""

    def freeze_and_interrupt(pids: dict[str, int]) -> None:
        os.kill(pids["master"], signal.SIGSTOP)
        wait_until(lambda: "the master has said nothing" in (directory / "logs" / "launcher.log").read_text())
        os.kill(os.getpid(), signal.SIGINT)

    return disturbed(s, directory, freeze_and_interrupt, lambda d: (d / "checkpoint").exists())


@pytest.mark.parametrize("algo", ["easgd", "sync_easgd"])
def test_another_master_keeps_the_center_of_one_that_cannot_be_woken(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_woken: None
) -> None:
    monkeypatch.setattr("easgd_cli.launcher.processes.local._PATIENCE", Patience(interrupted=8.0))
    s = unhurried(algo, checkpoint=Checkpoint(every="40 steps"), max_restarts=3)
    outcome = frozen_master(s, tmp_path)
    assert (outcome.status, outcome.exit_code, outcome.reason) == ("interrupted", 130, "SIGINT received")
    assert (outcome.summary["lost"], outcome.summary["restarts"]) == ({}, {"master": 1})
    last = newest(tmp_path)
    assert last.workers.keys() == {0, 1, 2, 3} and last.owner.moment.exchanges == len(recorded_order(tmp_path))
    center = saved_center(tmp_path, build.prepare(s))
    assert torch.equal(center, last.owner.vectors["x"]), "of this moment"


def test_a_master_that_cannot_be_woken_is_not_blamed_for_the_signal_that_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_woken: None
) -> None:
    """Where no other goes on with its center."""
    monkeypatch.setattr("easgd_cli.launcher.processes.local._PATIENCE", Patience(interrupted=2.0))
    outcome = frozen_master(unhurried("easgd", checkpoint=Checkpoint(every="40 steps"), max_restarts=0), tmp_path)
    assert (outcome.status, outcome.exit_code, outcome.summary["lost"]) == ("interrupted", 130, {})
    assert outcome.reason is not None and "SIGKILL" not in outcome.reason and "resume=" in outcome.reason
    assert steps_taken(newest(tmp_path)) >= 40


@pytest.mark.parametrize(
    ("algo", "party"),
    [("easgd", "worker_01"), ("easgd", "master"), ("eamsgd", "evaluator"), ("sync_easgd", "worker_03")],
)
def test_who_is_stopped_is_named_and_an_interrupted_run_wakes_it_and_keeps_everything(
    algo: str, party: str, tmp_path: Path
) -> None:
    def told(key: str) -> list[dict[str, Any]]:
        return [r for r in rows(tmp_path, "system") if r.get(key) == party]

    def freeze_twice(pids: dict[str, int]) -> None:
        os.kill(pids[party], signal.SIGSTOP)
        wait_until(lambda: bool(told("silent")))
        os.kill(pids[party], signal.SIGCONT)
        wait_until(lambda: bool(told("goes_on")))
        os.kill(pids[party], signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)

    outcome = disturbed(unhurried(algo, seconds=0.03), tmp_path, freeze_twice, training)
    assert (outcome.status, outcome.exit_code, outcome.summary["lost"]) == ("interrupted", 143, {})
    assert newest(tmp_path).workers.keys() == {0, 1, 2, 3}
    [silent], [goes_on] = told("silent"), told("goes_on")
    assert silent["silent_seconds"] >= 2 and goes_on["seconds"] >= silent["seconds"]
    name = f"worker {int(party[-2:])}" if party.startswith("worker") else f"the {party}"
    log = (tmp_path / "logs" / "launcher.log").read_text()
    assert f"{name} has said nothing for " in log and f"{name} goes on after " in log
    assert log.count(" has said nothing for ") == 1, "nobody else is blamed"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_a_lost_terminal_or_a_scheduler_sends_ends_a_run_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    def twice_to_all(pids: dict[str, int]) -> None:  # as a terminal does
        for pid in (*pids.values(), os.getpid(), os.getpid()):
            os.kill(pid, number)

    before = signal.signal(number, signal.SIG_DFL)  # also where nohup has these tests ignore it
    try:
        outcome = disturbed(unhurried("easgd"), tmp_path, twice_to_all, training)
    finally:
        signal.signal(number, before)
    assert (outcome.status, outcome.exit_code, outcome.summary["lost"]) == ("interrupted", 128 + number, {})
    assert outcome.summary["reason"] == f"{number.name} received"
    assert newest(tmp_path).workers.keys() == {0, 1, 2, 3}


def test_sigquit_writes_where_every_process_is_into_its_log_and_the_run_goes_on(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    where = {"worker_00": "take_step", "master": "requests", "evaluator": "in run", "launcher": "in run"}

    def ask(pids: dict[str, int]) -> None:
        os.kill(os.getpid(), signal.SIGQUIT)
        for name, line in where.items():
            wait_until(lambda name=name, line=line: line in (logs / f"{name}.log").read_text())  # type: ignore[misc]
        interrupt_after(20, tmp_path)

    s = unhurried("easgd", seconds=0.01, workers=2)
    outcome = disturbed(s, tmp_path, ask, lambda d: evaluated_at(d) > 0)
    assert (outcome.status, outcome.summary["lost"]) == ("interrupted", {})


def test_a_process_that_makes_its_parts_imports_nothing_but_the_users_own_choice(tmp_path: Path) -> None:
    """What all processes need, their server has: each would pay for it."""
    s = settings("easgd", model={"name": "mlp", "target": "easgd_cli.models.mlp:MLP"})
    fork_server.end()
    with warm.cold():  # the server that other tests have has imported all models
        child = Child("imported", imported.Imported, build.prepare(s).recipe, tmp_path / "log")
    try:
        message, _ = child.channel.wait()
        assert message == {"kind": "imported", "modules": ["easgd_cli.models.mlp"]}
    finally:
        child.kill()
        child.close()
        fork_server.end()


def test_a_run_goes_on_without_the_server_that_its_processes_were_forked_from(tmp_path: Path) -> None:
    """Its workers and master do not need it, and the next evaluator has another, which imports torch: of slow workers,
    who leave it the processor.
    """

    def kill_the_server_and_the_evaluator(pids: dict[str, int]) -> None:
        server = fork_server.running()
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.lives)
        os.kill(pids["evaluator"], signal.SIGKILL)
        interrupt_after(40, tmp_path)

    s = unhurried("easgd", seconds=0.02, workers=2, eval=Eval(every="10 steps", train_images=100))
    outcome = disturbed(s, tmp_path, kill_the_server_and_the_evaluator, lambda d: evaluated_at(d) > 0)
    assert (outcome.status, outcome.summary["lost"]) == ("interrupted", {})
    log = (tmp_path / "logs" / "launcher.log").read_text()
    assert (
        "the server that a run's processes are forked from (process " in log and ") has ended; the run goes on" in log
    )
    evaluated = [r["step"] for r in rows(tmp_path, "center")]
    assert [int(step // 10) for step in evaluated] == list(range(len(evaluated)))


def test_a_server_that_dies_before_all_processes_are_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Child.__init__

    def killed_before(child: Child, name: str, *of: Any) -> None:
        if name == "worker_02":
            server = fork_server.running()
            assert server is not None
            # while it forks: what asks whether it lives has been answered
            monkeypatch.setattr(fork_server._server, "ensure_running", lambda: os.kill(server.pid, signal.SIGKILL))
        start(child, name, *of)

    monkeypatch.setattr(Child, "__init__", killed_before)
    with pytest.raises(RunError, match=r"forked from \(process \d+\) has ended before all of them were there; start"):
        run(settings("easgd"), tmp_path)
    assert not multiprocessing.active_children()


def test_runs_in_one_process_leave_no_descriptor(tmp_path: Path) -> None:
    run(settings("easgd", workers=2), tmp_path / "first")  # starts the server, which stays
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    run(settings("easgd", workers=2, until={"test_error": 95.0}), tmp_path / "second")
    run(settings("eamsgd", workers=2), tmp_path / "third")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
