"""`easgd train resume=RUN`: a run goes on from its last checkpoint. `resume=auto`: goes on with a run, or begins it.

A run keeps the settings that it was started with; only its length, evaluations and checkpoints may change.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from easgd_cli.commands import compose, foreign_code, going_on, hydra_job, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.errors import UsageError
from easgd_cli.launcher.job import Outcome
from easgd_cli.record import reader, run_directory
from easgd_cli.settings import schema
from easgd_cli.settings.overrides import quote
from easgd_cli.settings.schema import Settings
from easgd_cli.system.terminal import for_terminal, tell

AUTO = "auto"


def run(path: Path, asked: Arguments, overrides: Mapping[str, Any], command: str) -> tuple[Outcome | None, Path]:
    """Goes on with the run in `path`. Where nothing is left to do, prints that and returns None as outcome. Raises
    UsageError and RunError.
    """
    given = f"resume={path}"
    if asked.multirun:
        raise UsageError(
            f"{given}: one run is resumed at a time; leave out -m, or start the sweep again, which goes on where "
            "it stopped."
        )
    lines = {key: str(override.input_line) for key, override in overrides.items()}
    path = going_on.checked(path, lines)
    changes, doubts = going_on.changes({k: o.value() for k, o in overrides.items()}), list[str]()
    saved = str(path / "config.yaml")
    settings = compose.resumed(saved, list(lines.values()), changes, doubts)
    foreign_code.announce(path, settings)
    outcome = going_on.run(
        path, settings, compose.resumed(saved, [], {}), going_on.Asked(given, lines, changes, command), doubts
    )
    if isinstance(outcome, str):
        print(for_terminal(outcome, sys.stdout))
        return None, path
    return outcome, path


def auto(asked: Arguments, overrides: Mapping[str, Any], command: str) -> tuple[Outcome | None, Path]:
    """Goes on with the run that the same command has begun before, or begins one where there is none with a checkpoint.
    Where nothing is left to do, prints that and returns None as outcome. So a shell's loop, or a scheduler that puts a
    job back into its queue, can start the same command again and again.

    The run is in hydra.run.dir where that is given, else in a directory named by the settings alone. Raises UsageError
    and RunError.
    """
    refused = "resume=auto: a sweep that is started again goes on by itself; leave resume= out."
    if asked.multirun:
        raise UsageError(refused)
    words = auto_words(asked, overrides)
    with compose.composing(asked.config_name) as composed:
        planned = composed(words)
    if planned.multirun:  # an experiment may ask for a sweep
        raise UsageError(refused)
    now, path = planned.settings, Path(planned.run_dir).absolute()
    outline, launcher = single_run.checked(now)
    changes = _changes(path, now)
    if changes is not None:
        status = reader.summary_of(path).get("status")
        if status == "diverged":  # an end and no error, so that a loop around the command stops
            print(for_terminal(f"{path} has diverged: that is its result, and nothing is left to do.", sys.stdout))
            return None, path
        if reader.checkpoints(path / "checkpoint") or status in run_directory.ENDED:
            tell(f"going on with {path}")
            new = {key: o for key, o in overrides.items() if going_on.changeable(key) and key in changes}
            return run(path, asked, new, command)
        with run_directory.held(path):  # refuses a run in which another process is, before its first checkpoint
            aside = next(p for p in run_directory.candidates(path) if not p.exists())
            path.rename(aside)
        tell(f"{path} has no checkpoint to go on from: the run begins again, and what there was is in {aside.name}")
    for line in single_run.ineffective(outline, words):
        tell(line)
    try:
        return single_run.launch(outline, launcher, path, words, command, partial(hydra_job.run, planned), alone=True)
    except FileExistsError as e:
        raise UsageError(
            f"resume=auto: {path} is there and is not the directory of a run; choose another with hydra.run.dir=PATH."
        ) from e


def auto_words(asked: Arguments, overrides: Mapping[str, Any]) -> list[str]:
    """Returns the words of the command without resume=auto, and with hydra.run.dir= where that was not given."""
    words = [o for o in asked.overrides if o.partition("=")[0] != "resume"]
    if "hydra.run.dir" not in overrides:
        named = [o for o in words if not going_on.changeable(o.partition("=")[0])]
        words.append("hydra.run.dir=" + quote(f"runs/auto/{run_directory.named_by(named) or 'defaults'}"))
    return words


def _changes(path: Path, now: Settings) -> set[str] | None:
    """Returns the keys in which `now` differs from the run in `path`; None where no run is there. Raises UsageError for
    a setting that may not change.
    """
    if not (path / "config.yaml").exists():
        return None
    before = compose.resumed(str(path / "config.yaml"), [], {})
    old, new = _flat(schema.asked_for(asdict(before))), _flat(schema.asked_for(asdict(now)))
    differing = {key for key in old | new if old.get(key) != new.get(key) and key not in schema.OF_SWEEPS}
    for key in sorted(differing):
        if not going_on.changeable(key):
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
