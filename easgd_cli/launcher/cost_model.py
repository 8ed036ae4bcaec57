"""What computing and communicating cost on a virtual cluster, in virtual seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

from easgd_cli.randomness import COMPUTING, PAUSES, uniform

if TYPE_CHECKING:
    from easgd_cli.transport.simulated import Network


@dataclass(frozen=True)
class CostModel:
    """The costs of a virtual cluster. The fields are the settings of launcher=simulated.

    All times are in seconds, bandwidths in bytes a second. Raises ValueError for what no cluster has.
    """

    # seconds of a step's gradient, batch included, at speed 1; a list: equally likely values
    compute: float | list[float] = 0.01
    spread: float = 0.0  # standard deviation of `compute` from step to step, as a share of it (lognormal)
    speeds: list[float] = field(default_factory=lambda: [1.0])  # of the workers, in turn
    pause_probability: float = 0.0  # that a worker pauses before a step
    pause_seconds: float = 0.0
    latency: float | list[float] = 0.0  # of a message; a list: [up, down]
    bandwidth: float | list[float] | None = None  # of each worker's link; a list: [up, down]; none: unlimited
    service: float = 0.0  # of the master, for each message
    # from the kill of a worker (faults) until it asks for the center again: its process has to be started
    restart_seconds: float = 5.0
    overhead: float = 0.0  # of a worker, for each message: its own work, which nothing overlaps
    # of the master's link, which all messages share; a list: [up, down]; none: only workers' own links limit
    shared_bandwidth: float | list[float] | None = None
    here: int = 0  # workers on the master's host, whose messages cross no network
    rounds: str = "master"  # how a round goes: through the master, or all-reduced on a ring

    def __post_init__(self) -> None:
        computes = self.compute if isinstance(self.compute, list) else [self.compute]
        if not computes or not all(math.isfinite(c) and c > 0 for c in computes):
            raise ValueError(
                f"launcher.compute={self.compute}: seconds of a step are a number greater than 0, or a list of "
                "such, equally likely."
            )
        if not (math.isfinite(self.spread) and self.spread >= 0) or (self.spread and isinstance(self.compute, list)):
            raise ValueError(
                f"launcher.spread={self.spread:g}: is at least 0, and given with one launcher.compute, not with a "
                "list, which has its own."
            )
        if not self.speeds or not all(math.isfinite(v) and v > 0 for v in self.speeds):
            raise ValueError(
                f"launcher.speeds={self.speeds}: a list of numbers greater than 0, such as [1,1,1,0.25] with one "
                "worker four times slower."
            )
        if not 0 <= self.pause_probability <= 1:
            raise ValueError(f"launcher.pause_probability={self.pause_probability:g}: lies in [0, 1].")
        for name in ("pause_seconds", "service", "overhead", "restart_seconds"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"launcher.{name}={value:g}: seconds are a number of at least 0.")
        for value in self._both(self.latency, "latency"):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"launcher.latency={self.latency}: seconds are at least 0, one number or [up,down].")
        for name in ("bandwidth", "shared_bandwidth"):
            given = getattr(self, name)
            if given is not None and not all(value > 0 for value in self._both(given, name)):
                raise ValueError(
                    f"launcher.{name}={given}: bytes a second are more than 0, one number or [up,down]; null is "
                    "unlimited."
                )
        if self.here < 0:
            raise ValueError(f"launcher.here={self.here}: is a number of workers, at least 0.")
        if self.rounds not in ("master", "ring"):
            raise ValueError(f"launcher.rounds={self.rounds}: is master or ring.")

    def compute_seconds(self, seed: int, worker: int, t: int) -> float:
        """Returns the virtual seconds of the worker's gradient at its step t, a function of (seed, worker, t) alone."""
        seconds = self._drawn(seed, worker, t) / self.speeds[worker % len(self.speeds)]
        if self.pause_probability and uniform(seed, PAUSES, worker, t) < self.pause_probability:
            seconds += self.pause_seconds
        return seconds

    def mean_seconds(self) -> float:
        """Returns the mean virtual seconds of a step, over workers and steps, pauses included."""
        computes = self.compute if isinstance(self.compute, list) else [self.compute]
        slowness = sum(1 / speed for speed in self.speeds) / len(self.speeds)
        return sum(computes) / len(computes) * slowness + self.pause_probability * self.pause_seconds

    def _drawn(self, seed: int, worker: int, t: int) -> float:
        if isinstance(self.compute, list):
            return self.compute[int(uniform(seed, COMPUTING, worker, t) * len(self.compute))]
        if not self.spread:
            return self.compute
        variance = math.log1p(self.spread**2)  # of the logarithm; the mean stays `compute`
        return self.compute * math.exp(
            math.sqrt(variance) * NormalDist().inv_cdf(uniform(seed, COMPUTING, worker, t)) - variance / 2
        )

    def network(self, nbytes: int) -> Network:
        """Returns the links, for messages of that many bytes."""
        from easgd_cli.transport.simulated import Network

        bandwidth, shared = (
            (None, None) if given is None else self._both(given, name)
            for given, name in ((self.bandwidth, "bandwidth"), (self.shared_bandwidth, "shared_bandwidth"))
        )
        latency, ring = self._both(self.latency, "latency"), self.rounds == "ring"
        return Network(nbytes, latency, bandwidth, self.overhead, shared, self.here, ring)

    def _both(self, value: float | list[float], name: str) -> tuple[float, float]:
        values = value if isinstance(value, list) else [value, value]
        if len(values) != 2:
            raise ValueError(f"launcher.{name}={value}: is one number, or two for [up,down].")
        return values[0], values[1]
