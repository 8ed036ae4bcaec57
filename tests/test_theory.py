"""The closed forms against independent computations: the full linear system iterated, exact fractions, numpy's
eigenvalues, brute force.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from easgd_cli.theory import doublewell, family, moments, roundrobin
from easgd_cli.theory.linear import Array, after, spectral_radius

# p, eta, beta, h, sigma, x0, center0: none of them in the paper's table
POINTS = [
    (7, 0.3, 0.5, 2.0, 3.0, 1.0, -2.0),
    (1, 0.13, 0.6, 1.0, 10.0, 1.0, 1.0),
    (4, 0.9, 0.9, 1.0, 1.0, -3.0, 0.5),
    (16, 1.7, 0.4, 0.7, 2.0, 0.0, 1.0),
    (3, 0.02, 1.1, 1.3, 5.0, 2.0, 2.0),
    (2, 0.7, 1.0, 1.0, 0.5, 1.0, 0.0),
    (5, 1.4, 1.5, 1.3, 1.0, 1.0, 1.0),  # not stable
]
STABLE = POINTS[:-1]


def full_map(p: int, eta: float, beta: float, h: float) -> Array:
    """M of Lemma 7.1 over (x^1, .., x^p, x~), entry by entry."""
    alpha = beta / p
    m = np.zeros((p + 1, p + 1))
    for i in range(p):
        m[i, i], m[i, p], m[p, i] = 1 - alpha - eta * h, alpha, alpha
    m[p, p] = 1 - p * alpha
    return m


def iterated(
    t: int, p: int, eta: float, beta: float, h: float, sigma: float, x0: float, center0: float
) -> tuple[Array, Array]:
    """Mean and covariance of all p + 1 variables, step by step."""
    m, mean, cov = full_map(p, eta, beta, h), np.array([x0] * p + [center0]), np.zeros((p + 1, p + 1))
    noise = np.diag([(eta * sigma) ** 2] * p + [0.0])
    for _ in range(t):
        mean, cov = m @ mean, m @ cov @ m.T + noise
    return mean, cov


@pytest.mark.parametrize("t", [0, 1, 2, 3, 17, 64, 501])
@pytest.mark.parametrize("point", POINTS)
def test_mean_and_variance_equal_those_of_all_variables_iterated(point: tuple, t: int) -> None:
    found = moments.center(t, *point)
    mean, cov = iterated(t, *point)
    assert found.mean == pytest.approx(mean[-1], rel=1e-9, abs=1e-13)
    assert found.variance == pytest.approx(cov[-1, -1], rel=1e-9)
    assert found.mse == pytest.approx(mean[-1] ** 2 + cov[-1, -1], rel=1e-9, abs=1e-25)
    if t <= 1:
        assert found.variance == 0


@pytest.mark.parametrize("t", [1, 2, 5, 40])
@pytest.mark.parametrize("point", STABLE)
def test_equations_15_and_16_as_printed(point: tuple, t: int) -> None:
    p, eta, beta, h, sigma, x0, center0 = point
    alpha = beta / p
    a, c2 = eta * h + (p + 1) * alpha, eta * h * p * alpha
    gamma, phi = 1 - (a - math.sqrt(a * a - 4 * c2)) / 2, 1 - (a + math.sqrt(a * a - 4 * c2)) / 2
    u0 = p * (x0 - alpha / (1 - p * alpha - phi) * center0)
    mean = gamma**t * center0 + (gamma**t - phi**t) / (gamma - phi) * alpha * u0
    braces = (
        (gamma**2 - gamma ** (2 * t)) / (1 - gamma**2)
        + (phi**2 - phi ** (2 * t)) / (1 - phi**2)
        - 2 * (gamma * phi - (gamma * phi) ** t) / (1 - gamma * phi)
    )
    found = moments.center(t, *point)
    assert found.mean == pytest.approx(mean, rel=1e-8, abs=1e-12)
    assert found.variance == pytest.approx(
        p**2 * alpha**2 * eta**2 / (gamma - phi) ** 2 * braces * sigma**2 / p, rel=1e-8, abs=1e-12
    )
    assert [float(v) for v in moments.eigenvalues(p, eta, beta, h)] == pytest.approx([gamma, phi], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("p", [1000, 10_000, 10**8])
def test_eigenvalues_that_nearly_meet_cost_no_digits(p: int) -> None:
    """eta h = beta and p large: gamma - phi is small, and (16) divides by its square. Against exact fractions."""
    eta = beta = Fraction(9, 10)
    y = center = Fraction(1)
    # covariance of (mean of workers, center) in units of sigma^2 / p
    syy = syc = scc = Fraction(0)
    alpha = beta / p
    for _ in range(40):
        a, b, c, d = 1 - alpha - eta, alpha, beta, 1 - beta
        y, center = a * y + b * center, c * y + d * center
        syy, syc, scc = (
            a * a * syy + 2 * a * b * syc + b * b * scc + eta * eta,
            a * c * syy + (a * d + b * c) * syc + b * d * scc,
            c * c * syy + 2 * c * d * syc + d * d * scc,
        )
    found = moments.center(40, p, 0.9, 0.9, 1.0, 10.0)
    assert found.mean == pytest.approx(float(center), rel=1e-9)
    assert found.variance == pytest.approx(float(100 * scc / p), rel=1e-12)


@pytest.mark.parametrize("point", STABLE)
def test_the_limit_is_where_the_iteration_ends(point: tuple) -> None:
    p, eta, beta, h, sigma, *_ = point
    m = full_map(p, eta, beta, h)
    noise = np.diag([(eta * sigma) ** 2] * p + [0.0])
    n = p + 1
    lyapunov = np.linalg.solve(np.eye(n * n) - np.kron(m, m), noise.ravel()).reshape(n, n)
    limit = moments.center(math.inf, *point)
    assert limit.variance == pytest.approx(lyapunov[-1, -1], rel=1e-9)
    assert limit.mean == 0
    assert moments.center(10**6, *point).mse == pytest.approx(float(limit.mse), rel=1e-9)
    gamma, phi = (float(v) for v in moments.eigenvalues(p, eta, beta, h))
    printed = beta**2 * eta**2 / ((1 - gamma**2) * (1 - phi**2)) * (1 + gamma * phi) / (1 - gamma * phi) * sigma**2 / p
    assert limit.variance == pytest.approx(printed, rel=1e-9)


def test_condition_17_is_that_all_eigenvalues_are_inside() -> None:
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(3000):
        p = int(rng.integers(1, 9))
        eta, beta, h = rng.uniform([0.0, -0.5, 0.3], [2.5, 2.5, 2.0])
        radius = np.abs(np.linalg.eigvals(full_map(p, eta, beta, h))).max()
        if abs(radius - 1) > 1e-6:
            seen.append(radius < 1)
            assert moments.stable(p, eta, beta, h) == (radius < 1), (p, eta, beta, h, radius)
    assert 0.2 < np.mean(seen) < 0.8


def test_a_point_outside_has_no_limit_but_moments_at_every_t() -> None:
    p, *rest = POINTS[-1]
    assert moments.center(math.inf, p, *rest).variance == np.inf
    assert np.isfinite(moments.center(50, p, *rest).mse)
    assert moments.center(10**6, p, *rest).mse == np.inf


def test_the_papers_table() -> None:
    table = {1: (1, 1.6381, 2.6678, 3.2577, 3.2578), 10: (1, 0.9091, 0.56804, 0.4712, 0.4712)}
    for p, row in table.items():
        for t, mse in zip((1, 2, 10, 100, math.inf), row, strict=True):
            assert moments.center(t, p, 0.1, 0.9, 1, 10).mse == pytest.approx(mse, abs=5e-5)


def test_corollary_7_1_is_the_limit_over_workers() -> None:
    for eta, beta, h, sigma in ((0.1, 0.9, 1.0, 10.0), (1.2, 0.3, 1.4, 2.0), (0.05, 1.9, 3.0, 1.0)):
        p = 10**9
        assert p * moments.center(math.inf, p, eta, beta, h, sigma).mse == pytest.approx(
            float(moments.corollary(eta, beta, h, sigma)), rel=1e-6
        )
    assert moments.corollary(2.1, 0.9) == moments.corollary(0.1, 2.0) == np.inf


@pytest.mark.parametrize("point", STABLE)
def test_the_averaged_center_is_the_mean_of_all_centers_so_far(point: tuple) -> None:
    """From the covariances of all x~_0 .. x~_t, through the response of every one to every gradient's noise."""
    p, eta, beta, h, sigma, x0, center0 = point
    t = 30
    m = full_map(p, eta, beta, h)
    powers = [np.linalg.matrix_power(m, k) for k in range(t + 1)]
    start = np.array([x0] * p + [center0])
    mean = np.mean([(powers[k] @ start)[-1] for k in range(t + 1)])
    variance = 0.0
    for s in range(t):  # worker 0's noise at step s reaches x~_k through m^(k - s - 1); all workers alike
        response = sum(powers[k - s - 1][-1, 0] for k in range(s + 1, t + 1)) * eta / (t + 1)
        variance += p * (response * sigma) ** 2
    found = moments.averaged_center(t, *point)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.variance == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("point", STABLE)
def test_the_averaged_center_reaches_the_fisher_bound_for_every_stable_rate(point: tuple) -> None:
    p, _, _, h, sigma, *_ = point
    t = 10**7
    assert (t + 1) * moments.averaged_center(t, *point).variance == pytest.approx(sigma**2 / (p * h**2), rel=1e-4)
    assert moments.fisher(p, h, sigma) == pytest.approx(sigma**2 / (p * h**2))


def test_grids_are_their_points() -> None:
    eta, beta = np.meshgrid(np.linspace(0.1, 1.9, 5), np.linspace(0.1, 1.9, 4))
    for t in (3, math.inf):
        grid = moments.center(t, 10, eta, beta, 1.0, 10.0).mse
        assert grid.shape == (4, 5)
        assert grid[2, 3] == moments.center(t, 10, eta[2, 3], beta[2, 3], 1.0, 10.0).mse


def test_doubling_is_step_by_step() -> None:
    rng = np.random.default_rng(2)
    a, q, start = rng.normal(size=(3, 4, 4)) / 3, np.eye(4) * rng.uniform(size=(3, 1, 1)), rng.normal(size=(3, 4))
    mean, cov = start, np.zeros((3, 4, 4))
    for t in range(23):
        found = after(t, a, q, start)
        np.testing.assert_allclose(found[0], mean, rtol=1e-10)
        np.testing.assert_allclose(found[1], cov, rtol=1e-10, atol=1e-14)
        mean, cov = (a @ mean[..., None])[..., 0], a @ cov @ a.swapaxes(-1, -2) + q


# --- round robin ---------------------------------------------------------------------------------------------------


def columns(n: int, step: Callable[[Array], Array]) -> Array:
    """The matrix of a linear rule, by what it does to the unit vectors."""
    return np.stack([step(np.eye(n)[k].copy()) for k in range(n)], axis=1)


def easgd_round(p: int, eta: float, alpha: float, state: Array) -> Array:
    x, center = list(state[:p]), state[p]
    for i in range(p):
        x[i], center = x[i] - eta * x[i] - alpha * (x[i] - center), center + alpha * (x[i] - center)
    return np.array([*x, center])


def admm_round(p: int, eta: float, rho: float, state: Array) -> Array:
    multiplier, x, center = list(state[0 : 2 * p : 2]), list(state[1 : 2 * p : 2]), state[2 * p]
    for i in range(p):
        multiplier[i] = multiplier[i] - (x[i] - center)
        x[i] = (x[i] - eta * x[i] + eta * rho * (multiplier[i] + center)) / (1 + eta * rho)
        center = sum(x[j] - multiplier[j] for j in range(p)) / p
    return np.array([*(v for pair in zip(multiplier, x, strict=True) for v in pair), center])


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_a_round_is_the_printed_rules_in_turn(p: int) -> None:
    np.testing.assert_allclose(
        roundrobin.easgd_round(p, 0.3, 0.2), columns(p + 1, lambda s: easgd_round(p, 0.3, 0.2, s)), atol=1e-14
    )
    np.testing.assert_allclose(
        roundrobin.admm_round(p, 0.03, 2.2), columns(2 * p + 1, lambda s: admm_round(p, 0.03, 2.2, s)), atol=1e-14
    )


def test_the_papers_radii_of_admm() -> None:
    assert spectral_radius(roundrobin.admm_round(3, 0.001, 2.5)) == pytest.approx(1.000974, abs=5e-7)
    eta, rho = np.meshgrid(np.arange(1, 100) * 1e-4, np.arange(1, 100) * 0.1)
    radius = spectral_radius(roundrobin.admm_round(3, eta, rho))
    assert radius.max() == pytest.approx(1.00138, abs=5e-6)
    assert radius[40, 50] == pytest.approx(
        np.abs(np.linalg.eigvals(columns(7, lambda s: admm_round(3, eta[40, 50], rho[40, 50], s)))).max(), rel=1e-9
    )


def test_easgds_condition_is_that_of_every_single_map_and_suffices_for_the_round() -> None:
    rng = np.random.default_rng(3)
    eta, alpha = rng.uniform([-0.3, -0.3], [2.5, 1.4], size=(4000, 2)).T
    holds = roundrobin.easgd_condition(eta, alpha)
    single = spectral_radius(roundrobin.easgd_map(0, 1, eta, alpha))
    clear = np.abs(single - 1) > 1e-9
    assert (holds == (single <= 1))[clear].all()
    assert 0.2 < holds.mean() < 0.8
    for p in (2, 3, 4, 7):
        assert spectral_radius(roundrobin.easgd_round(p, eta[holds], alpha[holds])).max() <= 1 + 1e-9


def test_the_condition_is_not_necessary_for_two_workers_and_tight_for_an_odd_number() -> None:
    eta = 0.8
    edge = (4 - 2 * eta) / (4 - eta)
    assert not roundrobin.easgd_condition(eta, edge + 0.005)
    assert spectral_radius(roundrobin.easgd_round(2, eta, edge + 0.005)) < 1
    for p in (1, 3, 5, 7):
        c = -(2 - eta - edge) / edge
        reversed_state = np.array([*[1.0, -1.0] * (p // 2), 1.0, c])
        np.testing.assert_allclose(roundrobin.easgd_round(p, eta, edge) @ reversed_state, -reversed_state, atol=1e-12)


def test_admm_first_shrinks_then_grows_and_easgd_shrinks() -> None:
    admm = roundrobin.norms(roundrobin.admm_round(3, 0.001, 2.5), np.array([0.0, 1.0] * 3 + [1.0]), 12_000)
    easgd = roundrobin.norms(roundrobin.easgd_round(3, 0.001, 0.0025), np.ones(4), 12_000)
    assert admm[1000] < admm[0] and admm[12_000] > 100 * admm[0]
    # its complex eigenvalues make it swing
    assert np.log(admm[12_000] / admm[10_000]) / 2000 == pytest.approx(np.log(1.000973885), rel=1e-2)
    assert (np.diff(easgd) < 0).all() and easgd[12_000] < 1e-3


# --- double well ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.05, 0.4, 0.66, 0.67, 0.95])
def test_the_split_state_is_stationary_and_a_minimum_below_two_thirds(rho: float) -> None:
    state = doublewell.split_point(rho)

    def objective(v: Array) -> float:
        return float(sum((1 - x * x) ** 2 / 4 + rho / 2 * (x - v[2]) ** 2 for x in v[:2]))

    def slopes(at: Array) -> list[float]:
        return [(objective(at + step * e) - objective(at - step * e)) / (2 * step) for e in unit]

    step, unit = 1e-4, np.eye(3)
    slope = slopes(state)
    curvature = [
        [
            (
                objective(state + step * (e + f))
                - objective(state + step * (e - f))
                - objective(state - step * (e - f))
                + objective(state - step * (e + f))
            )
            / (4 * step**2)
            for f in unit
        ]
        for e in unit
    ]
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    np.testing.assert_allclose(doublewell.eigenvalues(rho), np.linalg.eigvalsh(curvature), atol=1e-6)
    assert (doublewell.eigenvalues(rho)[0] > 0) == (rho < doublewell.CRITICAL_RHO)


# --- the family ----------------------------------------------------------------------------------------------------


def form_step(name: str, eta_h: float, alpha: float, beta: float, p: int, state: Array, noise: Array) -> Array:
    """One round of p workers, to the letter; eta g(x) = eta_h x - noise."""
    x, center = state[:p], state[p]
    moved = center + beta * (x.mean() - center)
    if name == "Jacobi EASGD":
        return np.append(x - (eta_h * x - noise) - alpha * (x - center), moved)
    if name == "Gauss-Seidel EASGD":
        return np.append(x - (eta_h * x - noise) - alpha * (x - moved), moved)
    pulled = x - alpha * (x - moved)
    return np.append(pulled - (eta_h * pulled - noise), moved)


def form_matrix(form: family.Form, eta_h: float, alpha: float, beta: float, p: int) -> Array:
    return columns(p + 1, lambda s: form_step(form.name, eta_h, alpha, beta, p, s, np.zeros(p)))


@pytest.mark.parametrize("form", family.FORMS, ids=lambda f: f.name)
def test_radius_and_variance_of_a_form_are_those_of_its_rules(form: family.Form) -> None:
    rng, p, compared = np.random.default_rng(4), 3, 0
    for _ in range(400):
        eta_h, alpha, beta = rng.uniform([0.05, -1.5, -0.5], [2.2, 2.0, 3.2])
        m = form_matrix(form, eta_h, alpha, beta, p)
        radius = np.abs(np.linalg.eigvals(m)).max()
        assert form.radius(eta_h, alpha, beta, differences=True) == pytest.approx(radius, abs=1e-6)
        one = form_matrix(form, eta_h, alpha, beta, 1)
        assert form.radius(eta_h, alpha, beta, differences=False) == pytest.approx(
            np.abs(np.linalg.eigvals(one)).max(), abs=1e-6
        )
        if radius < 0.999:
            compared += 1
            noise = np.diag([eta_h**2] * p + [0.0])
            covariance = np.linalg.solve(np.eye(16) - np.kron(m, m), noise.ravel()).reshape(4, 4)
            assert form.variance(eta_h, alpha, beta) / p == pytest.approx(covariance[-1, -1], rel=1e-7)
        if np.abs(np.linalg.eigvals(one)).max() > 1 + 1e-9:
            assert form.variance(eta_h, alpha, beta) == np.inf
    assert compared > 50


@pytest.mark.parametrize("form", family.FORMS, ids=lambda f: f.name)
def test_the_best_alphas_are_the_best_of_a_search(form: family.Form) -> None:
    rng, alphas = np.random.default_rng(5), np.linspace(-8, 8, 40_001)
    for _ in range(40):
        eta_h, beta = rng.uniform(0.05, 1.95, 2)
        for differences in (False, True):
            best = float(form.fastest(eta_h, beta, differences=differences))
            radius = form.radius(eta_h, alphas, beta, differences=differences)
            assert form.radius(eta_h, best, beta, differences=differences) <= radius.min() + 1e-9
            if abs(best) < 7:
                assert best == pytest.approx(alphas[radius.argmin()], abs=1e-2)
        quiet = float(form.quietest(eta_h, beta))
        assert form.variance(eta_h, quiet, beta) <= form.variance(eta_h, alphas, beta).min() * (1 + 1e-9)
        c = math.sqrt(eta_h * beta)
        assert form.variance(eta_h, quiet, beta) == pytest.approx(eta_h * beta / (2 - c) ** 2, rel=1e-9)
        assert form.radius(
            eta_h, float(form.fastest(eta_h, beta, differences=False)), beta, differences=False
        ) == pytest.approx(abs(1 - c), abs=1e-6)


def test_jacobis_fastest_alpha_is_never_positive_and_zero_in_a_wedge() -> None:
    """Mean mode: -(sqrt(beta) - sqrt(eta h))^2. With differences: 0 exactly for eta h <= beta <= 2 - eta h, negative
    elsewhere.
    """
    axis = np.arange(1, 40) / 20 - 0.0125
    eta_h, beta = np.meshgrid(axis, axis)
    np.testing.assert_allclose(
        family.JACOBI.fastest(eta_h, beta, differences=False), -((np.sqrt(beta) - np.sqrt(eta_h)) ** 2), atol=1e-12
    )
    best = family.JACOBI.fastest(eta_h, beta, differences=True)
    wedge = (eta_h <= beta) & (beta <= 2 - eta_h)
    np.testing.assert_allclose(best[wedge & (eta_h < beta)], 0, atol=1e-9)
    assert (best[~wedge & (np.abs(eta_h - beta) > 1e-9)] < 0).all()


@pytest.mark.parametrize("form", family.FORMS, ids=lambda f: f.name)
def test_a_negative_alpha_tied_to_beta_is_never_stable(form: family.Form) -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        p = int(rng.integers(1, 20))
        eta_h, alpha = rng.uniform([0.01, -2], [2.5, -0.001])
        assert form.radius(eta_h, alpha, p * alpha, differences=False) > 1


@pytest.mark.parametrize("form", family.FORMS, ids=lambda f: f.name)
def test_the_center_without_noise_is_heavy_ball(form: family.Form) -> None:
    eta_h, alpha, beta, p = 0.4, -0.05, 0.15, 3
    state, centers = np.array([1.0, -2.0, 0.5, 3.0]), []
    for _ in range(20):
        centers.append(state[-1])
        state = form_step(form.name, eta_h, alpha, beta, p, state, np.zeros(p))
    momentum = 1 - float(form.u(eta_h, alpha, beta))
    for before, now, then in zip(centers, centers[1:], centers[2:], strict=False):
        assert then == pytest.approx(now - eta_h * beta * now + momentum * (now - before), rel=1e-9, abs=1e-12)
