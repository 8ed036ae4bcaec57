"""Figure 1 of the paper: where a round of round-robin ADMM is unstable, although each of its maps is stable."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from easgd_cli import picture
from easgd_cli.theory.linear import Array, spectral_radius
from easgd_cli.theory.roundrobin import admm_round
from easgd_cli.theory.settings import Figure1
from easgd_cli.theory.studies.study import Study, Table, show


def study(s: Figure1) -> Study:
    """Maps the spectral radius of the product of p workers' maps over eta in (0, eta_max) and rho in (0, rho_max)."""
    etas, rhos = (np.linspace(0, most, s.points + 2)[1:-1] for most in (s.eta_max, s.rho_max))
    rho, eta = np.meshgrid(rhos, etas)
    maps = {p: spectral_radius(admm_round(p, eta, rho)) for p in s.p}
    summary = Table(
        "figure1",
        "Round-robin ADMM on F = x^2 / 2: the largest spectral radius of a round, where it is, and the share "
        "of the plane above 1",
        ("p", "largest_radius", "eta", "rho", "unstable_share"),
        [
            (p, float(m.max()), float(eta.flat[m.argmax()]), float(rho.flat[m.argmax()]), float((m > 1).mean()))
            for p, m in maps.items()
        ],
    )
    grid = Table(
        "maps",
        "spectral radius of a round",
        ("p", "eta", "rho", "radius"),
        [
            (p, float(f"{e:.9g}"), float(f"{r:.9g}"), float(v))
            for p, m in maps.items()
            for e, r, v in zip(eta.flat, rho.flat, m.flat, strict=True)
        ],
    )
    return Study("figure1", s, [summary], [], {"figure1": _draw(s, maps, etas, rhos)}, [grid])


def _draw(s: Figure1, maps: dict[int, Array], etas: Array, rhos: Array) -> Figure:
    figure = picture.new(3.3 * len(maps) + 0.6, 2.9)
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    every = np.concatenate([m.ravel() for m in maps.values()]) - 1
    norm = TwoSlopeNorm(0, vmin=min(float(every.min()), -1e-9), vmax=max(float(every.max()), 1e-9))
    for axes, (p, m) in zip(panels, maps.items(), strict=True):
        image = show(axes, m - 1, (0, s.rho_max, 0, s.eta_max), norm=norm, cmap="PuOr_r")
        if m.min() < 1 < m.max():
            axes.contour(rhos, etas, m, levels=[1.0], colors="black", linewidths=0.8)
        axes.set_xlabel(r"penalty $\rho$")
        picture.letter(axes, f"$p={p}$; line: spectral radius 1")
    panels[0].set_ylabel(r"learning rate $\eta$")
    figure.colorbar(image, ax=panels).set_label("spectral radius of a round, minus 1")
    return figure
