"""The quadratic and the double well against closed forms, autograd written out by hand, and the statistics of their
noise.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from easgd_cli.algorithms import EASGD, SGD, SyncEASGD
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.problems.base import check_problem
from easgd_cli.problems.double_well import DoubleWell
from easgd_cli.problems.noisy import NoisyFunction
from easgd_cli.problems.quadratic import Quadratic
from easgd_cli.training.drive import ByHand


def quadratic(**options: Any) -> Quadratic:
    return Quadratic(**{"seed": 0, "workers": 2, "l2": 0.0, "device": torch.device("cpu"), **options})


def double_well(**options: Any) -> DoubleWell:
    return DoubleWell(**{"seed": 0, "workers": 2, "l2": 0.0, "device": torch.device("cpu"), **options})


H = [0.5, 1.0, 3.0]


def by_hand(name: str, x: Tensor) -> Tensor:
    if name == "quadratic":
        return sum((h * x[i] ** 2 / 2 for i, h in enumerate(H)), torch.zeros((), dtype=torch.float64))
    return sum(((1 - x[i] ** 2) ** 2 / 4 for i in range(3)), torch.zeros((), dtype=torch.float64))


def made(name: str, **options: Any) -> NoisyFunction:
    return quadratic(dimension=3, spectrum=H, **options) if name == "quadratic" else double_well(dimension=3, **options)


@pytest.mark.parametrize("name", ["quadratic", "double_well"])
def test_the_gradient_is_that_of_the_function_less_the_noise_plus_l2(name: str) -> None:
    plain, noisy = made(name, noise=0.0), made(name, noise=0.7, l2=0.3)
    for t in range(5):
        x = torch.randn(3, dtype=torch.float64).requires_grad_()
        noisy.load(1, t)
        xi = -noisy.gradient(torch.zeros(3, dtype=torch.float64)).clone()  # at 0, where both functions are flat
        assert float(xi.abs().min()) > 0
        loss = by_hand(name, x) - xi @ x
        (expected,) = torch.autograd.grad(loss + 0.15 * x.square().sum(), x)
        torch.testing.assert_close(noisy.gradient(x.detach()), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(noisy.loss, loss.detach(), rtol=1e-12, atol=1e-12)
        (exact,) = torch.autograd.grad(by_hand(name, x), x)
        torch.testing.assert_close(plain.gradient(x.detach()), exact, rtol=1e-12, atol=1e-12)
        assert plain.evaluate(x.detach())["train_loss"] == pytest.approx(float(by_hand(name, x.detach())), rel=1e-12)
        assert noisy.evaluate(x.detach()) == plain.evaluate(x.detach())


def test_one_worker_of_sgd_on_the_noiseless_quadratic_decays_as_1_less_eta_h_to_the_t() -> None:
    problem = quadratic(dimension=3, spectrum=H, noise=0.0, start=[2.0, -1.0, 0.5])
    driver = ByHand(SGD(), problem, workers=1, tau=1, schedule=Constant(0.1), start=problem.start())
    for t in range(1, 60):
        driver.step(0)
        expected = (1 - 0.1 * torch.tensor(H, dtype=torch.float64)) ** t * problem.start()
        torch.testing.assert_close(driver.workers[0].x, expected, rtol=1e-12, atol=0)


def test_sgd_settles_at_the_stationary_variance_of_an_ar1_process() -> None:
    """x' = (1 - eta h) x + eta xi has variance eta sigma^2 / (h (2 - eta h)), if xi is independent from
    step to step.
    """
    problem = quadratic(dimension=20_000, spectrum=2.0, noise=10.0, start=0.0)
    driver = ByHand(SGD(), problem, workers=1, tau=1, schedule=Constant(0.2), start=problem.start())
    for _ in range(60):
        driver.step(0)
    expected = 0.2 * 100 / (2 * (2 - 0.4))
    assert float(driver.workers[0].x.var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize(("p", "figure"), [(1, [1, 1.6381, 2.6678, 3.2577]), (10, [1, 0.9091, 0.56804, 0.4712])])
def test_synchronous_easgd_on_the_quadratic_has_the_mean_squared_error_of_the_papers_figure_5(
    p: int, figure: list[float]
) -> None:
    """eta = .1, beta = .9, h = 1, sigma = 10, all from 1 (equations 15 and 16) after 1, 2, 10 and 100 rounds; each
    coordinate is a run of its own.
    """
    n = 20_000 if p == 1 else 5000
    problem = quadratic(dimension=n, noise=10.0, workers=p)
    driver = ByHand(SyncEASGD(alpha=0.9 / p), problem, workers=p, tau=1, schedule=Constant(0.1), start=problem.start())
    assert driver.center is not None
    found = {}
    for t in range(1, 101):
        driver.round()
        found[t] = float(driver.center.vectors["x"].square().mean())
    for t, expected in zip((1, 2, 10, 100), figure, strict=True):
        # A normal variable of mean square m has Var(x^2) <= 2 m^2.
        assert found[t] == pytest.approx(expected, rel=5 * math.sqrt(2 / n) if t > 1 else 1e-12)


def noise(worker: int, t: int, seed: int = 0, **options: Any) -> Tensor:
    problem = quadratic(seed=seed, **options)
    problem.load(worker, t)
    return -problem.gradient(torch.zeros_like(problem.start())).clone()


def test_noise_is_a_function_of_seed_worker_and_step() -> None:
    problem = quadratic(dimension=5, noise=2.0)
    zero = torch.zeros(5, dtype=torch.float64)
    in_turn = {}
    for worker, t in [(0, 0), (1, 0), (0, 1), (1, 7), (0, 0)]:
        problem.load(worker, t)
        in_turn[worker, t] = problem.gradient(zero).clone()
    for (worker, t), g in in_turn.items():
        assert torch.equal(-g, noise(worker, t, dimension=5, noise=2.0))
    draws = [noise(w, t, seed, dimension=5) for w in range(3) for t in range(3) for seed in range(3)]
    assert len({tuple(d.tolist()) for d in draws}) == 27
    assert torch.equal(noise(0, 3, dimension=5, noise=2.0), 2 * noise(0, 3, dimension=5, noise=1.0))


def test_noise_is_independent_and_of_the_variance_asked_for() -> None:
    """One coordinate, 6,000 steps of two workers: mean 0, variance sigma^2, no correlation with the next step, the
    other worker or the other seed.
    """
    n, sigma = 6000, 3.0
    series = {}
    for worker, seed in [(0, 0), (1, 0), (0, 1)]:
        problem = quadratic(noise=sigma, seed=seed)
        zero, draws = torch.zeros(1, dtype=torch.float64), []
        for t in range(n):
            problem.load(worker, t)
            draws.append(-float(problem.gradient(zero)))
        series[worker, seed] = torch.tensor(draws, dtype=torch.float64)
    limit = 4.5 / math.sqrt(n)
    for own in series.values():
        assert abs(float(own.mean())) < limit * sigma
        assert float(own.var()) / sigma**2 == pytest.approx(1, abs=limit * math.sqrt(2))
        assert float((own**4).mean()) / sigma**4 == pytest.approx(3, abs=limit * math.sqrt(96))
        assert abs(float((own[1:] * own[:-1]).mean())) / sigma**2 < limit
    for other in (series[1, 0], series[0, 1]):
        assert abs(float((series[0, 0] * other).mean())) / sigma**2 < limit


def test_the_spectrum_is_one_number_two_ends_or_one_for_each() -> None:
    def h(spectrum: Any, dimension: int) -> list[float]:
        problem = quadratic(dimension=dimension, spectrum=spectrum, noise=0.0)
        return problem.gradient(torch.ones(dimension, dtype=torch.float64)).tolist()

    assert h(0.5, 3) == [0.5] * 3
    assert h([1.0, 100.0], 5) == pytest.approx([1, 10**0.5, 10, 10**1.5, 100], rel=1e-14)
    assert h([1.0, 100.0], 2) == [1, 100]
    assert h([3.0, 1.0, 2.0], 3) == [3, 1, 2]


def test_workers_begin_at_the_center_or_where_they_are_told() -> None:
    problem = quadratic(dimension=2, start=[1.0, 2.0])
    assert problem.start().tolist() == problem.start(0).tolist() == problem.start(1).tolist() == [1, 2]
    problem = quadratic(dimension=2, start=3.0, starts=[[1.0, -1.0], 0.5])
    assert [problem.start(w).tolist() for w in (None, 0, 1)] == [[3, 3], [1, -1], [0.5, 0.5]]
    problem.start(0).zero_()
    assert problem.start(0).tolist() == [1, -1]


def test_what_is_measured_of_a_point() -> None:
    x = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert quadratic(dimension=2).evaluate(x) == {
        "train_loss": 12.5,
        "distance_to_optimum": 5.0,
        "coordinate_0": 3.0,
        "coordinate_1": -4.0,
    }
    assert set(quadratic(dimension=9).evaluate(torch.ones(9, dtype=torch.float64))) == {
        "train_loss",
        "distance_to_optimum",
    }
    figures = double_well(dimension=2).evaluate(x)
    assert figures["distance_to_optimum"] == pytest.approx(math.hypot(3 - 1, 4 - 1)) and figures["well"] == 0
    assert [double_well().evaluate(torch.tensor([at], dtype=torch.float64))["well"] for at in (0.4, -2.0)] == [1, -1]
    assert torch.equal(quadratic(dimension=2).state_dict(x)["x"], x)


@pytest.mark.parametrize("problem", [quadratic(dimension=3, l2=0.1), double_well(dimension=40, starts=[1.0, -1.0])])
def test_they_are_problems(problem: NoisyFunction) -> None:
    assert "distance_to_optimum" in check_problem(problem, "own", workers=2)


@pytest.mark.parametrize(("rho", "trapped"), [(0.5, True), (0.8, False)])
def test_two_workers_of_easgd_in_different_wells_hold_the_center_on_the_hill_below_rho_two_thirds(
    rho: float, trapped: bool
) -> None:
    eta, s = 0.01, math.sqrt(1 - rho)
    problem = double_well(noise=0.0, start=0.02, starts=[s, -s])
    starts = [problem.start(w) for w in range(2)]
    driver = ByHand(
        EASGD(alpha=rho * eta), problem, workers=2, tau=1, schedule=Constant(eta), start=problem.start(), starts=starts
    )
    for _ in range(4000):
        driver.step(0)
        driver.step(1)
    assert driver.center is not None
    center = float(driver.center.vectors["x"])
    if trapped:
        assert abs(center) < 0.02
        assert [float(w.x) for w in driver.workers] == pytest.approx([s, -s], abs=0.02)
    else:
        assert [center, *(float(w.x) for w in driver.workers)] == pytest.approx([1, 1, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dimension": 0}, "problem.dimension=0: must be a whole number of at least 1"),
        ({"noise": -1.0}, "problem.noise=-1: is the standard deviation"),
        (
            {"dimension": 3, "spectrum": [1.0, 2.0, 3.0, 4.0]},
            "problem.spectrum=[1,2,3,4]: is a list of 4; it must be one number, or a list of problem.dimension=3",
        ),
        ({"spectrum": [1.0, 2.0]}, "problem.spectrum=[1,2]: is a list of 2"),
        ({"spectrum": -0.5}, "problem.spectrum=-0.5: holds the curvatures h of 1/2 h x^2, which are greater than 0"),
        ({"dimension": 3, "spectrum": [0.0, 1.0]}, "problem.spectrum=[0,1]: holds"),
        ({"start": math.inf}, "problem.start=inf: must be finite"),
        ({"dimension": 2, "start": [1.0]}, "problem.start=[1]: is a list of 1"),
        ({"starts": [1.0]}, "problem.starts=[1]: is a list of 1; it must have an entry for each of workers=2"),
        (
            {"dimension": 3, "starts": [1.0, [2.0, 3.0]]},
            "problem.starts[1]=[2,3]: is a list of 2; it must be one number, or a list of problem.dimension=3",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        quadratic(**options)
