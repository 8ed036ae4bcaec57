"""Round robin at a point and over time: EASGD's simple condition, ADMM's slow divergence."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from easgd_cli import picture
from easgd_cli.algorithms import EASGD
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.problems.function import FunctionProblem
from easgd_cli.theory import roundrobin
from easgd_cli.theory.linear import Array, spectral_radius
from easgd_cli.theory.settings import RoundRobin
from easgd_cli.theory.studies.study import Cell, Study, Table, show
from easgd_cli.training.drive import ByHand

_WORKERS = (1, 2, 3, 4, 5, 8)  # numbers of workers for which the condition is checked
_ROUNDING = 1e-9  # error of eigenvalues that is allowed
_LARGEST = 1e60  # greatest norm that is drawn
_CHECKED = 500  # rounds for which the method's own code is compared with the matrices


def study(s: RoundRobin) -> Study:
    """Finds the radii at (eta, rho), EASGD's condition over (eta, alpha), and the norms of both states over time."""
    alpha = s.eta * s.rho if s.alpha is None else s.alpha
    easgd, admm = roundrobin.easgd_round(s.p, s.eta, alpha), roundrobin.admm_round(s.p, s.eta, s.rho)
    radii = {"EASGD": float(spectral_radius(easgd)), "ADMM": float(spectral_radius(admm))}
    over_time = {  # from x = x~ = 1, the multipliers at 0
        "EASGD": roundrobin.norms(easgd, np.ones(s.p + 1), s.rounds),
        "ADMM": roundrobin.norms(admm, np.array([0.0, 1.0] * s.p + [1.0]), s.rounds),
    }
    etas, alphas = np.linspace(0, 2.5, s.points + 2)[1:-1], np.linspace(0, 1.5, s.points + 2)[1:-1]
    alpha_grid, eta_grid = np.meshgrid(alphas, etas)
    composites = {p: spectral_radius(roundrobin.easgd_round(p, eta_grid, alpha_grid)) for p in sorted({*_WORKERS, s.p})}
    return Study(
        "roundrobin",
        s,
        [_radii(s, alpha, radii, over_time), _condition(eta_grid, alpha_grid, composites)],
        _findings(s, alpha, radii, easgd),
        {"roundrobin": _draw(s, alpha, over_time, composites, etas, alphas)},
        [_norms(s, over_time), _map(eta_grid, alpha_grid, composites[s.p])],
    )


def _radii(s: RoundRobin, alpha: float, radii: dict[str, float], over_time: dict[str, Array]) -> Table:
    single = {
        "EASGD": max(float(spectral_radius(roundrobin.easgd_map(i, s.p, s.eta, alpha))) for i in range(s.p)),
        "ADMM": max(float(spectral_radius(roundrobin.admm_map(i, s.p, s.eta, s.rho))) for i in range(s.p)),
    }
    return Table(
        "radii",
        f"F = x^2 / 2, p={s.p} eta={s.eta:g} rho={s.rho:g} (EASGD: alpha={alpha:g}); norm of the state, from "
        "x = x~ = 1",
        ("method", "radius_of_a_map", "radius_of_a_round", "norm_at_0", f"norm_at_{s.rounds}"),
        [(m, single[m], radii[m], float(over_time[m][0]), float(over_time[m][-1])) for m in radii],
    )


def _condition(eta: Array, alpha: Array, composites: dict[int, Array]) -> Table:
    """Compares EASGD's condition at every point of the grid with the eigenvalues of one map and of a round of p."""
    condition = roundrobin.easgd_condition(eta, alpha)
    one_map = spectral_radius(roundrobin.easgd_map(0, 1, eta, alpha)) <= 1 + _ROUNDING
    rows: list[tuple[Cell, ...]] = []
    for p, composite in composites.items():
        unstable, stable = condition & (composite > 1 + _ROUNDING), ~condition & (composite < 1)
        counted = (condition, condition != one_map, unstable, stable)
        rows.append((p, condition.size, *(int(places.sum()) for places in counted)))
    against_a_round = ("holds_but_round_unstable", "fails_but_round_stable")
    return Table(
        "condition",
        "Round-robin EASGD on the grid: 0 <= eta <= 2 and 0 <= alpha <= (4 - 2 eta)/(4 - eta), against eigenvalues",
        ("p", "points", "condition_holds", "single_map_disagrees", *against_a_round),
        rows,
    )


def _findings(s: RoundRobin, alpha: float, radii: dict[str, float], easgd: Array) -> list[str]:
    findings = [
        f"{m}: spectral radius of a round {r:.9f}: "
        + (
            "neither grows nor shrinks."
            if abs(r - 1) < _ROUNDING
            else f"{'grows' if r > 1 else 'shrinks'} by e every {1 / abs(np.log(r)):,.0f} rounds."
        )
        for m, r in radii.items()
    ]
    if roundrobin.easgd_condition(s.eta, alpha):
        findings.append(
            f"EASGD's own code for {min(s.rounds, _CHECKED)} rounds against the matrix: "
            f"{_difference(s, alpha, easgd):.1e} apart, relative to the state."
        )
    return findings


def _norms(s: RoundRobin, over_time: dict[str, Array]) -> Table:
    times = np.unique(np.geomspace(1, s.rounds + 1, 400).astype(int)) - 1
    rows = [(int(k), *(float(n[k]) for n in over_time.values())) for k in times]
    return Table("norms", "norm of the state", ("round", *over_time), rows)


def _map(eta: Array, alpha: Array, radius: Array) -> Table:
    places = zip(eta.flat, alpha.flat, radius.flat, strict=True)
    rows: list[tuple[Cell, ...]] = [(float(f"{e:.9g}"), float(f"{a:.9g}"), float(v)) for e, a, v in places]
    return Table("maps", "spectral radius of a round of EASGD", ("eta", "alpha", "radius"), rows)


def _difference(s: RoundRobin, alpha: float, step: Array) -> float:
    """Returns the greatest difference between the states by the method's own code and by the matrix, over the norm."""

    def gradient(x: torch.Tensor, worker: int, t: int, out: torch.Tensor) -> None:
        out.copy_(x)

    problem = FunctionProblem(torch.ones(1, dtype=torch.float64), gradient)
    begins = np.append(np.linspace(-1, 2, s.p), 1.0)  # different starts, so that every mode takes part
    starts = [torch.full((1,), float(b), dtype=torch.float64) for b in begins[:-1]]
    schedule, start = Constant(s.eta), problem.start()
    run = ByHand(EASGD(alpha=alpha), problem, workers=s.p, tau=1, schedule=schedule, start=start, starts=starts)
    rounds = min(s.rounds, _CHECKED)
    for _ in range(rounds):
        for worker in range(s.p):
            run.step(worker)
    state = np.array([*(float(w.x) for w in run.workers), float(run.vectors()["x"])])
    expected = np.linalg.matrix_power(step, rounds) @ begins
    return float(np.abs(state - expected).max() / np.linalg.norm(expected))


def _draw(
    s: RoundRobin, alpha: float, over_time: dict[str, Array], composites: dict[int, Array], etas: Array, alphas: Array
) -> Figure:
    figure = picture.new(picture.WIDTH, 2.9)
    left, right = figure.subplots(1, 2)
    image = show(left, np.log10(composites[s.p]), (0, 1.5, 0, 2.5), vmin=-0.6, vmax=0.6, cmap="PuOr_r")
    eta = np.linspace(0, 2, 200)
    left.plot((4 - 2 * eta) / (4 - eta), eta, color=picture.BLACK, linewidth=1, label="every single map")
    for p, colour, dashes in ((2, picture.GREEN, "--"), (4, picture.BLUE, ":")):
        left.contour(alphas, etas, composites[p], levels=[1.0], colors=colour, linestyles=dashes, linewidths=1.4)
        left.plot([], [], color=colour, linestyle=dashes, linewidth=1.4, label=f"a round of $p={p}$")
    left.legend(title="stable below", loc="upper right", fontsize=7, title_fontsize=7, frameon=True)
    left.set_xlim(0, 1.5)
    left.set_xlabel(r"moving rate $\alpha$")
    left.set_ylabel(r"learning rate $\eta$")
    picture.letter(left, f"round-robin EASGD on $x^2/2$, $p={s.p}$")
    figure.colorbar(image, ax=left, extend="both").set_label(r"$\log_{10}$ spectral radius of a round")
    for colour, dashes, (method, norm) in zip(
        (picture.BLUE, picture.ORANGE), ("-", "--"), over_time.items(), strict=True
    ):
        right.plot(np.where(norm < _LARGEST, norm, np.nan), color=colour, linestyle=dashes, label=method)
    right.set_yscale("log")
    right.set_xlabel("rounds (without noise)")
    right.set_ylabel("norm of the state")
    right.legend()
    picture.letter(right, rf"$p={s.p}$, $\eta={s.eta:g}$, $\rho={s.rho:g}$, $\alpha={alpha:g}$")
    return figure
