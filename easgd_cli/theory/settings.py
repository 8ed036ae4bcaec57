"""The settings of each study of `easgd theory`: a dataclass a study, read from KEY=VALUE words. No heavy import."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from easgd_cli.errors import UsageError

T = TypeVar("T")


def number(text: str) -> float:
    """Reads a finite number, small enough that squares and fourth powers are far from overflowing."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("is not a number") from None
    if not math.isfinite(value):
        raise ValueError("must be finite")
    if abs(value) > 1e9:
        raise ValueError("must be between -1e9 and 1e9")
    return value


def positive(text: str) -> float:
    """Reads a finite number greater than 0."""
    value = number(text)
    if value <= 0:
        raise ValueError("must be greater than 0")
    return value


def not_negative(text: str) -> float:
    """Reads a finite number of at least 0."""
    value = number(text)
    if value < 0:
        raise ValueError("must be at least 0")
    return value


def whole(least: int, most: int) -> Callable[[str], int]:
    """Returns a function that reads a whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("is not a whole number") from None
        if not least <= value <= most:
            raise ValueError(f"must be from {least} to {most:,}")
        return value

    return read


def time(text: str) -> float:
    """Reads a number of rounds, or inf."""
    return math.inf if text == "inf" else float(whole(0, 10**9)(text))


def several(read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Returns a function that reads one or more values, separated by commas."""
    return lambda text: tuple(read(part) for part in text.split(","))


def key(default: Any, read: Callable[[str], Any], what: str) -> Any:
    """A setting of a study: its default, how its value is read, and a line for the help."""
    return field(default=default, metadata={"read": read, "what": what})


_WORKERS, _POINTS = whole(1, 10**6), whole(2, 1000)


@dataclass(frozen=True)
class Moments:
    """mean, variance and MSE of the center, equations (15) and (16), their limits, the averaged center; against
    simulation
    """

    p: tuple[int, ...] = key((1, 10), several(_WORKERS), "workers")
    eta: tuple[float, ...] = key((0.1, 0.3), several(positive), "learning rate")
    beta: tuple[float, ...] | None = key(
        None, several(number), "moving rate of the center, p alpha; 0.9 unless alpha is given"
    )
    alpha: tuple[float, ...] | None = key(None, several(number), "moving rate of a worker, instead of beta")
    t: tuple[float, ...] = key((1.0, 2.0, 10.0, 100.0, math.inf), several(time), "rounds; inf for the limit")
    h: float = key(1.0, positive, "curvature of the quadratic")
    sigma: float = key(10.0, not_negative, "standard deviation of the gradient's noise")
    x0: float = key(1.0, number, "where every worker starts")
    center0: float = key(1.0, number, "where the center starts")
    seeds: int = key(20_000, whole(0, 10**6), "independent simulated runs; 0 simulates nothing")
    seed: int = key(0, whole(0, 2**63 - 1), "of the simulated noise")

    def __post_init__(self) -> None:
        if self.alpha is not None and self.beta is not None:
            raise UsageError(
                "alpha and beta are both given, and one follows from the other (beta = p alpha); give one."
            )

    def points(self) -> list[tuple[int, float, float]]:
        """Returns all (p, eta, beta) that are asked for."""

        def betas(p: int) -> tuple[float, ...]:
            if self.alpha is not None:
                return tuple(p * a for a in self.alpha)
            return (0.9,) if self.beta is None else self.beta

        return [(p, eta, beta) for p in self.p for eta in self.eta for beta in betas(p)]


@dataclass(frozen=True)
class Figure5:
    """the paper's Figure 5: log10 MSE of the center over eta and beta, for five p and five t"""

    h: float = key(1.0, positive, "curvature of the quadratic")
    sigma: float = key(10.0, not_negative, "standard deviation of the gradient's noise")
    x0: float = key(1.0, number, "where every worker starts")
    center0: float = key(1.0, number, "where the center starts")
    points: int = key(99, _POINTS, "points on each axis")


@dataclass(frozen=True)
class Figure1:
    """the paper's Figure 1: spectral radius of a round of round-robin ADMM over eta and rho"""

    p: tuple[int, ...] = key((3, 8), several(whole(1, 30)), "workers, a map each")
    eta_max: float = key(0.01, positive, "the learning rates are those below")
    rho_max: float = key(10.0, positive, "the penalties are those below")
    points: int = key(99, _POINTS, "points on each axis")


@dataclass(frozen=True)
class RoundRobin:
    """stability of round-robin EASGD and ADMM at a point, EASGD's condition on a grid, and both over time"""

    p: int = key(3, whole(1, 30), "workers")
    eta: float = key(0.001, positive, "learning rate")
    rho: float = key(2.5, not_negative, "penalty of ADMM")
    alpha: float | None = key(None, number, "moving rate of EASGD; eta rho unless given")
    rounds: int = key(20_000, whole(1, 10**6), "rounds over which the norm of the state is followed")
    points: int = key(80, _POINTS, "points on each axis of the grid")


@dataclass(frozen=True)
class DoubleWell:
    """two workers in different wells of (1 - x^2)^2 / 4: when the center is trapped between them"""

    rho: tuple[float, ...] = key(
        (0.1, 0.3, 0.5, 0.6, 0.65, 0.68, 0.7, 0.8, 0.9), several(positive), "penalties; alpha is eta rho"
    )
    eta: float = key(0.1, positive, "learning rate of the runs")
    near: float = key(0.1, positive, "how far from (+1, -1) and center 0 the runs start, at most")
    rounds: int = key(20_000, whole(1, 10**6), "rounds after which a run that has not come to rest is given up")

    def __post_init__(self) -> None:
        if self.eta * max(self.rho) > 1:
            alpha = self.eta * max(self.rho)
            raise UsageError(
                f"eta={self.eta:g} rho={max(self.rho):g}: alpha = eta rho = {alpha:g}, and EASGD takes none above "
                "1; choose a smaller eta."
            )


@dataclass(frozen=True)
class Family:
    """Jacobi, Gauss-Seidel and pull-then-step with alpha and beta independent: which alpha is best, and is
    it negative
    """

    eta: float = key(0.5, positive, "learning rate")
    beta: float = key(0.2, number, "moving rate of the center")
    alpha: tuple[float, ...] = key(
        (-0.1, 0.0, 0.05, 1.0), several(number), "moving rates of a worker; the center's is not tied to them"
    )
    p: int = key(4, _WORKERS, "workers; with one there are no differences between them")
    h: float = key(1.0, positive, "curvature of the quadratic")
    sigma: float = key(10.0, not_negative, "standard deviation of the gradient's noise")
    points: int = key(100, _POINTS, "points on each axis of the maps")
    seeds: int = key(20_000, whole(0, 10**6), "independent simulated runs; 0 simulates nothing")
    seed: int = key(0, whole(0, 2**63 - 1), "of the simulated noise")


STUDIES: dict[str, type] = {
    "moments": Moments,
    "figure5": Figure5,
    "figure1": Figure1,
    "roundrobin": RoundRobin,
    "doublewell": DoubleWell,
    "family": Family,
}


def read(study: str, words: Sequence[str]) -> Any:
    """Returns the settings of `study` as changed by `words`, KEY=VALUE each. Raises UsageError."""
    kind = STUDIES[study]
    known = {f.name: f for f in fields(kind)}
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(
                f"{word}: settings are written key=value, such as {next(iter(known))}=VALUE; see easgd theory --help."
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
            raise UsageError(
                f"{word}: {study} has no setting {name}; "
                + (f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}.")
            )
        if name in given:
            raise UsageError(f"{word}: {name} is given twice.")
        try:
            given[name] = known[name].metadata["read"](text)
        except ValueError as e:
            raise UsageError(f"{word}: {name} ({known[name].metadata['what']}) {e}.") from None
    return kind(**given)


def default(value: Any) -> str:
    """Returns a default as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(default(v) for v in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
