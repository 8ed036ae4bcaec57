"""The closed forms against the algorithms' own code, many independent runs at a time: one vector dimension
is one run.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from easgd_cli.algorithms import GaussSeidelEASGD, PullThenStep, SyncEASGD
from easgd_cli.algorithms.base import Method
from easgd_cli.theory import family, moments
from easgd_cli.theory.settings import DoubleWell
from easgd_cli.theory.simulate import MOST_DRAWS, Sample, quadratic, runs_affordable, synchronous
from easgd_cli.theory.studies import doublewell

RUNS = 20_000
FAR = 4.0  # standard errors


@pytest.mark.parametrize(
    ("p", "eta", "beta", "h", "sigma", "x0", "center0"),
    [
        (1, 0.1, 0.9, 1.0, 10.0, 1.0, 1.0),
        (4, 0.5, 0.9, 1.0, 10.0, 1.0, 1.0),
        (10, 1.5, 0.4, 1.0, 10.0, 1.0, 1.0),
        (7, 0.3, 0.5, 2.0, 3.0, 5.0, -2.0),
        (2, 1.6, 1.7, 1.0, 1.0, 1.0, 1.0),  # not stable
    ],
)
def test_synchronous_easgd_has_the_moments_of_lemma_7_1(
    p: int, eta: float, beta: float, h: float, sigma: float, x0: float, center0: float
) -> None:
    times = [0, 1, 2, 10, 40]
    found = synchronous(
        SyncEASGD(alpha=beta / p), p, eta, times, h=h, sigma=sigma, x0=x0, center0=center0, runs=RUNS, seed=3
    )
    for t in times:
        for sample, expected in zip(
            found[t],
            (
                moments.center(t, p, eta, beta, h, sigma, x0, center0),
                moments.averaged_center(t, p, eta, beta, h, sigma, x0, center0),
            ),
            strict=True,
        ):
            assert max(map(abs, sample.deviations(float(expected.mean), float(expected.variance)))) < FAR, (
                t,
                sample,
                expected,
            )


def test_the_averaged_center_of_real_runs_is_at_the_fisher_bound() -> None:
    """For three pairs of rates; at t = 400 the bound is within 3 % of the exact variance."""
    p, sigma, t = 2, 10.0, 400
    for eta, beta in ((0.5, 0.8), (0.9, 0.5), (0.3, 1.2)):
        sample = synchronous(
            SyncEASGD(alpha=beta / p), p, eta, [t], h=1.0, sigma=sigma, x0=0.0, center0=0.0, runs=10_000, seed=4
        )[t][1]
        assert (t + 1) * sample.variance == pytest.approx(
            float(moments.fisher(p, 1.0, sigma)), rel=0.03 + FAR * (2 / 10_000) ** 0.5
        )


@pytest.mark.parametrize(
    ("form", "method", "alpha", "beta"),
    [
        (family.JACOBI, SyncEASGD(alpha=0.3), 0.3, 0.6),
        (family.GAUSS_SEIDEL, GaussSeidelEASGD(alpha=0.3), 0.3, 0.6),
        (family.PULL_THEN_STEP, PullThenStep(alpha=0.3, beta=0.6, workers=2), 0.3, 0.6),
        (family.PULL_THEN_STEP, PullThenStep(alpha=1.0, beta=2.0, workers=2), 1.0, 2.0),  # synchronous DOWNPOUR
        (family.PULL_THEN_STEP, PullThenStep(alpha=1.0, beta=1.0, workers=2), 1.0, 1.0),  # model averaging
    ],
    ids=["Jacobi", "Gauss-Seidel", "pull-then-step", "DOWNPOUR", "model averaging"],
)
def test_every_form_settles_at_its_variance(form: family.Form, method: Method, alpha: float, beta: float) -> None:
    p, eta, h, sigma = 2, 0.6, 1.0, 2.0
    sample = synchronous(method, p, eta, [60], h=h, sigma=sigma, x0=0.0, center0=0.0, runs=RUNS, seed=5)[60][0]
    unit = sigma**2 / (p * h**2)
    assert max(map(abs, sample.deviations(0.0, unit * float(form.variance(eta * h, alpha, beta))))) < FAR
    others = [unit * float(other.variance(eta * h, alpha, beta)) for other in family.FORMS if other is not form]
    if alpha < 1:  # the comparison can tell the forms apart
        assert all(abs(sample.deviations(0.0, v)[1]) > FAR for v in others)


def test_noise_is_a_function_of_seed_worker_and_step() -> None:
    def drawn(seed: int, worker: int, t: int) -> torch.Tensor:
        problem = quadratic(0.5, 2.0, 1.0, 5000, seed)
        problem.load(worker, t)
        return problem.gradient(problem.start()).clone()

    assert torch.equal(drawn(1, 2, 3), drawn(1, 2, 3))
    draws = [drawn(*which) for which in ((1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert abs(np.corrcoef(torch.stack(draws).numpy()) - np.eye(4)).max() < 0.06
    assert float(draws[0].mean()) == pytest.approx(0.5, abs=0.12)
    assert float(draws[0].std()) == pytest.approx(2.0, rel=0.05)


def test_deviations_are_in_standard_errors() -> None:
    sample = Sample(mean=0.3, variance=1.1, runs=201)
    assert sample.deviations(0.0, 1.0) == pytest.approx((0.3 * 201**0.5, 0.1 / 0.1))
    assert Sample(1.0, 0.0, 10).deviations(1.0, 0.0) == (0.0, 0.0)
    assert Sample(1.1, 0.0, 10).deviations(1.0, 0.0) == (np.inf, np.inf)


def test_long_simulations_use_fewer_runs_or_are_left_out() -> None:
    assert runs_affordable(20_000, 10, 100) == 20_000
    assert runs_affordable(20_000, 100, 1000) == MOST_DRAWS // 100_000
    assert runs_affordable(20_000, 10_000, 10_000) == 0
    assert runs_affordable(50, 10, 100) == 50


def test_easgd_is_trapped_between_the_wells_below_two_thirds_and_escapes_above() -> None:
    study = doublewell.study(DoubleWell(rho=(0.4, 0.9, 1.5), eta=0.05))
    low, high, beyond = (dict(zip(study.tables[0].columns, row, strict=True)) for row in study.tables[0].rows)
    assert (low["synchronous_trapped"], low["round_robin_trapped"]) == (1, 1)
    assert (high["synchronous_trapped"], high["round_robin_trapped"]) == (0, 0)
    assert (beyond["synchronous_trapped"], beyond["split_state"]) == (0, "does not exist")
    assert abs(high["exact_center"]) == pytest.approx(1, abs=1e-6)
    [ends] = study.grids
    for row in ends.rows:
        end = dict(zip(ends.columns, row, strict=True))
        if end["rho"] == 0.4 and end["order"] == "synchronous":  # gradient descent's fixed point exactly
            assert (end["x1"], end["x2"], end["center"]) == pytest.approx((0.6**0.5, -(0.6**0.5), 0), abs=1e-7)
