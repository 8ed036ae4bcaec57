"""Linear recursions s' = A s + w with independent noise w of covariance Q: mean and covariance after t steps, spectral
radius.

The sums over time are taken by doubling instead of in closed form. A closed form such as the paper's equation (16)
divides by the square of a difference of eigenvalues and loses all digits where they meet; doubling adds covariances
only, so nothing cancels, and any t takes log2(t) steps. All arrays may carry leading axes: grids of recursions at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Truth = NDArray[np.bool_]


def floats(*given: ArrayLike) -> list[Array]:
    """Returns each argument as an array of floats."""
    return [np.asarray(numbers, dtype=float) for numbers in given]


def after(t: int, a: Array, q: Array, start: Array) -> tuple[Array, Array]:
    """Returns mean [..., n] and covariance [..., n, n] after `t` steps from the certain state `start` [..., n]; a, q:
    [..., n, n].

    Numbers too large for a double are inf.
    """
    shape = np.broadcast_shapes(a.shape, q.shape)
    power = np.broadcast_to(np.eye(shape[-1]), shape)
    covariance = np.zeros(shape)
    with np.errstate(over="ignore", invalid="ignore"):
        for bit in f"{t:b}":
            covariance = covariance + power @ covariance @ _transposed(power)
            power = power @ power
            if bit == "1":
                covariance = a @ covariance @ _transposed(a) + q
                power = power @ a
        mean = (power @ start[..., None])[..., 0]
    return np.nan_to_num(mean, nan=np.inf, posinf=np.inf, neginf=-np.inf), np.nan_to_num(
        covariance, nan=np.inf, posinf=np.inf, neginf=-np.inf
    )


def spectral_radius(a: Array) -> Array:
    """Returns the largest modulus of an eigenvalue of a [..., n, n]."""
    radius: Array = np.abs(np.linalg.eigvals(a)).max(axis=-1)
    return radius


def _transposed(a: Array) -> Array:
    return a.swapaxes(-1, -2)
