"""Runs jobs by launchers and sweepers of Hydra's other than its basic ones: joblib, submitit and SLURM, optuna, and any
other plugin.

A launcher is given the jobs of a checked plan. A sweeper draws its own jobs, and gets the value to minimise from each.
Both call `HydraJob`, in any thread, process or machine. That makes a process for the run, and the process of the sweep
reads how the run stands.
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

_DIGITS = 6  # of a drawn value that a name shows; `_name` tells apart values that agree in them


class HydraExecutor:
    """Leaves the jobs to the plugins that `plan` names.

    `words`: those of the sweep's command, composed with `config_name` in the directory `configs`; `program`: as for a
    SlotExecutor.
    """

    def __init__(self, plan: Plan, words: Sequence[str], config_name: str, configs: Path, program: str):
        elsewhere = ("hydra.sweep.dir=", "hydra.mode=", *(f"{key}=" for key in OF_SWEEPS))
        root = plan.root.absolute()
        self._words = [w for w in words if not w.startswith(elsewhere)] + [f"hydra.sweep.dir={quote(str(root))}"]
        self._plan, self._config_name, self._configs = plan, config_name, configs
        self._job = HydraJob(root, program, plan.objective, plan.retry, plan.launcher == "submitit_slurm")

    def run(self, jobs: Sequence[SweepJob], begin: Begin, on_change: Tell, look: Callable[[], None]) -> int:
        """Runs `jobs`, or those that the sweeper draws. Hydra's global state in this process is changed afterwards."""
        jobs = [job for job in jobs if begin(job)]
        watch, plan = JobWatch(self._job.root, on_change, look), self._plan
        composing = initialize_config_dir(str(self._configs), job_name="train", version_base="1.3")
        # A signal first ends the jobs on this machine, then raises KeyboardInterrupt, on which joblib would kill them.
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
        """Returns whether `said` is a job's last status. In a search, a run that has ended is still given its value."""
        searching = self._plan.objective is not None and said.status in run_directory.ENDED
        return said.status != RUNNING and (not searching or said.objective is not None)

    def _launch(self, hydra: Hydra, jobs: Sequence[SweepJob]) -> None:
        """Hands all jobs to the launcher, as Hydra's basic sweeper does, but with the values as the plan has them."""
        config = hydra.compose_config(self._config_name, self._words, RunMode.MULTIRUN)
        callbacks = Callbacks(config)
        callbacks.on_multirun_start(config=config, config_name=self._config_name)
        context = HydraContext(hydra.config_loader, callbacks)
        launcher = Plugins.instance().instantiate_launcher(context, self._job, config)
        overrides = [[*own(job.words), f"hydra.sweep.subdir={quote(job.name)}"] for job in jobs]
        for job_return in launcher.launch(overrides, initial_job_idx=0):
            _ = job_return.return_value  # raises the error of a job's call, if any
        callbacks.on_multirun_end(config=config, config_name=self._config_name)

    def _search(self, hydra: Hydra) -> None:
        """Has the sweeper draw jobs and run them; their values are returned to it."""
        fixed = ",".join(f'"{key}"' for key in self._plan.fixed)
        named = quote(f'${{named_by:"",${{hydra.overrides.task}},[{fixed}],{_DIGITS}}}')
        words = [*self._words, f"hydra.sweep.subdir={named}"]
        sweeper = hydra.compose_config(self._config_name, words, RunMode.MULTIRUN).hydra.sweeper
        rate = "hydra.sweeper.max_failure_rate="
        if sweeper.get("max_failure_rate") == 0 and not any(w.startswith(rate) for w in words):
            words.append(f"{rate}1")  # so that a failed run is a failed trial and does not end the search
        if not sweeper.get("storage") and "seed" in (sweeper.get("sampler") or {}) and sweeper.sampler.seed is None:
            words.append("hydra.sweeper.sampler.seed=0")  # so that the same command finds its runs
        hydra.multirun(self._config_name, self._job, words, with_log_configuration=False)


class CannotSay(BaseException):
    """A job's status cannot be written. No Exception, which a sweeper would take for a failed trial."""


@dataclass(frozen=True)
class HydraJob:
    """The function that Hydra calls for each job, perhaps in a thread, in another library's process or on another
    machine.

    There, signals and multiprocessing may not work as easgd's launchers need them, so the run has a process of its own.
    With an `objective` the call returns its value, and raises RunError where the run failed, as sweepers expect;
    without one it returns None. Raises CannotSay. `retry`: runs that failed before are tried again. `by_slurm`: every
    task of a SLURM job calls it; the first task makes the run, the others join the run and write no status.
    """

    root: Path
    program: str
    objective: Objective | None = None
    retry: bool = False
    by_slurm: bool = False

    def __call__(self, _: DictConfig) -> float | None:
        info = HydraConfig.get()
        if self.by_slurm and (started := world()) is not None and started.rank:
            # it prints into submitit's log; the job's own log is for the first task
            _waited_for(subprocess.Popen(self._program(), cwd=info.runtime.cwd, stdin=subprocess.DEVNULL))
            return None
        name = self._name(run_directory.clean(str(info.sweep.subdir)) or "default", own(info.overrides.task))
        with suppress(OSError):
            # Hydra has made this directory; the run makes its own, or goes on in an earlier start's
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
        """Returns `said` with the value of `objective`, or a failed status if the run's record has no such value."""
        try:
            value = objective.value(Path(said.path or ""))
        except (UsageError, RunError) as e:  # UsageError if its record cannot be read
            return JobStatus(FAILED, str(e))
        return replace(said, objective=str(objective), value=value if math.isfinite(value) else None)

    def _name(self, name: str, overrides: list[str]) -> str:
        """Returns the job's name: `name`, with a hash added if a run with other values has it, since a sweeper may draw
        values that are nearly the same.
        """
        there = dict(o.split("=", 1) for o in reader.overrides_of(self.root / name) if "=" in o)
        drawn = dict(o.split("=", 1) for o in overrides if "=" in o)
        if self.objective is None or all(there.get(key, value) == value for key, value in drawn.items()):
            return name
        return f"{name}-{run_directory.digest(sorted(overrides))}"

    def _run(self, name: str, words: list[str], cwd: str) -> JobStatus:
        """Runs the job and returns its last status. Raises RunError where the status cannot be written."""
        with open(job_status.begin(self.root, name), "ab") as out:  # appends: a scheduler may queue a job again
            process = subprocess.Popen(
                [*self._program(), str(self.root), name, *words],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches the sweep, which sends it on once
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
    """Waits for the process and returns its exit status. An error meanwhile, such as one that a signal raises, first
    ends the process by SIGTERM, on which the run saves what it has.
    """
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
    """Returns the first line of the error that was raised first, of those that led to `e`."""
    while not isinstance(e, RunError | CannotSay) and (earlier := e.__cause__ or e.__context__) is not None:
        e = earlier
    if isinstance(e, RunError | CannotSay):
        return str(e)
    return f"{type(e).__name__}: {(str(e).strip().splitlines() or ['no more is known'])[0]}"
