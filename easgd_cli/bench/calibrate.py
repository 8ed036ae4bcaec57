"""A measured run of launcher=local as settings of launcher=simulated (launcher/kinds.py has what they mean).

What is taken from where, all in seconds:

compute   The seconds of a local step that no exchange could shorten: compute, data and other of the workers' rows.
          Twenty equally likely values, each the mean of a twentieth of all steps by length, so that their mean is
          exactly the run's. A row is the mean over the steps since the row before; in a run of more than 250 steps the
          list is narrower than single steps are, which matters to methods in rounds only.
speeds    The workers' mean steps against each other: the wall-clock of a run is that of its slowest.
service   The master's CPU seconds for each message, or the exchange's where they are fewer: it looks at its channel
          five times a second, too, which is much of what it does where exchanges are rare.
latency   Half of what is left of an exchange. Where the rule waits for its reply, an exchange is what the step loop
          spent on it, w. Less the service, s, and the wait for others' messages in a queue of Poisson arrivals and
          constant service (Pollaczek and Khinchine): rho s / (2 (1 - rho)), with rho the share of the time that the
          others keep the master busy. Where an exchange overlaps a gradient or is a round, the record does not say how
          long it took, nor does it where the master is busy most of the time; then one is measured here and now,
          beside p - 1 processes that compute, on the machine of the run and no busier than it was then.
overhead  What the step loop spent on an exchange beyond what was not hidden behind a gradient: a worker's own time for
          sending and collecting. Nothing where the rule waits for its reply, since it is in the exchange then, nor in
          rounds, where the loop's seconds are those of waiting for the slowest.

Bandwidth stays unlimited: on one machine no vector travels, and the latency belongs to the size of this one.

Not modelled. The workers and the master share the cores: what they take from each other is in `compute`, and stays what
it was in this run, so the settings belong to this number of workers, and where exchanges cost much against a step, to a
period like this one. The simulator takes the batch of DOWNPOUR's step after the pull, where a real worker makes it
meanwhile. Starting and ending, an evaluator that runs beside the workers, and whatever else the machine does are not
there either.
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

_VALUES = 20  # of the list of compute
_BUSY = 0.5  # of the master's time: above it, waiting is queueing, and says nothing of latency
_SPENT = ("seconds_compute", "seconds_data", "seconds_other")


@dataclass(frozen=True)
class Measured:
    """What the record says. `steps`: of each worker [rows, 2], how many steps and their seconds without exchanges."""

    tau: int
    steps: list[np.ndarray]
    exchanging: float  # seconds of a worker's step loop for an exchange
    service: float  # CPU seconds of the master for a message
    exchanges: int
    wall_seconds: float
    nbytes: int  # of a message
    waits: bool  # whether `exchanging` is how long an exchange took
    rounds: bool  # whether it is how long the slowest worker took

    @property
    def busy(self) -> float:
        """The share of the wall-clock that the master computed."""
        return self.service * self.exchanges / self.wall_seconds


@dataclass(frozen=True)
class Calibration:
    """Settings of launcher=simulated, and what they were derived from."""

    compute: list[float]
    speeds: list[float]
    service: float
    latency: float
    exchange: float  # from a message to its reply
    queueing: float  # of it, behind the messages of others
    overhead: float  # of a worker's loop for each exchange

    def settings(self) -> dict[str, float | list[float]]:
        """By name, as launcher=simulated has them."""
        return {name: getattr(self, name) for name in ("compute", "speeds", "service", "latency", "overhead")}


def read(run: Path, s: Settings) -> Measured:
    """What the record of the run in this directory, with these settings, says. Raises UsageError for too little."""
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
    """Whether the method and its local step are this package's, so that no code of the run's is run by making them."""
    return all(targets.own(getattr(s, group)["target"]) for group in ("algo", "local"))


def _exchange(run: Path, s: Settings, summary: dict[str, Any]) -> str:
    """How its workers exchange (training/drive.py). Code that a run names is not run to look at it; one of before, that
    does not say, has to be of a method of this package. Raises UsageError.
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
    """Settings with which a simulation takes as long as the run; `measured_exchange`: if the record does not tell."""
    p = len(m.steps)
    means = [float(of[:, 1].sum() / of[:, 0].sum()) for of in m.steps]
    mean = math.fsum(means) / p
    # Each worker's steps at speed 1, so that speed and list together give its own mean back.
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
    """[rows, 2]: how many steps since the row before, and the seconds of them all that were not communication."""
    totals = np.array([[0.0, 0.0]] + [[row["step"], sum(row[part] for part in _SPENT)] for row in rows])
    return np.diff(totals, axis=0)


def _equally_likely(steps: np.ndarray) -> list[float]:
    """Seconds of a step as `_VALUES` equally likely ones: means of as many equal shares of all steps by length."""
    steps = steps[np.argsort(steps[:, 1] / steps[:, 0])]
    # Lorenz's curve: seconds of the shortest steps, as many as there are
    upto = np.vstack([[0.0, 0.0], np.cumsum(steps, axis=0)])
    at = np.interp(np.linspace(0.0, upto[-1, 0], _VALUES + 1), upto[:, 0], upto[:, 1])
    return [float(seconds) for seconds in np.diff(at) * _VALUES / upto[-1, 0]]


def _not_overlapped(exchange: float, compute: list[float]) -> float:
    """Mean seconds that an exchange outlasts the step it overlaps."""
    return math.fsum(max(0.0, exchange - seconds) for seconds in compute) / len(compute)
