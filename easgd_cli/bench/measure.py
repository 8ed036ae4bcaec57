"""Ratios that hold on a noisy machine: both sides are measured in alternating windows; median and range are shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: a figure and its peer, with which it is compared, both rates in `unit` (more is better).

    `ratio`, `least`, `greatest`: median and range of figure / peer over the windows; `target`: what `ratio` should be
    at least.
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
        """Makes the row from `pairs`, figure and peer of each window."""
        figure, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
        return cls(what, figure, peer_name, peer, unit, *spread(f / p for f, p in pairs), len(pairs), target)

    def columns(self) -> dict[str, str]:
        """Returns the cells of a table's row, by heading."""
        return {
            self.unit: number(self.figure), f"{self.peer_name}, {self.unit}": number(self.peer),
            "ratio": f"{self.ratio:.3f}",
            "range": f"{self.least:.3f} to {self.greatest:.3f}", "windows": str(self.windows),
            "target": "" if self.target is None else f">= {self.target:g}",
        }  # fmt: skip


def spread(ratios: Iterable[float]) -> tuple[float, float, float]:
    """Returns median, least and greatest of `ratios`."""
    found = sorted(ratios)
    return statistics.median(found), found[0], found[-1]


def number(value: float, digits: int = 4) -> str:
    """Returns `value` with `digits` significant digits, or with all digits before the point: never with an exponent."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def rate(work: Callable[[], object], amount: float, least_seconds: float) -> float:
    """Calls `work` for at least `least_seconds` and returns the rate, with `amount` for each call."""
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
    """Measures the rates `figure` and `peer` in turn, `windows` times, after a window of each that does not count."""
    figure()
    peer()
    return Row.of(what, [(figure(), peer()) for _ in range(windows)], peer_name, unit, target)
