"""Which moving rate of the workers is best when the center's is independent, and whether the best is negative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from easgd_cli import picture
from easgd_cli.algorithms import GaussSeidelEASGD, PullThenStep, SyncEASGD
from easgd_cli.algorithms.base import Method
from easgd_cli.theory.family import FORMS, GAUSS_SEIDEL, JACOBI, PULL_THEN_STEP, Form
from easgd_cli.theory.linear import Array
from easgd_cli.theory.settings import Family
from easgd_cli.theory.simulate import runs_affordable, synchronous
from easgd_cli.theory.studies.study import Cell, Study, Table, show

_ALPHA = 1.5  # the maps show alpha between -1 and this
# a simulation runs until (spectral radius)^(2t) is this small: far below a sample's standard error
_SETTLED = 1e-4
_LONGEST = 3000  # rounds of a simulation, at most
_NONE = 1e-6  # an alpha this close to 0 counts as 0


@dataclass(frozen=True)
class _Maps:
    """Maps of one form over eta h and beta: the alpha of the least spectral radius (`fastest`) and that `radius`, the
    alpha of the least variance (`quietest`) and the spectral radius there (`noisy`).
    """

    fastest: Array
    radius: Array
    quietest: Array
    noisy: Array


def study(s: Family) -> Study:
    """Compares the forms at (eta, beta) and the given alphas, and finds the best alphas, there and in the plane."""
    unit = s.sigma**2 / (s.p * s.h**2)
    tables = [_forms(s, unit)]
    findings: list[str] = []
    if s.beta > 0:
        tables.append(_optima(s, unit))
    simulated = _simulated(s, findings)
    if simulated.rows:
        tables.append(simulated)
        deviations = [abs(float(row[-1])) for row in simulated.rows if row[-1] is not None]
        findings.append(
            f"Simulated by the algorithms' own code: the farthest sample variance lies {max(deviations):.2f} "
            "standard errors away."
        )
    findings.append(
        "With beta = p alpha, as in the paper, a negative alpha is unstable in every form: one eigenvalue exceeds 1."
    )
    axis = np.linspace(0, 2, s.points + 2)[1:-1]
    beta, eta = np.meshgrid(axis, axis, indexing="ij")
    maps = {form.name: _maps(form, eta, beta, several=s.p > 1) for form in FORMS}
    findings += [_of_the_plane(name, of) for name, of in maps.items()]
    pictures = {"family_rates": _draw_rates(s), "family_optimum": _draw_optimum(axis, maps)}
    return Study("family", s, tables, findings, pictures, [_grid(eta, beta, maps)])


def _forms(s: Family, unit: float) -> Table:
    return Table(
        "forms",
        f"p={s.p} eta={s.eta:g} beta={s.beta:g}: spectral radius of the mean mode and of all modes, "
        "asymptotic variance of the center",
        ("form", "alpha", "trace", "det", "radius_mean", "radius_all", "variance"),
        [_row(form, s, alpha, unit) for form in FORMS for alpha in s.alpha],
    )


def _optima(s: Family, unit: float) -> Table:
    columns = ("alpha_mean", "radius_mean", "alpha_all", "radius_all", "alpha_variance", "variance", "radius_all_there")
    return Table(
        "optimum",
        "The alpha of the least spectral radius (mean mode; all modes) and of the least variance of "
        "the center, at this eta and beta",
        ("form", *columns),
        [_optimum(form, s, unit) for form in FORMS],
    )


def _maps(form: Form, eta: Array, beta: Array, *, several: bool) -> _Maps:
    """Returns the maps of a form. `several`: True if there is more than one worker, so that workers can differ."""
    fastest, quietest = form.fastest(eta, beta, differences=several), form.quietest(eta, beta)
    return _Maps(
        fastest,
        form.radius(eta, fastest, beta, differences=several),
        quietest,
        form.radius(eta, quietest, beta, differences=several),
    )


def _of_the_plane(name: str, of: _Maps) -> str:
    a, r = of.fastest, of.radius
    return (
        f"{name}, eta h and beta in (0, 2): the fastest alpha is negative in {100 * (a < -_NONE).mean():.0f} % of the "
        f"plane, 0 in {100 * (abs(a) <= _NONE).mean():.0f} %, positive in {100 * (a > _NONE).mean():.0f} %; it "
        f"is stable in {100 * (r < 1).mean():.0f} %."
    )


def _grid(eta: Array, beta: Array, maps: Mapping[str, _Maps]) -> Table:
    return Table(
        "maps",
        "best alpha over eta h and beta",
        ("form", "eta_h", "beta", "alpha_fastest", "radius", "alpha_quietest", "radius_there"),
        [
            (name, *(float(f"{v:.9g}") for v in values))
            for name, of in maps.items()
            for values in zip(*(m.flat for m in (eta, beta, of.fastest, of.radius, of.quietest, of.noisy)), strict=True)
        ],
    )


def _row(form: Form, s: Family, alpha: float, unit: float) -> tuple[Cell, ...]:
    eta_h = s.eta * s.h
    u = float(form.u(eta_h, alpha, s.beta))
    return (
        form.name,
        alpha,
        2 - u - eta_h * s.beta,
        1 - u,
        float(form.radius(eta_h, alpha, s.beta, differences=False)),
        float(form.radius(eta_h, alpha, s.beta, differences=s.p > 1)),
        unit * float(form.variance(eta_h, alpha, s.beta)),
    )


def _optimum(form: Form, s: Family, unit: float) -> tuple[Cell, ...]:
    eta_h, beta = s.eta * s.h, s.beta
    row: list[Cell] = [form.name]
    for differences in (False, s.p > 1):
        alpha = float(form.fastest(eta_h, beta, differences=differences))
        there: list[Cell] = [alpha, float(form.radius(eta_h, alpha, beta, differences=differences))]
        row += there if np.isfinite(alpha) else [None] * 2
    alpha = float(form.quietest(eta_h, beta))
    radius = float(form.radius(eta_h, alpha, beta, differences=s.p > 1))
    there = [alpha, unit * float(form.variance(eta_h, alpha, beta)), radius]
    return (*row, *(there if np.isfinite(alpha) else [None] * 3))


def _simulated(s: Family, notes: list[str]) -> Table:
    """Simulates the center's settled variance by the methods' own code, two of which allow beta = p alpha only."""
    asked: list[tuple[Form, float, float]] = [(JACOBI, s.beta / s.p, s.beta), (GAUSS_SEIDEL, s.beta / s.p, s.beta)]
    asked += [(PULL_THEN_STEP, alpha, s.beta) for alpha in s.alpha]
    rows: list[tuple[Cell, ...]] = []
    for form, alpha, beta in asked if s.seeds else []:
        radius = float(form.radius(s.eta * s.h, alpha, beta, differences=s.p > 1))
        if radius >= 1:
            continue
        rounds = int(np.ceil(np.log(_SETTLED) / (2 * np.log(max(radius, 1e-3))))) + 2
        runs = runs_affordable(s.seeds, s.p, rounds) if rounds <= _LONGEST else 0
        if not runs:
            notes.append(f"{form.name}, alpha={alpha:g}: not simulated, it settles too slowly.")
            continue
        try:
            method = _method(form, alpha, beta, s.p)
        except ValueError as e:
            notes.append(f"{form.name}: not simulated; the algorithm refuses {e}")
            continue
        sample = synchronous(
            method, s.p, s.eta, [rounds], h=s.h, sigma=s.sigma, x0=0.0, center0=0.0, runs=runs, seed=s.seed
        )[rounds][0]
        variance = s.sigma**2 / (s.p * s.h**2) * float(form.variance(s.eta * s.h, alpha, beta))
        rows.append((form.name, alpha, rounds, variance, sample.variance, sample.deviations(0.0, variance)[1]))
    columns = ("form", "alpha", "rounds", "variance", "sample_variance", "variance_in_se")
    title = "The center's variance in simulated runs, and how many standard errors it lies from the limit"
    return Table("simulated", title, columns, rows)


def _method(form: Form, alpha: float, beta: float, p: int) -> Method:
    if form is JACOBI:
        return SyncEASGD(alpha=alpha)
    return GaussSeidelEASGD(alpha=alpha) if form is GAUSS_SEIDEL else PullThenStep(alpha=alpha, beta=beta, workers=p)


def _draw_rates(s: Family) -> Figure:
    """Draws spectral radius and variance over alpha and eta h at the given beta, a row for each form."""
    figure = picture.new(picture.WIDTH, 7.4)
    panels = figure.subplots(len(FORMS), 2, sharex=True, sharey=True)
    alphas, etas = np.linspace(-1, _ALPHA, s.points), np.linspace(0, 2, s.points + 2)[1:-1]
    alpha, eta = np.meshgrid(alphas, etas)
    extent = (-1.0, _ALPHA, 0.0, 2.0)
    for (left, right), form in zip(panels, FORMS, strict=True):
        radius = form.radius(eta, alpha, s.beta, differences=s.p > 1)
        variance = np.where(radius < 1, form.variance(eta, alpha, s.beta), np.nan)
        smooth: dict[str, Any] = {"interpolation": None, "cmap": "viridis"}
        first = show(left, np.where(radius < 1, radius, np.nan), extent, vmin=0, vmax=1, **smooth)
        with np.errstate(divide="ignore"):
            second = show(right, np.log10(variance), extent, vmin=-2, vmax=1, **smooth)
        if s.beta > 0:
            quiet = form.quietest(etas, s.beta)
            quiet = np.where(form.radius(etas, quiet, s.beta, differences=s.p > 1) < 1, quiet, np.nan)
            for axes, best in ((left, form.fastest(etas, s.beta, differences=s.p > 1)), (right, quiet)):
                jumps = np.abs(np.diff(best, prepend=best[:1])) > 1  # where the best alpha passes through infinity
                best = np.where(jumps, np.nan, best)
                axes.plot(best, etas, color="white", linewidth=2)
                axes.plot(best, etas, color=picture.ORANGE, linewidth=1.2)
        for axes in (left, right):
            axes.set_facecolor(picture.DIVERGENT)
            axes.axvline(0, color=picture.BLACK, linewidth=0.6, linestyle=":")
            axes.set_xlim(-1, _ALPHA)
            axes.set_ylim(0, 2)
        left.set_ylabel(r"$\eta h$")
        picture.letter(left, f"{form.name}: spectral radius")
        picture.letter(right, f"{form.name}: variance of the center")
    for axes in panels[-1]:
        axes.set_xlabel(rf"moving rate of the workers $\alpha$   ($\beta={s.beta:g}$)")
    figure.colorbar(first, ax=panels[:, 0], location="bottom", shrink=0.8).set_label(
        "spectral radius; line: its least; grey: 1 or more"
    )
    figure.colorbar(second, ax=panels[:, 1], location="bottom", shrink=0.8, extend="both").set_label(
        r"$\log_{10}$ of $\lim V\tilde{x}_t\; p h^2/\sigma^2$; line: its least"
    )
    return figure


def _draw_optimum(axis: Array, maps: Mapping[str, _Maps]) -> Figure:
    """Draws the best alpha over eta h and beta, a column for each form."""
    figure = picture.new(picture.WIDTH, 5.0)
    panels = figure.subplots(2, len(FORMS), sharex=True, sharey=True)
    for column, form in enumerate(FORMS):
        image = _signed(panels[0, column], axis, maps[form.name].fastest)
        quiet = np.where(maps[form.name].noisy < 1, maps[form.name].quietest, np.nan)
        _signed(panels[1, column], axis, quiet)
        picture.letter(panels[0, column], f"{form.name}\nleast spectral radius")
        picture.letter(panels[1, column], "least variance of the center")
        panels[1, column].set_xlabel(r"$\eta h$")
    for axes in panels[:, 0]:
        axes.set_ylabel(r"$\beta$")
    figure.colorbar(image, ax=panels, shrink=0.7, extend="both").set_label(
        r"best $\alpha$ (dashed: where it " r"turns negative; grey: differences grow)"
    )
    return figure


def _signed(axes: Axes, axis: Array, alpha: Array) -> AxesImage:
    axes.set_facecolor(picture.DIVERGENT)
    image = show(axes, alpha, (0, 2, 0, 2), "equal", norm=TwoSlopeNorm(0, vmin=-1, vmax=1.5), cmap="PuOr_r")
    if np.nanmin(alpha) < -1e-3 < np.nanmax(alpha):
        axes.contour(axis, axis, np.clip(alpha, -0.1, 0.1), levels=[-1e-3], colors="black", linewidths=0.8)
    axes.set_xticks([0, 1, 2])
    axes.set_yticks([0, 1, 2])
    return image
