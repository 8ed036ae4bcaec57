"""One run: what is checked before it, its directory, and the launcher called as a job of Hydra's."""

from __future__ import annotations

import logging
import os
import random
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import hydra
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from easgd_cli.commands import configs
from easgd_cli.commands.compose import Composed
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.kinds import Launcher
from easgd_cli.record import reader, run_directory
from easgd_cli.settings import faults, schema
from easgd_cli.settings.overrides import own as own
from easgd_cli.settings.schema import Settings
from easgd_cli.system import interruption
from easgd_cli.system.terminal import tell


def checked(settings: Settings) -> None:
    """All that can be said before data and model are loaded. Raises UsageError."""
    schema.check(settings)
    given, method = faults.read(settings), build.method(settings)
    processes = build.launched_in_processes(settings)
    faults.check_parties(given, processes, method.shared is not None, settings.launcher["name"], settings.algo["name"])
    if settings.epochs is None:  # how many steps these are is known once the data are loaded
        build.schedule(settings, schema.total_steps(settings, None))
    build.average(settings)
    kinds.launcher(settings)


def ineffective(settings: Settings, overrides: Sequence[str]) -> list[str]:
    """A sentence for every setting given in `overrides` that this method, schedule and problem do not use."""
    groups = {name: getattr(settings, name) for name in ("algo", "schedule", "problem", "launcher")}
    algo, schedule, problem, launcher = (f"{name}={group['name']}" for name, group in groups.items())
    uses = build.symbols_used(settings)
    asked, given = build.asked_by_problem(settings), {o.partition("=")[0]: o for o in overrides}
    alone, in_processes = build.method(settings).shared is None, build.launched_in_processes(settings)
    of_problems = ("l2", "batch_size", "precision", "compile", "task", "eval.train_images")
    without_effect = [
        *((key, not uses & {"alpha", "beta"}, f"{algo} has no moving rate") for key in ("alpha", "beta")),
        ("delta", "delta" not in uses, f"{algo} has no momentum"),
        ("gamma", "gamma" not in uses, f"{schedule} does not use it"),
        ("tau", alone, f"{algo} never exchanges"),
        ("center_device", alone, f"{algo} has no center beside its worker"),
        ("center_device", not alone and not in_processes, f"{launcher} keeps the center where its workers compute"),
        ("profile", not in_processes, f"{launcher} has no worker processes"),
        *((key, key.rpartition(".")[2] not in asked, f"{problem} does not use it") for key in of_problems),
    ]
    lines = [f"{given[key]} has no effect: {why}." for key, unused, why in without_effect if unused and key in given]
    by_steps = settings.epochs is None and settings.minutes is None
    steps = settings.steps if settings.steps is not None else settings.default_steps
    if not alone and by_steps and steps is not None and 1 < settings.tau >= steps:
        lines.append(
            f"steps={steps} tau={settings.tau}: the only exchange is before the first step, so the center learns "
            "nothing; give more steps."
        )
    return lines


def untuned(settings: Settings, overrides: Sequence[str]) -> list[str]:
    """A sentence where the rate is one that a method starts with on data of which nothing is known."""
    row = configs.untuned(settings.algo["name"], settings.local["name"], settings.workers)
    name, given = settings.dataset["name"], {o.partition("=")[0] for o in overrides}
    known = configs.tuned(settings.algo["name"], name) or settings.dataset["target"] is None
    if known or "eta" in given or row.get("eta") != settings.eta:
        return []
    eta = settings.eta
    return [
        f"eta={eta:.3g} is where algo={settings.algo['name']} starts on any data, untuned on dataset={name}; a search: "
        f"easgd train -m hydra/sweeper=optuna 'eta=interval({eta / 10:.2g},{eta * 10:.2g})' dataset={name} "
        "dataset.validation=N"
    ]


def launch(
    settings: Settings,
    path: Path,
    overrides: list[str],
    command: str,
    launcher: Launcher,
    prepared: Any,
    job: Composed,
    alone: bool = False,
) -> tuple[Outcome, Path]:
    """Makes a directory for a new run, `path` or the next that is free, and runs it there, as the `job` of Hydra's that
    was composed.

    With `alone` it raises FileExistsError where another process has taken `path`. Raises UsageError, leaving no
    directory, and RunError.
    """
    made: list[Path] = []
    above = [p for p in path.parents if not p.exists()]

    def discard() -> None:
        for directory in made:
            if not (directory / "summary.json").exists():  # which says that a run has begun there
                run_directory.discard(directory, above)

    with interruption.undone_by(discard), ExitStack() as holding:
        with interruption.held_back():
            # Hydra may change the working directory (hydra.job.chdir)
            path = run_directory.create(path, alone).absolute()
            made.append(path)
        try:  # from the first moment: who looks for a place for the same run knows that this one is taken, and for what
            holding.enter_context(run_directory.held(path))
        except (UsageError, FileNotFoundError) as e:  # it was taken for what a killed process had left
            made.clear()
            raise FileExistsError(f"{path}: another process has taken this directory at the same moment.") from e
        try:
            run_directory.write_config(path, settings, own(overrides))
            launcher.begin()
            outcome = _as_hydras_job(job, path, lambda: launcher(Job(path, own(overrides), command), prepared))
        except UsageError:
            discard()
            raise
    return outcome, path


def go_on(path: Path, settings: Settings, overrides: list[str], command: str, doubts: Sequence[str] = ()) -> Outcome:
    """Goes on with the run in `path`, which the caller has found worth going on with, and tells the `doubts` there are
    of its files. Raises UsageError and RunError.
    """
    launcher = kinds.launcher(settings)
    prepared = build.prepare(settings)
    from easgd_cli.record.checkpoint import steps_taken  # here, since it loads torch, for which a refusal does not wait
    from easgd_cli.record.resumption import check

    with run_directory.held(path):
        try:
            damaged: list[reader.BadFile] = []
            resumed = reader.newest_checkpoint(path, damaged)
            taken = steps_taken(resumed)
        except reader.BadFile as e:
            raise UsageError(f"resume={e}") from e
        if prepared.steps is not None and prepared.steps < taken:
            raise UsageError(
                f"resume={path}: its workers have taken up to {taken} steps and would have to end after "
                f"{prepared.steps}; give a greater length."
            )
        minutes = resumed.owner.moment.seconds / 60
        if settings.minutes is not None and settings.minutes < minutes:
            raise UsageError(
                f"resume={path} minutes={settings.minutes:g}: its workers have trained for {minutes:.2f} minutes "
                "already; give more."
            )
        check(path, resumed, settings.workers, prepared.size, settings.new_record)
        for sentence in doubts:
            tell(sentence)
        for one in damaged:
            tell(f"{one.fact.partition(';')[0]}; going on from {resumed.name}, the one before it.")
        # only now: a run that cannot go on keeps what it had
        run_directory.write_config(path, replace(settings, new_record=False), overrides)
        return launcher(Job(path.absolute(), overrides, command, resume=True), prepared)


def program(name: str) -> str:
    """How the user can call `name`: by its name, or where the environment easgd runs from is not on the
    path, in full.
    """
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else shlex.quote(str(beside))


def looked_at(path: str) -> str:
    """How to look at a run or sweep."""
    return f"{program('tensorboard')} --logdir {shlex.quote(path)}"


def said_by_hydra(config_name: str, words: Sequence[str], said: IO[str], errors: IO[str]) -> object:
    """Has Hydra's own program print what it does for `words` after its name; returns its exit status, None for 0."""
    program = hydra.main(config_path=str(configs.directory()), config_name=config_name, version_base="1.3")
    before = sys.argv
    try:
        with unchanged_process(), redirect_stdout(said), redirect_stderr(errors):
            sys.argv = ["easgd", *words]
            program(lambda _: None)()
    except SystemExit as e:
        return e.code
    finally:
        sys.argv = before
    return None


def _as_hydras_job(job: Composed, path: Path, task: Callable[[], Outcome]) -> Outcome:
    """`task` as Hydra runs one, in the directory made for it; leaves this process as it was."""
    ended: list[Outcome | Exception] = []

    def task_function(_: DictConfig) -> None:
        try:
            ended.append(task())
        except Exception as e:  # Hydra would keep it
            ended.append(e)

    config, name = job.config, job.config.hydra.job.config_name
    with open_dict(config):
        config.hydra.run.dir, config.hydra.mode = str(path), RunMode.RUN
    # A run may log, change directory, seed generators and set threads.
    with unchanged_process(), initialize_config_dir(str(configs.directory()), job_name="train", version_base="1.3"):
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=name)
        context = HydraContext(GlobalHydra.instance().config_loader(), callbacks)
        done = run_job(task_function, config, "hydra.run.dir", None, context)
        callbacks.on_run_end(config=config, config_name=name, job_return=done)
    if isinstance(ended[0], Exception):
        raise ended[0]
    return ended[0]


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Puts back what a run, or a plugin of Hydra's, may leave in this process: directory, environment, logging,
    generators, threads.
    """
    root, torch = logging.getLogger(), sys.modules.get("torch")  # not imported for this
    directory, environment, handlers, level = os.getcwd(), dict(os.environ), list(root.handlers), root.level
    drawn, torchs = random.getstate(), (torch.get_rng_state(), torch.get_num_threads()) if torch else None
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # removed while the run went on
            os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        random.setstate(drawn)
        if torch and torchs:
            torch.set_rng_state(torchs[0])
            torch.set_num_threads(torchs[1])
