"""`easgd train -m`: every combination checked before the first runs, then one after another, each in a directory of its own.

Sweepers and launchers of Hydra's other than its basic ones are left to Hydra, after the same checks.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from easgd_cli import build, rundir
from easgd_cli.commands import arguments, compose, configs, running
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.compose import Composed
from easgd_cli.config import Settings
from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher.job import Outcome

Compose = Callable[[Sequence[str]], Composed]


@dataclass(frozen=True)
class Member:
    """One job of a sweep: its overrides, those of them that make the difference, and its directory's name."""

    overrides: list[str]
    swept: list[str]
    name: str
    settings: Settings


@dataclass(frozen=True)
class Plan:
    """A sweep whose every job can run."""

    root: Path
    members: list[Member]
    left_out: list[tuple[str, str]]  # a combination that cannot run, and why
    basic: bool  # whether Hydra's own sweeper and launcher were asked for, which is to say ours


@dataclass
class _Row:
    """How a job ended."""

    name: str
    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


def plan(asked: Arguments, overrides: list[Override], composed: Compose) -> Plan | Composed:
    """The sweep that was asked for, or the single job where none was. Raises UsageError.

    A key or value that is wrong by itself refuses the whole; combinations that cannot run are left out.
    """
    axes = _axes(overrides)
    first = _first(axes, composed) if asked.multirun else composed([values[0] for values in axes.values()])
    if not asked.multirun and not (first and first.multirun):
        several = next((o for o in overrides if o.is_sweep_override()), None)
        if several is not None:
            raise UsageError(f"{several.input_line}: several values are a sweep, which -m asks for; a single value with a comma in it goes into quotes.")
        assert first is not None
        return first
    basic = first is None or all(first.choices.get(f"hydra/{part}") == "basic" for part in ("sweeper", "launcher"))
    alone = next((o for o in overrides if o.key_or_group == "hydra.run.dir"), None)
    if alone is not None:
        raise UsageError(f"{alone.input_line}: names the directory of one run; a sweep's is hydra.sweep.dir=PATH.")
    named = next((o for o in overrides if o.key_or_group == "hydra.sweep.subdir"), None)
    if named is not None and basic:
        raise UsageError(f"{named.input_line}: runs of a sweep are named by the values they differ in; hydra.sweep.dir=PATH chooses where they are.")
    if first is not None and first.swept:
        axes = _axes(arguments.parse_overrides([f"{k}={v}" for k, v in first.swept.items()])) | axes
    if first is not None and first.choices.get("hydra/launcher") == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UsageError("hydra/launcher=submitit_slurm: there is no sbatch on this machine, so no SLURM to hand jobs to; use hydra/launcher=basic.")
    continuous = next((o for o in overrides if o.is_sweep_override() and not o.is_discrete_sweep()), None)
    if continuous is not None and basic:
        raise UsageError(f"{continuous.input_line}: an interval has no end of values; write them out, or choose a sweeper that samples with hydra/sweeper=.")
    if continuous is not None:
        return Plan(_root(axes, first), [], [], basic)
    return _checked_plan(axes, composed, _root(axes, first), basic)


def _checked_plan(axes: dict[str, list[str]], composed: Compose, root: Path, basic: bool) -> Plan:
    combinations = [list(words) for words in itertools.product(*axes.values())]
    varying = {key for key, values in axes.items() if len(values) > 1}
    checks = _Checks(composed)
    fails = {i: sentence for i, words in enumerate(combinations) if (sentence := checks.light(words))}
    _refuse_wrong_by_itself(combinations, fails, checks.light)
    fails |= {i: sentence for i, words in enumerate(combinations) if i not in fails and (sentence := checks.deep(words))}
    _refuse_wrong_by_itself(combinations, fails, checks.deep)
    if len(fails) == len(combinations):
        raise UsageError("\n".join(dict.fromkeys(fails.values())))
    members: list[Member] = []
    for words in combinations:
        settings = checks.settings(words)
        if isinstance(settings, str) or checks.deep(words):
            continue
        swept = [w for key, w in zip(axes, words, strict=True) if key in varying] or running.own(words)
        name = rundir.named_by(swept) or "default"
        if any(m.name == name for m in members):
            name = f"{name}-{rundir.digest(swept)}"
        members.append(Member(words, swept, name, settings))
    return Plan(root, members, [(" ".join(running.own(combinations[i])), sentence) for i, sentence in fails.items()], basic)


class _Checks:
    """What is wrong with a combination, in a sentence, or None; remembers, since combinations share their values."""

    def __init__(self, composed: Compose):
        self._composed = composed
        self._light: dict[tuple[str, ...], Settings | str] = {}
        self._deep: dict[str, str | None] = {}

    def light(self, words: Sequence[str]) -> str | None:
        found = self.settings(words)
        return found if isinstance(found, str) else None

    def deep(self, words: Sequence[str]) -> str | None:
        """Also data, model and start; each combination of what they depend on is loaded once."""
        s = self.settings(words)
        if isinstance(s, str):
            return s
        key = json.dumps([s.dataset, s.model, s.init, s.device, s.eval.device, s.eval.train_images, s.batch_size, s.workers, s.algo, s.launcher["target"]])
        if key not in self._deep:
            try:
                build.locate("launcher", s.launcher["target"])
                build.prepare(s)
                self._deep[key] = None
            except UsageError as e:
                self._deep[key] = str(e)
        return self._deep[key]

    def settings(self, words: Sequence[str]) -> Settings | str:
        """The settings where they can run as far as is known without loading data, else what is wrong with them."""
        key = tuple(words)
        if key not in self._light:
            try:
                settings = self._composed(words).settings
                running.checked(settings)
                self._light[key] = settings
            except UsageError as e:
                self._light[key] = str(e)
        return self._light[key]


def _refuse_wrong_by_itself(combinations: list[list[str]], fails: dict[int, str], check: Callable[[Sequence[str]], str | None]) -> None:
    """Raises UsageError for an override that fails wherever it occurs and, alone, for the same reason."""
    for i, sentence in fails.items():
        own = running.own(combinations[i])
        about_hydra = [w for w in combinations[i] if w not in own]  # where configurations are looked for, above all
        for word in own:
            if all(j in fails for j, words in enumerate(combinations) if word in words) and check([*about_hydra, word]) == sentence:
                raise UsageError(sentence)


def _axes(overrides: Iterable[Override]) -> dict[str, list[str]]:
    """Every key with its values as overrides, in the order given."""
    axes: dict[str, list[str]] = {}
    for o in overrides:
        key = o.get_key_element()
        if o.is_sweep_override() and o.is_discrete_sweep():
            if o.is_hydra_override():
                raise UsageError(f"{o.input_line}: Hydra's own settings cannot be swept.")
            axes[key] = [f"{key}={value}".replace("\\:", ":") for value in o.sweep_string_iterator()]  # it escapes what needs no escape
            twice = next((v for v in axes[key] if axes[key].count(v) > 1), None)
            if twice is not None:
                raise UsageError(f"{o.input_line}: {twice} is in it twice; two runs would be the same.")
        else:
            axes[key] = [o.input_line or ""]
    return axes


def _first(axes: dict[str, list[str]], composed: Compose) -> Composed | None:
    """The first combination that composes: what Hydra's own settings are is the same in all of them."""
    for words in itertools.islice(itertools.product(*axes.values()), 64):
        try:
            return composed(words)
        except UsageError:
            continue
    return None


def _root(axes: dict[str, list[str]], first: Composed | None) -> Path:
    """The sweep's directory: as chosen, or named by its experiment and everything but the swept values.

    No date is in it, so that the same command finds it again and goes on where it stopped.
    """
    if first is not None and first.sweep_dir:
        return Path(first.sweep_dir)
    experiment = first.choices.get("experiment") if first is not None else None
    fixed = running.own([values[0] for key, values in axes.items() if len(values) == 1 and key != "experiment"])
    varying = sorted(key for key, values in axes.items() if len(values) > 1)
    if experiment is not None and not fixed:
        return Path("runs", "sweeps", rundir.clean(experiment))
    name = rundir.digest([*sorted(fixed), *varying])
    return Path("runs", "sweeps", f"{rundir.clean(experiment)}-{name}" if experiment else name)


def run(plan: Plan, asked: Arguments, command: str) -> int:
    """Runs the jobs one after another and shows how each ended; returns the exit status."""
    if plan.left_out and not plan.basic:
        raise UsageError(f"{plan.left_out[0][1]} With a sweeper or launcher other than Hydra's basic one every combination must be able to run.")
    for words, sentence in plan.left_out:
        print(f"easgd: left out: {words}. {sentence}", file=sys.stderr)
    _warn_ineffective(plan.members)
    root = plan.root
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"hydra.sweep.dir={root}: the sweep's directory cannot be made ({e.strerror}); choose another with hydra.sweep.dir=PATH.") from e
    _tell_tensorboard(root, plan.members)
    if not plan.basic:
        return _left_to_hydra(plan, asked)
    from easgd_cli.record.table import show_sweep  # here, so that a refusal does not wait for what draws tables

    print(f"{len(plan.members)} run{'s' if len(plan.members) > 1 else ''} in {root}", flush=True)
    rows: list[_Row] = []
    code = 0
    for number, member in enumerate(plan.members, 1):
        print(f"\n[{number}/{len(plan.members)}] {member.name}", flush=True)
        row, code = _run_one(root, member, asked, command)
        rows.append(row)
        if row.status == "interrupted":
            rows += [_Row(m.name, "not started") for m in plan.members[number:]]
            break
    print()
    show_sweep([(r.name, r.status, r.summary, r.reason) for r in rows])
    print(f"The sweep is in {root}; to look at it: tensorboard --logdir {shlex.quote(str(root))}", flush=True)
    if rows and any(r.status == "interrupted" for r in rows):
        print("To go on with it, give the same command again.", flush=True)
        return code
    return 1 if any(r.status == "failed" for r in rows) else 0


def _run_one(root: Path, member: Member, asked: Arguments, command: str) -> tuple[_Row, int]:
    """One job, whatever becomes of it."""
    path, status = _place(root / member.name, member.settings)
    if status in ("completed", "diverged", "running elsewhere"):
        print(f"{status if status == 'running elsewhere' else 'already done'}: {path}", flush=True)
        return _Row(path.name, status, rundir.summary_of(path)), 0
    try:
        with running.unchanged_process():
            if status is not None:
                outcome = running.go_on(path, member.settings, running.own(member.overrides), command)
            else:
                launcher = build.locate("launcher", member.settings.launcher["target"])
                outcome, path = running.launch(member.settings, path, member.overrides, command, launcher, build.prepare(member.settings), through=asked)
    except KeyboardInterrupt:
        return _Row(path.name, "interrupted"), 130
    except (UsageError, RunError) as e:
        outcome = Outcome("failed", 1, {}, str(e))
    except Exception as e:
        traceback.print_exc()
        outcome = Outcome("failed", 1, {}, f"{type(e).__name__}: {e}")
    if outcome.status == "failed":
        print(f"easgd: {outcome.reason}", file=sys.stderr, flush=True)
    return _Row(path.name, outcome.status, outcome.summary, outcome.reason), outcome.exit_code


def _place(path: Path, settings: Settings) -> tuple[Path, str | None]:
    """Where this job has run before with the same settings, and how that ended; or a new place and None.

    A run without a checkpoint has nothing to go on from; it stays for its log, and the job starts anew beside it.
    """
    wanted = yaml.safe_load(yaml.safe_dump(asdict(settings)))
    for candidate in rundir.candidates(path):
        if not candidate.exists():
            return path, None
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


# --- other sweepers and launchers ------------------------------------------------------------------------------------


def _left_to_hydra(plan: Plan, asked: Arguments) -> int:
    words = [o for o in asked.overrides if not o.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    with running.unchanged_process():
        sys.argv = ["easgd", "--config-name", asked.config_name, "--multirun", *words, f"hydra.sweep.dir={arguments.quote(str(plan.root.absolute()))}"]
        os.environ["HYDRA_FULL_ERROR"] = "1"
        hydra.main(config_path=str(configs.directory()), config_name=asked.config_name, version_base="1.3")(hydra_job)()
    print(f"The sweep is in {plan.root}; to look at it: tensorboard --logdir {shlex.quote(str(plan.root))}", flush=True)
    return 0


def hydra_job(_: DictConfig) -> float | None:
    """One job in the hands of a sweeper or launcher of Hydra's: a run in a process of its own.

    It may be called in a thread or in another library's worker process, where neither signals nor multiprocessing are as a
    launcher needs them. Returns the best test error of the center, for a sweeper to minimise. Raises RunError when it failed.
    """
    info = HydraConfig.get()
    path = Path(info.runtime.output_dir)
    with suppress(OSError):
        path.rmdir()  # Hydra has made it; the run makes its own, or the next that is free
    words = [*info.overrides.task, f"hydra.run.dir={arguments.quote(str(path))}"]
    if info.searchpath:
        words.append(f"hydra.searchpath=[{','.join(arguments.quote(p) for p in info.searchpath)}]")
    command = [sys.executable, "-m", "easgd_cli", "train", "--config-name", str(info.job.config_name), *words]
    status = subprocess.run(command, cwd=info.runtime.cwd, check=False).returncode
    ran = list(itertools.takewhile(Path.exists, rundir.candidates(path)))[-1]
    if status:
        raise RunError(f"{ran}: ended with status {status}; its logs and summary.json say more.")
    return (rundir.summary_of(ran).get("center") or {}).get("best_test_error")
