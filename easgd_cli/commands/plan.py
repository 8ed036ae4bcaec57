"""What a sweep is made of: every combination composed and checked before the first of them runs.

A key or value that is wrong by itself refuses the whole sweep; combinations that cannot run are left out. Where a
sweeper draws the values, what it draws from is checked.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.override_parser.types import Glob, IntervalSweep, Override

from easgd_cli.commands import arguments, compose, plugins, report, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.commands.compose import Composed
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.record import run_directory
from easgd_cli.settings import schema
from easgd_cli.settings.schema import OF_SWEEPS, Settings
from easgd_cli.sweeps import objective
from easgd_cli.sweeps.plan import Plan, SweepJob

_OF_HYDRAS_SWEEPS = ("hydra.sweep.", "hydra.sweeper.", "hydra.launcher.", "hydra/sweeper", "hydra/launcher")

Compose = Callable[[Sequence[str]], Composed]


def make(asked: Arguments, overrides: list[Override], composed: Compose) -> Plan | Composed:
    """The sweep that was asked for, or the single job where none was. Raises UsageError."""
    axes = _axes(overrides)
    first = _first(axes, composed) if asked.multirun else composed([values[0] for values in axes.values()])
    if not asked.multirun and not (first and first.multirun):
        several = next((o for o in overrides if o.is_sweep_override()), None)
        if several is not None:
            raise UsageError(
                f"{several.input_line}: several values are a sweep, which -m asks for; a single value with a "
                "comma in it goes into quotes."
            )
        assert first is not None
        for o in overrides:
            if o.key_or_group in OF_SWEEPS or (
                o.key_or_group.startswith(_OF_HYDRAS_SWEEPS) and o.value() not in ("basic", None)
            ):
                raise UsageError(
                    f"{o.input_line}: is about a sweep, and this is a single run; add -m, or leave it out."
                )
        return replace(first, settings=apart(first.settings))
    return _sweep(axes, overrides, first, composed)


def _sweep(axes: dict[str, list[str]], overrides: list[Override], first: Composed | None, composed: Compose) -> Plan:
    for key, instead in (
        ("hydra.run.dir", "names the directory of one run; a sweep's is hydra.sweep.dir=PATH."),
        (
            "hydra.sweep.subdir",
            "runs of a sweep are named by the values they differ in; hydra.sweep.dir=PATH chooses where they are.",
        ),
        ("hydra.sweeper.direction", "every objective= is to be small; leave this out."),
    ):
        given = next((o for o in overrides if o.key_or_group == key), None)
        if given is not None and given.value() != "minimize":
            raise UsageError(f"{given.input_line}: {instead}")
    if of_both := [
        o.input_line for o in overrides if o.key_or_group in ("sweep", "hydra.sweep.dir") and o.value() is not None
    ][1:]:
        raise UsageError(
            f"{of_both[0]}: sweep= and hydra.sweep.dir= both say where the sweep is kept; give one of the two."
        )
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
            f"jobs={of_sweep.jobs}: is for jobs that easgd runs itself; a plugin of Hydra's has a setting of its "
            "own for that."
        )
    minimised, jobs, left_out = None, list[SweepJob](), list[tuple[str, str]]()
    if first is not None and sweeper != "basic":
        minimised = objective.of(first.settings)
        if all(len(values) == 1 for values in axes.values()):
            raise UsageError(
                f"hydra/sweeper={sweeper}: there is nothing to draw; give a setting several values or an "
                "interval, such as eta=interval(0.01,0.1)."
            )
        _checked(_one_by_one(axes), axes, composed)
    else:
        if of_sweep.objective is not None:
            raise UsageError(
                f"objective={of_sweep.objective}: is what a search minimises; add hydra/sweeper=optuna, or leave "
                "it out."
            )
        if first is not None and (interval := next((o.input_line for o in overrides if o.is_interval_sweep()), None)):
            raise UsageError(
                f"{interval}: an interval has no end of values; write them out, or choose a sweeper that draws, "
                "hydra/sweeper=optuna."
            )
        jobs, left_out = _checked([list(words) for words in itertools.product(*axes.values())], axes, composed)
    fixed = {key: values[0] for key, values in axes.items() if len(values) == 1 and single_run.own(values)}
    varying = sorted(key for key, values in axes.items() if len(values) > 1)
    root = _root(axes, first) if of_sweep.sweep is None else Path("runs", "sweeps", _name(of_sweep.sweep))
    return Plan(
        root,
        fixed,
        varying,
        of_sweep.sweep is not None,
        of_sweep.jobs,
        of_sweep.retry,
        of_sweep.report,
        jobs,
        left_out,
        launcher,
        sweeper,
        minimised,
    )


def _one_by_one(axes: dict[str, list[str]]) -> list[list[str]]:
    """Every value of every key, with the first of the others."""
    return [
        [other[0] if key != at else value for key, other in axes.items()]
        for at, values in axes.items()
        for value in values
    ]


def _name(name: str) -> str:
    if not name or name != run_directory.clean(name) or name.startswith("."):
        raise UsageError(f"sweep={name}: is the name of a directory, of letters, digits and =,._- only.")
    return name


def _checked(
    combinations: list[list[str]], axes: dict[str, list[str]], composed: Compose
) -> tuple[list[SweepJob], list[tuple[str, str]]]:
    """The jobs that can run, and the combinations that cannot, each with the reason. Raises UsageError for what is
    wrong by itself.
    """
    varying = {key for key, values in axes.items() if len(values) > 1}
    checks = _Checks(composed)
    fails = {i: sentence for i, words in enumerate(combinations) if (sentence := checks.light(words))}
    _refuse_wrong_by_itself(combinations, fails, checks.light)
    fails |= {
        i: sentence for i, words in enumerate(combinations) if i not in fails and (sentence := checks.deep(words))
    }
    _refuse_wrong_by_itself(combinations, fails, checks.deep)
    if len(fails) == len(combinations):
        raise UsageError("\n".join(dict.fromkeys(fails.values())))
    jobs: list[SweepJob] = []
    for words in combinations:
        settings, extent = checks.settings(words), checks.extent(words)
        if isinstance(settings, str) or isinstance(extent, str):
            continue
        settings = apart(settings)
        swept = [w for key, w in zip(axes, words, strict=True) if key in varying] or single_run.own(words)
        name = run_directory.named_by(swept) or "default"
        if any(job.name == name for job in jobs):
            name = f"{name}-{run_directory.digest(swept)}"
        steps = extent.steps if settings.epochs is not None else schema.total_steps(settings, None)
        jobs.append(SweepJob(words, name, settings, steps, extent.memory))
    return jobs, list(_left_out({i: single_run.own(combinations[i]) for i in fails}, fails, len(axes.get("seed", []))))


def _left_out(words: dict[int, list[str]], fails: dict[int, str], seeds: int) -> Iterator[tuple[str, str]]:
    """A line and its sentence for every combination that fails, or for all those that differ by one of the `seeds`
    only.
    """
    alike: dict[tuple[str, str], list[int]] = {}
    for i, sentence in fails.items():
        alike.setdefault((" ".join(w for w in words[i] if not w.startswith("seed=")), sentence), []).append(i)
    for (but_for_seed, sentence), numbers in alike.items():
        if seeds > 1 and len(numbers) == seeds:
            yield f"left out, for every seed: {but_for_seed}", sentence
        else:
            yield from ((f"left out: {' '.join(words[i])}", sentence) for i in numbers)


@dataclass(frozen=True)
class _Extent:
    """What a job's data and model tell of it."""

    steps: int | None
    memory: int


def apart(settings: Settings) -> Settings:
    """A job's settings without those of its sweep, which an experiment may have given."""
    return replace(settings, **{key: getattr(Settings, key) for key in OF_SWEEPS})


class _Checks:
    """What is wrong with a combination, in a sentence, or None; rejobs, since combinations share their values."""

    def __init__(self, composed: Compose):
        self._composed = composed
        self._light: dict[tuple[str, ...], Settings | str] = {}
        self._deep: dict[str, _Extent | str] = {}

    def light(self, words: Sequence[str]) -> str | None:
        found = self.settings(words)
        return found if isinstance(found, str) else None

    def deep(self, words: Sequence[str]) -> str | None:
        found = self.extent(words)
        return found if isinstance(found, str) else None

    def extent(self, words: Sequence[str]) -> _Extent | str:
        """Also data, model and start; each combination of what they depend on is loaded once."""
        s = self.settings(words)
        if isinstance(s, str):
            return s
        key = json.dumps(
            [s.problem, s.dataset, s.task, s.model, s.init, s.init_without, s.device, s.precision, s.compile,
             s.eval.device, s.eval.train_images, s.batch_size, s.workers, s.threads, s.algo, s.average, s.launcher,
             s.eval.every is None,
             s.epochs and [s.epochs, s.schedule, s.warmup], s.until]
        )  # fmt: skip
        if key not in self._deep:
            try:
                prepared = build.prepare(s)
                self._deep[key] = _Extent(prepared.steps, prepared.memory)
            except UsageError as e:
                self._deep[key] = str(e)
        return self._deep[key]

    def settings(self, words: Sequence[str]) -> Settings | str:
        """The settings where they can run as far as is known without loading data, else what is wrong with them."""
        key = tuple(words)
        if key not in self._light:
            try:
                settings = self._composed(words).settings
                single_run.checked(settings)
                self._light[key] = settings
            except UsageError as e:
                self._light[key] = str(e)
        return self._light[key]


def _refuse_wrong_by_itself(
    combinations: list[list[str]], fails: dict[int, str], check: Callable[[Sequence[str]], str | None]
) -> None:
    """Raises UsageError for an override that fails wherever it occurs and, alone, for the same reason."""
    for i, sentence in fails.items():
        own = single_run.own(combinations[i])
        about_hydra = [w for w in combinations[i] if w not in own]  # where configurations are looked for, above all
        for word in own:
            if (
                all(j in fails for j, words in enumerate(combinations) if word in words)
                and check([*about_hydra, word]) == sentence
            ):
                raise UsageError(sentence)


def _axes(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """Every key with its values as overrides, in the order given; of an interval, its ends."""
    axes: dict[str, list[str]] = {}
    for o in overrides:
        key = o.get_key_element()
        if o.is_sweep_override() and o.is_discrete_sweep():
            if o.is_hydra_override():
                raise UsageError(f"{o.input_line}: Hydra's own settings cannot be swept.")
            given = o.value()
            if isinstance(given, Glob):
                names = given.filter(compose.options(key, [w.input_line or "" for w in overrides]))
                axes[key] = [f"{key}={name}" for name in names]
            else:
                # it escapes what needs no escape
                axes[key] = [f"{key}={value}".replace("\\:", ":") for value in o.sweep_string_iterator()]
            if not axes[key]:
                raise UsageError(f"{o.input_line}: has no values, so there is nothing to run.")
            twice = next((v for v in axes[key] if axes[key].count(v) > 1), None)
            if twice is not None:
                raise UsageError(f"{o.input_line}: {twice} is in it twice; two runs would be the same.")
        elif o.is_interval_sweep():
            interval = o.value()
            assert isinstance(interval, IntervalSweep)
            axes[key] = [f"{key}={interval.start}", f"{key}={interval.end}"]
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
    fixed = single_run.own([values[0] for key, values in axes.items() if len(values) == 1 and key != "experiment"])
    varying = sorted(key for key, values in axes.items() if len(values) > 1)
    if experiment is not None and not fixed:
        return Path("runs", "sweeps", run_directory.clean(experiment))
    name = run_directory.digest([*sorted(fixed), *varying])
    return Path("runs", "sweeps", f"{run_directory.clean(experiment)}-{name}" if experiment else name)
