"""Going on with a run from its last checkpoint: which settings may change, and whether anything is left to do.

Shared by the command line and python/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easgd_cli.commands import single_run
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.kinds import Launcher
from easgd_cli.record import reader, run_directory
from easgd_cli.settings import schema
from easgd_cli.settings.schema import Settings

NEW_RECORD = "new_record"
_LENGTH = ("steps", "epochs", "minutes")
_SECTIONS = ("until.", "eval.", "checkpoint.")


def changeable(key: str) -> bool:
    """Returns whether this setting may have another value when the run goes on."""
    return key in (*_LENGTH, NEW_RECORD) or key.startswith(_SECTIONS)


@dataclass(frozen=True)
class Asked:
    """A request to go on with a run. `given`: the run as the user named it; `lines`: the settings to change as written,
    by key; `changes`: their values, and None for lengths that a new length replaces.
    """

    given: str
    lines: Mapping[str, str]
    changes: Mapping[str, Any]
    command: str


def checked(path: Path, lines: Mapping[str, str]) -> Path:
    """Returns the run's absolute directory. Raises UsageError where it is missing or a given setting may not change."""
    given = f"resume={path}"
    for key, line in lines.items():
        if not changeable(key):
            raise UsageError(
                f"{given} {line}: a run goes on with the settings it had; "
                "only steps, epochs, minutes, until.*, eval.* and checkpoint.* may be changed."
            )
    if not path.is_dir():
        raise UsageError(f"{given}: there is no such directory.")
    return path.resolve()


def changes(values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values`; with a new length, those in other units become None, since the new one replaces the old one."""
    return dict.fromkeys(_LENGTH) | values if any(values.get(k) is not None for k in _LENGTH) else values


def run(
    path: Path, settings: Settings, before: Settings, asked: Asked, doubts: list[str],
    around: Callable[[Settings, Launcher], Launcher] = lambda _, launcher: launcher,
) -> Outcome | str:  # fmt: skip
    """Goes on with the run in `path`, whose settings were those `before`, by `settings`. Returns a sentence where
    nothing is left to do. `around`: makes the launcher to call from the one that the settings name. Raises UsageError
    and RunError.
    """
    longer = next((asked.lines[k] for k in _LENGTH if asked.changes.get(k) is not None), None)
    if settings.replay is not None and longer is not None:
        raise UsageError(
            f"{asked.given} {longer}: this run goes through the exchanges of {settings.replay} again and "
            f"ends with them; leave out {longer.partition('=')[0]}=."
        )
    outline, launcher = single_run.checked(settings)
    launcher = around(settings, launcher)
    _refuse_another_length(asked.given, settings, before)
    with run_directory.held(path):  # before anything is said: refuses a run that another process is changing
        left = _nothing_left(path, settings, doubts)
    if left is not None:
        return left
    kept = [o for o in reader.overrides_of(path) if o.partition("=")[0] not in asked.changes]
    kept += [line for key, line in asked.lines.items() if key != NEW_RECORD]
    return single_run.go_on(outline, launcher, path, kept, asked.command, doubts)


def _refuse_another_length(given: str, now: Settings, before: Settings) -> None:
    """Raises UsageError for a new length that the schedule depends on: the steps taken would have had other rates."""
    [(unit, many)] = schema.length(now).items()
    if schema.length(now) != schema.length(before) and build.follows_the_length(now):
        [(old_unit, old)] = schema.length(before).items()
        raise UsageError(
            f"{given} {unit}={many:g}: schedule={now.schedule['name']} follows the run's length, so with "
            f"another than {old_unit}={old:g} the steps taken would "
            "have had other rates; start a new run (of a net, from this one's center with init=)."
        )


def _nothing_left(path: Path, now: Settings, doubts: list[str]) -> str | None:
    """Returns a sentence where the run is complete, else None. Raises UsageError for a run that diverged.

    Judged by summary.json, which says what the run was asked for and has done: config.yaml may ask for more than was
    ever begun.
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
