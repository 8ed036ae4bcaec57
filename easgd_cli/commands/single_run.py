"""Checks a run's settings, makes its directory and calls the launcher, for the command line and for python/."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from easgd_cli.commands import auto_tau, configs
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.experiment.build import Outline
from easgd_cli.launcher import distributed, kinds
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.kinds import Launcher
from easgd_cli.record import reader, run_directory
from easgd_cli.settings import faults, groups, schema
from easgd_cli.settings.overrides import own as own
from easgd_cli.settings.schema import Settings
from easgd_cli.system import interruption
from easgd_cli.system.terminal import tell

AsJob = Callable[[Path, Callable[[], Outcome]], Outcome]  # calls the given function in the run's directory


def _at_once(_: Path, run: Callable[[], Outcome]) -> Outcome:
    return run()


def checked(settings: Settings) -> tuple[Outline, Launcher]:
    """Checks settings as far as possible without loading data; returns outline and launcher. Raises UsageError."""
    schema.check(settings)
    groups.read(settings)
    given, made = faults.read(settings), build.outline(settings)
    processes, method = build.launched_in_processes(settings), made.rules
    mortal = [name for name, variable in method.variables.items() if variable.origin is not None]
    faults.check_parties(given, processes, not method.alone, settings.launcher["name"], settings.algo["name"], mortal)
    auto_tau.check(settings, method)
    launcher = kinds.launcher(settings)
    build.check_launcher(settings, method)
    return made, launcher


def ineffective(outline: Outline, overrides: Sequence[str]) -> list[str]:
    """Returns a sentence for every setting in `overrides` that this method, schedule, problem or launcher ignores."""
    settings, method = outline.settings, outline.rules
    groups = {name: getattr(settings, name) for name in ("algo", "schedule", "problem", "launcher")}
    algo, schedule, problem, launcher = (f"{name}={group['name']}" for name, group in groups.items())
    uses = build.symbols_used(settings)
    asked, given = build.asked_by_problem(settings), {o.partition("=")[0]: o for o in overrides}
    alone, in_processes = method.alone, build.launched_in_processes(settings)
    copies, periodic = build.of_copies(settings), build.periodic(settings)
    of_problems = ("l2", "batch_size", "precision", "compile", "task", "eval.train_images")
    without_effect = [
        *((key, not uses & {"alpha", "beta"}, f"{algo} has no moving rate") for key in ("alpha", "beta")),
        ("delta", "delta" not in uses, f"{algo} has no momentum"),
        ("gamma", "gamma" not in uses, f"{schedule} does not use it"),
        ("tau", copies and not periodic, f"{launcher} averages gradients in every step"),
        ("max_restarts", copies, f"{launcher} ends when a worker does"),
        *((key, alone and not copies, f"{algo} never exchanges") for key in ("tau", "fragments", "wire", "masters")),
        ("center_device", alone, f"{algo} has no center beside its worker"),
        ("center_device", not alone and not in_processes, f"{launcher} keeps the center where its workers compute"),
        ("profile", not in_processes, f"{launcher} has no worker processes"),
        *((key, key.rpartition(".")[2] not in asked, f"{problem} does not use it") for key in of_problems),
    ]
    lines = [f"{given[key]} has no effect: {why}." for key, unused, why in without_effect if unused and key in given]
    by_steps = settings.epochs is None and settings.minutes is None
    steps = settings.steps if settings.steps is not None else settings.default_steps
    if not alone and not method.closes and by_steps and steps is not None and 1 < settings.tau >= steps:
        lines.append(
            f"steps={steps} tau={settings.tau}: the only exchange is before the first step, so the center learns "
            "nothing; give more steps."
        )
    return lines


def said_before(outline: Outline, overrides: Sequence[str]) -> list[str]:
    """Returns the warnings before a new run: on settings without effect, and on an untuned learning rate."""
    return ineffective(outline, overrides) + _untuned(outline.settings, overrides)


def _untuned(settings: Settings, overrides: Sequence[str]) -> list[str]:
    """Returns a sentence where eta is only the rate that the method starts with on unknown data, else nothing."""
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
    outline: Outline, launcher: Launcher, path: Path, overrides: list[str], command: str, as_job: AsJob = _at_once,
    alone: bool = False, say: Callable[[str], object] = tell,
) -> tuple[Outcome, Path]:  # fmt: skip
    """Prepares a new run, creates its directory, `path` or the next free one, and runs it there by `as_job`: as a job
    of Hydra's, or at once. With tau=auto it first chooses the period, and prints it with `say`.

    With `alone`, raises FileExistsError where `path` is taken. Raises UsageError, leaving no directory, and RunError.
    """
    with distributed.announced(launcher):
        prepared = auto_tau.chosen(build.experiment(outline), launcher, say)
        made: list[Path] = []
        above = [p for p in path.parents if not p.exists()]

        def discard() -> None:
            for directory in made:
                if not (directory / "summary.json").exists():  # this file says that a run has begun
                    run_directory.discard(directory, above)

        with interruption.undone_by(discard), ExitStack() as holding:
            with interruption.held_back():
                # Hydra may change the working directory (hydra.job.chdir)
                path = run_directory.create(path, alone).absolute()
                made.append(path)
            # at once: a process that looks for a place for the same run sees that this one is taken, and by which run
            try:
                holding.enter_context(run_directory.held(path))
            except (UsageError, FileNotFoundError) as e:  # another process took it for the remains of a killed one
                made.clear()
                raise FileExistsError(f"{path}: another process has taken this directory at the same moment.") from e
            try:
                run_directory.write_config(path, prepared.settings, own(overrides))
                launcher.begin()
                outcome = as_job(path, lambda: launcher(Job(path, own(overrides), command), prepared))
            except UsageError:
                discard()
                raise
    return outcome, path


def go_on(
    outline: Outline, launcher: Launcher, path: Path, overrides: list[str], command: str, doubts: Sequence[str] = ()
) -> Outcome:
    """Goes on with the run in `path`, once the caller has found that something is left to do. Prints the `doubts` about
    its files. Raises UsageError and RunError.
    """
    settings = outline.settings
    from easgd_cli.record.checkpoint import steps_taken  # here, since it imports torch: a refusal does not wait for it
    from easgd_cli.record.resumption import check

    with distributed.announced(launcher), run_directory.held(path):
        prepared = build.experiment(outline)
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
        entries = reader.Entries.of(prepared.method, settings.workers, len(prepared.slices))
        check(path, resumed, settings.workers, prepared.size, settings.new_record, entries)
        for sentence in doubts:
            tell(sentence)
        for one in damaged:
            tell(f"{one.fact.partition(';')[0]}; going on from {resumed.name}, the one before it.")
        # only now, so that a run that cannot go on keeps its config.yaml
        run_directory.write_config(path, replace(settings, new_record=False), overrides)
        return launcher(Job(path.absolute(), overrides, command, resume=True), prepared)


def program(name: str) -> str:
    """Returns the word by which the user calls `name`: its path where easgd's environment is not on PATH."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else shlex.quote(str(beside))


def looked_at(path: str) -> str:
    """Returns the command that shows a run or sweep in TensorBoard."""
    return f"{program('tensorboard')} --logdir {shlex.quote(path)}"
