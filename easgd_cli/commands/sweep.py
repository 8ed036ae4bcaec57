"""`easgd train -m`: the jobs of a plan, one after another or side by side, each in a directory of its own, and a table of how each ended.

Sweepers and launchers of Hydra's other than its basic ones are left to Hydra, after the same checks (hydra_sweep.py).
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from easgd_cli import build, interruption, rundir
from easgd_cli.commands import arguments, compose, hydra_sweep, packing, placing, running
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.board import Board, refuse_another
from easgd_cli.commands.placing import Place
from easgd_cli.commands.plan import Member, Plan
from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Outcome

_GO_ON = "to go on with it, give the same command again."


@dataclass
class _Row:
    """How a job ended."""

    name: str
    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    path: Path | None = None
    before: bool = False  # in an earlier start of the sweep

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
        error = (self.summary.get("center") or {}).get("test_error")
        return f"{self.status}, test error {error:.2f} %" if error is not None else self.status


def run(plan: Plan, asked: Arguments, command: str) -> int:
    """Runs the jobs one after another and shows how each ended; returns the exit status."""
    for words, sentence in plan.left_out:
        print(f"easgd: {words}. {sentence}", file=sys.stderr)
    _warn_ineffective(plan.members)
    root = plan.root
    if plan.named:
        refuse_another(plan)
    lanes = packing.lanes(plan.jobs, plan.members) if plan.basic else []
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"hydra.sweep.dir={root}: the sweep's directory cannot be made ({e.strerror}); choose another with hydra.sweep.dir=PATH.") from e
    _tell_tensorboard(root, plan.members, command)
    from easgd_cli.record.table import show_sweep  # here, so that a refusal does not wait for what draws tables

    side = f", {len(lanes)} at a time" if len(lanes) > 1 else "" if plan.basic else f", by {hydra_sweep.by(plan)}"
    runs = f"Runs to minimise {plan.objective}" if plan.objective else f"{len(plan.members)} run{'s' if len(plan.members) > 1 else ''}"
    print(f"{runs} in {root}{side}", flush=True)
    with interruption.undone_by(lambda: interruption.tell(f"the sweep is in {root}; {_GO_ON}")), ExitStack() as attended:
        with suppress(UsageError):  # somebody is looking just now
            attended.enter_context(rundir.held(root, shared=True))  # by which `easgd report` knows whether the sweep goes on
        board = Board(plan, command)
        if plan.basic:
            rows, code = _side_by_side(plan, lanes, asked, board) if len(lanes) > 1 else _in_turn(plan, asked, board)
        else:
            rows, code = _by_hydra(plan, asked, board)
    if rows:
        print()
        show_sweep([(r.name, r.status, r.summary, r.why) for r in rows])
    if plan.objective is not None:
        _tell_tensorboard(root, [], command)  # what was drawn is known only now
        board.choose(hydra_sweep.tell_best(plan, plan.objective))
    print(f"The sweep is in {root}; to look at it: {running.looked_at(str(root))}", flush=True)
    ended = {r.status for r in rows}
    if ended & {"interrupted", "killed"}:
        print(_GO_ON[0].upper() + _GO_ON[1:], flush=True)
    if any(r.status == placing.FAILED and not r.before for r in rows):
        print("To try again what failed, give the same command with retry=true.", flush=True)
    return code if "interrupted" in ended else 1 if ended & {placing.FAILED, "killed"} else 0 if plan.basic else code


def _in_turn(plan: Plan, asked: Arguments, board: Board) -> tuple[list[_Row], int]:
    """The jobs one after another in this process, each with its live view."""
    from rich.console import Console

    from easgd_cli.record.table import job_line

    rows: list[_Row] = []
    code = 0
    for number, member in enumerate(plan.members, 1):
        title = f"[{number}/{len(plan.members)}] {member.name}"
        place = placing.place(plan.root / member.name, member.settings, plan.retry)
        if place.over:
            row, code = over(member, place), 0
            Console(highlight=False, soft_wrap=True).print(job_line(title, row.status, row.said()))
        else:
            print(f"\n{title}", flush=True)
            board.note(member.name, "running", pid=os.getpid())
            row, code = run_one(member, place, asked)
        board.note(member.name, row.status, reason=row.reason)
        rows.append(row)
        if row.status == "interrupted":
            rows += [_Row(m.name, "not started") for m in plan.members[number:]]
            break
    return rows, code


def _side_by_side(plan: Plan, lanes: list[packing.Lane], asked: Arguments, board: Board) -> tuple[list[_Row], int]:
    """The jobs in processes of their own, as many at a time as there are `lanes`, all in one view."""
    from easgd_cli.record.sweep_progress import SweepProgress

    members = {m.name: m for m in plan.members}
    numbers = {name: f"[{n}/{len(members)}] {name}" for n, name in enumerate(members, 1)}
    places: dict[str, Place] = {}
    rows: dict[str, _Row] = {}
    view = SweepProgress(len(members))

    def known(row: _Row) -> None:
        rows[row.name] = row
        board.note(row.name, row.status, reason=row.reason)
        view.ended(numbers[row.name], row.status, row.said())

    def begin(name: str) -> packing.Command | None:
        member = members[name]
        place = places[name] = placing.place(plan.root / name, member.settings, plan.retry)
        if place.over:
            known(over(member, place))
            return None
        return packing.Command(_alone(member, place, asked), _log(plan.root, name), packing.Devices.of(member.settings))

    def begun(name: str, pid: int) -> None:
        board.note(name, "running", pid=pid)
        view.begun(numbers[name], places[name].path, members[name].steps, members[name].settings.minutes)

    def ended(name: str, code: int) -> None:
        path = places[name].path
        status = rundir.status_of(path) or placing.FAILED if code == 0 else "interrupted" if code in (130, 143) else placing.FAILED
        reason = None
        if code < 0:  # from outside, so it goes on when the sweep is given again
            status, reason = "killed", f"its process was ended by {signal.Signals(-code).name}"
        elif status == placing.FAILED:
            reason = packing.said_last(_log(plan.root, name)) or f"its process ended with status {code}"
            placing.leave_failure(path, members[name].settings, running.own(members[name].overrides), reason)
        known(_Row(name, status, rundir.summary_of(path), reason))

    try:
        number = packing.run(list(members), lanes, begin, begun, ended, view.look)
    finally:
        view.close()
    for name in members:
        rows.setdefault(name, _Row(name, "not started"))
    return [rows[name] for name in members], 0 if number is None else 128 + number


def _by_hydra(plan: Plan, asked: Arguments, board: Board) -> tuple[list[_Row], int]:
    """The jobs in the hands of a launcher or sweeper of Hydra's, each told of in a line when it begins and ends."""
    ended: dict[str, _Row] = {}

    def show(line: str) -> None:
        with suppress(OSError):  # whoever was reading may have left, as `head` does; the jobs go on and are noted
            print(line, flush=True)

    for member in plan.members:
        place = placing.place(plan.root / member.name, member.settings, plan.retry)
        if place.over:
            row = ended[member.name] = over(member, place)
            show(f"{member.name}: {row.said()}")
            board.note(member.name, row.status, reason=row.reason)

    def now(name: str, said: dict[str, Any]) -> _Row:
        summary = rundir.summary_of(Path(said["path"])) if "path" in said else {}
        return _Row(name, said["status"], summary, said.get("reason"), before=said.get("before", False))

    def tell(name: str, said: dict[str, Any]) -> None:
        if said["status"] == "running":
            show(f"{name}: begun")
            board.note(name, "running", pid=said["pid"], host=said["host"])
        elif plan.objective is None or "objective" in said or said["status"] not in hydra_sweep.MEASURED:  # of which the value follows
            row = now(name, said)
            value = f"{row.status}, {plan.objective.shown(said.get('value', math.inf))}" if plan.objective and not row.why else row.said()
            show(f"{name}: {value}")
            board.note(name, row.status, reason=row.reason, value=said.get("value"))

    said, code = hydra_sweep.run(plan, [m for m in plan.members if m.name not in ended], asked, tell)
    rows = ended | {name: now(name, of) for name, of in said.items()}
    stopped = any(r.status == "interrupted" for r in rows.values())  # by whoever else may
    names = dict.fromkeys([*(m.name for m in plan.members), *rows])
    return [rows.get(name, _Row(name, "not started")) for name in names], code or int(stopped)


def _alone(member: Member, place: Place, asked: Arguments) -> list[str]:
    """The words after `easgd train` that run this job by itself, or go on with it."""
    if place.standing == placing.STOPPED:
        return [f"resume={place.path}"]
    root = [] if asked.config_name == arguments.ROOT else ["--config-name", asked.config_name]
    words = [w for w in member.overrides if not w.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    return [*root, *words, arguments.run_dir(place.path), "hydra.mode=RUN"]  # the last since an experiment may ask for a sweep


def _log(root: Path, name: str) -> Path:
    """What a job that runs beside others prints."""
    return root / "logs" / f"{name}.log"


def over(member: Member, place: Place) -> _Row:
    """The row of a job that is not run now."""
    return _Row(member.name, place.standing, rundir.summary_of(place.path), place.reason, place.path, before=place.standing != placing.ELSEWHERE)


def run_one(member: Member, place: Place, asked: Arguments) -> tuple[_Row, int]:
    """One job, whatever becomes of it."""
    from rich.console import Console

    from easgd_cli.record.table import job_line

    path, command = place.path, shlex.join(["easgd", "train", *_alone(member, place, asked)])
    try:
        with running.unchanged_process():
            if place.standing == placing.STOPPED:
                outcome = running.go_on(path, member.settings, running.own(member.overrides), command)
            else:
                launcher = kinds.launcher(member.settings)
                outcome, path = running.launch(member.settings, path, member.overrides, command, launcher, build.prepare(member.settings), through=asked)
    except (UsageError, RunError) as e:
        outcome = Outcome(placing.FAILED, 1, {}, str(e))
    except Exception as e:
        traceback.print_exc()
        outcome = Outcome(placing.FAILED, 1, {}, f"{type(e).__name__}: {e}")
    if outcome.status == placing.FAILED:
        Console(stderr=True, highlight=False, soft_wrap=True).print(job_line("easgd", outcome.status, outcome.reason or ""))
        placing.leave_failure(path, member.settings, running.own(member.overrides), outcome.reason or "no reason is known")
    return _Row(member.name, outcome.status, outcome.summary, outcome.reason, path), outcome.exit_code


def _tell_tensorboard(root: Path, members: list[Member], command: str) -> None:
    """What the HParams tab compares, of these jobs and of those that an earlier start has left here; and the sweep's command."""
    from easgd_cli.record.opening import as_is, hparams
    from easgd_cli.record.tensorboard import write_sweep

    known = {json.dumps(asdict(m.settings), sort_keys=True): m.settings for m in members}
    for path in sorted(root.glob("*/config.yaml")):
        try:
            settings = compose.resumed(str(path), [], {})
        except UsageError:  # of another version, perhaps; its curves are shown all the same
            continue
        known.setdefault(json.dumps(asdict(settings), sort_keys=True), settings)
    write_sweep(root, [hparams(s) for s in known.values()], {"command": as_is(command)})


def _warn_ineffective(members: list[Member]) -> None:
    """Once for each setting and method, however many jobs have both."""
    seen: dict[str, None] = {}
    for member in members:
        for line in running.ineffective(member.settings, member.overrides):
            seen[line] = None
    for line in seen:
        print(f"easgd: {line}", file=sys.stderr)
