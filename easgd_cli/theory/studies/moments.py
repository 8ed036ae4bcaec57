"""Lemma 7.1 at points: E x~_t and V x~_t, their limits, the averaged center, and samples by the method's own code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from easgd_cli import picture
from easgd_cli.algorithms import SyncEASGD
from easgd_cli.theory import moments
from easgd_cli.theory.settings import Moments
from easgd_cli.theory.simulate import Sample, runs_affordable, synchronous
from easgd_cli.theory.studies.study import Cell, Study, Table

Samples = dict[int, tuple[Sample, Sample]]
Point = tuple[int, float, float]  # p, eta, beta

# columns
_OF_CENTER = ("p", "eta", "beta", "t", "mean", "variance")
_SAMPLED = ("sample_mean", "sample_variance", "mean_in_se", "variance_in_se")
_LINES = 6  # as many points as a picture has colours for
_LATEST = 10_000  # rounds shown in the picture
_LARGEST = 1e30  # greatest value shown of a center that diverges


def study(s: Moments) -> Study:
    """Makes tables of moments, limits and the averaged center at every (p, eta, beta), and a picture over time."""
    finite = sorted({int(t) for t in s.t if not math.isinf(t)})
    points = s.points()
    notes: list[str] = []
    samples = {point: _sampled(s, point, finite, notes) for point in points}
    at = Table(
        "moments",
        "The center x~_t, equations (15) and (16), and how many standard errors the sample of simulated runs "
        "lies from them",
        (*_OF_CENTER, "mse", *_SAMPLED),
        [_row(s, point, t, samples[point]) for point in points for t in s.t],
        unprinted=_SAMPLED[:2],
    )
    averaged = Table(
        "averaged",
        "The averaged center z_t; of_bound: (t + 1) V z_t in units of the Fisher bound sigma^2 / (p h^2), "
        "which is its limit",
        (*_OF_CENTER, "of_bound", *_SAMPLED),
        [_averaged_row(s, point, t, samples[point]) for point in points for t in finite[-1:]],
        unprinted=_SAMPLED[:2],
    )
    limits = Table(
        "limits",
        "t -> inf: eigenvalues, condition (17), variance, and p MSE beside its limit for p -> inf (Corollary 7.1)",
        ("p", "eta", "beta", "gamma", "phi", "radius", "stable", "variance", "p_mse", "corollary", "bound"),
        [_limit_row(s, point) for point in points],
    )
    findings = [*notes, *_findings(s, points, [at, averaged])]
    return Study("moments", s, [at, averaged, limits], findings, {"moments": _draw(s, points[:_LINES], samples)})


def _sampled(s: Moments, point: Point, times: list[int], notes: list[str]) -> Samples:
    p, eta, beta = point
    runs = runs_affordable(s.seeds, p, max(times, default=0)) if s.seeds else 0
    name = f"p={p} eta={eta:g} beta={beta:g}"
    if not runs:
        if s.seeds and times:
            notes.append(f"{name}: not simulated, {p:,} workers for {times[-1]:,} rounds take too long.")
        return {}
    try:
        method = SyncEASGD(alpha=beta / p)
    except ValueError as e:
        notes.append(f"{name}: not simulated; the algorithm refuses {e}")
        return {}
    return synchronous(method, p, eta, times, h=s.h, sigma=s.sigma, x0=s.x0, center0=s.center0, runs=runs, seed=s.seed)


def _row(s: Moments, point: Point, t: float, samples: Samples) -> tuple[Cell, ...]:
    found = moments.center(t, *point, s.h, s.sigma, s.x0, s.center0)
    mean, variance = float(found.mean), float(found.variance)
    agreement = _agreement(samples[int(t)][0] if t in samples else None, mean, variance)
    return (*point, "inf" if math.isinf(t) else int(t), mean, variance, float(found.mse), *agreement)


def _averaged_row(s: Moments, point: Point, t: int, samples: Samples) -> tuple[Cell, ...]:
    found = moments.averaged_center(t, *point, s.h, s.sigma, s.x0, s.center0)
    mean, variance, bound = float(found.mean), float(found.variance), float(moments.fisher(point[0], s.h, s.sigma))
    of_bound = (t + 1) * variance / bound if bound else None
    return (*point, t, mean, variance, of_bound, *_agreement(samples[t][1] if t in samples else None, mean, variance))


def _agreement(sample: Sample | None, mean: float, variance: float) -> tuple[Cell, ...]:
    if sample is None:
        return (None, None, None, None)
    return (sample.mean, sample.variance, *sample.deviations(mean, variance))


def _limit_row(s: Moments, point: Point) -> tuple[Cell, ...]:
    p, eta, beta = point
    gamma, phi = (float(v) for v in moments.eigenvalues(*point, s.h))
    limit = moments.center(math.inf, *point, s.h, s.sigma, s.x0, s.center0)
    radius = max(abs(gamma), abs(phi), *([abs(1 - beta / p - eta * s.h)] if p > 1 else []))
    stable = "yes" if moments.stable(*point, s.h) else "no"
    corollary, fisher = float(moments.corollary(eta, beta, s.h, s.sigma)), float(moments.fisher(p, s.h, s.sigma))
    return (*point, gamma, phi, radius, stable, float(limit.variance), p * float(limit.mse), corollary, fisher)


def _findings(s: Moments, points: Sequence[Point], tables: Sequence[Table]) -> list[str]:
    said = [
        f"p={p} eta={eta:g} beta={beta:g}: diverges, condition (17) does not hold; there is no limit."
        for p, eta, beta in points
        if not moments.stable(p, eta, beta, s.h)
    ]
    deviations = [abs(float(d)) for table in tables for row in table.rows for d in row[-2:] if d is not None]
    if deviations:
        said.append(
            f"Simulated by the algorithm's own code: {len(deviations)} sample means and variances, the "
            f"farthest {max(deviations):.2f} standard errors away."
        )
    return said


def _draw(s: Moments, points: Sequence[Point], samples: dict[Point, Samples]) -> Figure:
    steady = [point for point in points if moments.stable(*point, s.h)]
    latest = max([_LATEST // 10 if steady else 10, *(int(t) for t in s.t if not math.isinf(t))])
    times = np.unique(np.geomspace(1, min(latest, _LATEST), 120).astype(int))
    figure = picture.new(picture.WIDTH, 3.1)
    left, right = figure.subplots(1, 2)
    mse = {
        point: np.array([float(moments.center(t, *point, s.h, s.sigma, s.x0, s.center0).mse) for t in times])
        for point in points
    }
    for colour, point in zip(picture.COLOURS, points, strict=False):
        label = rf"$p={point[0]}$, $\eta={point[1]:g}$, $\beta={point[2]:g}$"
        left.plot(times, np.where(mse[point] < _LARGEST, mse[point], np.nan), color=colour, label=label)
        limit = float(moments.center(math.inf, *point, s.h, s.sigma, s.x0, s.center0).mse)
        if 0 < limit < math.inf:
            left.axhline(limit, color=colour, linewidth=0.6, linestyle=":")
        shown = [t for t in samples[point] if 1 <= t <= times[-1]]
        sampled = np.array([samples[point][t][0].variance + samples[point][t][0].mean ** 2 for t in shown])
        left.plot(shown, np.where(sampled < _LARGEST, sampled, np.nan), "o", color=colour, markersize=3.5)
        if s.sigma > 0 and point in steady:
            bound = float(moments.fisher(point[0], s.h, s.sigma))
            averaged = [moments.averaged_center(int(t), *point, s.h, s.sigma, s.x0, s.center0) for t in times]
            lines = [(t + 1) * float(z.variance) / bound for t, z in zip(times, averaged, strict=True)]
            right.plot(times, lines, color=colour)
            dots = [(t + 1) * samples[point][t][1].variance / bound for t in shown]
            right.plot(shown, dots, "o", color=colour, markersize=3.5)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("rounds $t$")
    left.set_yscale("log")
    if steady:
        # lines that diverge leave the picture
        left.set_ylim(top=3 * max(1e-12, *(float(mse[point].max()) for point in steady)))
    right.set_ylim(0, 1.1)
    right.axhline(1, color="0.4", linewidth=0.6, linestyle=":")
    left.set_ylabel(r"MSE of the center, $E\,\tilde{x}_t^2$")
    right.set_ylabel(r"$(t+1)\,V z_t\; p h^2/\sigma^2$")
    picture.letter(left, "center; dotted: limit; dots: simulated")
    picture.letter(right, "averaged center; dotted: Fisher bound")
    figure.legend(*left.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=min(len(points), 4))
    return figure
