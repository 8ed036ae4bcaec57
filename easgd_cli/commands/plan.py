"""What a sweep is made of: every combination composed and checked before the first of them runs.

A key or value that is wrong by itself refuses the whole sweep; combinations that cannot run are left out. Where a
sweeper draws the values, what it draws from is checked.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override

from easgd_cli.commands import arguments, compose, plugins, report, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.compose import Composed
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.experiment.build import Outline
from easgd_cli.launcher import distributed_sweep
from easgd_cli.record import run_directory
from easgd_cli.settings import schema
from easgd_cli.settings.schema import OF_SWEEPS, Settings
from easgd_cli.sweeps import objective
from easgd_cli.sweeps.plan import Plan, SweepJob

_OF_HYDRAS_SWEEPS = ("hydra.sweep.", "hydra.sweeper.", "hydra.launcher.", "hydra/sweeper", "hydra/launcher")
_INSTEAD = {
    "hydra.run.dir": "names the directory of one run; a sweep's is hydra.sweep.dir=PATH.",
    "hydra.sweep.subdir": "runs of a sweep are named by the values they differ in; hydra.sweep.dir=PATH chooses where "
    "they are.",
    "hydra.sweeper.direction": "every objective= is to be small; leave this out.",
}

Compose = Callable[[Sequence[str]], Composed]
Axes = dict[str, list[str]]  # every key with its values, as overrides


def make(asked: Arguments, overrides: list[Override], composed: Compose) -> Plan | Composed:
    """The sweep that was asked for, or the single job where none was. Raises UsageError."""
    axes = _axes(overrides)
    first = _first(axes, composed) if asked.multirun else composed([values[0] for values in axes.values()])
    if asked.multirun or (first and first.multirun):
        return _sweep(axes, overrides, first, composed)
    assert first is not None
    for o in sorted(overrides, key=lambda o: not o.is_sweep_override()):
        if o.is_sweep_override():
            raise UsageError(
                f"{o.input_line}: several values are a sweep, which -m asks for; a single value with a comma in it "
                "goes into quotes."
            )
        of_hydras = o.key_or_group.startswith(_OF_HYDRAS_SWEEPS) and o.value() not in ("basic", None)
        if o.key_or_group in OF_SWEEPS or of_hydras:
            raise UsageError(f"{o.input_line}: is about a sweep, and this is a single run; add -m, or leave it out.")
    return replace(first, settings=apart(first.settings))


def _sweep(axes: Axes, overrides: list[Override], first: Composed | None, composed: Compose) -> Plan:
    _refuse_of_no_sweep(overrides)
    if first is not None and first.swept:
        axes = _axes(arguments.parse_overrides([f"{k}={v}" for k, v in first.swept.items()])) | axes
    of_sweep = first.settings if first is not None else Settings()
    if of_sweep.report is not None:
        report.check(of_sweep.report)
    for key in OF_SWEEPS:
        if len(axes.pop(key, [])) > 1:
            raise UsageError(f"{key}: is about the whole sweep and has one value.")
    for o in overrides:
        # asked of before anything is composed, which would be refused for another reason
        if o.key_or_group in ("hydra/launcher", "hydra/sweeper"):
            plugins.refuse_missing(o.key_or_group.removeprefix("hydra/"), str(o.value()))
    launcher, sweeper = ((first and first.choices.get(f"hydra/{part}")) or "basic" for part in ("launcher", "sweeper"))
    plugins.check(launcher, sweeper)
    if of_sweep.jobs != Settings.jobs and (launcher, sweeper) != ("basic", "basic"):
        raise UsageError(
            f"jobs={of_sweep.jobs}: is for jobs that easgd runs itself; a plugin of Hydra's has a setting of its own "
            "for that."
        )
    fixed = [values[0] for values in axes.values() if len(values) == 1 and single_run.own(values)]
    varying = sorted(key for key, values in axes.items() if len(values) > 1)
    minimised, jobs, left_out = None, list[SweepJob](), list[tuple[str, str]]()
    if first is not None and sweeper != "basic":
        minimised = objective.of(first.settings)
        if not varying:
            raise UsageError(
                f"hydra/sweeper={sweeper}: there is nothing to draw; give a setting several values or an interval, "
                "such as eta=interval(0.01,0.1)."
            )
        one_by_one = ([v[0] if k != at else value for k, v in axes.items()] for at in axes for value in axes[at])
        with distributed_sweep.checked_for(launcher):
            _checked(list(one_by_one), axes, varying, composed)
    else:
        if of_sweep.objective is not None:
            raise UsageError(
                f"objective={of_sweep.objective}: is what a search minimises; add hydra/sweeper=optuna, or leave it "
                "out."
            )
        if first is not None and (interval := next((o.input_line for o in overrides if o.is_interval_sweep()), None)):
            raise UsageError(
                f"{interval}: an interval has no end of values; write them out, or choose a sweeper that draws, "
                "hydra/sweeper=optuna."
            )
        every = [list(words) for words in itertools.product(*axes.values())]
        with distributed_sweep.checked_for(launcher):
            jobs, left_out = _checked(every, axes, varying, composed)
    members = [job.settings for job in jobs] or ([first.settings] if first else [])
    tasks = plugins.tasks(first.config) if first is not None and launcher == "submitit_slurm" else 1
    distributed_sweep.check_sweep(members, of_sweep.jobs, (launcher, sweeper), tasks)
    return Plan(
        _root(of_sweep.sweep, fixed, varying, first), {word.partition("=")[0]: word for word in fixed}, varying,
        of_sweep.sweep is not None, of_sweep.jobs, of_sweep.retry, of_sweep.report, jobs, left_out, launcher, sweeper,
        minimised,
    )  # fmt: skip


def _refuse_of_no_sweep(overrides: list[Override]) -> None:
    """Raises UsageError for what a sweep has no use for, or is given twice."""
    given = {o.key_or_group: o for o in overrides}
    for key, instead in _INSTEAD.items():
        if key in given and given[key].value() != "minimize":
            raise UsageError(f"{given[key].input_line}: {instead}")
    places = [o for o in overrides if o.key_or_group in ("sweep", "hydra.sweep.dir") and o.value() is not None]
    if len(places) > 1:
        raise UsageError(
            f"{places[1].input_line}: sweep= and hydra.sweep.dir= both say where the sweep is kept; give one of the "
            "two."
        )


def _checked(
    combinations: list[list[str]], axes: Axes, varying: list[str], composed: Compose
) -> tuple[list[SweepJob], list[tuple[str, str]]]:
    """The jobs that can run, and the combinations that cannot, with the reason. Raises UsageError for a wrong word."""
    checks = _Checks(composed)
    fails: dict[int, str] = {}
    for check in (checks.outline, checks.extent):
        for i, words in enumerate(combinations):
            if i not in fails and (sentence := _wrong(check, words)):
                fails[i] = sentence
        _refuse_wrong_by_itself(combinations, fails, check)
    if len(fails) == len(combinations):
        raise UsageError("\n".join(dict.fromkeys(fails.values())))
    jobs: dict[str, SweepJob] = {}
    for words in (words for i, words in enumerate(combinations) if i not in fails):
        outline, (steps, memory) = checks.outline(words), checks.extent(words)
        settings = apart(outline.settings)
        swept = [w for key, w in zip(axes, words, strict=True) if key in varying] or single_run.own(words)
        name = run_directory.named_by(swept) or "default"
        if name in jobs:
            name = f"{name}-{run_directory.digest(swept)}"
        steps = steps if settings.epochs is not None else schema.total_steps(settings, None)
        jobs[name] = SweepJob(words, name, replace(outline, settings=settings), steps, memory)
    left_out = _left_out({i: single_run.own(combinations[i]) for i in fails}, fails, len(axes.get("seed", [])))
    return list(jobs.values()), list(left_out)


def _left_out(words: dict[int, list[str]], fails: dict[int, str], seeds: int) -> Iterator[tuple[str, str]]:
    """A line and its sentence for every combination that fails, or for all that differ by one of the `seeds` only."""
    alike: dict[tuple[str, str], list[int]] = {}
    for i, sentence in fails.items():
        alike.setdefault((" ".join(w for w in words[i] if not w.startswith("seed=")), sentence), []).append(i)
    for (but_for_seed, sentence), numbers in alike.items():
        if seeds > 1 and len(numbers) == seeds:
            yield f"left out, for every seed: {but_for_seed}", sentence
        else:
            yield from ((f"left out: {' '.join(words[i])}", sentence) for i in numbers)


def apart(settings: Settings) -> Settings:
    """A job's settings without those of its sweep, which an experiment may have given."""
    return replace(settings, **{key: getattr(Settings, key) for key in OF_SWEEPS})


class _Checks:
    """Combinations of words, each made into what is known of it once. Both raise UsageError for one that cannot run."""

    def __init__(self, composed: Compose):
        self._composed = composed
        self._known: dict[object, Any] = {}

    def _once(self, key: object, find: Callable[[], Any]) -> Any:
        if key not in self._known:
            try:
                self._known[key] = find()
            except UsageError as e:
                self._known[key] = e
        if isinstance(known := self._known[key], UsageError):
            raise known
        return known

    def outline(self, words: Sequence[str]) -> Outline:
        """Checked as far as can be without loading data."""
        return self._once(tuple(words), lambda: single_run.checked(self._composed(words).settings)[0])

    def extent(self, words: Sequence[str]) -> tuple[int | None, int]:
        """Steps and memory, which data, model and start tell; what they depend on is loaded once a combination."""
        outline = self.outline(words)
        s = outline.settings
        key = json.dumps(
            [s.problem, s.dataset, s.task, s.model, s.init, s.init_prefix, s.init_without, s.device, s.precision,
             s.compile, s.eval.device, s.eval.train_images, s.batch_size, s.workers, s.threads, s.algo, s.local,
             s.average, s.launcher, s.wire != "fp32", s.groups, s.fragments, s.accumulate, s.replicas, s.dither > 0,
             s.eval.every is None, s.epochs and [s.epochs, s.schedule, s.warmup], s.until]
        )  # fmt: skip

        def loaded() -> tuple[int | None, int]:
            prepared = build.experiment(outline)
            return prepared.steps, prepared.memory

        return self._once(key, loaded)


def _wrong(check: Callable[[Sequence[str]], object], words: Sequence[str]) -> str | None:
    """What `check` refuses these words for."""
    try:
        check(words)
    except UsageError as e:
        return str(e)
    return None


def _refuse_wrong_by_itself(
    combinations: list[list[str]], fails: dict[int, str], check: Callable[[Sequence[str]], object]
) -> None:
    """Raises UsageError for an override that fails wherever it occurs and, alone, for the same reason."""
    for i, sentence in fails.items():
        own = single_run.own(combinations[i])
        about_hydra = [w for w in combinations[i] if w not in own]  # where configurations are looked for, above all
        for word in own:
            everywhere = all(j in fails for j, words in enumerate(combinations) if word in words)
            if everywhere and _wrong(check, [*about_hydra, word]) == sentence:
                raise UsageError(sentence)


def _axes(overrides: Sequence[Override]) -> Axes:
    """Every key with its values as overrides, in the order given; of an interval, its ends."""
    axes: Axes = {}
    for o in overrides:
        key = o.get_key_element()
        if not o.is_sweep_override():
            axes[key] = [o.input_line or ""]
            continue
        given = o.value()
        if isinstance(given, IntervalSweep):
            axes[key] = [f"{key}={given.start}", f"{key}={given.end}"]
            continue
        if o.is_hydra_override():
            raise UsageError(f"{o.input_line}: Hydra's own settings cannot be swept.")
        if isinstance(given, Glob):
            names = given.filter(compose.options(key, [w.input_line or "" for w in overrides]))
        else:
            names = [value.replace("\\:", ":") for value in o.sweep_string_iterator()]  # it escapes what needs none
        axes[key] = [f"{key}={name}" for name in names]
        if not axes[key]:
            raise UsageError(f"{o.input_line}: has no values, so there is nothing to run.")
        twice = next((v for v in axes[key] if axes[key].count(v) > 1), None)
        if twice is not None:
            raise UsageError(f"{o.input_line}: {twice} is in it twice; two runs would be the same.")
    return axes


def _first(axes: Axes, composed: Compose) -> Composed | None:
    """The first combination that composes: what Hydra's own settings are is the same in all of them."""
    for words in itertools.islice(itertools.product(*axes.values()), 64):
        try:
            return composed(words)
        except UsageError:
            continue
    return None


def _root(name: str | None, fixed: list[str], varying: list[str], first: Composed | None) -> Path:
    """The sweep's directory: as chosen, or named by its experiment and everything but the swept values. Raises
    UsageError.

    No date is in it, so that the same command finds it again and goes on where it stopped.
    """
    if name is not None and (not name or name != run_directory.clean(name) or name.startswith(".")):
        raise UsageError(f"sweep={name}: is the name of a directory, of letters, digits and =,._- only.")
    if name is None and first is not None and first.sweep_dir:
        return Path(first.sweep_dir)
    if name is None:
        experiment = run_directory.clean((first and first.choices.get("experiment")) or "")
        fixed = [word for word in fixed if not word.startswith("experiment=")]
        others = [run_directory.digest([*sorted(fixed), *varying])] if fixed or not experiment else []
        name = "-".join([*([experiment] if experiment else []), *others])
    return Path("runs", "sweeps", name)
