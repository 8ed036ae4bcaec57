"""Ratios that hold on a noisy machine: both sides in alternating windows of one run, medians with their range."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: a figure and what it is held against, both in `unit` per second (more is better).

    `ratio` is the median of figure / peer over the windows, with the least and the greatest.
    """

    what: str
    figure: float
    peer_name: str
    peer: float
    unit: str
    ratio: float
    least: float
    greatest: float
    windows: int
    target: float | None = None

    @classmethod
    def of(
        cls, what: str, pairs: Sequence[tuple[float, float]], peer_name: str, unit: str, target: float | None = None
    ) -> Row:
        """`pairs`: figure and peer of each window."""
        figure, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
        return cls(what, figure, peer_name, peer, unit, *spread(f / p for f, p in pairs), len(pairs), target)

    def columns(self) -> dict[str, str]:
        """What a table shows of it, by heading."""
        return {
            self.unit: number(self.figure), f"{self.peer_name}, {self.unit}": number(self.peer),
            "ratio": f"{self.ratio:.3f}",
            "range": f"{self.least:.3f} to {self.greatest:.3f}", "windows": str(self.windows),
            "target": "" if self.target is None else f">= {self.target:g}",
        }  # fmt: skip


def spread(ratios: Iterable[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    found = sorted(ratios)
    return statistics.median(found), found[0], found[-1]


def number(value: float, digits: int = 4) -> str:
    """In so many digits, or more before the point: never with an exponent where it is great."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def rate(work: Callable[[], object], amount: float, least_seconds: float) -> float:
    """`amount` per call, as a rate over at least `least_seconds`."""
    calls, began = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - began
        if elapsed >= least_seconds:
            return amount * calls / elapsed


def alternate(
    what: str, figure: Callable[[], float], peer_name: str, peer: Callable[[], float], unit: str, windows: int = 10,
    target: float | None = None,
) -> Row:  # fmt: skip
    """Measures `figure` and `peer` (rates) in turn, after one window of each that does not count."""
    figure()
    peer()
    return Row.of(what, [(figure(), peer()) for _ in range(windows)], peer_name, unit, target)
