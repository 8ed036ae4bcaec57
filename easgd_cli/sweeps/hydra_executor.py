"""Launchers and sweepers of Hydra's other than its basic ones: joblib, submitit and SLURM, optuna, and any other
plugin.

A launcher is given the jobs of a checked plan. A sweeper draws its own, and is told of each what it is to minimise.
Either calls `HydraJob`, wherever it likes; the run then has a process of its own, and this one reads how it stands.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher.hosts.world import world
from easgd_cli.record import reader, run_directory
from easgd_cli.settings.overrides import own, quote
from easgd_cli.settings.schema import OF_SWEEPS
from easgd_cli.sweeps import job_status
from easgd_cli.sweeps.executor import Begin, Tell
from easgd_cli.sweeps.job_status import FAILED, RUNNING, JobStatus
from easgd_cli.sweeps.job_watch import JobWatch
from easgd_cli.sweeps.objective import Objective
from easgd_cli.sweeps.plan import Plan, SweepJob
from easgd_cli.system import interruption
from easgd_cli.system.terminal import tell

_DIGITS = 6  # of a drawn value in a name: sixteen tell no more apart, but for values that come to the same name


class HydraExecutor:
    """Leaves the jobs to the plugins that `plan` names.

    `words` are the sweep's, composed with `config_name` in the directory `configs`; `program` is as for a SlotExecutor.
    """

    def __init__(self, plan: Plan, words: Sequence[str], config_name: str, configs: Path, program: str):
        elsewhere = ("hydra.sweep.dir=", "hydra.mode=", *(f"{key}=" for key in OF_SWEEPS))
        root = plan.root.absolute()
        self._words = [w for w in words if not w.startswith(elsewhere)] + [f"hydra.sweep.dir={quote(str(root))}"]
        self._plan, self._config_name, self._configs = plan, config_name, configs
        self._job = HydraJob(root, program, plan.objective, plan.retry, plan.launcher == "submitit_slurm")

    def run(self, jobs: Sequence[SweepJob], begin: Begin, on_change: Tell, look: Callable[[], None]) -> int:
        """Runs `jobs`, or where the sweeper draws them whatever that draws. It leaves traces in this process."""
        jobs = [job for job in jobs if begin(job)]
        watch, plan = JobWatch(self._job.root, on_change, look), self._plan
        composing = initialize_config_dir(str(self._configs), job_name="train", version_base="1.3")
        # The jobs on this machine end before the signal is raised: joblib would kill them.
        with watch.watching(), interruption.raised() as came, interruption.undone_by(watch.end), composing:
            try:
                if plan.objective is not None:
                    self._search(_hydra())
                elif jobs:
                    self._launch(_hydra(), jobs)
                watch.settle(self._last)
            except KeyboardInterrupt:
                if plan.launcher == "submitit_slurm":
                    tell("jobs that SLURM has queued or that run on other machines go on; scancel ends them.")
                return 128 + came[0]
            except (Exception, CannotSay) as e:
                given = (w for w in self._words if w.startswith(("hydra.launcher.", "hydra.sweeper.")))
                tell(f"{' '.join([plan.plugins, *given])}: {_reason(e)}")
                return 1
        return 0

    def _last(self, said: JobStatus) -> bool:
        """Whether a job says no more: of one that has ended a search is still told the value."""
        searching = self._plan.objective is not None and said.status in run_directory.ENDED
        return said.status != RUNNING and (not searching or said.objective is not None)

    def _launch(self, hydra: Hydra, jobs: Sequence[SweepJob]) -> None:
        """Hands all of them to the launcher, as a sweeper of Hydra's does, but for what it makes of the values."""
        config = hydra.compose_config(self._config_name, self._words, RunMode.MULTIRUN)
        callbacks = Callbacks(config)
        callbacks.on_multirun_start(config=config, config_name=self._config_name)
        context = HydraContext(hydra.config_loader, callbacks)
        launcher = Plugins.instance().instantiate_launcher(context, self._job, config)
        overrides = [[*own(job.words), f"hydra.sweep.subdir={quote(job.name)}"] for job in jobs]
        for job_return in launcher.launch(overrides, initial_job_idx=0):
            _ = job_return.return_value  # raises what the call of a job has raised
        callbacks.on_multirun_end(config=config, config_name=self._config_name)

    def _search(self, hydra: Hydra) -> None:
        """Has the sweeper draw jobs and learn what came of them."""
        fixed = ",".join(f'"{key}"' for key in self._plan.fixed)
        named = quote(f'${{named_by:"",${{hydra.overrides.task}},[{fixed}],{_DIGITS}}}')
        words = [*self._words, f"hydra.sweep.subdir={named}"]
        sweeper = hydra.compose_config(self._config_name, words, RunMode.MULTIRUN).hydra.sweeper
        rate = "hydra.sweeper.max_failure_rate="
        if sweeper.get("max_failure_rate") == 0 and not any(w.startswith(rate) for w in words):
            words.append(f"{rate}1")  # a run that failed is a failed trial and ends no search
        if not sweeper.get("storage") and "seed" in (sweeper.get("sampler") or {}) and sweeper.sampler.seed is None:
            words.append("hydra.sweeper.sampler.seed=0")  # the same command draws the same, finds its runs and goes on
        hydra.multirun(self._config_name, self._job, words, with_log_configuration=False)


class CannotSay(BaseException):
    """A job has nowhere to say how it stands. No Exception, which a sweeper would take for a failed trial."""


@dataclass(frozen=True)
class HydraJob:
    """What Hydra calls for each job, perhaps in a thread, in another library's process or on another machine.

    Neither signals nor multiprocessing are there as a launcher of runs needs them, so the run has a process of its own.
    With an `objective` it returns the value of that and raises RunError where the run failed, as sweepers have it;
    without, nothing. Raises CannotSay. `retry`: also a run that failed before. `by_slurm`: it is called in every task
    of a job of SLURM's; the first makes the run, and in the others it joins that and says nothing of it.
    """

    root: Path
    program: str
    objective: Objective | None = None
    retry: bool = False
    by_slurm: bool = False

    def __call__(self, _: DictConfig) -> float | None:
        info = HydraConfig.get()
        if self.by_slurm and (started := world()) is not None and started.rank:
            # its output is submitit's; the job's log is the first task's
            _waited_for(subprocess.Popen(self._program(), cwd=info.runtime.cwd, stdin=subprocess.DEVNULL))
            return None
        name = self._name(run_directory.clean(str(info.sweep.subdir)) or "default", own(info.overrides.task))
        with suppress(OSError):
            # Hydra has made it; the run makes its own, or goes on in the one it had
            Path(info.runtime.output_dir).rmdir()
        words = ["--config-name", str(info.job.config_name), *info.overrides.task]
        if self.retry:
            words.append("retry=true")
        if info.searchpath:
            words.append(f"hydra.searchpath=[{','.join(quote(p) for p in info.searchpath)}]")
        try:
            said = self._run(name, words, info.runtime.cwd)
            if self.objective is None:
                return None
            if said.status in run_directory.ENDED:
                said = job_status.write(self.root, name, self._judged(said, self.objective))
        except RunError as e:
            raise CannotSay(str(e)) from e
        if said.status not in run_directory.ENDED:
            raise RunError(f"{name}: {said.status}: {said.reason or 'no reason is known'}")
        return math.inf if said.value is None else said.value

    def _judged(self, said: JobStatus, objective: Objective) -> JobStatus:
        """The same with its value, or as failed where its record has none."""
        try:
            value = objective.value(Path(said.path or ""))
        except (UsageError, RunError) as e:  # the first where its record cannot be read
            return JobStatus(FAILED, str(e))
        return replace(said, objective=str(objective), value=value if math.isfinite(value) else None)

    def _name(self, name: str, overrides: list[str]) -> str:
        """`name`, or with a hash where a run with another value has it: a sweeper may draw nearly the same values."""
        there = dict(o.split("=", 1) for o in reader.overrides_of(self.root / name) if "=" in o)
        drawn = dict(o.split("=", 1) for o in overrides if "=" in o)
        if self.objective is None or all(there.get(key, value) == value for key, value in drawn.items()):
            return name
        return f"{name}-{run_directory.digest(sorted(overrides))}"

    def _run(self, name: str, words: list[str], cwd: str) -> JobStatus:
        """Runs it and returns what it said last. Raises RunError where it has nowhere to say it."""
        with open(job_status.begin(self.root, name), "ab") as out:  # a job may be queued again
            process = subprocess.Popen(
                [*self._program(), str(self.root), name, *words],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C comes to the sweep, which passes it on once
            )
        try:
            code = _waited_for(process)
        except BaseException:
            with suppress(RunError):
                job_status.settle(self.root, name, process.pid, process.wait())
            raise
        return job_status.settle(self.root, name, process.pid, code)

    def _program(self) -> list[str]:
        return [sys.executable, "-m", self.program, str(os.getpid())]


def _waited_for(process: subprocess.Popen[bytes]) -> int:
    """Its exit status. A signal, or what a scheduler's has become, ends it first: it saves what it has."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _hydra() -> Hydra:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra


def _reason(e: BaseException) -> str:
    """The first line of what was wrong in the first place."""
    while not isinstance(e, RunError | CannotSay) and (earlier := e.__cause__ or e.__context__) is not None:
        e = earlier
    if isinstance(e, RunError | CannotSay):
        return str(e)
    return f"{type(e).__name__}: {(str(e).strip().splitlines() or ['no more is known'])[0]}"
