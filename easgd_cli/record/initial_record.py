"""Makes the recorder of a job: for a new run, or for one that goes on from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from easgd_cli.algorithms.base import CENTER
from easgd_cli.experiment import build
from easgd_cli.problems.classification import metrics_of
from easgd_cli.record.metrics import PARTIES, Row, worker_name
from easgd_cli.record.recorder import Recorder
from easgd_cli.record.tensorboard_pages import Value
from easgd_cli.settings.schema import GROUPS, Settings, effective_alpha, effective_beta, length, levels

if TYPE_CHECKING:
    from easgd_cli.algorithms.base import Method
    from easgd_cli.record.checkpoint import Checkpoint


class Recorded(Protocol):
    """What a recorder needs to know of a job."""

    @property
    def run_dir(self) -> Path: ...
    @property
    def command(self) -> str: ...


def open_record(job: Recorded, experiment: build.Experiment, resumed: Checkpoint | None) -> Recorder:
    """Returns the recorder of a new run, or of one that goes on from `resumed`. Raises RunError."""
    from easgd_cli.training.drive import how_it_exchanges  # here, since it loads torch

    s, rules = experiment.settings, experiment.parts.rules
    of_run = hparams(s, rules)
    facts = {
        **getattr(experiment.problem, "facts", {}),
        "algo": s.algo["name"], "problem": s.problem["name"], "dataset": s.dataset["name"], "model": s.model["name"],
        "parameters": experiment.parameters,
        "workers": s.workers, "tau": s.tau, "batch_size": experiment.problem.batch_size, "seed": s.seed,
        "precision": s.precision,
        "length": length(s), "until": levels(s), "symbols": sorted(build.symbols_used(s)),
        # recorded so that code that reads the run need not run the run's own
        "exchange": "in rounds" if build.of_copies(s) else how_it_exchanges(rules, s.eta),
        "hparams": {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in of_run.items()},
        "metrics": metrics_of(experiment.problem).told(),
    }  # fmt: skip
    if len(experiment.method.variables) > 1:
        facts["variables"] = list(experiment.method.variables)
    if len(experiment.slices) > 1:
        facts["variables"] = [f"{CENTER}/{place}" for place in range(len(experiment.slices))]
    if s.auto.probes:
        facts["tau_chosen"] = {"share": s.auto.share, "probes": s.auto.probes}
    texts = {
        "command": as_is(job.command),
        "config": as_is(yaml.safe_dump(asdict(s), sort_keys=False, allow_unicode=True)),
    }
    if resumed is None:
        return Recorder(job.run_dir, s.workers, of_run, texts, facts)
    return Recorder.reopen(
        job.run_dir, s.workers, of_run, texts, facts, keep=up_to(resumed),
        exchanges=resumed.owner.moment.exchanges, checkpoint=resumed.name,
    )  # fmt: skip


def hparams(s: Settings, rules: Method) -> dict[str, Value]:
    """Returns the settings that result and speed may depend on, for the HParams page; None for unused symbols."""
    exchanges = not rules.alone or build.periodic(s)
    uses = build.symbols_used(s)
    found: dict[str, Any] = {group: getattr(s, group)["name"] for group in GROUPS}
    found |= {
        "workers": s.workers, "tau": s.tau if exchanges else None, "eta": s.eta,
        "alpha": effective_alpha(s) if uses & {"alpha", "beta"} else None,
        **({"beta": effective_beta(s)} if {"alpha", "beta"} <= uses else {}),  # else either follows from the other
        "delta": s.delta if "delta" in uses else None, "gamma": s.gamma if "gamma" in uses else None,
        "warmup": s.warmup, "l2": s.l2, "clip": s.clip, "batch_size": s.batch_size, "precision": s.precision,
        "compile": s.compile,
        "device": s.device, "threads": s.threads, "seed": s.seed,
    }  # fmt: skip
    unusual = {"wire": "fp32", "fragments": 1, "accumulate": 1, "replicas": 1, "dither": 0.0}
    found |= {key: getattr(s, key) for key, usual in unusual.items() if getattr(s, key) != usual}
    if s.groups:
        found |= {"groups": str(s.groups)}
    if s.faults:
        found |= {"faults": str(s.faults)}
    if s.on_nan != "diverge":
        found |= {"on_nan": s.on_nan}
    found |= length(s)
    if s.init is not None:
        found |= {"init": s.init, "init_prefix": s.init_prefix, "init_without": ",".join(s.init_without) or None}
    for group in GROUPS:
        for key, value in getattr(s, group).items():
            # Of a data set only the numbers: its other settings say where the data lie, not what they are.
            counts = group != "dataset" or (isinstance(value, int | float) and not isinstance(value, bool))
            if counts and key not in ("name", "target"):
                found[f"{group}.{key}"] = value
    return {key: value if isinstance(value, str | int | float | None) else str(value) for key, value in found.items()}


def up_to(checkpoint: Checkpoint) -> Callable[[Row], bool]:
    """Returns a function that tells whether to keep a row: it keeps rows from before the checkpoint, but not those that
    a run which goes on from it writes again.
    """
    moment = checkpoint.owner.moment
    pending = {(m.seconds, m.step, m.exchanges) for m, _ in checkpoint.pending}
    # The checkpoint has each worker at the end of the worker's own step, which may be later than the center's moment. A
    # lost worker comes back with its old clock, as the center's owner last saw it. The steps in a worker's tally belong
    # to a row that the worker writes again; a closing row with these steps, at no regular step, is dropped.
    reached = {worker_name(i): t for i, t in moment.clocks.items()} | {
        worker_name(i): w.t - (w.tally or {}).get("steps", 0) for i, w in checkpoint.workers.items()
    }

    def keep(row: Row) -> bool:
        if row["party"] not in PARTIES:
            return bool(row["step"] <= reached.get(row["party"], 0))
        before = all(row[name] <= getattr(moment, name) for name in ("seconds", "exchanges", "step"))
        return before and (row["party"] == "system" or (row["seconds"], row["step"], row["exchanges"]) not in pending)

    return keep


def as_is(text: str) -> str:
    """Returns `text` indented, so that Markdown shows it unchanged."""
    return "\n".join(f"    {line}" for line in text.splitlines())
