"""Parallel dither and dropout: copies of each sample, each with noise and a mask of its own, and the mean of their
gradients.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_accumulation import problem
from test_runs import recorded_order, run
from test_simulated import same_files, virtual
from test_tasks import theirs
from torch import Tensor

from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.net import NetProblem
from easgd_cli.settings import schema


def gradient(p: NetProblem, worker: int = 1, t: int = 3) -> Tensor:
    p.load(worker, t)
    return p.gradient(p.start() + 0.1).clone()


@pytest.mark.parametrize("case", [("table", "Linear"), ("two_inputs", "Siamese"), ("tags", "Linear")])
def test_copies_that_do_not_differ_change_nothing(case: tuple[str, str]) -> None:
    torch.testing.assert_close(gradient(problem(*case, replicas=3)), gradient(problem(*case)), rtol=1e-12, atol=1e-14)
    assert problem(*case, replicas=3).batch_size == problem(*case).batch_size


def test_dither_of_a_linear_net_is_ridge_regression() -> None:
    """The mean of ||(a + n) w - b||^2 over the noise n is ||a w - b||^2 + dither^2 ||w||^2 a sample: within four
    standard errors, which those of 40 draws of the mean over 500 copies tell.
    """
    plain, noisy = problem("table", "Linear"), problem("table", "Linear", replicas=500, dither=0.5)
    weight = (plain.start() + 0.1)[:5]
    drawn = []
    for t in range(40):
        drawn.append(gradient(noisy, t=t)[:5] - gradient(plain, t=t)[:5])
    mean, error = torch.stack(drawn).mean(0), torch.stack(drawn).std(0) / 40**0.5
    assert bool(((mean - 2 * 0.5**2 * weight).abs() < 4 * error).all()) and float(error.max()) < 0.02
    assert float(mean.norm()) > 10 * float(error.norm())


@pytest.mark.parametrize(("net", "values"), [("Dropped", {}), ("Linear", {"dither": 0.3})])
def test_every_copy_has_noise_and_mask_of_its_own(net: str, values: dict[str, float]) -> None:
    """Of n copies the gradient lies about its mean over many with a variance of 1 / n."""
    many = gradient(problem("Augmented", net, replicas=4000, **values))
    one, hundred = (float((gradient(problem("Augmented", net, replicas=n, **values)) - many).norm()) for n in (1, 100))
    assert 4 * hundred < one


def test_it_is_a_function_of_seed_worker_and_step_in_each_accumulated_batch() -> None:
    made = problem("Augmented", "Dropped", replicas=2, dither=0.1, accumulate=2)
    first, other = gradient(made), gradient(made, t=4)
    assert torch.equal(gradient(made), first) and not torch.equal(other, first)
    assert not torch.equal(gradient(made, worker=2), first)
    assert torch.equal(gradient(problem("Augmented", "Dropped", replicas=2, dither=0.1, accumulate=2)), first)
    single = problem("Augmented", "Dropped", replicas=2, dither=0.1)
    torch.testing.assert_close((gradient(single, t=6) + gradient(single, t=7)) / 2, first, rtol=1e-12, atol=1e-14)


def test_what_is_measured_has_neither() -> None:
    plain, noisy = problem("Augmented", "Dropped"), problem("Augmented", "Dropped", replicas=3, dither=9.0)
    assert plain.evaluate(plain.start()) == noisy.evaluate(noisy.start())


def test_a_run_goes_on_bit_for_bit_and_is_that_of_processes(tmp_path: Path) -> None:
    for name, lengths in (("whole", [14]), ("stopped", [5, 14])):
        for steps in lengths:
            s = theirs("Augmented", "Dropped", "eamsgd", workers=3, steps=steps, replicas=3, dither=0.2)
            virtual(s, tmp_path / name, resume=steps != lengths[0], spread=0.3, latency=0.002)
    same_files(tmp_path / "whole", tmp_path / "stopped", "center.pt")
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "stopped")
    alone = theirs("Augmented", "Dropped", "msgd", steps=9, replicas=3, dither=0.2)
    virtual(alone, tmp_path / "alone")
    run(alone, tmp_path / "real")
    same_files(tmp_path / "alone", tmp_path / "real", "center.pt")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": 0}, r"replicas=0: must be a whole number of at least 1"),
        ({"dither": -0.1}, r"dither=-0\.1: must not be negative"),
        ({"dither": float("nan")}, r"dither=nan: must be a finite number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        schema.check(theirs("table", "Linear", **values))


@pytest.mark.parametrize("values", [{"dither": 0.1}, {"replicas": 2}])
def test_tokens_and_problems_without_samples_are_refused(values: dict[str, float]) -> None:
    [(key, value)] = values.items()
    with pytest.raises(UsageError, match=rf"{key}={value}: .*tokens.*leave out {key}="):
        problem("tokens", "Bigram", **values)
    s = theirs("table", "Linear", **values)
    s.problem = {"name": "quadratic", "target": "easgd_cli.problems.quadratic:Quadratic"}
    s.dataset = s.model = {"name": "none", "target": None}
    with pytest.raises(UsageError, match=rf"problem=quadratic {key}={value}: .*leave out {key}="):
        build.prepare(s)
