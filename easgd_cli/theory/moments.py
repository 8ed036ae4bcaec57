"""Synchronous EASGD (Jacobi, tau = 1) on a quadratic: Lemma 7.1, Corollary 7.1, condition (17), and the averaged
center.

Zhang, Choromanska, LeCun (2015), pp. 10-16. Worker i's stochastic gradient is h x - xi, the noise xi independent with
variance sigma^2, the optimum at 0:

    x^i' = x^i - eta (h x^i - xi^i) - alpha (x^i - x~)
    x~'  = x~ + beta (y - x~)                              y = (1/p) sum_i x^i,  beta = p alpha

The center sees only the mean y of the workers, whose noise has variance sigma^2 / p:

    y'  = (1 - alpha - eta h) y + alpha x~ + eta xi
    x~' = beta y + (1 - beta) x~

The eigenvalues gamma, phi of this map have gamma + phi = 2 - a and (1 - gamma)(1 - phi) = c^2, with a = eta h + (p+1)
alpha and c^2 = eta h beta. Since a - 2c = (sqrt(eta h) - sqrt(beta))^2 + alpha, they are real and distinct for alpha >
0, but closer and closer as p grows. For alpha < 0 they are real, too, and gamma > 1; complex ones need beta > 0 > alpha
(family.py).

Arguments: p workers, learning rate eta, beta = p alpha, curvature h, noise sigma; scalars or arrays that broadcast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from easgd_cli.theory.linear import Array, Truth, after, floats


@dataclass(frozen=True)
class Moments:
    """Mean and variance of one variable, over the noise."""

    mean: Array
    variance: Array

    @property
    def mse(self) -> Array:
        """Mean squared distance from the optimum, 0."""
        with np.errstate(over="ignore"):
            return self.mean**2 + self.variance


def eigenvalues(p: ArrayLike, eta: ArrayLike, beta: ArrayLike, h: ArrayLike = 1.0) -> tuple[Array, Array]:
    """Returns the eigenvalues gamma >= phi of the map of (y, x~), real since alpha and beta have the same sign."""
    eta_h, beta = np.multiply(eta, h, dtype=float), np.asarray(beta, dtype=float)
    alpha = beta / np.asarray(p, dtype=float)
    a, c2 = eta_h + alpha + beta, eta_h * beta
    with np.errstate(invalid="ignore", divide="ignore"):
        # a^2 - 4c^2 as (a - 2c)(a + 2c), so that nothing cancels when p is large and eta h close to beta
        square = np.where(
            beta >= 0, ((np.sqrt(eta_h) - np.sqrt(beta)) ** 2 + alpha) * (a + 2 * np.sqrt(c2)), a * a - 4 * c2
        )
        larger = (a + np.sqrt(square)) / 2  # 1 - phi
        smaller = np.where(larger > 0, c2 / larger, 0.0)  # 1 - gamma
    return 1 - smaller, 1 - larger


def stable(p: ArrayLike, eta: ArrayLike, beta: ArrayLike, h: ArrayLike = 1.0) -> Truth:
    """Returns whether condition (17) holds: all eigenvalues of the map of all p + 1 variables lie in the unit circle.

    It is stated for gamma and phi, and suffices for the differences between workers, whose factor is 1 - alpha - eta h.
    """
    eta_h, beta = np.multiply(eta, h, dtype=float), np.asarray(beta, dtype=float)
    alpha = beta / np.asarray(p, dtype=float)
    return np.asarray((eta_h > 0) & (alpha > 0) & (margin(p, eta, beta, h) > 0) & ((2 - eta_h) + (2 - beta) > alpha))


def margin(p: ArrayLike, eta: ArrayLike, beta: ArrayLike, h: ArrayLike = 1.0) -> Array:
    """Returns (2 - eta h)(2 - p alpha) - 2 alpha = (1 + gamma)(1 + phi), which condition (17) requires to be > 0."""
    eta_h, beta = np.multiply(eta, h, dtype=float), np.asarray(beta, dtype=float)
    product: Array = (2 - eta_h) * (2 - beta) - 2 * beta / np.asarray(p, dtype=float)
    return product


def center(
    t: float, p: ArrayLike, eta: ArrayLike, beta: ArrayLike, h: ArrayLike = 1.0, sigma: ArrayLike = 1.0,
    x0: ArrayLike = 1.0, center0: ArrayLike = 1.0,
) -> Moments:  # fmt: skip
    """Returns E x~_t, equation (15), and V x~_t, equation (16); at t = inf their limits, inf if condition (17) fails.

    `x0`: where all workers (or their mean) begin; `center0`: where the center begins.
    """
    p, eta, beta, h, sigma, x0, center0 = np.broadcast_arrays(*floats(p, eta, beta, h, sigma, x0, center0))
    if math.isinf(t):
        finite = stable(p, eta, beta, h)
        return Moments(np.where(finite, 0.0, np.inf), np.where(finite, limit_variance(p, eta, beta, h, sigma), np.inf))
    alpha = beta / p
    a = _matrix([[1 - alpha - eta * h, alpha], [beta, 1 - beta]])
    q = np.zeros(a.shape)
    q[..., 0, 0] = (eta * sigma) ** 2 / p
    mean, covariance = after(int(t), a, q, np.stack([x0, center0], axis=-1))
    return Moments(mean[..., 1], covariance[..., 1, 1])


def limit_variance(p: ArrayLike, eta: ArrayLike, beta: ArrayLike, h: ArrayLike = 1.0, sigma: ArrayLike = 1.0) -> Array:
    """Returns lim V x~_t as t -> inf, where condition (17) holds.

    It is the paper's beta^2 eta^2 (1 + gamma phi) / ((1 - gamma^2)(1 - phi^2)(1 - gamma phi)) sigma^2 / p, without
    eigenvalues: u = 1 - gamma phi, c^2 = (1 - gamma)(1 - phi), 4 - 2u - c^2 = (1 + gamma)(1 + phi), the margin of (17).
    """
    p, eta, beta, h, sigma = floats(p, eta, beta, h, sigma)
    c2 = eta * h * beta
    u = eta * h + beta / p + beta - c2
    with np.errstate(divide="ignore", invalid="ignore"):
        variance: Array = beta * eta / h * (2 - u) / (u * margin(p, eta, beta, h)) * sigma**2 / p
    return variance


def corollary(eta: ArrayLike, beta: ArrayLike, h: ArrayLike = 1.0, sigma: ArrayLike = 1.0) -> Array:
    """Returns lim p MSE as t -> inf, then p -> inf (Corollary 7.1); inf unless 0 < eta h < 2 and 0 < beta < 2."""
    eta_h, beta = np.multiply(eta, h, dtype=float), np.asarray(beta, dtype=float)
    inside = (eta_h > 0) & (eta_h < 2) & (beta > 0) & (beta < 2)
    both = beta * eta_h
    with np.errstate(divide="ignore", invalid="ignore"):
        value = both / ((2 - beta) * (2 - eta_h)) * (2 - beta - eta_h + both) / (beta + eta_h - both)
        value = value * np.divide(sigma, h) ** 2
    return np.where(inside, value, np.inf)


def averaged_center(
    t: int, p: ArrayLike, eta: ArrayLike, beta: ArrayLike, h: ArrayLike = 1.0, sigma: ArrayLike = 1.0,
    x0: ArrayLike = 1.0, center0: ArrayLike = 1.0,
) -> Moments:  # fmt: skip
    """Returns moments of z_t = (x~_0 + ... + x~_t) / (t + 1), exact at every t: the recursion carries the sum along.

    (t + 1) V z_t tends to `fisher` for every eta and beta that are stable.
    """
    p, eta, beta, h, sigma, x0, center0 = np.broadcast_arrays(*floats(p, eta, beta, h, sigma, x0, center0))
    alpha, zero, one = beta / p, np.zeros(p.shape), np.ones(p.shape)
    a = _matrix([[1 - alpha - eta * h, alpha, zero], [beta, 1 - beta, zero], [beta, 1 - beta, one]])
    q = np.zeros(a.shape)
    q[..., 0, 0] = (eta * sigma) ** 2 / p
    mean, covariance = after(t, a, q, np.stack([x0, center0, center0], axis=-1))
    return Moments(mean[..., 2] / (t + 1), covariance[..., 2, 2] / (t + 1) ** 2)


def fisher(p: ArrayLike, h: ArrayLike = 1.0, sigma: ArrayLike = 1.0) -> Array:
    """Returns the Fisher bound sigma^2 / (p h^2): no estimator of the optimum from p t gradients has a smaller t V."""
    return np.asarray(np.divide(sigma, h) ** 2 / np.asarray(p, dtype=float))


def _matrix(rows: list[list[Array]]) -> Array:
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
