"""Runs the methods' own code on noisy functions, in one process, many independent runs at a time.

The rules are elementwise. So a vector of d numbers, whose gradient at each number depends on that one alone, makes d
independent runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from easgd_cli.algorithms.average import Polyak
from easgd_cli.algorithms.base import Method
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.problems.function import FunctionProblem
from easgd_cli.randomness import NOISE, key
from easgd_cli.training.drive import ByHand

MOST_DRAWS = 2 * 10**8  # of random numbers in one simulation: a few seconds
FEWEST_RUNS = 1000  # with fewer a sample says little


@dataclass(frozen=True)
class Sample:
    """Mean and variance over `runs` independent runs."""

    mean: float
    variance: float
    runs: int

    def deviations(self, mean: float, variance: float) -> tuple[float, float]:
        """Returns how far this sample's mean and variance lie from the given ones, in standard errors, for the variance
        those of a normal law.

        Where `variance` is 0 both must agree up to rounding: (0, 0) if they do, else (inf, inf).
        """
        if variance <= 1e-24 * max(1.0, mean * mean):
            agrees = abs(self.mean - mean) <= 1e-9 * max(1.0, abs(mean)) and self.variance <= 1e-18 * max(
                1.0, mean * mean
            )
            return (0.0, 0.0) if agrees else (np.inf, np.inf)
        z_mean = (self.mean - mean) / (variance / self.runs) ** 0.5
        return z_mean, (self.variance / variance - 1) / (2 / (self.runs - 1)) ** 0.5


def runs_affordable(asked: int, p: int, t: int) -> int:
    """Returns `asked`, or as many runs of p workers over t rounds as MOST_DRAWS allows; 0 if these are too few."""
    runs = min(asked, MOST_DRAWS // max(1, p * t))
    return runs if runs >= min(asked, FEWEST_RUNS) else 0


def quadratic(h: float, sigma: float, start: float, runs: int, seed: int) -> FunctionProblem:
    """Returns a problem with the gradient h x - xi in each of `runs` dimensions; the noise xi, of standard deviation
    sigma, follows from (seed, worker, t).
    """
    generator = torch.Generator()

    def gradient(x: Tensor, worker: int, t: int, out: Tensor) -> None:
        generator.manual_seed(key(seed, NOISE, worker, t))
        out.normal_(generator=generator).mul_(-sigma).add_(x, alpha=h)

    return FunctionProblem(torch.full((runs,), start, dtype=torch.float64), gradient)


def synchronous(
    method: Method, p: int, eta: float, times: Iterable[int], *, h: float, sigma: float, x0: float, center0: float,
    runs: int, seed: int,
) -> dict[int, tuple[Sample, Sample]]:  # fmt: skip
    """Returns samples of x~_t and of the averaged center z_t at the `times`, from rounds of p workers with tau = 1."""
    problem = quadratic(h, sigma, center0, runs, seed)
    start = problem.start()
    starts = [torch.full_like(start, x0)] * p
    run = ByHand(
        method, problem, workers=p, tau=1, schedule=Constant(eta), start=start, starts=starts, average=Polyak()
    )
    found, wanted = {}, set(times)
    for t in range(max(wanted, default=0) + 1):
        if t > 0:
            run.round()
        if t in wanted:
            found[t] = (_sample(run.vectors()["x"]), _sample(run.vectors()["average"]))
    return found


def _sample(values: Tensor) -> Sample:
    return Sample(float(values.mean()), float(values.var()), values.numel())
