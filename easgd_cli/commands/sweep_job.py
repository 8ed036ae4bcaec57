"""One job of a sweep, in a process of its own: `python -m easgd_cli.commands.sweep_job PARENT ROOT NAME WORDS`.

The process writes the job's status to logs/NAME.json of the sweep in ROOT (sweeps/job_status.py). With PARENT alone, it
is a further task of a SLURM job: it joins the run that the first task makes, and writes no status.
"""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from easgd_cli.commands import arguments, auto_tau, compose, hydra_job, join, single_run
from easgd_cli.commands.compose import Composed
from easgd_cli.commands.plan import apart
from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment.build import Outline
from easgd_cli.launcher.hosts.world import world
from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.kinds import Launcher
from easgd_cli.settings.overrides import own
from easgd_cli.settings.schema import OF_SWEEPS
from easgd_cli.sweeps import job_directory, job_status
from easgd_cli.sweeps.job_directory import STOPPED, JobDirectory
from easgd_cli.sweeps.job_status import ELSEWHERE, FAILED, INTERRUPTED, RUNNING, JobStatus
from easgd_cli.system import interruption

_Made = tuple[Outline, Launcher]


def main(argv: Sequence[str]) -> int:
    """Runs the job NAME, goes on with it, or finds that it has ended; returns the run's exit status. `argv`: ROOT, NAME
    and WORDS, which are the job's settings as after `easgd train`, and retry= of the sweep; none for a further task.
    """
    if not argv:
        return _follow()
    root, name, words = Path(argv[0]), argv[1], argv[2:]
    here = root.absolute()  # Hydra may change the working directory (hydra.job.chdir)

    def interrupted() -> None:
        with suppress(RunError):
            job_status.write(here, name, JobStatus(INTERRUPTED))

    try:
        with interruption.ending_the_process(), interruption.undone_by(interrupted):
            asked = arguments.parse(words)
            given = arguments.parse_overrides(asked.overrides)
            overrides = [o.input_line or "" for o in given if o.key_or_group not in OF_SWEEPS]
            with compose.composing(asked.config_name) as composed:
                job = composed(overrides)
            job = replace(job, settings=apart(job.settings))
            made = single_run.checked(job.settings)
            said, code = _run(root, name, job, made, overrides, asked.config_name, retry="retry=true" in words)
    except (UsageError, RunError) as e:
        print(f"easgd: {e}", file=sys.stderr)
        with suppress(RunError):  # the error may be that this very file cannot be written
            job_status.write(root, name, JobStatus(FAILED, str(e)))
        return 2 if isinstance(e, UsageError) else 1
    if said is not None:
        job_status.write(root, name, said)
    return code


def _follow() -> int:
    """Takes part in the run of the job's first task; returns the run's exit status."""
    try:
        with interruption.ending_the_process():
            started = world()
            return 0 if started is None else join.follow(started)
    except (UsageError, RunError) as e:
        print(f"easgd: {e}", file=sys.stderr)
        return 2 if isinstance(e, UsageError) else 1


def _run(
    root: Path, name: str, job: Composed, made: _Made, overrides: list[str], config_name: str, retry: bool
) -> tuple[JobStatus | None, int]:
    """Runs the job in its directory. Returns its status, or None where another sweep runs the job or has just run it
    and so writes the status; and the exit status.
    """
    while True:
        found = job_directory.find(root / name, job.settings, retry)
        if found.over:
            known = found.status == ELSEWHERE or job_status.read(root, name).status == found.status
            return None if known else found.said, int(found.status == FAILED)
        job_status.write(root, name, JobStatus(RUNNING, path=str(found.path)))
        with suppress(FileExistsError):  # another sweep has just taken it
            return _launch(found, job, made, overrides, config_name)


def _launch(
    found: JobDirectory, job: Composed, made: _Made, overrides: list[str], config_name: str
) -> tuple[JobStatus, int]:
    """Begins the run in the directory, or goes on with one that was stopped there; an error becomes its status. Raises
    FileExistsError where another sweep has just taken the directory.
    """
    path, settings = found.path, job.settings
    try:
        if found.status == STOPPED:
            command = shlex.join(["easgd", "train", f"resume={path}"])
            if (chosen := auto_tau.as_chosen(path, settings)) is not settings:
                made = single_run.checked(chosen)
            outcome = single_run.go_on(*made, path, own(overrides), command)
        else:
            command = shlex.join(["easgd", "train", *_alone(path, overrides, config_name)])
            outcome, path = single_run.launch(*made, path, overrides, command, partial(hydra_job.run, job), alone=True)
    except FileExistsError:
        raise
    except (UsageError, RunError) as e:
        outcome = Outcome(FAILED, 1, {}, str(e))
    except Exception as e:
        traceback.print_exc()
        outcome = Outcome(FAILED, 1, {}, f"{type(e).__name__}: {e}")
    if outcome.status == FAILED:
        reason = outcome.reason or "no reason is known"
        print(f"easgd: {reason}", file=sys.stderr)
        job_directory.leave_failure(path, settings, own(overrides), reason)
    return JobStatus(outcome.status, outcome.reason, str(path)), outcome.exit_code


def _alone(path: Path, overrides: list[str], config_name: str) -> list[str]:
    """Returns the words after `easgd train` that run this job by itself."""
    root = [] if config_name == arguments.ROOT else ["--config-name", config_name]
    words = [w for w in overrides if not w.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    # hydra.mode=RUN, since an experiment may ask for a sweep
    return [*root, *words, arguments.run_dir(path), "hydra.mode=RUN"]


if __name__ == "__main__":
    # SLURM sends SIGUSR2 to every process of a job that is preempted or out of time. submitit, which has started this
    # process, reacts to it. It is ignored here, since it would kill the workers.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    interruption.end_with(int(sys.argv[1]), signal.SIGTERM)  # with a checkpoint
    sys.exit(main(sys.argv[2:]))
