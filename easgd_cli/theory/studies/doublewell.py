"""The double well: the Hessian's eigenvalues where EASGD would be trapped, and where EASGD's own code ends."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure

from easgd_cli import picture
from easgd_cli.algorithms import EASGD, SyncEASGD
from easgd_cli.algorithms.base import Method
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.problems.function import FunctionProblem
from easgd_cli.theory import doublewell
from easgd_cli.theory.linear import Array
from easgd_cli.theory.settings import DoubleWell
from easgd_cli.theory.studies.study import Cell, Study, Table
from easgd_cli.training.drive import ByHand

_AT_REST = 1e-10  # a run whose numbers change by less in a round is at rest
_LOOK = 50  # rounds between two looks whether runs are at rest


def study(s: DoubleWell) -> Study:
    """Finds eigenvalues over rho, and where synchronous and round-robin EASGD end, from (+1, -1) and 64 points near."""
    offsets = [(0.0, 0.0, 0.0), *product((-1.0, -1 / 3, 1 / 3, 1.0), repeat=3)]
    starts = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) + s.near * torch.tensor(offsets, dtype=torch.float64)
    rows: list[tuple[Cell, ...]] = []
    ends: list[tuple[Cell, ...]] = []
    for rho in s.rho:
        synchronous, round_robin = (_end(method(alpha=s.eta * rho), s, starts) for method in (SyncEASGD, EASGD))
        rows.append(_row(rho, synchronous, round_robin))
        for order, found in (("synchronous", synchronous), ("round robin", round_robin)):
            ends += [(rho, order, *begin, *end) for begin, end in zip(starts.tolist(), found.tolist(), strict=True)]
    split, exact = ("s", "least_eigenvalue", "split_state"), ("exact_x1", "exact_x2", "exact_center")
    at = Table(
        "doublewell",
        f"f = (1 - x^2)^2 / 4, p = 2, eta={s.eta:g}, alpha = eta rho: the split state, and where EASGD ends "
        "that starts near (+1, -1), x~ = 0",
        ("rho", *split, "synchronous_trapped", "round_robin_trapped", *exact),
        rows,
    )
    last = Table(
        "ends", "start and end of every run", ("rho", "order", "x1_0", "x2_0", "center_0", "x1", "x2", "center"), ends
    )
    findings = [
        "The split state (+s, -s), s = sqrt(1 - rho), x~ = 0 is a local minimum if and only if rho < 2/3.",
        f"Trapped: the share of {len(offsets) - 1} starts within {s.near:g} of (+1, -1), x~ = 0 whose workers "
        "stay in different wells.",
        "Exact: where round-robin EASGD ends from (+1, -1), x~ = 0 itself. Its turns shift the fixed points "
        "by O(eta), and so the critical rho.",
    ]
    return Study("doublewell", s, [at], findings, {"doublewell": _draw(s, rows)}, [last])


def _end(method: Method, s: DoubleWell, starts: torch.Tensor) -> torch.Tensor:
    """Returns (x^1, x^2, x~) [n, 3] where runs from the `starts` [n, 3] come to rest, or are after s.rounds rounds."""

    def gradient(x: torch.Tensor, worker: int, t: int, out: torch.Tensor) -> None:
        torch.mul(x, x, out=out).sub_(1).mul_(x)  # f'(x) = x^3 - x

    x1, x2, center = (column.clone() for column in starts.T)
    problem = FunctionProblem(center, gradient)
    run = ByHand(method, problem, workers=2, tau=1, schedule=Constant(s.eta), start=center, starts=[x1, x2])
    before = _state(run)
    for n in range(1, s.rounds + 1):
        if not method.alone and method.in_rounds:
            run.round()
        else:
            run.step(0)
            run.step(1)
        if n % _LOOK == 1:
            before = _state(run)
        elif n % _LOOK == 2 and float((_state(run) - before).abs().max()) < _AT_REST:
            break
    return _state(run)


def _state(run: ByHand) -> torch.Tensor:
    return torch.stack([*(w.x for w in run.workers), run.vectors()["x"]], dim=-1)


def _row(rho: float, synchronous: torch.Tensor, round_robin: torch.Tensor) -> tuple[Cell, ...]:
    exact = tuple(float(v) for v in round_robin[0])
    shares = tuple(float((found[1:, 0] * found[1:, 1] < 0).double().mean()) for found in (synchronous, round_robin))
    if rho >= 1:
        return (rho, None, None, "does not exist", *shares, *exact)
    least = float(doublewell.eigenvalues(rho)[0])
    return (rho, float(doublewell.split_point(rho)[0]), least, "minimum" if least > 0 else "saddle", *shares, *exact)


def _draw(s: DoubleWell, rows: list[tuple[Cell, ...]]) -> Figure:
    figure = picture.new(picture.WIDTH, 2.7)
    left, right = figure.subplots(1, 2)
    rho = np.linspace(0.001, 0.999, 500)
    values: Array = np.stack([doublewell.eigenvalues(r) for r in rho])
    root = np.sqrt(1 - 4 * rho + 6 * rho**2)
    for line, colour, dashes, label in (
        (1 + root, picture.GREEN, "-.", r"$1+\sqrt{1-4\rho+6\rho^2}$"),
        (2 - 2 * rho, picture.BLUE, "--", r"$2-2\rho$"),
        (1 - root, picture.ORANGE, "-", r"$1-\sqrt{1-4\rho+6\rho^2}$"),
    ):
        left.plot(rho, line, color=colour, linestyle=dashes, label=label)
    left.axhline(0, color="0.4", linewidth=0.6)
    left.set_ylim(float(values.min()) - 0.1, 3.9)
    left.set_ylabel("eigenvalue of the Hessian")
    left.legend(fontsize=7, loc="upper left")
    picture.letter(left, r"at $x=(+s,-s)$, $\tilde{x}=0$, $s=\sqrt{1-\rho}$")
    rhos = [float(row[0]) for row in rows]  # type: ignore[arg-type]
    for column, marker, colour, label in (
        (4, "o", picture.BLUE, "synchronous"),
        (5, "^", picture.ORANGE, "round robin"),
    ):
        shares = [float(row[column]) for row in rows]  # type: ignore[arg-type]
        right.plot(rhos, shares, marker + "-", color=colour, markersize=4, linewidth=0.8, label=label)
    right.set_ylim(-0.05, 1.05)
    right.set_xlim(0, max(1.0, max(rhos)))
    right.set_ylabel("share of starts that stay split")
    right.legend()
    picture.letter(right, rf"EASGD from near $(+1,-1)$, $\tilde{{x}}=0$; $\eta={s.eta:g}$")
    for axes in (left, right):
        axes.axvline(doublewell.CRITICAL_RHO, color="0.4", linewidth=0.8, linestyle=":")
        axes.set_xlabel(r"penalty $\rho=\alpha/\eta$ (dotted: 2/3)")
    return figure
