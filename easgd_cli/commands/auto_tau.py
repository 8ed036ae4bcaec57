"""tau=auto: short runs of the same configuration measure what an exchange costs, and the period follows from that.

A worker computes for c seconds a step and waits for w seconds at an exchange. With an exchange every tau steps it waits
for the share w / (tau c + w) of its time. tau is the smallest period that keeps this share within auto.share: a longer
period saves little time and lets workers drift further apart.
"""

from __future__ import annotations

import math
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher import distributed_sweep
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.kinds import Launcher
from easgd_cli.record import reader, run_directory
from easgd_cli.settings.schema import Auto, Settings

if TYPE_CHECKING:
    from easgd_cli.algorithms.base import Method

_LEAST_STEPS, _LEAST_PERIODS = 20, 4  # the least length of a probe on a virtual clock
_PROBES = 4  # the most probes; each has the period that follows from the probe before
_LONGEST = 4000  # the steps that a run of unknown length is taken to have
_ANY = 1_000_000  # stands for any period: a method that refuses it is defined for one period only


@dataclass(frozen=True)
class Probe:
    """The measurements of a short run with period `tau`. `share`: of a worker's time, spent waiting for exchanges;
    `seconds`: of training, virtual where simulated; `real_seconds`: of the whole probe, its start and end included.
    """

    tau: int
    share: float
    seconds: float
    real_seconds: float

    def period(self, bound: float) -> int:
        """Returns the smallest period with a share of at most `bound`, if an exchange costs the same at each."""
        ratio = self.tau * self.share * (1 - bound) / ((1 - self.share) * bound) if self.share < 1 else math.inf
        return math.ceil(min(_ANY, max(1.0, ratio * (1 - 1e-9))))  # 1e-9: so that a rounding error adds no step


def check(s: Settings, rules: Method) -> None:
    """With tau=auto, raises UsageError for a method of one fixed period, and for processes of torchrun's or SLURM's."""
    if s.auto.tau:
        distributed_sweep.refuse_several(s, "tau=auto", "write tau= as a number, such as easgd bench network proposes")
    if s.auto.tau and not rules.alone:
        try:
            build.method(replace(s, tau=_ANY))
        except UsageError as e:
            raise UsageError(str(e).replace(f"tau={_ANY}", "tau=auto")) from e


def chosen(prepared: Experiment, launcher: Launcher, tell: Callable[[str], object]) -> Experiment:
    """Measures with short runs, the probes, and returns the experiment with the period that follows; without tau=auto,
    the experiment as it is.

    A signal during a probe takes effect once the probe's directory is removed. Raises RunError where a probe fails, and
    UsageError where no period keeps to auto.share.
    """
    s = prepared.settings
    if not s.auto.tau or s.auto.probes:
        return prepared
    if prepared.method.alone:
        return replace(prepared, recipe=replace(prepared.recipe, settings=replace(s, auto=Auto())))
    least, probes = _least(s), list[Probe]()
    most = max(least, (prepared.steps or _LONGEST) // _LEAST_PERIODS)
    launcher.begin()
    wanted = least
    while len(probes) < _PROBES and wanted not in [probe.tau for probe in probes]:
        probes.append(_probe(replace(s, tau=wanted), prepared, launcher))
        # repeated: with many workers waiting for one master at the first period, the second may be far too long
        wanted = min(most, max(least, probes[-1].period(s.auto.share)))
    kept = [probe.tau for probe in probes if probe.share <= s.auto.share]
    tau = min(kept, default=probes[-1].period(s.auto.share))
    if tau > most:
        why = "; in rounds all wait for the slowest, whatever the period" if prepared.method.in_rounds else ""
        raise UsageError(
            f"tau=auto auto.share={s.auto.share:g}: no period up to {most} steps, a quarter of the run, keeps to it "
            f"(workers waited {_waits(probes)}{why}); give a greater auto.share, a longer run, or tau= as a number."
        )
    found = replace(s, tau=tau, auto=replace(s.auto, probes=[asdict(probe) for probe in probes]))
    many, took = len(probes), sum(probe.real_seconds for probe in probes)
    tell(
        f"tau=auto: tau={tau}; workers waited {_waits(probes)}, and {100 * s.auto.share:g} % at most is wanted. The "
        f"{f'{many} short runs' if many > 1 else 'short run'} took {took:.1f} s."
    )
    return _with(prepared, found)


def _waits(probes: Sequence[Probe]) -> str:
    return f"{', '.join(f'{100 * p.share:.3g} % at tau={p.tau}' for p in probes)} of their time"


def as_chosen(path: Path, s: Settings) -> Settings:
    """Returns `s` with the period that the run in `path`, which is to go on, has chosen before."""
    config = reader.config_of(path) if s.auto.tau else None
    return s if config is None else replace(s, tau=config["tau"], auto=Auto(**config["auto"]))


def _least(s: Settings) -> int:
    """Returns the shortest period that the method accepts."""
    for tau in range(s.fragments, s.fragments + 1000):
        try:
            build.method(replace(s, tau=tau))
        except UsageError:
            continue
        return tau
    return s.tau


def _probe(s: Settings, prepared: Experiment, launcher: Launcher) -> Probe:
    """Runs a probe with the period of `s` in a temporary directory. Raises RunError where it does not complete."""
    from easgd_cli.record import display

    began, path = time.monotonic(), Path(tempfile.mkdtemp(prefix="easgd-tau-"))
    try:
        short = _short(s)
        run_directory.write_config(path, short, [])
        outcome = launcher(Job(path, screen=display.nowhere(), another=True), _with(prepared, short))
    finally:
        shutil.rmtree(path, ignore_errors=True)
    if outcome.status == "interrupted":
        signal.raise_signal(outcome.exit_code - 128)
    if outcome.status != "completed":
        raise RunError(
            f"tau=auto: a short run at tau={s.tau}, which was to measure what an exchange costs, has {outcome.status}"
            f"{f' ({outcome.reason})' if outcome.reason else ''}; write tau= as a number."
        )
    return Probe(s.tau, _share(outcome, s.tau), outcome.summary["wall_seconds"], time.monotonic() - began)


def _share(outcome: Outcome, tau: int) -> float:
    """Returns the share of a worker's time that a long run would spend waiting. A probe's own share is too great, since
    its first exchange is at its first step.
    """
    seconds, steps = outcome.summary["seconds"], outcome.summary["steps"].values()
    waited, total = seconds["communication"], sum(seconds.values())
    exchanges = sum(-(-t // tau) for t in steps)
    if not exchanges or not total:
        return 0.0
    waited_a_step, others_a_step = waited / (exchanges * tau), (total - waited) / sum(steps)
    return float(waited_a_step / (waited_a_step + others_a_step)) if waited_a_step else 0.0


def _short(s: Settings) -> Settings:
    """Returns `s` for a probe: short, without schedule, faults or checkpoints, evaluated only before and after it."""
    virtual = not build.launched_in_processes(s)
    steps = max(_LEAST_STEPS, _LEAST_PERIODS * s.tau)
    length: dict[str, Any] = {
        "steps": -(-steps // s.tau) * s.tau if virtual else None,
        "minutes": None if virtual else s.auto.seconds / 60,
    }
    return replace(
        s, **length, epochs=None, default_steps=None, until={}, warmup=0, faults=[], profile=None, resume=None,
        schedule={"name": "constant", "target": "easgd_cli.algorithms.schedule:Constant"}, auto=Auto(),
        eval=replace(s.eval, every=f"{_ANY} steps", when="running" if virtual else "deferred"),
        checkpoint=replace(s.checkpoint, every=None),
    )  # fmt: skip


def _with(prepared: Experiment, s: Settings) -> Experiment:
    """Returns the experiment with the period and the length of `s`."""
    import torch  # here, so that a refusal does not wait for the import

    steps = s.steps if s.minutes is None and s.epochs is None and s.steps is not None else prepared.steps
    if s.minutes is not None:
        steps = None
    recipe = replace(prepared.recipe, settings=s, steps=steps)
    return replace(prepared, recipe=recipe, parts=recipe.parts(torch.device("cpu")))  # new: no probe has used these
