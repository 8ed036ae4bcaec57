"""Reads from a run's directory what a report needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from easgd_cli.errors import UsageError
from easgd_cli.problems.metric import Metrics
from easgd_cli.record import lost_workers, reader, run_directory
from easgd_cli.record.metrics import PARTIES, PARTS, Row
from easgd_cli.settings.schema import OF_SWEEPS, Settings

MOMENT = ("seconds", "step", "exchanges")  # say when an evaluation was made; a curve's other columns are metrics

# Settings that say where and how a run is kept and started, not what it does.
_OF_PROBES = ("auto.seconds", "auto.probes")
_ABOUT_KEEPING = {"resume", "checkpoint.every", "checkpoint.keep", "default_steps", *_OF_PROBES, *OF_SWEEPS}


# Settings that older directories lack: they did not exist yet, and a run was as it now is by default.
_BEFORE = {name: getattr(Settings, name) for name in ("wire", "fragments", "accumulate", "replicas", "dither")}


@dataclass(frozen=True)
class Run:
    """What a report needs of one run.

    `settings`: by their names on the command line (an option under its group's name), without those about keeping.
    `curve`: seconds, step, exchanges and every metric of `party` at each evaluation, [n] each; NaN where a value is not
    finite or missing.
    `seconds`: of a worker's step loop, by what they were spent on, the mean over workers; None where not recorded.
    `cores`: CPU cores of the run's machine; None where they are not known or did not do the computing.
    `lost`: a line for every loss of a worker. `metrics`: those that the problem declares.
    `symbols`: the paper's symbols that method and schedule use; None where not recorded.
    `damaged`: numbers, from 1, of the lines of metrics.jsonl that are no rows and do not count. `doubts`: a sentence
    for each file that is not as it was written.
    """

    path: Path
    settings: dict[str, Any]
    overrides: list[str]
    status: str
    reason: str | None
    party: str
    curve: dict[str, np.ndarray]
    seconds: dict[str, float] | None
    samples_per_second: float | None
    bytes_per_exchange: float
    exchanges: int
    staleness: float | None
    virtual: bool
    cores: int | None
    lost: list[str]
    damaged: list[int]
    metrics: Metrics
    symbols: list[str] | None
    doubts: list[str] = field(default_factory=list)
    goodput: dict[str, float] = field(default_factory=dict)  # as summary.json has it
    chosen_tau: int | None = None  # the period that tau=auto has chosen
    links: dict[str, dict[str, float]] = field(default_factory=dict)  # for each host, numbers on its link

    @property
    def bytes_exchanged(self) -> float:
        return self.exchanges * self.bytes_per_exchange

    @property
    def sequential(self) -> bool:
        """True for a run of one worker without exchanges."""
        return self.settings.get("workers") == 1 and self.settings.get("tau") is None

    def finite(self, metric: str) -> np.ndarray:
        """Returns whether the metric was finite at each evaluation [n]."""
        return np.isfinite(self.curve[metric]) if metric in self.curve else np.zeros(len(self.curve["seconds"]), bool)

    def last(self, metric: str) -> float | None:
        """Returns the metric at the last evaluation, None where it is not finite."""
        return float(self.curve[metric][-1]) if len(self.curve["seconds"]) and self.finite(metric)[-1] else None

    def best(self, metric: str) -> int | None:
        """Returns the number of the first evaluation with the best value of the metric; None without a finite value."""
        there, sign = self.finite(metric), self.metrics[metric].sign
        return int(np.nanargmin(np.where(there, sign * self.curve[metric], np.nan))) if there.any() else None

    def first(self, metric: str, level: float) -> int | None:
        """Returns the number of the first evaluation with the metric as good as `level`; None where there is none."""
        if metric not in self.curve:
            return None
        sign = self.metrics[metric].sign
        reached = np.flatnonzero(sign * self.curve[metric] <= sign * level)  # False for a NaN
        return int(reached[0]) if len(reached) else None

    def seconds_to(self, metric: str, level: float) -> float | None:
        """Returns the training seconds until the metric was first as good as `level`; None where it never was."""
        at = self.first(metric, level)
        return None if at is None else float(self.curve["seconds"][at])


def read(path: Path) -> Run:
    """Reads the run in this directory as it stands. Raises BadFile where its files cannot be read."""
    doubts: list[str] = []
    config, summary = reader.config_of(path, doubts), reader.summary_of(path, doubts)
    if config is None:
        raise reader.MissingFile(path / "config.yaml", "is missing, and without it nobody knows what was run")
    if not isinstance(config.get("workers"), int):
        raise reader.BadFile(path / "config.yaml", "does not say how many workers the run has")
    settings, damaged = _BEFORE | _flat(config), list[int]()
    party = "center" if settings.get("average", "none") == "none" else "average"
    try:
        rows = list(reader.read_rows(path / "metrics.jsonl", config["workers"], damaged))
        held = reader.held_at_the_end(path).get("metrics.jsonl")
        if not damaged and (wrong := reader.wrong_at_the_end(path / "metrics.jsonl", held)):
            doubts.append(f"{path / 'metrics.jsonl'}: {wrong}.")
    except reader.MissingFile:
        rows = []
    exchanges: int = summary["exchanges"] if "exchanges" in summary else int(rows[-1]["exchanges"]) if rows else 0
    workers = [row for row in rows if row["party"] not in PARTIES]
    curve = _curve([row for row in rows if row["party"] == party])
    last = curve["step"][-1] if len(curve["step"]) else 0
    if settings.get("workers") == 1 and not exchanges and last > (config.get("tau") or 0):
        settings["tau"] = None  # a method that exchanges nothing has no period, whatever the setting says
    status, reason = _status(path, summary)
    per_exchange = 8.0 * summary.get("parameters", 0)
    if summary.get("bytes_exchanged") and exchanges:
        per_exchange = summary["bytes_exchanged"] / exchanges
    return Run(
        path, settings, reader.overrides_of(path), status, reason, party, curve,
        seconds=_seconds(summary, workers), samples_per_second=_speed(summary, workers),
        bytes_per_exchange=per_exchange, exchanges=exchanges,
        staleness=_staleness(summary, workers),
        virtual=settings.get("launcher", "local") not in ("local", "distributed", "ddp", "post_local_sgd"),
        cores=_cores(summary), lost=lost_workers.lines(summary), damaged=damaged,
        metrics=reader.metrics_of(path), symbols=summary.get("symbols"),
        doubts=doubts, goodput=summary.get("goodput", {}),
        chosen_tau=config["tau"] if settings.get("tau") == "auto" else None, links=_links(summary),
    )  # fmt: skip


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings by name: `algo`, `algo.target`, `launcher.latency`, `tau`. Where no length was given,
    `steps` is the default length.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("faults", "groups") and isinstance(value, list):
            flat |= {f"{key}.{i}.{part}": v for i, entry in enumerate(value) for part, v in dict(entry).items()}
        elif isinstance(value, dict):
            flat |= {key if option == "name" else f"{key}.{option}": v for option, v in value.items()}
        else:
            flat[key] = value
    if all(flat.get(key) is None for key in ("steps", "epochs", "minutes")) and "default_steps" in flat:
        flat["steps"] = flat["default_steps"]
    if flat.pop("auto.tau", False):  # as asked for, since runs of other seeds may have found other periods
        flat["tau"] = "auto"
    else:
        flat.pop("auto.share", None)
    return {key: value for key, value in flat.items() if key not in _ABOUT_KEEPING}


def _curve(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys([*MOMENT, *(key for row in rows for key, value in row.items() if not isinstance(value, str))])
    return {
        name: np.array([np.nan if (value := row.get(name)) is None else value for row in rows], dtype=float)
        for name in names
    }


def _seconds(summary: dict[str, Any], workers: Sequence[Row]) -> dict[str, float] | None:
    said: dict[str, float] = summary.get("seconds") or {}
    if sum(said.values()) > 0:
        return said
    last = [row for row in _last(workers) if all(f"seconds_{part}" in row for part in PARTS)]
    return {part: float(np.mean([row[f"seconds_{part}"] for row in last])) for part in PARTS} if last else None


def _speed(summary: dict[str, Any], workers: Sequence[Row]) -> float | None:
    """Returns the samples of all workers together per second since the start; None where not recorded."""
    if "samples_per_second" in summary:
        return float(summary["samples_per_second"])
    if "batch_size" not in summary:
        return None
    return sum(row["step"] * summary["batch_size"] / row["seconds"] for row in _last(workers) if row["seconds"]) or None


def _last(workers: Sequence[Row]) -> list[Row]:
    """Returns the last row of each worker."""
    return list({row["party"]: row for row in workers}.values())


def _staleness(summary: dict[str, Any], workers: Sequence[Row]) -> float | None:
    """Returns how often others updated the center between two exchanges of a worker: the mean over all exchanges, by
    summary.json, or else over the workers' rows.
    """
    if mean := summary.get("communication", {}).get("staleness", {}).get("mean"):
        return float(mean)
    found = [row["staleness"] for row in workers if row.get("staleness") is not None]
    return float(np.mean(found)) if found else None


def _links(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the numbers of summary.json on the link to each host, and the percentage of the link that was used."""
    found: dict[str, dict[str, float]] = {}
    for host, link in summary.get("links", {}).items():
        numbers = {key: float(v) for key, v in link.items() if type(v) in (int, float) and abs(v) < 1e300}
        numbers["workers"] = float(len(link["workers"])) if isinstance(link.get("workers"), list) else math.nan
        for way in ("up", "down"):
            most = numbers.get(f"measured_{way}", 0.0) * summary.get("wall_seconds", 0.0)
            if most > 0 and f"bytes_{way}" in numbers:
                numbers[f"share_{way}"] = 100 * numbers[f"bytes_{way}"] / most
        found[host] = numbers
    return found


def _cores(summary: dict[str, Any]) -> int | None:
    """Returns the CPU cores of the run's machine; None for several machines, and where GPUs did the computing."""
    hardware = summary.get("hardware") or {}
    return None if summary.get("links") or hardware.get("gpus") else hardware.get("cores")


def _status(path: Path, summary: dict[str, Any]) -> tuple[str, str | None]:
    status, reason = summary.get("status", "unknown"), summary.get("reason")
    if status == "unknown":
        return status, "there is no summary.json to say how it ended"
    if status == "running":
        try:
            with run_directory.held(path):
                return "killed", "it says that it is running, but no process is in it"
        except UsageError:  # a process is in it
            pass
    return status, reason
