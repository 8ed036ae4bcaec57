"""Runs that torch.distributed keeps together: each is the plain loop that torch's documentation describes, and a run
like any other.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import checkpoints_written, disturbed, hurried, longer, rows, saved_center, settings, training
from test_runs import run as of_two_rules
from torch import Tensor

from easgd_cli.__main__ import main
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.record import reader
from easgd_cli.settings.schema import Checkpoint, Eval, Settings
from easgd_cli.training import data_parallel
from easgd_cli.training.data_parallel import Periodically

DDP = {"name": "ddp", "target": "easgd_cli.launcher.peers:DataParallel"}
POST_LOCAL = {"name": "post_local_sgd", "target": "easgd_cli.launcher.peers:PostLocalSGD"}
DOUBLE = {"name": "double", "target": "nets:double"}
UNHURRIED = {"name": "unhurried", "target": "nets:Unhurried"}


def of_peers(launcher: dict[str, Any], algo: str = "msgd", **values: Any) -> Settings:
    given = {"workers": 3, "tau": 1 if launcher is DDP else 4, "gamma": 1e-2, "steps": 22, **values}
    return replace(settings(algo, **given), launcher=launcher)


def run(s: Settings, directory: Path, resume: bool = False) -> Outcome:
    directory.mkdir(exist_ok=True)
    return kinds.launcher(s)(Job(directory, resume=resume), build.prepare(s))


class ByHand:
    """torch.optim.SGD written out, on gradients of the run's own batches in one process: `moves` with a mean gradient
    for all, or with each worker's own.
    """

    def __init__(self, s: Settings, momentum: float, *, nesterov: bool):
        self._momentum, self._nesterov, self._s = momentum, nesterov, s
        self._prepared = build.prepare(replace(s, l2=0.0))
        self._schedule = build.schedule(s, s.steps)
        self.x = [self._prepared.start.clone() for _ in range(s.workers)]
        self._v = [torch.zeros_like(x) for x in self.x]

    def gradients(self, t: int) -> list[Tensor]:
        found = []
        for i, x in enumerate(self.x):
            self._prepared.problem.load(i, t)
            found.append(self._prepared.problem.gradient(x).clone())
        return found

    def move(self, t: int, gradients: list[Tensor]) -> None:
        for x, v, g in zip(self.x, self._v, gradients, strict=True):
            g = g + self._s.l2 * x
            v.mul_(self._momentum).add_(g)
            x.sub_(self._schedule(t) * (g + self._momentum * v if self._nesterov else v))

    def mean(self) -> Tensor:
        return torch.stack(self.x).mean(0)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("local", ["own", "momentum", "nesterov"])
def test_ddp_is_the_optimizer_on_the_mean_of_all_gradients(local: str, clip: float | None, tmp_path: Path) -> None:
    step = {"own": None, "momentum": "Momentum", "nesterov": "Nesterov"}[local]
    target = None if step is None else f"easgd_cli.algorithms.local:{step}"
    s = of_peers(DDP, "sgd", model=DOUBLE, clip=clip, local={"name": local, "target": target})
    assert run(s, tmp_path / "run").status == "completed"
    hand = ByHand(s, 0.0 if step is None else 0.9, nesterov=local == "nesterov")
    for t in range(22):
        mean = torch.stack(hand.gradients(t)).mean(0)
        hand.move(t, [mean * min(1.0, clip / (float(mean.norm()) + 1e-6)) if clip else mean] * 3)
    torch.testing.assert_close(saved_center(tmp_path / "run", build.prepare(s)), hand.x[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("tau", "first", "steps"), [(4, 0, 22), (4, 0, 21), (5, 7, 21), (1, 0, 5)])
def test_post_local_sgd_is_local_steps_with_parameters_averaged_every_so_often(
    tau: int, first: int, steps: int, tmp_path: Path
) -> None:
    """Torch averages after one step, and then every tau; at the end the center is the mean, whenever that is."""
    s = of_peers({**POST_LOCAL, "ddp_steps": first}, tau=tau, steps=steps, model=DOUBLE)
    assert run(s, tmp_path / "run").status == "completed"
    hand = ByHand(s, 0.9, nesterov=True)
    for t in range(steps):
        gradients = hand.gradients(t)
        hand.move(t, gradients if t >= first else [torch.stack(gradients).mean(0)] * 3)
        if t >= first and (t - first) % tau == 0:
            hand.x = [hand.mean() for _ in range(3)]
    torch.testing.assert_close(saved_center(tmp_path / "run", build.prepare(s)), hand.mean(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("t", "averaged"), [(0, False), (1, False), (2, False), (3, True), (4, False), (5, True)])
def test_at_the_end_is_averaged_what_the_last_step_has_not_every_so_often(
    t: int, averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tau=2 after 1 step, steps 0, 1 and 3 are averaged, and then 5."""
    summed: list[Tensor] = []
    monkeypatch.setattr(data_parallel.dist, "all_reduce", summed.append)
    monkeypatch.setattr(data_parallel.dist, "get_world_size", lambda: 2)
    Periodically(tau=2, after=1).finish([torch.nn.Parameter(torch.ones(2))], t)
    assert bool(summed) == averaged


def test_ddp_gives_the_center_of_all_reduced_gradients(tmp_path: Path) -> None:
    """The method of two rules and torch's loop, with batch norm, at a rate that does not fall."""
    residual = {"name": "residual", "target": "nets:double_residual"}
    ddp = of_peers(DDP, gamma=0.0, model=residual)
    two_rules = settings("allreduce", workers=3, steps=22, model=residual)
    run(ddp, tmp_path / "ddp")
    of_two_rules(two_rules, tmp_path / "allreduce")
    a, b = (torch.load(tmp_path / name / "center.pt", weights_only=True) for name in ("ddp", "allreduce"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-11)
    measured = [rows(tmp_path / name, "center")[-1]["test_loss"] for name in ("ddp", "allreduce")]
    assert measured[0] == pytest.approx(measured[1], rel=1e-8)


def test_the_record_is_that_of_any_run(tmp_path: Path) -> None:
    s = of_peers(POST_LOCAL, eval=Eval(every="5 steps", train_images=100))
    run(s, tmp_path / "run")
    assert [r["step"] for r in rows(tmp_path / "run", "center")] == [0, 5, 13, 17, 21, 22]  # at the next mean
    for worker in range(3):
        own = rows(tmp_path / "run", f"worker_{worker:02d}")
        assert [r["step"] for r in own] == list(range(1, 23))
        assert all(r["seconds_communication"] > 0 for r in own)
    summary = reader.summary_of(tmp_path / "run")
    assert summary["exchanges"] == 3 * 6 and summary["under"] == "PostLocalSGDOptimizer"
    size = build.prepare(s).size
    assert summary["bytes_exchanged"] == 6 * 4 * 4 * size  # around a ring of three each sends 2/3 twice
    entries = reader.Entries.of(build.method(s), 3)
    assert reader.read_order(tmp_path / "run" / "exchanges.bin", entries) == [0, 1, 2] * 6


@pytest.mark.parametrize("launcher", [DDP, POST_LOCAL], ids=["ddp", "post_local_sgd"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(launcher: dict[str, Any], tmp_path: Path) -> None:
    s = of_peers(launcher, model=UNHURRIED, steps=20_000, checkpoint=Checkpoint(every="20 steps"))
    outcome = disturbed(
        s, tmp_path / "broken", lambda pids: os.kill(os.getpid(), signal.SIGINT), when=checkpointed, run=run
    )
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    steps = set(reader.summary_of(tmp_path / "broken")["steps"].values())
    assert len(steps) == 1 and steps.pop() >= 20  # all have stopped at the same
    s = longer(hurried(s), outcome)
    run(s, tmp_path / "whole")
    assert run(s, tmp_path / "broken", resume=True).status == "completed"
    same_center(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("launcher", [DDP, POST_LOCAL], ids=["ddp", "post_local_sgd"])
def test_a_longer_run_is_that_which_was_long_from_the_start(launcher: dict[str, Any], tmp_path: Path) -> None:
    """A run that has ended between two means goes on from what each worker had."""
    s = of_peers(launcher, steps=31)
    run(s, tmp_path / "whole")
    run(replace(s, steps=15), tmp_path / "shorter")
    run(s, tmp_path / "shorter", resume=True)
    same_center(tmp_path / "whole", tmp_path / "shorter")


@pytest.mark.parametrize("launcher", [DDP, POST_LOCAL], ids=["ddp", "post_local_sgd"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_worker_that_is_killed_ends_the_run_by_its_name(
    number: int, launcher: dict[str, Any], tmp_path: Path
) -> None:
    s = of_peers(launcher, model=UNHURRIED, steps=20_000, workers=4, checkpoint=Checkpoint(every="10 steps"))
    pids: dict[str, int] = {}

    def kill(found: dict[str, int]) -> None:
        pids.update(found)
        os.kill(found[f"worker_{number:02d}"], signal.SIGKILL)

    outcome = disturbed(s, tmp_path / "run", kill, when=lambda d: training(d) and checkpointed(d), run=run)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.reason and f"worker {number} died (killed by SIGKILL), and the others cannot go on" in outcome.reason
    assert "resume=" in outcome.reason and not any(map(alive, pids.values()))
    assert reader.summary_of(tmp_path / "run")["lost"] == {f"worker_{number:02d}": "killed by SIGKILL"}
    shorter = replace(s, steps=reader.newest_checkpoint(tmp_path / "run", []).owner.moment.clocks[0] + 5)
    assert run(shorter, tmp_path / "run", resume=True).status == "completed"


def test_a_worker_that_raises_is_told_and_not_who_waited_for_it(tmp_path: Path) -> None:
    s = of_peers(DDP, model={"name": "raises", "target": "nets:RaisesInThird"}, steps=200)
    outcome = run(s, tmp_path / "run")
    assert outcome.status == "failed" and outcome.reason
    assert "worker 2 died (RuntimeError: on purpose)" in outcome.reason


def test_from_the_command_line_beside_a_method(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One report of both; there is nothing to replay."""
    short = ["workers=2", "steps=8", "batch_size=8", "eval.train_images=50"]
    for launcher, algo in (("local", "eamsgd"), ("ddp", "msgd")):
        assert main(["train", f"launcher={launcher}", f"algo={algo}", *short, f"hydra.run.dir={launcher}"]) == 0
    assert "msgd under DistributedDataParallel, 2 workers, tau=1" in capsys.readouterr().out
    assert main(["report", "ddp", "local", "--out", "told"]) == 0
    assert re.search(r"^msgd +completed", capsys.readouterr().out, re.MULTILINE)
    assert main(["train", "replay=ddp"]) == 2
    assert "torch kept the workers of this run together (launcher=ddp)" in capsys.readouterr().err


def test_settings_without_effect_are_told(easgd: Any, unprepared: None) -> None:
    said = easgd("train", "launcher=ddp", "algo=msgd", "tau=3", "max_restarts=2")
    assert said.err == (
        "easgd: tau=3 has no effect: launcher=ddp averages gradients in every step.\n"
        "easgd: max_restarts=2 has no effect: launcher=ddp ends when a worker does.\n"
    )
    assert easgd("train", "launcher=post_local_sgd", "algo=msgd", "tau=3").err == ""


def test_torchruns_processes_are_not_as_many_runs(easgd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1"), ("TORCHELASTIC_RUN_ID", "none")):
        monkeypatch.setenv(name, value)
    said = easgd("train", "launcher=ddp", "algo=msgd")
    assert said.status == 2 and "torchrun has started 4 processes, and easgd starts those of" in said.err


def test_a_level_ends_the_run_for_all(tmp_path: Path) -> None:
    s = of_peers(POST_LOCAL, model=UNHURRIED, steps=20_000, until={"train_loss": 2.2}, gamma=0.0)
    s = replace(s, eval=Eval(every="20 steps", train_images=100))
    outcome = run(s, tmp_path / "run")
    assert outcome.status == "completed" and outcome.summary["center"]["train_loss"] <= 2.2
    assert max(outcome.summary["steps"].values()) < 20_000


def test_minutes_end_the_run_for_all_at_once(tmp_path: Path) -> None:
    s = of_peers(POST_LOCAL, steps=None, minutes=0.02, model=UNHURRIED | {"seconds": 0.02})
    outcome = run(s, tmp_path / "run")
    [steps] = set(outcome.summary["steps"].values())
    assert outcome.status == "completed" and steps % 4 == 1  # at a mean


def checkpointed(directory: Path) -> bool:
    return checkpoints_written(directory) > 0


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def same_center(a: Path, b: Path) -> None:
    one, other = (torch.load(d / "center.pt", weights_only=True) for d in (a, b))
    assert all(torch.equal(one[name], other[name]) for name in one)
