"""`easgd train`: composes, checks everything, makes the run's directory, calls the launcher.

Users' mistakes are found before the first process or directory is made. Only then does the run begin, as a job of
Hydra's: so it has the callbacks, environment and run-time values (`${hydra:...}`) that Hydra's users expect.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from easgd_cli.commands import (
    arguments,
    completion,
    compose,
    configs,
    going_on,
    hydra_job,
    join,
    plan,
    replay,
    resume,
    single_run,
    sweep,
)
from easgd_cli.commands.arguments import Arguments
from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher.distributed import followed
from easgd_cli.launcher.hosts.world import World, world
from easgd_cli.launcher.job import Outcome
from easgd_cli.record import reader, run_directory
from easgd_cli.system.terminal import tell, with_command


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
    started = world()
    if "workers" not in overrides and _distributed(overrides) and (count := _processes(started, overrides)):
        asked = replace(asked, overrides=[*asked.overrides, f"workers={count}"])
        overrides |= {o.key_or_group: o for o in arguments.parse_overrides(asked.overrides[-1:])}
    if started is not None and started.rank and (path := _going_on(asked, overrides)) is not None:
        return _followed(started, path)
    if (verbose := overrides.get("hydra.verbose")) is not None and verbose.value() is not False:
        tell(
            f"{verbose.input_line} has no effect: easgd writes no such log; HYDRA_FULL_ERROR=1 shows what a refusal "
            "comes from."
        )
    command = shlex.join(["easgd", "train", *argv])
    if not asked.show and (status := _gone_on(asked, overrides, command)) is not None:
        return status
    if (anew := overrides.get(going_on.NEW_RECORD)) is not None and anew.value() is not False:
        raise UsageError(f"{anew.input_line}: is for a run that goes on, with resume=; leave it out.")
    with compose.composing(asked.config_name) as composed:
        planned = plan.make(asked, list(overrides.values()), composed)
    if asked.show:
        return _shown_by_hydra(asked)
    if isinstance(planned, plan.Plan):
        return sweep.run(planned, asked, command)
    settings = planned.settings
    outline, launcher = single_run.checked(settings)
    if (follows := followed(settings)) is not None:
        return join.follow(follows)
    for line in single_run.said_before(outline, asked.overrides):
        tell(line)
    path, as_job = Path(planned.run_dir), partial(hydra_job.run, planned)
    return _told(*single_run.launch(outline, launcher, path, asked.overrides, command, as_job))


def _gone_on(asked: Arguments, overrides: dict[str, Override], command: str) -> int | None:
    """Goes on with a run or replays one, as asked. Returns the exit status, None where neither is asked for."""
    if (resumed := arguments.directory(overrides.get("resume"))) is not None:
        others = {k: o for k, o in overrides.items() if k != "resume"}
        if str(resumed) == resume.AUTO:
            return _told(*resume.auto(asked, others, command))
        return _told(*resume.run(resumed, asked, others, command))
    if (replayed := arguments.directory(overrides.get("replay"))) is not None:
        return _told(*replay.run(replayed, asked, overrides, command))
    return None


def _distributed(overrides: Mapping[str, Override]) -> bool:
    return _value(overrides, "launcher", None) == "distributed"


def _value(overrides: Mapping[str, Override], key: str, usual: Any) -> Any:
    return overrides[key].value() if key in overrides else usual


def _processes(started: World | None, overrides: Mapping[str, Override]) -> int | None:
    """Returns how many processes of torchrun's or tasks of SLURM's a run has; None where neither starts it."""
    if _value(overrides, "hydra/launcher", None) != "submitit_slurm":
        return None if started is None else started.size
    counts = [_value(overrides, f"hydra.launcher.{key}", 1) for key in ("nodes", "tasks_per_node")]
    return math.prod(counts) if all(type(count) is int for count in counts) else None


def _going_on(asked: Arguments, overrides: Mapping[str, Override]) -> Path | None:
    """Returns the directory of the run that is to go on, if its launcher is distributed by its own settings or, with
    resume=auto, by those given; else None.
    """
    path = arguments.directory(overrides.get("resume"))
    if path is not None and str(path) == resume.AUTO:
        words = arguments.parse_overrides(resume.auto_words(asked, overrides)) if _distributed(overrides) else []
        return arguments.directory(next((o for o in words if o.key_or_group == "hydra.run.dir"), None))
    with suppress(reader.BadFile):
        if path is not None and ((reader.config_of(path) or {}).get("launcher") or {}).get("name") == "distributed":
            return path
    return None


def _followed(started: World, path: Path) -> int:
    """Takes part in the run in `path`. Returns 0 if it has ended already. Raises UsageError and RunError."""
    try:
        return join.follow(started)
    except RunError:
        if reader.summary_of(path).get("status") not in run_directory.ENDED:
            raise
        return 0


def _told(outcome: Outcome | None, path: Path) -> int:
    """Prints where a run is, why it failed, and how to go on with it; returns the exit status. `outcome`: None where
    nothing was left to do.
    """
    if outcome is None:
        return 0
    try:
        shown = os.path.relpath(path)
        if shown.startswith("..") or os.getcwd() == "/":  # a run goes to / when its working directory is removed
            shown = str(path)
    except FileNotFoundError:  # the working directory has just been removed
        shown = str(path)
    if outcome.status == "failed" and outcome.reason:
        tell(outcome.reason)
    print(with_command(f"The run is in {shown}; to look at it:", single_run.looked_at(shown)), flush=True)
    if outcome.status == "interrupted" and (path / "checkpoint").is_dir():
        print(
            with_command("To go on with it:", f"{single_run.program('easgd')} train {shlex.quote(f'resume={shown}')}"),
            flush=True,
        )
    return outcome.exit_code


def _shown_by_hydra(asked: Arguments) -> int:
    """Prints what Hydra's own options ask for, completion included. Returns the exit status. Raises UsageError."""
    said = io.StringIO()  # printed at once: once the reader is gone, Hydra's logger would complain of every line
    words = ["--config-name", asked.config_name, *asked.show, *asked.overrides]
    try:
        refused = hydra_job.said_by_hydra(asked.config_name, words, said, said)
    except HydraException as e:  # raised for overrides that were not checked, since no run is made of them
        raise UsageError(f"{' '.join(asked.show)}: {' '.join(str(e).split()).rstrip('.')}.") from e
    if refused:
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
