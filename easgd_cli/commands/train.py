"""`easgd train`: compose, check everything, make the run's directory, call the launcher.

Whatever a user can get wrong is found before the first process or directory is made. Only then does the run begin, as a
job of Hydra's, so that its callbacks, environment and run-time values (`${hydra:...}`) are what its users expect.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easgd_cli.commands import arguments, completion, compose, configs, foreign_code, plan, replay, single_run, sweep
from easgd_cli.commands.arguments import Arguments
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Outcome
from easgd_cli.record import reader, run_directory
from easgd_cli.settings import schema
from easgd_cli.settings.schema import Settings
from easgd_cli.system.terminal import for_terminal, tell, with_command

_CHANGEABLE = ("steps", "epochs", "minutes")
_OF_RESUMING = "new_record"
_CHANGEABLE_SECTIONS = ("until.", "eval.", "checkpoint.")


def main(argv: Sequence[str]) -> int:
    """Runs, sweeps, resumes or shows; returns the exit status. Raises UsageError and RunError."""
    if "${" in os.getcwd():
        raise UsageError(
            f"{os.getcwd()}: a working directory with ${{ in its name cannot be used, since Hydra takes it for an "
            "interpolation; go to another."
        )
    asked = arguments.with_search_path(_warned(arguments.parse(argv)))
    if "--shell-completion" in asked.show and (script := completion.ZSH.get(" ".join(asked.overrides))):
        print(script, end="")
        return 0
    if "--shell-completion" in asked.show and not re.fullmatch(
        "(un)?install=(bash|fish|zsh)|query=.*", " ".join(asked.overrides)
    ):
        raise UsageError(
            "-sc: goes with install=bash, install=fish or install=zsh, which print what a shell needs, or "
            "uninstall= with one of them."
        )
    if asked.show and asked.show[0] in ("--hydra-help", "--shell-completion"):
        return _shown_by_hydra(asked)
    overrides = {o.key_or_group: o for o in arguments.parse_overrides(asked.overrides)}
    if (verbose := overrides.get("hydra.verbose")) is not None and verbose.value() is not False:
        line = (
            f"{verbose.input_line} has no effect: easgd writes no such log; HYDRA_FULL_ERROR=1 shows what a "
            "refusal comes from."
        )
        print(f"easgd: {line}", file=sys.stderr)
    command = shlex.join(["easgd", "train", *argv])
    if not asked.show and (resumed := arguments.directory(overrides.get("resume"))) is not None:
        return _resume(resumed, asked, {k: o for k, o in overrides.items() if k != "resume"}, command)
    if not asked.show and (replayed := arguments.directory(overrides.get("replay"))) is not None:
        outcome, path = replay.run(replayed, asked, overrides, command)
        _tell_where(path, outcome)
        return outcome.exit_code
    if (anew := overrides.get(_OF_RESUMING)) is not None and anew.value() is not False:
        raise UsageError(f"{anew.input_line}: is for a run that goes on, with resume=; leave it out.")
    with compose.composing(asked.config_name) as composed:
        planned = plan.make(asked, list(overrides.values()), composed)
    if asked.show:
        return _shown_by_hydra(asked)
    if isinstance(planned, plan.Plan):
        return sweep.run(planned, asked, command)
    settings = planned.settings
    single_run.checked(settings)
    for line in single_run.ineffective(settings, asked.overrides) + single_run.untuned(settings, asked.overrides):
        tell(line)
    launcher = kinds.launcher(settings)
    outcome, path = single_run.launch(
        settings, Path(planned.run_dir), asked.overrides, command, launcher, build.prepare(settings), planned
    )
    _tell_where(path, outcome)
    return outcome.exit_code


def _resume(path: Path, asked: Arguments, overrides: dict[str, Any], command: str) -> int:
    given = f"resume={path}"
    if asked.multirun:
        raise UsageError(
            f"{given}: one run is resumed at a time; leave out -m, or start the sweep again, which goes on where "
            "it stopped."
        )
    for key, override in overrides.items():
        if key not in (*_CHANGEABLE, _OF_RESUMING) and not key.startswith(_CHANGEABLE_SECTIONS):
            raise UsageError(
                f"{given} {override.input_line}: a run goes on with the settings it had; "
                "only steps, epochs, minutes, until.*, eval.* and checkpoint.* may be changed."
            )
    if not path.is_dir():
        raise UsageError(f"{given}: there is no such directory.")
    path = path.resolve()
    changes, doubts = {k: o.value() for k, o in overrides.items()}, list[str]()
    if any(changes.get(k) is not None for k in _CHANGEABLE):  # the new length replaces the old one, whatever its unit
        changes = dict.fromkeys(_CHANGEABLE) | changes
    settings = compose.resumed(str(path / "config.yaml"), [o.input_line for o in overrides.values()], changes, doubts)
    longer = next((overrides[k] for k in _CHANGEABLE if changes.get(k) is not None), None)
    if settings.replay is not None and longer is not None:
        raise UsageError(
            f"{given} {longer.input_line}: this run goes through the exchanges of {settings.replay} again and "
            f"ends with them; leave out {longer.key_or_group}=."
        )
    foreign_code.announce(path, settings)
    single_run.checked(settings)
    _refuse_another_length(given, settings, compose.resumed(str(path / "config.yaml"), [], {}))
    with run_directory.held(path):  # before anything is said about a run that another process may be changing
        left = _nothing_left(path, settings, doubts)
    if left is not None:
        print(for_terminal(left, sys.stdout))
        return 0
    kept = [o for o in reader.overrides_of(path) if o.partition("=")[0] not in changes]
    kept += [o.input_line for key, o in overrides.items() if key != _OF_RESUMING]
    outcome = single_run.go_on(path, settings, kept, command, doubts)
    _tell_where(path, outcome)
    return outcome.exit_code


def _refuse_another_length(given: str, now: Settings, before: Settings) -> None:
    """Raises UsageError where the schedule follows the run's length and this is another: the steps taken would have had
    other rates.
    """
    [(unit, many)] = schema.length(now).items()
    if schema.length(now) != schema.length(before) and build.follows_the_length(now):
        [(old_unit, old)] = schema.length(before).items()
        raise UsageError(
            f"{given} {unit}={many:g}: schedule={now.schedule['name']} follows the run's length, so with "
            f"another than {old_unit}={old:g} the steps taken would "
            "have had other rates; start a new run (of a net, from this one's center with init=)."
        )


def _nothing_left(path: Path, now: Settings, doubts: list[str]) -> str | None:
    """Why a run has ended for good, or None. Raises UsageError for one that diverged.

    Judged by what its summary says was asked and done: config.yaml may ask for more than was ever begun.
    """
    summary = reader.summary_of(path, doubts)
    if summary.get("status") == "diverged":
        raise UsageError(
            f"resume={path}: this run diverged, so there is nothing to go on with; start a new one with a smaller eta."
        )
    if summary.get("status") != "completed" or not summary.get("steps"):
        return None
    [(unit, many)], before = schema.length(now).items(), summary.get("length", {})
    asked = {name: level for name, level in summary.get("until", {}).items() if level is not None}
    if schema.levels(now) != asked or unit not in before or many > before[unit]:
        return None
    lost = summary.get("lost", {})
    steps = sorted(t for worker, t in summary["steps"].items() if worker not in lost)
    done = f"{steps[0]}" if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
    without = "".join(f", {worker} lost after {summary['steps'][worker]}" for worker in lost)
    further = "" if build.follows_the_length(now) else f" To train it further give more, such as {unit}=."
    return f"{path} is complete after {done} steps{without}: nothing is left to do.{further}"


def _tell_where(path: Path, outcome: Outcome) -> None:
    shown = os.path.relpath(path)
    shown = str(path) if shown.startswith("..") else shown
    if outcome.status == "failed" and outcome.reason:
        tell(outcome.reason)
    print(with_command(f"The run is in {shown}; to look at it:", single_run.looked_at(shown)), flush=True)
    if outcome.status == "interrupted" and (path / "checkpoint").is_dir():
        print(
            with_command("To go on with it:", f"{single_run.program('easgd')} train {shlex.quote(f'resume={shown}')}"),
            flush=True,
        )


def _shown_by_hydra(asked: Arguments) -> int:
    """Hydra's own printing options, and its scripts for completion."""
    said = io.StringIO()  # printed at once: a logger that finds no reader any more tells of each line
    words = ["--config-name", asked.config_name, *asked.show, *asked.overrides]
    if single_run.said_by_hydra(asked.config_name, words, said, said):
        raise UsageError(f"{' '.join(asked.show)}: {' '.join(said.getvalue().split()).rstrip('.')}.")
    print(said.getvalue(), end="", flush=True)
    return 0


def _warned(asked: Arguments) -> Arguments:
    for name in configs.shadowed(Path(asked.config_dir)) if asked.config_dir else []:
        tell(
            f"--config-dir {asked.config_dir}: its {name} is not used, since easgd has a file of that name; give "
            "yours another."
        )
    return asked
