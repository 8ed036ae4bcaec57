"""Turns a measured run of launcher=local into settings of launcher=simulated (launcher/kinds.py says what they mean).

How each setting follows from the record, all in seconds:

compute   The seconds of a local step that no exchange could shorten: compute, data and other of the workers' rows.
          Twenty equally likely values, each the mean of a twentieth of all steps by length, so that their mean is
          exactly the run's. A row has the mean over the steps since the row before; in a run of more than 250 steps the
          values therefore vary less than single steps do, which matters for methods in rounds only.
speeds    The workers' mean steps in proportion: a run takes as long as its slowest worker.
service   The master's CPU seconds for each message, but at most the seconds of an exchange: the master also looks at
          its channel five times a second, which is much of its work where exchanges are rare.
latency   Half of what is left of an exchange. Where the rule waits for its reply, an exchange takes w, the seconds that
          the step loop spent on it. From w subtract the service, s, and the wait behind others' messages in a queue of
          Poisson arrivals and constant service (Pollaczek and Khinchine): rho s / (2 (1 - rho)), with rho the share of
          the time in which the other workers keep the master busy. The record does not tell how long an exchange took
          if it overlaps a gradient, is a round, or if the master is busy most of the time. Then an exchange is measured
          now, beside p - 1 computing processes; that needs the run's machine, no busier than during the run.
overhead  What the step loop spent on an exchange beyond the part that a gradient did not hide: a worker's own time for
          sending and collecting. 0 where the rule waits for its reply, since the exchange then includes this time, and
          0 in rounds, where the loop's seconds are the wait for the slowest worker.

Bandwidth stays unlimited: on one machine no vector travels, and the latency is that of vectors of this size.

Not modelled. The workers and the master share the cores: their slowing of each other is in `compute`, as it was in this
run. So the settings hold for this number of workers only, and where an exchange costs much against a step, for a
similar period only. In DOWNPOUR's step the simulator makes the batch after the pull, a real worker during the pull.
Start and end of a run, an evaluator beside the workers, and other programs on the machine are not modelled either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.record.metrics import Row, worker_name
from easgd_cli.record.reader import read_rows, summary_of
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings
from easgd_cli.training.drive import how_it_exchanges

_VALUES = 20  # length of the list `compute`
_BUSY = 0.5  # share of the master's time: above it a worker's wait is mostly queueing, and says nothing of latency
_SPENT = ("seconds_compute", "seconds_data", "seconds_other")


@dataclass(frozen=True)
class Measured:
    """What the record says. `steps`: for each worker [rows, 2], a row's steps and their seconds without exchanges."""

    tau: int
    steps: list[np.ndarray]
    exchanging: float  # seconds of a worker's step loop for an exchange
    service: float  # CPU seconds of the master for a message
    exchanges: int
    wall_seconds: float
    nbytes: int  # of a message
    waits: bool  # True if `exchanging` is how long an exchange took
    rounds: bool  # True if exchanges are rounds, so that `exchanging` is the wait for the slowest worker

    @property
    def busy(self) -> float:
        """The share of the wall-clock time in which the master computed."""
        return self.service * self.exchanges / self.wall_seconds


@dataclass(frozen=True)
class Calibration:
    """Settings of launcher=simulated, and the figures from which they follow."""

    compute: list[float]
    speeds: list[float]
    service: float
    latency: float
    exchange: float  # from a message to its reply
    queueing: float  # the part of `exchange` that is waiting behind others' messages
    overhead: float  # seconds of a worker's loop for each exchange

    def settings(self) -> dict[str, float | list[float]]:
        """Returns the settings of launcher=simulated by name."""
        return {name: getattr(self, name) for name in ("compute", "speeds", "service", "latency", "overhead")}


def read(run: Path, s: Settings) -> Measured:
    """Reads the record of the run in directory `run` with settings `s`. Raises UsageError if it does not suffice."""
    summary = summary_of(run)
    if s.launcher["name"] not in ("local", "distributed"):
        raise UsageError(
            f"bench calibrate {run}: is a run of launcher={s.launcher['name']}; give one of launcher=local or "
            "launcher=distributed, which measure real time."
        )
    if s.launcher["name"] == "distributed" and summary.get("exchange") != "waits":
        raise UsageError(
            f"bench calibrate {run}: algo={s.algo['name']} hides its exchanges, so the record does not tell what they "
            "took on the network; give a run of a method that waits for them, such as algo=downpour."
        )
    if summary.get("status") not in ("completed", "interrupted", "diverged"):
        raise UsageError(
            f"bench calibrate {run}: this run has not ended (its status is {summary.get('status', 'not known')}); "
            "give one that has."
        )
    if lost := {**summary.get("lost", {}), **summary.get("lost_before", {})}:
        raise UsageError(
            f"bench calibrate {run}: {', '.join(lost)} died in this run, which changed what the others had of the "
            "machine; give another."
        )
    if not summary.get("exchanges"):
        raise UsageError(
            f"bench calibrate {run}: nothing was exchanged in this run, so it says nothing of the master; give "
            "one of a method with a center."
        )
    if summary.get("wall_seconds", 0) <= 0 or "bytes_exchanged" not in summary:
        raise UsageError(f"bench calibrate {run}: its summary.json does not say how long it took; give another run.")
    rows = list(read_rows(run / "metrics.jsonl", s.workers))
    parts = (*_SPENT, "seconds_communication")
    told = [row for row in rows if row["step"] and all(type(row.get(part)) in (int, float) for part in parts)]
    workers = [[row for row in told if row["party"] == worker_name(i)] for i in range(s.workers)]
    served = [row for row in rows if row.get("master_cpu_seconds") and row["exchanges"]]
    if not all(workers) or not served:
        raise UsageError(
            f"bench calibrate {run}: there are no rows of {'the master' if all(workers) else 'every worker'} in "
            "its record; give a longer run."
        )
    exchange = _exchange(run, s, summary)
    return Measured(
        tau=s.tau,
        steps=[_steps(of) for of in workers],
        exchanging=sum(of[-1]["seconds_communication"] for of in workers) / summary["exchanges"],
        service=served[-1]["master_cpu_seconds"] / served[-1]["exchanges"],
        exchanges=summary["exchanges"],
        wall_seconds=summary["wall_seconds"],
        nbytes=summary["bytes_exchanged"] // (2 * summary["exchanges"]),
        waits=exchange == "waits",
        rounds=exchange == "in rounds",
    )


def of_easgds_own(s: Settings) -> bool:
    """Returns whether method and local step are easgd's own, so that making them runs no code that a run names."""
    return all(targets.own(getattr(s, group)["target"]) for group in ("algo", "local"))


def _exchange(run: Path, s: Settings, summary: dict[str, Any]) -> str:
    """Returns how the run's workers exchange, as `how_it_exchanges` says. Records of older versions do not tell; then
    the method is made to find out, but only one of easgd's own: reading a run must not run the code that it names.
    Raises UsageError for another method.
    """
    if "exchange" in summary:
        return str(summary["exchange"])
    if not of_easgds_own(s):
        raise UsageError(
            f"bench calibrate {run}: its summary.json does not say how the workers of algo={s.algo['name']} exchange, "
            "and to find out would run that method's code; give a newer run."
        )
    return how_it_exchanges(build.method(s), s.eta)


def calibrate(m: Measured, measured_exchange: Callable[[], float]) -> Calibration:
    """Returns settings with which a simulation takes as long as the run. `measured_exchange`: measures the seconds of
    an exchange now; called if the record does not tell them.
    """
    p = len(m.steps)
    means = [float(of[:, 1].sum() / of[:, 0].sum()) for of in m.steps]
    mean = math.fsum(means) / p
    # Each worker's steps scaled to speed 1, so that `compute` and its speed together give the worker's own mean.
    compute = _equally_likely(np.concatenate([of * (1.0, mean / own) for of, own in zip(m.steps, means, strict=True)]))
    told = m.waits and m.busy <= _BUSY
    exchange, queueing = m.exchanging if told else measured_exchange(), 0.0
    service = min(m.service, exchange)
    if told:
        rho = (p - 1) * service / (m.tau * mean + m.exchanging)
        queueing = rho * service / (2 * (1 - rho))
    latency = max(0.0, (exchange - service - queueing) / 2)
    overhead = 0.0 if m.waits or m.rounds else max(0.0, m.exchanging - _not_overlapped(exchange, compute))
    return Calibration(compute, [mean / own for own in means], service, latency, exchange, queueing, overhead)


def _steps(rows: list[Row]) -> np.ndarray:
    """Returns [rows, 2]: the number of steps since the row before, and their seconds without communication."""
    totals = np.array([[0.0, 0.0]] + [[row["step"], sum(row[part] for part in _SPENT)] for row in rows])
    return np.diff(totals, axis=0)


def _equally_likely(steps: np.ndarray) -> list[float]:
    """Returns `_VALUES` equally likely seconds of a step: the means over equal shares of all steps, by length."""
    steps = steps[np.argsort(steps[:, 1] / steps[:, 0])]
    # Lorenz's curve: (n, seconds of the n shortest steps together)
    upto = np.vstack([[0.0, 0.0], np.cumsum(steps, axis=0)])
    at = np.interp(np.linspace(0.0, upto[-1, 0], _VALUES + 1), upto[:, 0], upto[:, 1])
    return [float(seconds) for seconds in np.diff(at) * _VALUES / upto[-1, 0]]


def _not_overlapped(exchange: float, compute: list[float]) -> float:
    """Returns the mean seconds by which an exchange takes longer than the step that it overlaps."""
    return math.fsum(max(0.0, exchange - seconds) for seconds in compute) / len(compute)
