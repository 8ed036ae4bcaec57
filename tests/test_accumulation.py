"""Batches that are accumulated make the gradient of one large one; they are the batches of a run without, and a run
with them is measured, counted and resumed like any other. A net that computes its activations again gives the same
bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import recorded_order, rows, run
from test_simulated import same_files, virtual
from test_tasks import theirs

from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.net import NetProblem
from easgd_cli.record import reader
from easgd_cli.settings import schema

CPU = torch.device("cpu")


def problem(data: str, net: str, **values: Any) -> NetProblem:
    s = theirs(data, net, **values)
    made = build.problem(s, build.data(s), CPU)
    assert isinstance(made, NetProblem)
    return made


@pytest.mark.parametrize(
    "case", [("table", "Linear"), ("two_inputs", "Siamese"), ("tags", "Linear"), ("tokens", "Bigram")]
)
@pytest.mark.parametrize("k", [2, 5])
def test_a_gradient_is_that_of_one_batch_of_all_samples(case: tuple[str, str], k: int) -> None:
    """l2 term included, over steps that cross the end of a pass."""
    whole, parts = problem(*case, batch_size=4 * k, l2=0.1), problem(*case, batch_size=4, accumulate=k, l2=0.1)
    assert parts.batch_size == whole.batch_size == 4 * k
    x = whole.start() + 0.1
    for t in (0, 1, 7, 30):
        for p in (whole, parts):
            p.load(2, t)
        torch.testing.assert_close(parts.gradient(x), whole.gradient(x), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=1e-14)


def test_its_batches_are_those_of_a_run_without() -> None:
    """Drawn noise and dropout included: the gradient is the mean of those of k steps at the same x."""
    alone, three = problem("Augmented", "Dropped"), problem("Augmented", "Dropped", accumulate=3)
    x = alone.start()
    for t in (0, 4):
        three.load(1, t)
        mean = torch.zeros_like(x)
        for n in range(3 * t, 3 * t + 3):
            alone.load(1, n)
            mean += alone.gradient(x) / 3
        torch.testing.assert_close(three.gradient(x), mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_clips_the_whole_gradient_and_goes_on_bit_for_bit(precision: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"accumulate": 3, "clip": 0.02, "l2": 0.1, "precision": precision}
    net = "Dropped32" if precision == "bf16" else "Dropped"
    for name, lengths in (("whole", [14]), ("stopped", [5, 14])):
        for steps in lengths:
            s = theirs("Augmented", net, "eamsgd", workers=3, steps=steps, **values)
            virtual(s, tmp_path / name, resume=steps != lengths[0], spread=0.3, latency=0.002)
    same_files(tmp_path / "whole", tmp_path / "stopped", "center.pt")
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "stopped")
    whole = theirs("Augmented", net, "msgd", steps=9, **values)
    virtual(whole, tmp_path / "alone")
    run(whole, tmp_path / "real")
    same_files(tmp_path / "alone", tmp_path / "real", "center.pt")


def test_clipped_is_the_mean_and_not_each_part(tmp_path: Path) -> None:
    ends = []
    for name, values in (("whole", {"batch_size": 12}), ("parts", {"batch_size": 4, "accumulate": 3})):
        s = theirs("table", "Linear", "msgd", steps=20, clip=0.3, **values)
        virtual(s, tmp_path / name)
        ends.append(torch.load(tmp_path / name / "center.pt", weights_only=True))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-10, atol=1e-12)


def test_samples_and_passes_count_all_of_them(tmp_path: Path) -> None:
    s = theirs("table", "Linear", "msgd", steps=8, batch_size=5, accumulate=4)
    virtual(s, tmp_path / "run")
    summary = reader.summary_of(tmp_path / "run")
    assert summary["batch_size"] == 20
    assert summary["samples_per_second"] == pytest.approx(8 * 20 / summary["wall_seconds"])
    last = [row for row in rows(tmp_path / "run", "worker_00")][-1]
    assert last["samples_per_second"] == pytest.approx(20 / (last["seconds"] / 8), rel=1e-3)
    s.steps, s.epochs = None, 3.0
    assert schema.total_steps(s, 90) == 14  # 3 * 90 / 20


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(UsageError, match=r"accumulate=0: must be a whole number of at least 1"):
        schema.check(theirs("table", "Linear", accumulate=0))
    s = theirs("table", "Linear", accumulate=2)
    s.problem = {"name": "quadratic", "target": "easgd_cli.problems.quadratic:Quadratic"}
    s.dataset = s.model = {"name": "none", "target": None}
    with pytest.raises(UsageError, match=r"problem=quadratic accumulate=2: .*leave out accumulate="):
        build.prepare(s)


@pytest.mark.parametrize("algo", ["eamsgd", "msgd"])
def test_a_net_that_computes_its_activations_again_trains_the_same_bits(algo: str, tmp_path: Path) -> None:
    """torch.utils.checkpoint inside a user's net, with dropout in what is computed twice."""
    for name in ("Dropped", "Checkpointed"):
        s = theirs("Augmented", name, algo, workers=1, steps=12, accumulate=2)
        virtual(s, tmp_path / name)
        run(s, tmp_path / f"{name} in a process")
        same_files(tmp_path / name, tmp_path / f"{name} in a process", "center.pt")
    same_files(tmp_path / "Dropped", tmp_path / "Checkpointed", "center.pt")
