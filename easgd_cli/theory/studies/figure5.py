"""Figure 5 of the paper: the center's mean squared error over learning rate and moving rate."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from easgd_cli import picture
from easgd_cli.theory import moments
from easgd_cli.theory.linear import Array, Truth
from easgd_cli.theory.settings import Figure5
from easgd_cli.theory.studies.study import Cell, Study, Table, show

P = (1, 10, 100, 1000, 10_000)
T = (1.0, 2.0, 10.0, 100.0, math.inf)


def study(s: Figure5) -> Study:
    """Maps the center's MSE over eta and beta in (0, 2): a row for each p of P, a column for each t of T."""
    axis = np.linspace(0, 2, s.points + 2)[1:-1]
    eta, beta = np.meshgrid(axis, axis)
    maps = {(p, t): _log10(moments.center(t, p, eta, beta, s.h, s.sigma, s.x0, s.center0).mse) for p in P for t in T}
    stable = {p: moments.stable(p, eta, beta, s.h) for p in P}
    summary = Table(
        "figure5",
        "Share of the plane that is stable, and the least limit of the MSE in it",
        ("p", "stable_share", "least_mse", "eta", "beta"),
        [_summary(p, stable[p], maps[p, math.inf], eta, beta) for p in P],
    )
    grid = Table(
        "maps",
        "log10 of the MSE of the center",
        ("p", "t", "eta", "beta", "log10_mse"),
        [
            (p, t, round(float(e), 9), round(float(b), 9), float(f"{m:.6g}"))
            for (p, t), values in maps.items()
            for e, b, m in zip(eta.flat, beta.flat, values.flat, strict=True)
        ],
    )
    return Study("figure5", s, [summary], [], {"figure5": _draw(s, maps, stable, axis)}, [grid])


def _log10(mse: Array) -> Array:
    with np.errstate(divide="ignore"):
        logarithm: Array = np.log10(mse)
    return logarithm


def _summary(p: int, stable: Truth, limit: Array, eta: Array, beta: Array) -> tuple[Cell, ...]:
    least = int(np.argmin(limit))
    return (p, float(stable.mean()), 10 ** float(limit.flat[least]), float(eta.flat[least]), float(beta.flat[least]))


def _draw(s: Figure5, maps: dict[tuple[int, float], Array], stable: dict[int, Truth], axis: Array) -> Figure:
    figure = picture.new(picture.WIDTH, 6.2)
    panels = figure.subplots(len(P), len(T), sharex=True, sharey=True)
    inside = np.concatenate([m[stable[p] & np.isfinite(m)] for (p, _), m in maps.items()])
    low, high = np.percentile(inside, [0.5, 99.5]) if inside.size else (-1.0, 1.0)
    eta, beta = np.meshgrid(axis, axis)
    edge = {p: moments.margin(p, eta, beta, s.h) for p in P}
    for row, p in enumerate(P):
        for column, t in enumerate(T):
            axes = panels[row, column]
            axes.set_facecolor(picture.DIVERGENT)
            shown = np.where(np.isposinf(maps[p, t]), np.nan, np.maximum(maps[p, t], low))
            image = show(axes, shown, (0.0, 2.0, 0.0, 2.0), "equal", vmin=low, vmax=high, cmap="viridis")
            if edge[p].min() < 0 < edge[p].max():
                axes.contour(
                    axis, axis, edge[p], levels=[0.0], colors="black" if math.isinf(t) else "white", linewidths=0.8
                )
            axes.set_xticks([0, 1, 2])
            axes.set_yticks([0, 1, 2])
            if row == 0:
                axes.set_title(r"$t=\infty$" if math.isinf(t) else f"$t={t:.0f}$")
            if row == len(P) - 1:
                axes.set_xlabel(r"$\eta$")
            if column == 0:
                axes.set_ylabel(f"$p={p}$\n" + r"$\beta$")
    bar = figure.colorbar(image, ax=panels, shrink=0.5, extend="both")
    bar.set_label(
        rf"$\log_{{10}}$ MSE of the center $\tilde{{x}}_t$  ($h={s.h:g}$, $\sigma={s.sigma:g}$, $x_0={s.x0:g}$, "
        rf"$\tilde{{x}}_0={s.center0:g}$)"
    )
    figure.supxlabel("Inside the line: stable, condition (17). Grey: no finite limit.", fontsize=8)
    return figure
