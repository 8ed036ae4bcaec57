"""`easgd train -m`: the jobs of a plan, one after another or side by side, each in a directory of its own, and a table of how each ended.

Sweepers and launchers of Hydra's other than its basic ones are left to Hydra, after the same checks (hydra_sweep.py).
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from easgd_cli.commands import arguments, compose, report, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.plan import Member, Plan, apart
from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Outcome
from easgd_cli.record import reader
from easgd_cli.record import run_directory as rundir
from easgd_cli.settings.schema import OF_SWEEPS
from easgd_cli.sweeps import hydra_plugins as hydra_sweep
from easgd_cli.sweeps import job_directory as placing
from easgd_cli.sweeps import job_status as standing
from easgd_cli.sweeps import side_by_side as packing
from easgd_cli.sweeps.board import Board, refuse_another
from easgd_cli.sweeps.job_directory import Place
from easgd_cli.system import interruption
from easgd_cli.system.terminal import tell

_NOT_STARTED = "not started"
_GO_ON = "to go on with it, give the same command again."


@dataclass
class Row:
    """How a job ended."""

    name: str
    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    path: Path | None = None
    before: bool = False  # in an earlier start of the sweep

    @classmethod
    def told(cls, name: str, said: Mapping[str, Any]) -> Row:
        """The row of a job by what it has said in a process of its own (`tell`)."""
        path = Path(said["path"]) if said.get("path") else None
        return cls(name, said["status"], reader.summary_of(path) if path else {}, said.get("reason"), path, said.get("before", False))

    def tell(self) -> dict[str, Any]:
        return {"status": self.status, "reason": self.reason, "path": str(self.path) if self.path else None, "before": self.before}

    @property
    def why(self) -> str | None:
        """What to know of a job that has no result."""
        if self.status == placing.FAILED and self.before:
            return f"{(self.reason or 'no reason is known').rstrip('.')}. That was before; retry=true tries it again."
        return self.reason

    def said(self) -> str:
        """The job in a line."""
        if self.before and self.status != placing.FAILED:
            return "already done"
        if self.why:
            return f"{self.status}: {self.why}"
        result = reader.result_of(self.summary)
        return self.status if result is None else f"{self.status}, {result}"


def run(plan: Plan, asked: Arguments, command: str) -> int:
    """Runs the jobs one after another and shows how each ended; returns the exit status."""
    for words, sentence in plan.left_out:
        tell(f"{words}. {sentence}")
    _warn_ineffective(plan.members)
    root = plan.root
    if plan.named:
        refuse_another(plan)
    lanes = packing.lanes(plan.jobs, plan.members) if plan.basic else []
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"hydra.sweep.dir={root}: the sweep's directory cannot be made ({e.strerror}); choose another with hydra.sweep.dir=PATH.") from e
    if (root / "config.yaml").exists():
        raise UsageError(f"hydra.sweep.dir={root}: is the directory of a run, and a sweep needs one of its own; choose another.")
    _tell_tensorboard(root, plan.members, command)
    from easgd_cli.record.display import say
    from easgd_cli.record.table import show_sweep  # here, so that a refusal does not wait for what draws tables

    side = f", {len(lanes)} at a time" if len(lanes) > 1 else "" if plan.basic else f", by {hydra_sweep.by(plan)}"
    runs = f"Runs to minimise {plan.objective}" if plan.objective else f"{len(plan.members)} run{'s' if len(plan.members) > 1 else ''}"
    say(f"{runs} in {root}{side}")
    with interruption.undone_by(lambda: interruption.tell(f"the sweep is in {root}; {_GO_ON}")), ExitStack() as attended:
        with suppress(UsageError):  # somebody is looking just now
            attended.enter_context(rundir.held(root, shared=True))  # by which `easgd report` knows whether the sweep goes on
        board = Board(plan, command)
        if plan.basic:
            rows, code = _side_by_side(plan, lanes, asked, board) if len(lanes) > 1 else _in_turn(plan, asked, board)
        else:
            rows, code = _by_hydra(plan, asked, board)
    if rows:
        say("")
        say(lambda: show_sweep([(r.name, r.status, r.summary, r.why) for r in rows]))
    if plan.objective is not None:
        _tell_tensorboard(root, [], command)  # what was drawn is known only now
        board.choose(hydra_sweep.tell_best(plan, plan.objective))
    say(f"The sweep is in {root}; to look at it: {single_run.looked_at(str(root))}")
    ended = {r.status for r in rows}
    if ended & {"interrupted", "killed"}:
        say(_GO_ON[0].upper() + _GO_ON[1:])
    if any(r.status == placing.FAILED and not r.before for r in rows):
        say("To try again what failed, give the same command with retry=true.")
    whole = not ended & {"interrupted", _NOT_STARTED}
    if plan.report is not None and whole:  # else it goes on
        report.at_the_end_of(root, plan.report)
    return code if code >= 128 else 0 if whole and not ended & {placing.FAILED, "killed"} and (plan.basic or not code) else 1


def _in_turn(plan: Plan, asked: Arguments, board: Board) -> tuple[list[Row], int]:
    """The jobs one after another in this process, each with its live view."""
    from easgd_cli.record.display import say
    from easgd_cli.record.table import job_line

    rows: list[Row] = []
    code = 0
    for number, member in enumerate(plan.members, 1):
        title = f"[{number}/{len(plan.members)}] {member.name}"
        place = placing.place(plan.root / member.name, member.settings, plan.retry)
        if place.over:
            row, code = over(member, place), 0
            say(job_line(title, row.status, row.said()))
        else:
            say(f"\n{title}")
            board.note(member.name, "running", pid=os.getpid())
            row, code = run_placed(plan.root, member, plan.retry, asked)
        board.note(member.name, row.status, reason=row.reason)
        rows.append(row)
        if row.status == "interrupted":
            rows += [Row(m.name, _NOT_STARTED) for m in plan.members[number:]]
            break
    return rows, code


def _side_by_side(plan: Plan, lanes: list[packing.Lane], asked: Arguments, board: Board) -> tuple[list[Row], int]:
    """The jobs in processes of their own, as many at a time as there are `lanes`, all in one view."""
    from easgd_cli.sweeps.progress import SweepProgress

    members = {m.name: m for m in plan.members}
    numbers = {name: f"[{n}/{len(members)}] {name}" for n, name in enumerate(members, 1)}
    places: dict[str, Place] = {}
    rows: dict[str, Row] = {}
    view = SweepProgress(len(members))

    def known(row: Row) -> None:
        rows[row.name] = row
        board.note(row.name, row.status, reason=row.reason)
        view.ended(numbers[row.name], row.status, row.said())

    def begin(name: str) -> packing.Command | None:
        member = members[name]
        place = places[name] = placing.place(plan.root / name, member.settings, plan.retry)
        if place.over:
            known(over(member, place))
            return None
        words = ["--config-name", asked.config_name, *member.overrides, f"retry={str(plan.retry).lower()}"]
        return packing.Command(plan.root, name, words, standing.log(plan.root, name), packing.Devices.of(member.settings))

    def begun(name: str, pid: int) -> None:
        board.note(name, "running", pid=pid)
        view.begun(numbers[name], places[name].path, members[name].steps, members[name].settings.minutes)

    def ended(name: str, code: int, said: Mapping[str, Any] | None) -> None:
        if said is not None:
            known(Row.told(name, said))
        elif code < 0:  # from outside, so it goes on when the sweep is given again
            known(Row(name, "killed", reason=f"its process was ended by {signal.Signals(-code).name}"))
        elif code in (130, 143):
            known(Row(name, "interrupted"))
        else:
            reason = packing.said_last(standing.log(plan.root, name)) or f"its process ended with status {code}"
            placing.leave_failure(places[name].path, members[name].settings, single_run.own(members[name].overrides), reason)
            known(Row(name, placing.FAILED, reason=reason))

    try:
        number = packing.run(list(members), lanes, begin, begun, ended, view.look)
    finally:
        view.close()
    for name in members:
        rows.setdefault(name, Row(name, _NOT_STARTED))
    return [rows[name] for name in members], 0 if number is None else 128 + number


def _by_hydra(plan: Plan, asked: Arguments, board: Board) -> tuple[list[Row], int]:
    """The jobs in the hands of a launcher or sweeper of Hydra's, each told of in a line when it begins and ends."""
    from easgd_cli.record.display import say

    ended: dict[str, Row] = {}
    for member in plan.members:
        place = placing.place(plan.root / member.name, member.settings, plan.retry)
        if place.over:
            row = ended[member.name] = over(member, place)
            say(f"{member.name}: {row.said()}")
            board.note(member.name, row.status, reason=row.reason)

    def tell(name: str, said: dict[str, Any]) -> None:
        if said["status"] == "running":
            say(f"{name}: begun")
            board.note(name, "running", pid=said["pid"], host=said["host"])
        elif plan.objective is None or "objective" in said or said["status"] not in rundir.ENDED:  # of which the value follows
            row = Row.told(name, said)
            value = f"{row.status}, {plan.objective.shown(said.get('value', math.inf))}" if plan.objective and "objective" in said else row.said()
            say(f"{name}: {value}")
            board.note(name, row.status, reason=row.reason, value=said.get("value"))

    said, code = hydra_sweep.run(plan, [m for m in plan.members if m.name not in ended], asked, tell)
    rows = ended | {name: Row.told(name, of) for name, of in said.items()}
    stopped = any(r.status == "interrupted" for r in rows.values())  # by whoever else may
    names = dict.fromkeys([*(m.name for m in plan.members), *rows])
    return [rows.get(name, Row(name, _NOT_STARTED)) for name in names], code or int(stopped)


def _alone(member: Member, place: Place, asked: Arguments) -> list[str]:
    """The words after `easgd train` that run this job by itself, or go on with it."""
    if place.standing == placing.STOPPED:
        return [f"resume={place.path}"]
    root = [] if asked.config_name == arguments.ROOT else ["--config-name", asked.config_name]
    words = [w for w in member.overrides if not w.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    return [*root, *words, arguments.run_dir(place.path), "hydra.mode=RUN"]  # the last since an experiment may ask for a sweep


def over(member: Member, place: Place) -> Row:
    """The row of a job that is not run now."""
    return Row(member.name, place.standing, reader.summary_of(place.path), place.reason, place.path, before=place.standing != placing.ELSEWHERE)


def run_job(root: Path, name: str, words: Sequence[str]) -> tuple[Row, int]:
    """The job `name` of the sweep in `root`, in a process of its own; `words` are its settings, and retry= of the sweep. Raises UsageError."""
    asked = arguments.parse(words)
    arguments.parse_overrides(asked.overrides)
    with compose.composing(asked.config_name) as composed:
        given = composed(asked.overrides).settings
    settings = apart(given)
    single_run.checked(settings)
    own = [o for o in asked.overrides if o.partition("=")[0] not in OF_SWEEPS]
    return run_placed(root, Member(own, name, settings, None, 0), given.retry, asked)


def run_placed(root: Path, member: Member, retry: bool, asked: Arguments) -> tuple[Row, int]:
    """One job where its place is, whatever becomes of it, unless it is over; another sweep that takes the same place is left alone."""
    while True:
        place = placing.place(root / member.name, member.settings, retry)
        if place.over:
            return over(member, place), int(place.standing == placing.FAILED)
        with suppress(FileExistsError):
            return _run(member, place, asked)


def _run(member: Member, place: Place, asked: Arguments) -> tuple[Row, int]:
    from rich.console import Console

    from easgd_cli.record.table import job_line

    path, command = place.path, shlex.join(["easgd", "train", *_alone(member, place, asked)])
    try:
        with single_run.unchanged_process():
            if place.standing == placing.STOPPED:
                outcome = single_run.go_on(path, member.settings, single_run.own(member.overrides), command)
            else:
                launcher = kinds.launcher(member.settings)
                with compose.composing(asked.config_name) as composed:
                    job = composed(member.overrides)
                prepared = build.prepare(member.settings)
                outcome, path = single_run.launch(member.settings, path, member.overrides, command, launcher, prepared, job, alone=True)
    except FileExistsError:
        raise
    except (UsageError, RunError) as e:
        outcome = Outcome(placing.FAILED, 1, {}, str(e))
    except Exception as e:
        traceback.print_exc()
        outcome = Outcome(placing.FAILED, 1, {}, f"{type(e).__name__}: {e}")
    if outcome.status == placing.FAILED:
        Console(stderr=True, highlight=False, soft_wrap=True).print(job_line("easgd", outcome.status, outcome.reason or ""))
        placing.leave_failure(path, member.settings, single_run.own(member.overrides), outcome.reason or "no reason is known")
    return Row(member.name, outcome.status, outcome.summary, outcome.reason, path), outcome.exit_code


def _tell_tensorboard(root: Path, members: list[Member], command: str) -> None:
    """What the HParams tab compares, of these jobs and of those that an earlier start has left here; and the sweep's command."""
    from easgd_cli.record.initial_record import as_is, hparams
    from easgd_cli.record.tensorboard import write_sweep

    known = {json.dumps(asdict(m.settings), sort_keys=True): m.settings for m in members}
    for path in sorted(root.glob("*/config.yaml")):
        try:
            if json.dumps(reader.config_of(path.parent), sort_keys=True) in known:  # composing takes ten times as long
                continue
            settings = compose.resumed(str(path), [], {})
            hparams(settings)  # which looks at its method, that of a user's module perhaps
        except UsageError:  # of another version, perhaps, or its module is gone; its curves are shown all the same
            continue
        known.setdefault(json.dumps(asdict(settings), sort_keys=True), settings)
    write_sweep(root, [hparams(s) for s in known.values()], {"command": as_is(command)}, [build.declared_metrics(s) for s in known.values()])


def _warn_ineffective(members: list[Member]) -> None:
    """Once for each setting and method, however many jobs have both."""
    seen: dict[str, None] = {}
    for member in members:
        for line in single_run.ineffective(member.settings, member.overrides):
            seen[line] = None
    for line in seen:
        tell(line)
