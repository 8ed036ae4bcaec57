"""One run: what is checked before it, its directory, and the launcher called as a job of Hydra's."""

from __future__ import annotations

import logging
import os
import random
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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
from easgd_cli.settings import schema
from easgd_cli.settings.overrides import own as own
from easgd_cli.settings.schema import Settings
from easgd_cli.system import interruption


def checked(settings: Settings) -> None:
    """All that can be said before data and model are loaded. Raises UsageError."""
    schema.check(settings)
    build.method(settings)
    if settings.epochs is None:  # how many steps these are is known once the data are loaded
        build.schedule(settings, schema.total_steps(settings, None))
    build.average(settings)
    kinds.launcher(settings)


def ineffective(settings: Settings, overrides: Sequence[str]) -> list[str]:
    """A sentence for every setting given in `overrides` that this method, schedule and problem do not use."""
    uses = build.symbols_used(settings)
    given = {o.partition("=")[0]: o for o in overrides}
    method = build.method(settings)
    lines = []
    if given.keys() & {"alpha", "beta"} and not uses & {"alpha", "beta"}:
        lines += [
            f"{given[k]} has no effect: algo={settings.algo['name']} has no moving rate."
            for k in ("alpha", "beta")
            if k in given
        ]
    if "delta" in given and "delta" not in uses:
        lines.append(f"{given['delta']} has no effect: algo={settings.algo['name']} has no momentum.")
    if "gamma" in given and "gamma" not in uses:
        lines.append(f"{given['gamma']} has no effect: schedule={settings.schedule['name']} does not use it.")
    if "tau" in given and method.shared is None:
        lines.append(f"{given['tau']} has no effect: algo={settings.algo['name']} never exchanges.")
    if "center_device" in given and method.shared is None:
        lines.append(
            f"{given['center_device']} has no effect: algo={settings.algo['name']} has no center beside its worker."
        )
    elif "center_device" in given and not build.launched_in_processes(settings):
        lines.append(
            f"{given['center_device']} has no effect: launcher={settings.launcher['name']} keeps the center where "
            "its workers compute."
        )
    if "profile" in given and not build.launched_in_processes(settings):
        lines.append(f"{given['profile']} has no effect: launcher={settings.launcher['name']} has no worker processes.")
    asked = build.asked_by_problem(settings)
    for key, name in (
        ("l2", "l2"),
        ("batch_size", "batch_size"),
        ("precision", "precision"),
        ("compile", "compile"),
        ("task", "task"),
        ("eval.train_images", "train_images"),
    ):
        if key in given and name not in asked:
            lines.append(f"{given[key]} has no effect: problem={settings.problem['name']} does not use it.")
    steps = settings.steps if settings.steps is not None else settings.default_steps
    if (
        method.shared is not None
        and steps is not None
        and 1 < settings.tau >= steps
        and settings.epochs is None
        and settings.minutes is None
    ):
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


def go_on(path: Path, settings: Settings, overrides: list[str], command: str) -> Outcome:
    """Goes on with the run in `path`, which the caller has found worth going on with. Raises UsageError and
    RunError.
    """
    launcher = kinds.launcher(settings)
    prepared = build.prepare(settings)
    from easgd_cli.record.checkpoint import steps_taken  # here, since it loads torch, for which a refusal does not wait
    from easgd_cli.record.initial_record import check_record

    with run_directory.held(path):
        try:
            resumed = reader.newest_checkpoint(path)
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
        check_record(path, resumed, settings.workers)
        run_directory.write_config(path, settings, overrides)  # only now: a run that cannot go on keeps what it had
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


def _as_hydras_job(job: Composed, path: Path, task: Callable[[], Outcome]) -> Outcome:
    """`task` as Hydra runs one, in the directory made for it; leaves this process as it was."""
    ended: list[Outcome] = []
    raised: list[Exception] = []

    def task_function(_: DictConfig) -> None:
        try:
            ended.append(task())
        except Exception as e:  # Hydra would keep it
            raised.append(e)

    config, name = job.config, job.config.hydra.job.config_name
    with open_dict(config):
        config.hydra.run.dir, config.hydra.mode = str(path), RunMode.RUN
    # A run may log, change directory, seed generators and set threads.
    with unchanged_process(), initialize_config_dir(str(configs.directory()), job_name="train", version_base="1.3"):
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=name)
        done = run_job(
            task_function,
            config,
            "hydra.run.dir",
            None,
            HydraContext(GlobalHydra.instance().config_loader(), callbacks),
        )
        callbacks.on_run_end(config=config, config_name=name, job_return=done)
    if raised:
        raise raised[0]
    return ended[0]


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Puts back what a run may leave in this process: arguments, environment, directory, logging, signals, generators,
    threads.

    What comes after a run, or after a plugin of Hydra's that ran a sweep, may not notice it.
    """
    root = logging.getLogger()
    argv, environment, directory, path = sys.argv, dict(os.environ), os.getcwd(), list(sys.path)
    handlers, level = list(root.handlers), root.level
    reactions = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    python_state = random.getstate()
    torch = sys.modules.get("torch")  # not imported for this
    torch_state = (torch.get_rng_state(), torch.get_num_threads()) if torch else None
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(directory)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, reaction in reactions.items():
            signal.signal(number, reaction)
        random.setstate(python_state)
        if torch and torch_state:
            torch.set_rng_state(torch_state[0])
            torch.set_num_threads(torch_state[1])
