"""Plans a sweep: every combination of values is composed and checked before the first one runs.

The whole sweep is refused for a key or value that is wrong by itself; combinations that cannot run are left out. Where
a sweeper draws the values, each value that it can draw, or end of an interval, is checked once.
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
    """Returns the sweep that was asked for, or the single job where none was. Raises UsageError."""
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
        # a missing plugin is named here: composing the jobs would be refused for another reason
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
    """Raises UsageError for settings that a sweep has no use for, and for a sweep's directory that is given twice."""
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
    """Returns the jobs that can run, and the combinations that cannot, each with the reason. Raises UsageError for an
    override that is wrong by itself, and where no combination can run.
    """
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
    """Yields a line and the reason for every combination that fails; one line where it fails for all `seeds`."""
    alike: dict[tuple[str, str], list[int]] = {}
    for i, sentence in fails.items():
        alike.setdefault((" ".join(w for w in words[i] if not w.startswith("seed=")), sentence), []).append(i)
    for (but_for_seed, sentence), numbers in alike.items():
        if seeds > 1 and len(numbers) == seeds:
            yield f"left out, for every seed: {but_for_seed}", sentence
        else:
            yield from ((f"left out: {' '.join(words[i])}", sentence) for i in numbers)


def apart(settings: Settings) -> Settings:
    """Returns a job's settings without those about its sweep, which an experiment may have set."""
    return replace(settings, **{key: getattr(Settings, key) for key in OF_SWEEPS})


class _Checks:
    """Checks combinations of overrides, each once. `outline` and `extent` raise UsageError for one that cannot run."""

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
        """Returns the outline of a run, checked as far as possible without loading data."""
        return self._once(tuple(words), lambda: single_run.checked(self._composed(words).settings)[0])

    def extent(self, words: Sequence[str]) -> tuple[int | None, int]:
        """Returns the run's steps and memory. Finding them takes loading data and model, which happens once for each
        combination of the settings in `key`.
        """
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
    """Returns the reason for which `check` refuses these words, or None."""
    try:
        check(words)
    except UsageError as e:
        return str(e)
    return None


def _refuse_wrong_by_itself(
    combinations: list[list[str]], fails: dict[int, str], check: Callable[[Sequence[str]], object]
) -> None:
    """Raises UsageError for an override that fails in all combinations with it, and alone for the same reason."""
    for i, sentence in fails.items():
        own = single_run.own(combinations[i])
        about_hydra = [w for w in combinations[i] if w not in own]  # such as where configurations are looked for
        for word in own:
            everywhere = all(j in fails for j, words in enumerate(combinations) if word in words)
            if everywhere and _wrong(check, [*about_hydra, word]) == sentence:
                raise UsageError(sentence)


def _axes(overrides: Sequence[Override]) -> Axes:
    """Returns the values of every key as overrides, in the order given; for an interval, its two ends."""
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
            names = [value.replace("\\:", ":") for value in o.sweep_string_iterator()]  # Hydra escapes colons
        axes[key] = [f"{key}={name}" for name in names]
        if not axes[key]:
            raise UsageError(f"{o.input_line}: has no values, so there is nothing to run.")
        twice = next((v for v in axes[key] if axes[key].count(v) > 1), None)
        if twice is not None:
            raise UsageError(f"{o.input_line}: {twice} is in it twice; two runs would be the same.")
    return axes


def _first(axes: Axes, composed: Compose) -> Composed | None:
    """Returns the first combination that composes, to read Hydra's own settings from: they are the same in all."""
    for words in itertools.islice(itertools.product(*axes.values()), 64):
        try:
            return composed(words)
        except UsageError:
            continue
    return None


def _root(name: str | None, fixed: list[str], varying: list[str], first: Composed | None) -> Path:
    """Returns the sweep's directory: the chosen one, or one named by the experiment and everything but the swept
    values. Raises UsageError.

    The name has no date, so that the same command finds the sweep again and goes on where it stopped.
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
