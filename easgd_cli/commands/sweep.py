"""`easgd train -m`: runs the jobs of a plan, each in its directory; prints a line for each, then a table of results."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from easgd_cli.commands import configs, report, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.errors import UsageError, why
from easgd_cli.experiment import build
from easgd_cli.launcher import distributed_sweep
from easgd_cli.problems.metric import Metrics
from easgd_cli.record import reader, run_directory
from easgd_cli.settings.overrides import own
from easgd_cli.sweeps import job_directory, job_status
from easgd_cli.sweeps.executor import Executor, SlotExecutor
from easgd_cli.sweeps.hydra_executor import HydraExecutor
from easgd_cli.sweeps.job_directory import JobDirectory
from easgd_cli.sweeps.job_status import FAILED, INTERRUPTED, KILLED, NOT_STARTED, RUNNING, JobStatus
from easgd_cli.sweeps.objective import Objective
from easgd_cli.sweeps.plan import Plan, SweepJob
from easgd_cli.sweeps.slots import slots
from easgd_cli.sweeps.sweep_file import SweepFile, refuse_another
from easgd_cli.system import interruption
from easgd_cli.system.terminal import printable, tell
from easgd_cli.system.unchanged import unchanged_process

PROGRAM = "easgd_cli.commands.sweep_job"
_GO_ON = "to go on with it, give the same command again."


def run(plan: Plan, asked: Arguments, command: str) -> int:
    """Runs the jobs and shows how each ended; returns the exit status. Raises UsageError and RunError."""
    for words, sentence in plan.left_out:
        tell(f"{words}. {sentence}")
    _warn_ineffective(plan.jobs)
    if plan.named:
        refuse_another(plan)
    with ExitStack() as lasting:
        # listens before a directory is made, and until the jobs are over
        shared = lasting.enter_context(distributed_sweep.listening(plan.jobs[0].settings)) if plan.basic else []
        return _run(plan, command, *_executor(plan, asked, shared), lasting)


def _run(plan: Plan, command: str, executor: Executor, how: str, lasting: ExitStack) -> int:
    """Runs the jobs by `executor`, which `how` describes, and closes `lasting` when they are over. Shows how each
    ended; returns the exit status. Raises UsageError and RunError.
    """
    root = _made(plan.root)
    _tell_tensorboard(root, plan.jobs, command)
    from easgd_cli.record.display import say
    from easgd_cli.record.table import show_sweep  # here, so that a refusal does not wait for the import

    count = f"{len(plan.jobs)} run{'s' if len(plan.jobs) > 1 else ''}"
    say(f"{f'Runs to minimise {plan.objective}' if plan.objective else count} in {root}{how}")
    go_on = f"the sweep is in {root}; {_GO_ON}"
    with interruption.undone_by(lambda: interruption.tell(go_on)), unchanged_process(), ExitStack() as held:
        with suppress(UsageError):  # a report may hold the directory at this moment
            # held, so that `easgd report` sees that the sweep is running
            held.enter_context(run_directory.held(root, shared=True))
        sweep_file = SweepFile(plan, command)
        jobs = _Jobs(plan, sweep_file)
        try:
            code = executor.run(plan.jobs, jobs.begin, jobs.tell, jobs.view.look)
        finally:
            jobs.view.close()
            lasting.close()
    ended = jobs.all()
    if ended:
        say("")
        say(lambda: show_sweep([(name, said.status, _summary(said), _why(said)) for name, said in ended.items()]))
    if plan.objective is not None:
        _tell_tensorboard(root, [], command)  # the drawn values are known only now
        sweep_file.choose(tell_best(plan, plan.objective))
    say(f"The sweep is in {root}; to look at it: {single_run.looked_at(str(root))}")
    statuses = {said.status for said in ended.values()}
    if statuses & {INTERRUPTED, KILLED}:
        say(_GO_ON[0].upper() + _GO_ON[1:])
    if any(said.status == FAILED and not said.before for said in ended.values()):
        say("To try again what failed, give the same command with retry=true.")
    whole = not statuses & {INTERRUPTED, NOT_STARTED}
    if plan.report is not None and whole:  # else the sweep is to go on, and is reported on at its end
        report.at_the_end_of(root, plan.report)
    return code or (0 if whole and not statuses & {FAILED, KILLED} else 1)


def _executor(plan: Plan, asked: Arguments, shared: list[int]) -> tuple[Executor, str]:
    """Returns the executor of the jobs, and how it runs them, in words. `shared`: descriptors that the processes of
    easgd's own executor inherit. Raises UsageError.
    """
    if not plan.basic:
        hydra = HydraExecutor(plan, asked.overrides, asked.config_name, configs.directory(), PROGRAM)
        return hydra, f", by {plan.plugins}"
    shares = slots(plan.at_once, plan.jobs)

    def words(job: SweepJob) -> list[str]:
        return ["--config-name", asked.config_name, *job.words, f"retry={str(plan.retry).lower()}"]

    at_once = f", {len(shares)} at a time" if len(shares) > 1 else ""
    return SlotExecutor(plan.root, shares, PROGRAM, words, shared), at_once


def _made(root: Path) -> Path:
    """Creates the sweep's directory, where it is missing, and returns it. Raises UsageError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(
            f"hydra.sweep.dir={root}: the sweep's directory cannot be made ({why(e)}); choose another with "
            "hydra.sweep.dir=PATH."
        ) from e
    if (root / "config.yaml").exists():
        raise UsageError(
            f"hydra.sweep.dir={root}: is the directory of a run, and a sweep needs one of its own; choose another."
        )
    return root


class _Jobs:
    """How each job stands. Every change is passed on to sweep.json and to the view."""

    def __init__(self, plan: Plan, sweep_file: SweepFile):
        from easgd_cli.sweeps.view import SweepView

        self._plan, self._file = plan, sweep_file
        self._planned = {job.name: job for job in plan.jobs}
        numbers = enumerate(self._planned, 1)
        self._titles = {name: f"[{number}/{len(self._planned)}] {name}" for number, name in numbers}
        self._directories: dict[str, JobDirectory] = {}
        self._ended: dict[str, JobStatus] = {}
        self.view = SweepView(len(self._planned) if plan.objective is None else None)

    def begin(self, job: SweepJob) -> bool:
        """Returns whether a job whose turn has come is to run. Notes the status of a job that is over already."""
        found = self._directories[job.name] = job_directory.find(
            self._plan.root / job.name, job.settings, self._plan.retry
        )
        if found.over:
            self.tell(job.name, found.said)
        return not found.over

    def tell(self, name: str, said: JobStatus) -> None:
        """Notes that a job runs, or how it has ended."""
        title, job, objective = self._titles.get(name, name), self._planned.get(name), self._plan.objective
        if said.status == RUNNING:
            self._file.note(name, said)
            path = Path(said.path) if said.path else self._plan.root / name
            self.view.begun(title, path, job.steps if job else None, job.settings.minutes if job else None)
            return
        self._ended[name] = said
        if said.status == FAILED and said.path is None and job is not None:  # the job could not record that itself
            path = self._directories[name].path
            job_directory.leave_failure(path, job.settings, own(job.words), said.reason or "no reason is known")
        # else the job is told of again, once its value is known
        if objective is None or said.objective is not None or said.status not in run_directory.ENDED:
            self._file.note(name, said)
            self.view.ended(title, said.status, line(said, objective))

    def all(self) -> dict[str, JobStatus]:
        """Returns how every job, planned or drawn, has ended, in order."""
        names = dict.fromkeys([*self._planned, *self._ended])
        return {name: self._ended.get(name, JobStatus(NOT_STARTED)) for name in names}


def line(said: JobStatus, objective: Objective | None = None) -> str:
    """Returns a line on how a job ended; with its value where it was judged by an `objective`."""
    if objective is not None and said.objective is not None:
        return f"{said.status}, {objective.shown(math.inf if said.value is None else said.value)}"
    if said.before and said.status != FAILED:
        return "already done"
    if why := _why(said):
        return f"{said.status}: {why}"
    result = reader.result_of(_summary(said))
    return said.status if result is None else f"{said.status}, {result}"


def _why(said: JobStatus) -> str | None:
    """Returns why a job has no result, or None."""
    if said.status == FAILED and said.before:
        return f"{(said.reason or 'no reason is known').rstrip('.')}. That was before; retry=true tries it again."
    return said.reason


def _summary(said: JobStatus) -> dict[str, Any]:
    return reader.summary_of(Path(said.path)) if said.path else {}


def tell_best(plan: Plan, objective: Objective) -> dict[str, Any] | None:
    """Prints which job of this sweep, earlier starts included, has the smallest value; returns it, or None."""
    said = {name: job_status.read(plan.root, name) for name in job_status.names(plan.root)}
    judged = {name: s for name, s in said.items() if s.objective == str(objective) and s.path and Path(s.path).is_dir()}
    measured = {name: s.value for name, s in judged.items() if s.value is not None}
    if not measured:
        print("No run has a value to choose by.", flush=True)
        return None
    name, *equals = [name for name, value in measured.items() if value == min(measured.values())]
    path = Path(judged[name].path or "")
    others = objective.others(path)
    print(f"The best of {len(measured)} by {objective}:")
    drawn = [o for o in reader.overrides_of(path) if o.partition("=")[0] in plan.varying]
    print(f"  {printable(' '.join(drawn))}")
    shown = [objective.shown(measured[name]), *([", ".join(others)] if others else [])]
    print(f"  {printable('; at that evaluation '.join(shown))}")
    print(f"  {os.path.relpath(path)}", flush=True)
    if equals:
        print(f"The same value have {', '.join(equals)}; the first that reached it is taken.", flush=True)
    return {"job": name, "objective": str(objective), "value": measured[name], "errors": objective.errors(path)}


def _tell_tensorboard(root: Path, jobs: list[SweepJob], command: str) -> None:
    """Writes for TensorBoard the sweep's command, and its jobs, also of earlier starts, for the HParams tab."""
    from easgd_cli.record.initial_record import as_is, hparams
    from easgd_cli.record.tensorboard import write_sweep

    known: dict[str, tuple[dict[str, Any], Metrics]] = {}
    declared: dict[str, Metrics] = {}  # each found once, since it may take loading a user's data set
    for job in jobs:
        s = job.settings
        key, found = json.dumps([s.problem, s.dataset, s.task], sort_keys=True), hparams(s, job.outline.rules)
        if key not in declared:
            declared[key] = build.declared_metrics(s)
        known[json.dumps(found, sort_keys=True)] = found, declared[key]
    for path in sorted(root.glob("*/summary.json")):
        # a run of another version, or a damaged one, is left out; its curves are shown all the same. The user's code
        # that a run names is not run here.
        with suppress(UsageError):
            summary = reader.summary_of(path.parent)
            said = summary.get("hparams", {}).items()
            if settings := {k: v for k, v in said if isinstance(v, str | int | float | None)}:
                known.setdefault(json.dumps(settings, sort_keys=True), (settings, reader.metrics_of(path.parent)))
    write_sweep(
        root, [found for found, _ in known.values()], {"command": as_is(command)}, [m for _, m in known.values()]
    )


def _warn_ineffective(jobs: list[SweepJob]) -> None:
    """Prints each warning before a run once, however many jobs it is about."""
    for text in dict.fromkeys(line for job in jobs for line in single_run.said_before(job.outline, job.words)):
        tell(text)
