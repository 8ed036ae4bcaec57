"""Launchers and sweepers of Hydra's other than its basic ones: joblib, submitit and SLURM, optuna, and any other plugin.

A launcher is given the jobs of a checked plan. A sweeper draws its own, and is told of each what it is to minimise. Either
calls `Job`, wherever it likes; the job is then a run in a process of its own, which says how it stands in a file
(job_status.py) that this process reads.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from easgd_cli.commands import arguments, configs, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.objective import Objective
from easgd_cli.commands.plan import Member, Plan
from easgd_cli.errors import RunError, UsageError
from easgd_cli.record import reader
from easgd_cli.record import run_directory as rundir
from easgd_cli.settings.schema import OF_SWEEPS
from easgd_cli.sweeps import job_status as standing
from easgd_cli.sweeps import side_by_side as packing
from easgd_cli.system import interruption

_DIGITS = 6  # of a drawn value in a name: sixteen tell no more apart, but for values that come to the same name
_INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # with a line, or before the job's process could say one


def run(plan: Plan, members: Sequence[Member], asked: Arguments, tell: Callable[[str, dict[str, Any]], None]) -> tuple[dict[str, dict[str, Any]], int]:
    """Has Hydra run `members`, or where its sweeper draws the jobs whatever that draws, and calls `tell` whenever one has something to say.

    Returns what each that has begun has said last, and 128 + the number of the signal that ended the sweep, or 1 where the
    plugin has failed, else 0.
    """
    root = plan.root.absolute()
    words = [o for o in asked.overrides if not o.startswith(("hydra.sweep.dir=", "hydra.mode=", *(f"{key}=" for key in OF_SWEEPS)))]
    words += [f"hydra.sweep.dir={arguments.quote(str(root))}"]
    watch, code = standing.Watch(root, tell), 0
    composing = initialize_config_dir(str(configs.directory()), job_name="train", version_base="1.3")
    # The jobs on this machine end before the signal is raised: joblib would kill them.
    with single_run.unchanged_process(), watch.watching(), interruption.raised() as came, interruption.undone_by(watch.end), composing:
        try:
            if plan.objective is not None:
                _search(asked.config_name, [*words, _named_by_what_varies(plan)], Job(root, plan.objective, retry=plan.retry, quiet=plan.launcher != "basic"))
            elif members:
                _launch(asked.config_name, words, Job(root, retry=plan.retry), members)
            watch.settle(lambda said: said["status"] != "running" and (plan.objective is None or said["status"] not in rundir.ENDED or "objective" in said))
        except KeyboardInterrupt:
            code = 128 + came[0]
            if plan.launcher == "submitit_slurm":
                print("easgd: jobs that SLURM has queued or that run on other machines go on; scancel ends them.", file=sys.stderr, flush=True)
        except (Exception, Unheard) as e:
            code = 1
            given = " ".join([by(plan), *(o for o in asked.overrides if o.startswith(("hydra.launcher.", "hydra.sweeper.")))])
            print(f"easgd: {given}: {_reason(e)}", file=sys.stderr, flush=True)
    return watch.said, code


def by(plan: Plan) -> str:
    """The plugins that a plan is left to, as they are asked for."""
    return " ".join(f"hydra/{part}={option}" for part, option in (("launcher", plan.launcher), ("sweeper", plan.sweeper)) if option != "basic")


def tell_best(plan: Plan, objective: Objective) -> dict[str, Any] | None:
    """Says which job of this sweep has the smallest value, earlier starts' among them; returns it for sweep.json, None where none has one."""
    told = {name: standing.read(plan.root, name) for name in standing.names(plan.root)}
    told = {name: said for name, said in told.items() if Path(said.get("path", "")).is_dir()}  # a user may have removed one
    measured = {name: said["value"] for name, said in told.items() if said.get("objective") == str(objective) and "value" in said}
    if not measured:
        print("No run has a value to choose by.", flush=True)
        return None
    best = [name for name, value in measured.items() if value == min(measured.values())]
    name = best[0]
    path = Path(told[name]["path"])
    others = objective.others(path)
    print(f"The best of {len(measured)} by {objective}:")
    print("  " + " ".join(o for o in reader.overrides_of(path) if o.partition("=")[0] in plan.varying))
    print("  " + "; at that evaluation ".join([objective.shown(measured[name]), *([", ".join(others)] if others else [])]))
    print(f"  {os.path.relpath(path)}", flush=True)
    if len(best) > 1:
        print(f"The same value have {', '.join(best[1:])}; the first that reached it is taken.", flush=True)
    return {"job": name, "objective": str(objective), "value": measured[name], "errors": objective.errors(path)}


def _launch(config_name: str, words: list[str], job: Job, members: Sequence[Member]) -> None:
    """Hands all of them to the launcher that `words` choose, as a sweeper of Hydra's does, but for what it makes of the values."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    config = hydra.compose_config(config_name, words, RunMode.MULTIRUN)
    callbacks = Callbacks(config)
    callbacks.on_multirun_start(config=config, config_name=config_name)
    launcher = Plugins.instance().instantiate_launcher(HydraContext(hydra.config_loader, callbacks), job, config)
    jobs = launcher.launch([[*single_run.own(m.overrides), f"hydra.sweep.subdir={arguments.quote(m.name)}"] for m in members], initial_job_idx=0)
    for job_return in jobs:
        _ = job_return.return_value  # raises what the call of a job has raised
    callbacks.on_multirun_end(config=config, config_name=config_name)


def _search(config_name: str, words: list[str], job: Job) -> None:
    """Has the sweeper that `words` choose draw jobs and learn what came of them."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    sweeper = hydra.compose_config(config_name, words, RunMode.MULTIRUN).hydra.sweeper
    if sweeper.get("max_failure_rate") == 0 and not any(w.startswith("hydra.sweeper.max_failure_rate=") for w in words):
        words = [*words, "hydra.sweeper.max_failure_rate=1"]  # a run that failed is a failed trial and ends no search
    if not sweeper.get("storage") and "seed" in (sweeper.get("sampler") or {}) and sweeper.sampler.seed is None:
        words = [*words, "hydra.sweeper.sampler.seed=0"]  # the same command draws the same values, finds its runs again and goes on
    hydra.multirun(config_name, job, words, with_log_configuration=False)


def _named_by_what_varies(plan: Plan) -> str:
    fixed = ",".join(f'"{key}"' for key in plan.fixed)
    return "hydra.sweep.subdir=" + arguments.quote(f'${{named_by:"",${{hydra.overrides.task}},[{fixed}],{_DIGITS}}}')


def _reason(e: BaseException) -> str:
    """The first line of what was wrong in the first place."""
    while not isinstance(e, RunError | Unheard) and (earlier := e.__cause__ or e.__context__) is not None:
        e = earlier
    if isinstance(e, RunError | Unheard):
        return str(e)
    return f"{type(e).__name__}: {(str(e).strip().splitlines() or ['no more is known'])[0]}"


class Unheard(BaseException):
    """A job has nowhere to say how it stands, so nobody would learn what became of it. No Exception, which a sweeper would take for a failed trial."""


@contextmanager
def _heard() -> Iterator[None]:
    try:
        yield
    except RunError as e:
        raise Unheard(str(e)) from e


@dataclass(frozen=True)
class Job:
    """What Hydra calls for each job, perhaps in a thread, in another library's process or on another machine.

    Neither signals nor multiprocessing are there as a launcher of runs needs them, so the run has a process of its own.
    With an `objective` it returns the value of that and raises RunError where the run failed, as sweepers have it; without,
    nothing. Raises Unheard where it has nowhere to say how it stands. `retry`: also a run that failed before. `quiet`: what it
    prints goes to logs/NAME.log of the sweep in `root`.
    """

    root: Path
    objective: Objective | None = None
    retry: bool = False
    quiet: bool = True

    def __call__(self, _: DictConfig) -> float | None:
        info = HydraConfig.get()
        name = self._name(rundir.clean(str(info.sweep.subdir)) or "default", single_run.own(info.overrides.task))
        with suppress(OSError):
            Path(info.runtime.output_dir).rmdir()  # Hydra has made it; the run makes its own, or goes on in the one it had
        words = ["--config-name", str(info.job.config_name), *info.overrides.task, *(["retry=true"] if self.retry else [])]
        if info.searchpath:
            words.append(f"hydra.searchpath=[{','.join(arguments.quote(p) for p in info.searchpath)}]")
        with _heard():
            said = self._run(name, words, info.runtime.cwd)
        if self.objective is None:
            return None
        if said["status"] not in rundir.ENDED:
            raise RunError(f"{name}: {said['status']}: {said.get('reason', 'no reason is known')}")
        try:
            value = self.objective.value(Path(said["path"]))
        except (UsageError, RunError) as e:  # the first where its record cannot be read
            with _heard():
                standing.write(self.root, name, "failed", reason=str(e))
            raise RunError(str(e)) from e
        with _heard():
            standing.write(self.root, name, **said | {"objective": str(self.objective), "value": value if math.isfinite(value) else None})
        return value

    def _name(self, name: str, overrides: list[str]) -> str:
        """`name`, or where a run with another value has it, one with a hash: a sweeper may draw values that are nearly the same."""
        there = dict(o.split("=", 1) for o in reader.overrides_of(self.root / name) if "=" in o)
        drawn = dict(o.split("=", 1) for o in overrides if "=" in o)
        if self.objective is None or all(there.get(key, value) == value for key, value in drawn.items()):
            return name
        return f"{name}-{rundir.digest(sorted(overrides))}"

    def _run(self, name: str, words: list[str], cwd: str) -> dict[str, Any]:
        """Runs it and returns what it said last. Raises RunError where it has nowhere to say it."""
        log = standing.log(self.root, name)
        with standing.writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            if self.quiet:
                log.touch()
        standing.forget(self.root, name)
        with open(log if self.quiet else os.devnull, "ab") as out:  # a job may be queued again
            process = subprocess.Popen(
                [sys.executable, "-m", "easgd_cli.sweeps.job_process", str(os.getpid()), str(self.root), name, *words],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out if self.quiet else None,
                stderr=subprocess.STDOUT if self.quiet else None,
                start_new_session=True,  # a terminal's Ctrl-C comes to the sweep, which passes it on once
            )
            try:
                code = process.wait()
            except BaseException:  # a signal, or what a scheduler's has become: it saves what it has
                process.terminate()
                with suppress(RunError):
                    self._last_word(name, process.wait())
                raise
        return self._last_word(name, code)

    def _last_word(self, name: str, code: int) -> dict[str, Any]:
        """What the job said last, or where it could not say how it ended, what the exit status `code` of its process says. Raises RunError."""
        said = standing.read(self.root, name)
        if said.get("status", "running") != "running":
            return said
        if code in _INTERRUPTED:
            standing.write(self.root, name, "interrupted")
        elif code < 0:  # from outside, so it goes on when the sweep is given again
            standing.write(self.root, name, "killed", reason=f"its process was ended by {signal.Signals(-code).name}")
        else:
            reason = packing.said_last(standing.log(self.root, name)) if self.quiet else None
            standing.write(self.root, name, "failed", reason=reason or f"its process ended with status {code}")
        return standing.read(self.root, name)
