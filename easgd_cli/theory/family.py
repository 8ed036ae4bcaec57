"""Three synchronous forms with alpha and beta independent, negative alpha included: stability, best rate, least
variance.

All have the center's line x~' = x~ + beta (y - x~), y the mean of the workers, and noise as in moments.py:

    Jacobi EASGD         x^i' = x^i - eta g(x^i) - alpha (x^i - x~)
    Gauss-Seidel EASGD   x^i' = x^i - eta g(x^i) - alpha (x^i - x~')
    pull-then-step       z^i  = x^i - alpha (x^i - x~'),  x^i' = z^i - eta g(z^i)
                         alpha = 1, beta = p is synchronous DOWNPOUR, alpha = beta = 1 model averaging

On a quadratic the state splits into the *mean mode* (y, x~), which is all that the center sees, and, for p > 1, the
*differences* x^i - y, each multiplied by one factor a step. With c^2 = eta h beta and u = 1 - det, the mean mode of
every form has trace 2 - u - c^2 and det 1 - u: the same c^2 for all three, and u linear in alpha,

    u = 1 - (1 - eta h)(1 - beta) + k alpha     k = 1  |  1 - beta  |  (1 - eta h)(1 - beta)
    factor of the differences                   1 - eta h - alpha  |  the same  |  (1 - eta h)(1 - alpha)

So x~_{t+1} = x~_t - eta beta h x~_t + (1 - u)(x~_t - x~_{t-1}) without noise: heavy-ball momentum 1 - u at learning
rate eta beta. From this, at fixed eta h and beta and by moving alpha alone:

    stable (mean mode)   c^2 > 0, 0 < u, 4 - 2u - c^2 > 0
    best rate            at u = 2c - c^2, where the eigenvalues meet in 1 - c: spectral radius |1 - c|
    center's variance    beta eta / h (2 - u) / (u (4 - 2u - c^2)) sigma^2 / p, least at u = 2 - c: beta eta / (h (2 -
    c)^2) sigma^2 / p

For Jacobi the best rate is at alpha = -(sqrt(beta) - sqrt(eta h))^2, which is never positive. With beta = p alpha, as
in the paper, a negative alpha makes c^2 negative: one eigenvalue is above 1, in every form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from easgd_cli.theory.linear import Array, floats


@dataclass(frozen=True)
class Form:
    """One of the three forms: how u and the factor of the differences depend on alpha (see above)."""

    name: str
    slope: Callable[[Array, Array], Array]  # k(eta h, beta)
    differences: Callable[[Array, Array], Array]  # factor of the differences (eta h, alpha)

    def u(self, eta_h: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Array:
        """Returns u = 1 - det of the mean mode."""
        eta_h, alpha, beta = floats(eta_h, alpha, beta)
        u: Array = eta_h + beta - eta_h * beta + self.slope(eta_h, beta) * alpha
        return u

    def alpha(self, u: ArrayLike, eta_h: ArrayLike, beta: ArrayLike) -> Array:
        """Returns the alpha at which the mean mode has this u; nan where u does not depend on alpha."""
        u, eta_h, beta = floats(u, eta_h, beta)
        slope = self.slope(eta_h, beta)
        alpha: Array = (u - (eta_h + beta - eta_h * beta)) / np.where(slope == 0, np.nan, slope)
        return alpha

    def radius(self, eta_h: ArrayLike, alpha: ArrayLike, beta: ArrayLike, *, differences: bool) -> Array:
        """Returns the spectral radius of the mean mode, or of all modes if `differences` of workers count (p > 1)."""
        mean = mean_radius(np.multiply(eta_h, beta), self.u(eta_h, alpha, beta))
        if not differences:
            return mean
        return np.maximum(mean, np.abs(self.differences(*floats(eta_h, alpha))))

    def fastest(self, eta_h: ArrayLike, beta: ArrayLike, *, differences: bool) -> Array:
        """Returns the alpha of the least `radius` for these eta h and beta (both positive).

        The radii of the mean mode and of the differences each rise away from one minimum. So does the larger of the
        two radii; its minimum lies between the two minima, where a ternary search finds it.
        """
        eta_h, beta = np.broadcast_arrays(*floats(eta_h, beta))
        c = np.sqrt(eta_h * beta)
        mean = self.alpha(2 * c - c * c, eta_h, beta)
        if not differences:
            return mean
        # the alpha at which the differences vanish in one step
        still = np.where(self.differences(eta_h, np.ones(eta_h.shape)) == 0, 1.0, 1 - eta_h)
        mean = np.where(np.isfinite(mean), mean, still)
        low, high = np.minimum(mean, still), np.maximum(mean, still)
        for _ in range(120):  # (2/3)^120: to the last bit
            left, right = low + (high - low) / 3, high - (high - low) / 3
            keep = self.radius(eta_h, left, beta, differences=True) < self.radius(eta_h, right, beta, differences=True)
            low, high = np.where(keep, low, left), np.where(keep, right, high)
        return (low + high) / 2

    def quietest(self, eta_h: ArrayLike, beta: ArrayLike) -> Array:
        """Returns the alpha of the least asymptotic variance of the center for these eta h and beta."""
        return self.alpha(2 - np.sqrt(np.multiply(eta_h, beta)), eta_h, beta)

    def variance(self, eta_h: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Array:
        """Returns the center's asymptotic variance in units of sigma^2 / (p h^2); inf if the mean mode is unstable."""
        return limit_variance(np.multiply(eta_h, beta), self.u(eta_h, alpha, beta))


JACOBI = Form(
    "Jacobi EASGD", lambda eta_h, beta: np.ones(np.broadcast(eta_h, beta).shape), lambda eta_h, alpha: 1 - eta_h - alpha
)
GAUSS_SEIDEL = Form(
    "Gauss-Seidel EASGD", lambda eta_h, beta: 1 - beta + 0 * eta_h, lambda eta_h, alpha: 1 - eta_h - alpha
)
PULL_THEN_STEP = Form(
    "pull-then-step", lambda eta_h, beta: (1 - eta_h) * (1 - beta), lambda eta_h, alpha: (1 - eta_h) * (1 - alpha)
)
FORMS = (JACOBI, GAUSS_SEIDEL, PULL_THEN_STEP)


def mean_radius(c2: ArrayLike, u: ArrayLike) -> Array:
    """Returns the largest modulus of the roots of z^2 - (2 - u - c^2) z + 1 - u."""
    c2, u = floats(c2, u)
    a = u + c2
    square = a * a - 4 * c2
    root = np.sqrt(np.maximum(square, 0))
    real = np.maximum(np.abs(1 - (a + root) / 2), np.abs(1 - (a - root) / 2))
    return np.where(square >= 0, real, np.sqrt(np.maximum(1 - u, 0)))


def limit_variance(c2: ArrayLike, u: ArrayLike) -> Array:
    """Returns the center's variance as t -> inf, in sigma^2 / (p h^2), by the discrete Lyapunov equation; inf where it
    does not converge.
    """
    c2, u = floats(c2, u)
    s = 4 - 2 * u - c2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((c2 > 0) & (u > 0) & (s > 0), c2 * (2 - u) / (u * s), np.inf)
