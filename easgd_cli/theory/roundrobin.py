"""Round robin on F(x) = x^2 / 2 without noise: the maps of EASGD and ADMM as matrices (paper p. 4 and supplement).

Only worker i with mod(t, p) = i - 1 acts at step t, so a round is the product of p maps. EASGD's state is (x^1, ..,
x^p, x~):

    x^i <- x^i - eta x^i - alpha (x^i - x~)
    x~  <- x~ + alpha (x^i - x~)                              both with the values before the step

Linearised ADMM's is (lambda^1, x^1, .., lambda^p, x^p, x~), three maps a step:

    F1  lambda^i <- lambda^i - (x^i - x~)
    F2  x^i <- [x^i - eta x^i + eta rho (lambda^i + x~)] / (1 + eta rho)
    F3  x~  <- (1/p) sum_j (x^j - lambda^j)

EASGD: apart from 1s, a map has the symmetric block [[1 - eta - alpha, alpha], [alpha, 1 - alpha]]. Its eigenvalues lie
in [-1, 1] if and only if 0 <= eta <= 2 and 0 <= alpha <= (4 - 2 eta) / (4 - eta). Then every map is a symmetric
contraction, and so is every product of them in the 2-norm: no round grows. Elsewhere single maps grow; their product
need not.

eta and rho or alpha: scalars or arrays that broadcast to leading axes of the matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from easgd_cli.theory.linear import Array, Truth, floats


def easgd_map(i: int, p: int, eta: ArrayLike, alpha: ArrayLike) -> Array:
    """Returns the map of worker i's step, i = 0 .. p-1: [..., p+1, p+1]."""
    eta, alpha = np.broadcast_arrays(*floats(eta, alpha))
    m = _identity(p + 1, eta)
    m[..., i, i] = 1 - eta - alpha
    m[..., i, p] = m[..., p, i] = alpha
    m[..., p, p] = 1 - alpha
    return m


def admm_map(i: int, p: int, eta: ArrayLike, rho: ArrayLike) -> Array:
    """Returns the map F3 F2 F1 of worker i's step, i = 0 .. p-1: [..., 2p+1, 2p+1]."""
    eta, rho = np.broadcast_arrays(*floats(eta, rho))
    multiplier, x, center = 2 * i, 2 * i + 1, 2 * p
    f1, f2, f3 = (_identity(2 * p + 1, eta) for _ in range(3))
    f1[..., multiplier, x], f1[..., multiplier, center] = -1, 1
    f2[..., x, multiplier] = f2[..., x, center] = eta * rho / (1 + eta * rho)
    f2[..., x, x] = (1 - eta) / (1 + eta * rho)
    f3[..., center, 0 : 2 * p : 2], f3[..., center, 1 : 2 * p : 2], f3[..., center, center] = -1 / p, 1 / p, 0
    return f3 @ f2 @ f1


def easgd_round(p: int, eta: ArrayLike, alpha: ArrayLike) -> Array:
    """Returns the map of a round of EASGD, workers 1 to p in turn."""
    return _product([easgd_map(i, p, eta, alpha) for i in range(p)])


def admm_round(p: int, eta: ArrayLike, rho: ArrayLike) -> Array:
    """Returns the map of a round of ADMM, workers 1 to p in turn."""
    return _product([admm_map(i, p, eta, rho) for i in range(p)])


def easgd_condition(eta: ArrayLike, alpha: ArrayLike) -> Truth:
    """Returns whether every map, and so a round, is stable: 0 <= eta <= 2, 0 <= alpha <= (4 - 2 eta)/(4 - eta)."""
    eta, alpha = floats(eta, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((eta >= 0) & (eta <= 2) & (alpha >= 0) & (alpha <= (4 - 2 * eta) / (4 - eta)))


def norms(step: Array, start: Array, rounds: int) -> Array:
    """Returns the 2-norms [rounds + 1] of the state [n] after 0 .. `rounds` times `step` [n, n]; inf on overflow."""
    found, state = np.empty(rounds + 1), start
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(rounds + 1):
            found[k] = np.linalg.norm(state)
            state = step @ state
    return np.nan_to_num(found, nan=np.inf, posinf=np.inf)


def _identity(n: int, like: Array) -> Array:
    return np.broadcast_to(np.eye(n), (*like.shape, n, n)).copy()


def _product(maps: list[Array]) -> Array:
    """Returns the product of the maps, of which the first acts first."""
    product = maps[0]
    for m in maps[1:]:
        product = m @ product
    return product
