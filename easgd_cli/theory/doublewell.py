"""Double well f(x) = (1 - x^2)^2 / 4 with two workers: when does the center stay between the wells?

EASGD's steps (synchronous, alpha = eta rho) are gradient descent with step eta on the sum of f(x^i) + (rho/2)(x^i -
x~)^2. That has a stationary point with one worker in each well,

    x = (+s, -s),  x~ = 0,  s = sqrt(1 - rho)      for rho < 1

where f'' = 3 s^2 - 1 = 2 - 3 rho. Its Hessian in (x^1, x^2, x~) has the eigenvalue 2 - 2 rho along (1, -1, 0) and
1 -+ sqrt(1 - 4 rho + 6 rho^2) along the rest, with product 2 rho (2 - 3 rho): a local minimum, so that EASGD is
trapped, if and only if rho < 2/3. Derived here; the thesis (arXiv 1605.02216) has the claim.
"""

from __future__ import annotations

import numpy as np

from easgd_cli.theory.linear import Array

CRITICAL_RHO = 2 / 3


def split_point(rho: float) -> Array:
    """Returns (x^1, x^2, x~) of the stationary point with a worker in each well, for rho < 1."""
    s = np.sqrt(1 - rho)
    return np.array([s, -s, 0.0])


def eigenvalues(rho: float) -> Array:
    """Returns the eigenvalues of the Hessian at `split_point`, rising, in closed form."""
    root = np.sqrt(1 - 4 * rho + 6 * rho**2)
    return np.sort(np.array([1 - root, 2 - 2 * rho, 1 + root]))
