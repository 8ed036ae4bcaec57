"""`easgd train resume=RUN`: a run goes on from its last checkpoint. `resume=auto`: it goes on, or begins.

What a run was started with stays; its length, when it is evaluated and when it is kept may change.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from easgd_cli.commands import compose, foreign_code, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Outcome
from easgd_cli.record import reader, run_directory
from easgd_cli.settings import schema
from easgd_cli.settings.overrides import quote
from easgd_cli.settings.schema import Settings
from easgd_cli.system.terminal import for_terminal, tell

AUTO = "auto"
NEW_RECORD = "new_record"
_LENGTH = ("steps", "epochs", "minutes")
_SECTIONS = ("until.", "eval.", "checkpoint.")


def _changeable(key: str) -> bool:
    """Whether a run that goes on may have another value of this setting."""
    return key in (*_LENGTH, NEW_RECORD) or key.startswith(_SECTIONS)


def run(path: Path, asked: Arguments, overrides: Mapping[str, Any], command: str) -> tuple[Outcome | None, Path]:
    """Goes on with the run in `path`, with these changes; None where nothing is left to do, which is said. Raises
    UsageError and RunError.
    """
    given = f"resume={path}"
    if asked.multirun:
        raise UsageError(
            f"{given}: one run is resumed at a time; leave out -m, or start the sweep again, which goes on where "
            "it stopped."
        )
    for key, override in overrides.items():
        if not _changeable(key):
            raise UsageError(
                f"{given} {override.input_line}: a run goes on with the settings it had; "
                "only steps, epochs, minutes, until.*, eval.* and checkpoint.* may be changed."
            )
    if not path.is_dir():
        raise UsageError(f"{given}: there is no such directory.")
    path = path.resolve()
    changes, doubts = {k: o.value() for k, o in overrides.items()}, list[str]()
    if any(changes.get(k) is not None for k in _LENGTH):  # the new length replaces the old one, whatever its unit
        changes = dict.fromkeys(_LENGTH) | changes
    settings = compose.resumed(str(path / "config.yaml"), [o.input_line for o in overrides.values()], changes, doubts)
    longer = next((overrides[k] for k in _LENGTH if changes.get(k) is not None), None)
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
        return None, path
    kept = [o for o in reader.overrides_of(path) if o.partition("=")[0] not in changes]
    kept += [o.input_line for key, o in overrides.items() if key != NEW_RECORD]
    return single_run.go_on(path, settings, kept, command, doubts), path


def auto(asked: Arguments, overrides: Mapping[str, Any], command: str) -> tuple[Outcome | None, Path]:
    """Goes on with the run that the same command has begun before, if there is one with a checkpoint, else begins it;
    None where nothing is left to do, which is said. So the same line can be started again and again, by a shell's loop
    or a scheduler that puts a job back into its queue.

    The run is in hydra.run.dir where that is given, else in a directory named by the settings alone. Raises UsageError
    and RunError.
    """
    refused = "resume=auto: a sweep that is started again goes on by itself; leave resume= out."
    if asked.multirun:
        raise UsageError(refused)
    words = [o for o in asked.overrides if o.partition("=")[0] != "resume"]
    if "hydra.run.dir" not in overrides:
        named = [o for o in words if not _changeable(o.partition("=")[0])]
        words.append("hydra.run.dir=" + quote(f"runs/auto/{run_directory.named_by(named) or 'defaults'}"))
    with compose.composing(asked.config_name) as composed:
        planned = composed(words)
    if planned.multirun:  # an experiment's
        raise UsageError(refused)
    now, path = planned.settings, Path(planned.run_dir).absolute()
    single_run.checked(now)
    changes = _changes(path, now)
    if changes is not None:
        status = reader.summary_of(path).get("status")
        if status == "diverged":  # which whoever starts the same again and again wants to hear as an end
            print(for_terminal(f"{path} has diverged: that is its result, and nothing is left to do.", sys.stdout))
            return None, path
        if reader.checkpoints(path / "checkpoint") or status in run_directory.ENDED:
            tell(f"going on with {path}")
            lines = {key: override for key, override in overrides.items() if _changeable(key) and key in changes}
            return run(path, asked, lines, command)
        with run_directory.held(path):  # not while another process is about to write its first checkpoint
            aside = next(p for p in run_directory.candidates(path) if not p.exists())
            path.rename(aside)
        tell(f"{path} has no checkpoint to go on from: the run begins again, and what there was is in {aside.name}")
    for line in single_run.ineffective(now, words):
        tell(line)
    launcher = kinds.launcher(now)
    try:
        return single_run.launch(now, path, words, command, launcher, build.prepare(now), planned, alone=True)
    except FileExistsError as e:
        raise UsageError(
            f"resume=auto: {path} is there and is not the directory of a run; choose another with hydra.run.dir=PATH."
        ) from e


def _changes(path: Path, now: Settings) -> set[str] | None:
    """The settings that differ from those of the run in `path`, which all may; None where there is no run. Raises
    UsageError for one that may not.
    """
    if not (path / "config.yaml").exists():
        return None
    before = compose.resumed(str(path / "config.yaml"), [], {})
    old, new = _flat(asdict(before)), _flat(asdict(now))
    differing = {key for key in old | new if old.get(key) != new.get(key) and key not in schema.OF_SWEEPS}
    for key in sorted(differing):
        if not _changeable(key):
            raise UsageError(
                f"resume=auto: the run in {path} has {key}={old.get(key)}, and {key}={new.get(key)} is asked for; "
                "give this one a directory of its own with hydra.run.dir=PATH."
            )
    return differing


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


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
