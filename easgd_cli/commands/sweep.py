"""`easgd train -m`: the jobs of a plan, one after another or side by side, each in a directory of its own, and a table of how each ended.

Sweepers and launchers of Hydra's other than its basic ones are left to Hydra, after the same checks (hydra_sweep.py).
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from easgd_cli import build, interruption, rundir
from easgd_cli.commands import arguments, compose, hydra_sweep, packing, running
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.plan import Member, Plan
from easgd_cli.config import Settings
from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Outcome
from easgd_cli.scratch import put

_ENDED = ("completed", "diverged", "running elsewhere")  # for this sweep
_GO_ON = "to go on with it, give the same command again."


@dataclass
class _Row:
    """How a job ended."""

    name: str
    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    path: Path | None = None


def run(plan: Plan, asked: Arguments, command: str) -> int:
    """Runs the jobs one after another and shows how each ended; returns the exit status."""
    for words, sentence in plan.left_out:
        print(f"easgd: left out: {words}. {sentence}", file=sys.stderr)
    _warn_ineffective(plan.members)
    root = plan.root
    if plan.named:
        _refuse_another(plan)
    lanes = packing.lanes(plan.jobs, [m.settings for m in plan.members]) if plan.basic else []
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"hydra.sweep.dir={root}: the sweep's directory cannot be made ({e.strerror}); choose another with hydra.sweep.dir=PATH.") from e
    _tell_tensorboard(root, plan.members)
    from easgd_cli.record.table import show_sweep  # here, so that a refusal does not wait for what draws tables

    side = f", {len(lanes)} at a time" if len(lanes) > 1 else "" if plan.basic else f", by {hydra_sweep.by(plan)}"
    runs = f"Runs to minimise {plan.objective}" if plan.objective else f"{len(plan.members)} run{'s' if len(plan.members) > 1 else ''}"
    print(f"{runs} in {root}{side}", flush=True)
    with interruption.undone_by(lambda: interruption.tell(f"the sweep is in {root}; {_GO_ON}")):
        board = Board(plan, command)
        if not plan.basic:
            rows, code = _by_hydra(plan, asked, board)
        else:
            rows, code = _side_by_side(plan, lanes, asked, board) if len(lanes) > 1 else _in_turn(plan, asked, command, board)
    if rows:
        print()
        show_sweep([(r.name, r.status, r.summary, r.reason) for r in rows])
    if plan.objective is not None:
        _tell_tensorboard(root, [])  # what was drawn is known only now
        board.choose(hydra_sweep.tell_best(plan, plan.objective))
    print(f"The sweep is in {root}; to look at it: {running.looked_at(str(root))}", flush=True)
    if rows and any(r.status == "interrupted" for r in rows):
        print(_GO_ON[0].upper() + _GO_ON[1:], flush=True)
        return code
    return 1 if any(r.status == "failed" for r in rows) else 0 if plan.basic else code


def _in_turn(plan: Plan, asked: Arguments, command: str, board: Board) -> tuple[list[_Row], int]:
    """The jobs one after another in this process, each with its live view."""
    rows: list[_Row] = []
    code = 0
    for number, member in enumerate(plan.members, 1):
        print(f"\n[{number}/{len(plan.members)}] {member.name}", flush=True)
        board.note(member.name, "running", pid=os.getpid())
        row, code = run_one(plan.root, member, asked, command)
        board.note(member.name, row.status, reason=row.reason)
        rows.append(row)
        if row.status == "interrupted":
            rows += [_Row(m.name, "not started") for m in plan.members[number:]]
            break
    return rows, code


def _side_by_side(plan: Plan, lanes: list[set[int]], asked: Arguments, board: Board) -> tuple[list[_Row], int]:
    """The jobs in processes of their own, as many at a time as there are `lanes`, each told of in a line when it begins and ends."""
    members = {m.name: m for m in plan.members}
    numbers = {name: f"[{n}/{len(members)}] {name}" for n, name in enumerate(members, 1)}
    places: dict[str, Path] = {}
    rows: dict[str, _Row] = {}

    def known(name: str, row: _Row) -> None:
        rows[name] = row
        board.note(name, row.status, reason=row.reason)

    def begin(name: str) -> packing.Command | None:
        path, status = _place(plan.root / name, members[name].settings)
        places[name] = path
        if status in _ENDED:
            print(f"{numbers[name]}: {status if status == 'running elsewhere' else 'already done'}", flush=True)
            known(name, _Row(name, str(status), rundir.summary_of(path)))
            return None
        words = ["--config-name", asked.config_name, *(w for w in members[name].overrides if not w.startswith(("hydra.sweep.dir=", "hydra.mode=")))]
        new = [*words, f"hydra.run.dir={arguments.quote(str(path))}", "hydra.mode=RUN"]
        return packing.Command(new if status is None else [f"resume={path}"], _log(plan.root, name))

    def begun(name: str, pid: int) -> None:
        print(f"{numbers[name]}: begun", flush=True)
        board.note(name, "running", pid=pid)

    def ended(name: str, code: int) -> None:
        path = places[name]
        summary = rundir.summary_of(path)
        status = summary.get("status", "failed") if code == 0 else "interrupted" if code in (130, 143) else "failed"
        killed = f"its process was killed by signal {-code}" if code < 0 else None
        reason = killed or packing.said_last(_log(plan.root, name)) if status == "failed" else None
        known(name, _Row(name, status, summary, reason))
        error = (summary.get("center") or {}).get("test_error")
        result = f": {reason}" if reason else f", test error {error:.2f} %" if error is not None else ""
        print(f"{numbers[name]}: {status}{result}", flush=True)

    number = packing.run(list(members), lanes, begin, begun, ended)
    for name in members:
        rows.setdefault(name, _Row(name, "not started"))
    return [rows[name] for name in members], 0 if number is None else 128 + number


def _by_hydra(plan: Plan, asked: Arguments, board: Board) -> tuple[list[_Row], int]:
    """The jobs in the hands of a launcher or sweeper of Hydra's, each told of in a line when it begins and ends."""
    ended: dict[str, _Row] = {}
    for member in plan.members:
        path, status = _place(plan.root / member.name, member.settings)
        if status in _ENDED:
            print(f"{member.name}: {status if status == 'running elsewhere' else 'already done'}", flush=True)
            ended[member.name] = _Row(member.name, str(status), rundir.summary_of(path))
            board.note(member.name, str(status))

    def row(name: str, said: dict[str, Any]) -> _Row:
        return _Row(name, said["status"], rundir.summary_of(Path(said["path"])) if "path" in said else {}, said.get("reason"))

    def tell(name: str, said: dict[str, Any]) -> None:
        if said["status"] == "running":
            print(f"{name}: begun", flush=True)
            board.note(name, "running", pid=said["pid"], host=said["host"])
        elif plan.objective is None or "objective" in said or said["status"] not in hydra_sweep.MEASURED:  # of which the value follows
            now = row(name, said)
            error = (now.summary.get("center") or {}).get("test_error")
            result = f", {plan.objective.shown(said.get('value', math.inf))}" if plan.objective else f", test error {error:.2f} %" if error is not None else ""
            print(f"{name}: {now.status}{f': {now.reason}' if now.reason else result}", flush=True)
            board.note(name, now.status, reason=now.reason, value=said.get("value"))

    said, code = hydra_sweep.run(plan, [m for m in plan.members if m.name not in ended], asked, tell)
    rows = ended | {name: row(name, of) for name, of in said.items()}
    stopped = any(r.status == "interrupted" for r in rows.values())  # by whoever else may
    names = dict.fromkeys([*(m.name for m in plan.members), *rows])
    return [rows.get(name, _Row(name, "not started")) for name in names], code or int(stopped)


def _log(root: Path, name: str) -> Path:
    """What a job that runs beside others prints."""
    return root / "logs" / f"{name}.log"


class Board:
    """sweep.json: what a sweep is made of and how each of its jobs stands, written anew at every change.

    A job is queued, running (with its process number), completed, diverged, failed (with the reason) or interrupted. Jobs of
    an earlier start with other values stay in it.
    """

    def __init__(self, plan: Plan, command: str):
        self._path = plan.root / "sweep.json"
        jobs: dict[str, Any] = _read(self._path).get("jobs") or {}
        for member in plan.members:
            jobs[member.name] = {"status": "queued"}
        self._content: dict[str, Any] = {"command": command, "fixed": plan.fixed, "swept": plan.varying, "jobs": jobs}
        self._write()

    def note(self, name: str, status: str, **facts: Any) -> None:
        self._content["jobs"][name] = {"status": status} | {key: value for key, value in facts.items() if value is not None}
        self._write()

    def choose(self, best: dict[str, Any] | None) -> None:
        """Says which run a search has found to be the best."""
        self._content["best"] = best
        self._write()

    def _write(self) -> None:
        with suppress(OSError):  # the runs' own records are what counts
            put(self._path, lambda beside: beside.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _refuse_another(plan: Plan) -> None:
    """Refuses a name that a sweep of other settings has: its runs would not be comparable. More values of what is swept are welcome."""
    before = _read(plan.root / "sweep.json")
    if not before:
        return
    given = f"sweep={plan.root.name}"
    had, swept = before.get("fixed", {}), before.get("swept", [])
    for key in sorted({*had, *plan.fixed, *swept, *plan.varying}):
        then = f"{key} was swept" if key in swept else f"it had {had[key]}" if key in had else f"it had no {key}="
        now = f"{key} is swept" if key in plan.varying else plan.fixed.get(key, f"there is no {key}=")
        if (key in swept, had.get(key)) != (key in plan.varying, plan.fixed.get(key)):
            raise UsageError(f"{given}: is the name of another sweep, where {then}, and now {now}; choose another name, or leave the settings as they were.")


def run_one(root: Path, member: Member, asked: Arguments, command: str) -> tuple[_Row, int]:
    """One job, whatever becomes of it."""
    path, status = _place(root / member.name, member.settings)
    if status in _ENDED:
        print(f"{status if status == 'running elsewhere' else 'already done'}: {path}", flush=True)
        return _Row(member.name, status, rundir.summary_of(path), path=path), 0
    try:
        with running.unchanged_process():
            if status is not None:
                outcome = running.go_on(path, member.settings, running.own(member.overrides), command)
            else:
                launcher = kinds.launcher(member.settings)
                outcome, path = running.launch(member.settings, path, member.overrides, command, launcher, build.prepare(member.settings), through=asked)
    except (UsageError, RunError) as e:
        outcome = Outcome("failed", 1, {}, str(e))
    except Exception as e:
        traceback.print_exc()
        outcome = Outcome("failed", 1, {}, f"{type(e).__name__}: {e}")
    if outcome.status == "failed":
        print(f"easgd: {outcome.reason}", file=sys.stderr, flush=True)
    return _Row(member.name, outcome.status, outcome.summary, outcome.reason, path), outcome.exit_code


def _place(path: Path, settings: Settings) -> tuple[Path, str | None]:
    """Where this job has run before with the same settings, and how that ended; or a new place and None.

    A run without a checkpoint has nothing to go on from; it stays for its log, and the job starts anew beside it.
    """
    wanted = yaml.safe_load(yaml.safe_dump(asdict(settings)))
    for candidate in rundir.candidates(path):
        if not candidate.exists():
            return candidate, None
        if rundir.config_of(candidate) != wanted:
            continue
        try:
            with rundir.held(candidate):
                status = rundir.status_of(candidate)
        except UsageError:
            return candidate, "running elsewhere"
        if status in ("completed", "diverged"):
            return candidate, status
        if (candidate / "checkpoint").is_dir() and any((candidate / "checkpoint").iterdir()):
            return candidate, status or "running"
    raise AssertionError("candidates never end")


def _tell_tensorboard(root: Path, members: list[Member]) -> None:
    """What the HParams tab compares, of these jobs and of those that an earlier start has left here."""
    from easgd_cli.record.opening import hparams
    from easgd_cli.record.tensorboard import write_sweep

    known = {json.dumps(asdict(m.settings), sort_keys=True): m.settings for m in members}
    for path in sorted(root.glob("*/config.yaml")):
        try:
            settings = compose.resumed(str(path), [], {})
        except UsageError:  # of another version, perhaps; its curves are shown all the same
            continue
        known.setdefault(json.dumps(asdict(settings), sort_keys=True), settings)
    write_sweep(root, [hparams(s) for s in known.values()])


def _warn_ineffective(members: list[Member]) -> None:
    """Once for each setting and method, however many jobs have both."""
    seen: dict[str, None] = {}
    for member in members:
        for line in running.ineffective(member.settings, member.overrides):
            seen[line] = None
    for line in seen:
        print(f"easgd: {line}", file=sys.stderr)
