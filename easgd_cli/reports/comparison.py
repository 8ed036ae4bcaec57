"""Compares runs: the settings in which they differ, and for each configuration mean and spread over its seeds."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from easgd_cli.errors import UsageError
from easgd_cli.problems.metric import Metric, Metrics
from easgd_cli.record import run_directory
from easgd_cli.reports.reading import MOMENT, Run
from easgd_cli.settings import targets

T = TypeVar("T")

# Settings that are named first; the others follow in the order of config.yaml.
_FIRST = ("problem", "dataset", "model", "algo", "launcher", "average", "tau", "workers")
_TASK = ("problem", "dataset")
# Settings that only some methods and schedules use, each with the parameters by which their makers ask for it. alpha
# follows from beta, so a maker that asks for one of the two uses both.
_ASKED_FOR = {"alpha": {"alpha", "beta"}, "beta": {"alpha", "beta"}, "delta": {"delta"}, "gamma": {"gamma"}}
_LEVELS = 3  # how many levels are chosen where none are asked for


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value) and range of the `n` finite values among `of`.

    `values`: all of them, None for those that are not finite.
    """

    mean: float
    std: float | None
    least: float
    most: float
    n: int
    of: int
    values: list[float | None]


def spread(values: Iterable[float | None]) -> Spread | None:
    """Returns the spread of the values; None where no value is finite."""
    every = [v if v is not None and math.isfinite(v) else None for v in values]
    there = [v for v in every if v is not None]
    if not there:
        return None
    deviation = statistics.stdev(there) if len(there) > 1 else None
    return Spread(statistics.fmean(there), deviation, min(there), max(there), len(there), len(every), every)


@dataclass(frozen=True)
class Configuration:
    """Runs that differ by their seed only. `values`: the settings that tell them from other configurations; `label`:
    these settings as `key=value` words.

    `counted`: the runs from which the numbers are taken: the completed and diverged ones, or all where there are none.
    """

    values: dict[str, Any]
    label: str
    runs: list[Run]
    counted: list[Run]

    @property
    def statuses(self) -> str:
        found = Counter(run.status for run in self.runs)
        return next(iter(found)) if len(found) == 1 else ", ".join(f"{n} {status}" for status, n in found.items())

    @property
    def task(self) -> str:
        """Problem and data set as `key=value` words. Errors and losses of different tasks cannot be compared."""
        return label({key: self.setting(key) for key in _TASK})

    @property
    def virtual(self) -> bool:
        """True if the seconds are those of a simulation."""
        return self.runs[0].virtual

    def over(self, of: Callable[[Run], float | None]) -> Spread | None:
        return spread(of(run) for run in self.counted)

    def setting(self, key: str) -> Any:
        return self.runs[0].settings.get(key)


@dataclass(frozen=True)
class Comparison:
    """`metric`: the one by which runs are judged; `metrics`: all that the runs declare. `told_apart`: settings enough
    to tell the configurations apart; `also_differ`: the other settings that differ. `levels` of the metric, the easiest
    first; `levels_chosen`: how they were chosen, None where they were asked for; `ladder`: the levels to choose from,
    the hardest first. `baseline_chosen`: whether the user has named the baseline.
    """

    metric: Metric
    metrics: Metrics
    configurations: list[Configuration]
    told_apart: list[str]
    also_differ: list[str]
    levels: list[float]
    ladder: list[float]
    levels_chosen: str | None
    baseline: Configuration | None
    baseline_chosen: bool

    @property
    def runs(self) -> list[Run]:
        return [run for c in self.configurations for run in c.runs]

    def seconds_to(self, c: Configuration, level: float) -> Spread | None:
        return c.over(lambda run: run.seconds_to(self.metric.name, level))

    def speed_up(self, c: Configuration, level: float) -> float | None:
        """Returns the baseline's seconds to the level over those of `c`. None where their tasks or clocks differ, or a
        run of either did not reach the level.
        """
        if self.baseline is None or self.baseline.task != c.task or self.baseline.virtual != c.virtual:
            return None
        base, own = self.seconds_to(self.baseline, level), self.seconds_to(c, level)
        if base is None or own is None or base.n < base.of or own.n < own.of or not own.mean:
            return None
        return base.mean / own.mean


def compare(
    runs: Sequence[Run], metric: str | None = None, levels: Sequence[float] = (), baseline: str | None = None
) -> Comparison:
    """Compares runs. Raises UsageError where the metric was not measured, or `baseline` is not one configuration."""
    metrics = functools.reduce(Metrics.together_with, (run.metrics for run in runs))
    judged = metrics[_metric(runs, metric)]
    runs = _without_unused(runs)
    keys = [key for key in dict.fromkeys([*_FIRST, *(k for run in runs for k in run.settings)]) if key != "seed"]
    differ = [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]
    told_apart: list[str] = []
    for key in differ:  # a setting that splits no group further follows from those before it
        if len(_split(runs, [*told_apart, key])) > len(_split(runs, told_apart)):
            told_apart.append(key)
    configurations = []
    for those in sorted(_split(runs, told_apart), key=lambda g: [order(g[0].settings.get(k)) for k in told_apart]):
        values = {key: those[0].settings.get(key) for key in told_apart}
        those = sorted(those, key=lambda run: (order(run.settings.get("seed")), str(run.path)))
        ended = [run for run in those if run.status in run_directory.ENDED]
        configurations.append(Configuration(values, label(values), those, ended or those))
    ladder = sorted(levels, key=lambda level: judged.sign * level) or _ladder(configurations, judged)
    chosen = None if levels else _levels(configurations, judged, ladder)
    base = _asked(baseline, configurations) if baseline is not None else _sequential(configurations)
    others = [key for key in differ if key not in told_apart and not key.endswith(".target")]
    also = [key for key in others if _differs_where_used(runs, key)]
    told = None
    if chosen:
        told = f"the {judged.lowest} of 1, 2, 5, 10, 20, 50 and so on that at least half of the configurations reached"
    easiest_first = sorted(levels or chosen or (), key=lambda level: -judged.sign * level)
    return Comparison(
        judged, metrics, configurations, told_apart, also, easiest_first, ladder, told, base, baseline is not None
    )


def _without_unused(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs, with None for symbols that differ between runs and that the run itself does not use."""
    differing = [key for key in _ASKED_FOR if len({repr(run.settings.get(key)) for run in runs}) > 1]
    if not differing:
        return list(runs)
    return [
        replace(run, settings=run.settings | {key: None for key in differing if not _is_used(_uses(run), key)})
        for run in runs
    ]


def _differs_where_used(runs: Sequence[Run], key: str) -> bool:
    """Returns whether the runs that use this setting have several values of it."""
    return len({repr(run.settings.get(key)) for run in runs if key not in _ASKED_FOR or _is_used(_uses(run), key)}) > 1


def _is_used(uses: frozenset[str] | None, key: str) -> bool:
    return uses is None or bool(uses & _ASKED_FOR[key])


def _uses(run: Run) -> frozenset[str] | None:
    """Returns the symbols that method and schedule use. Where an old run has not recorded them, they are looked up for
    easgd's own methods and schedules, and None for a user's.
    """
    if run.symbols is not None:
        return frozenset(run.symbols)
    named = [str(run.settings.get(f"{group}.target")) for group in ("algo", "schedule")]
    return _own(*named) if all(map(targets.own, named)) else None


@functools.cache
def _own(method: str, schedule: str) -> frozenset[str] | None:
    try:
        makers = targets.locate("algo", method), targets.locate("schedule", schedule)
        return frozenset(name for maker in makers for name in targets.signature(maker))
    except UsageError:  # a maker of another version of easgd
        return None


def label(values: dict[str, Any]) -> str:
    """Returns words such as `algo=easgd tau=10`, without settings that are None, which a configuration does not use."""
    return " ".join(f"{key}={written(value)}" for key, value in values.items() if value is not None)


def written(value: Any) -> str:
    """Returns a setting's value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _metric(runs: Sequence[Run], asked: str | None) -> str:
    measured = dict.fromkeys(key for run in runs for key in run.curve if key not in MOMENT)
    if not measured:
        raise UsageError(
            "report: nothing has been evaluated yet in these runs; the first evaluation is at step 0, so wait "
            "until training begins."
        )
    if asked is not None:
        if asked not in measured:
            raise UsageError(f"--metric {asked}: was not measured in these runs; there are: {', '.join(measured)}.")
        return asked
    primary = [run.metrics.primary.name for run in runs if run.metrics.primary is not None]
    return next(m for m in (*primary, "train_loss", *measured) if m in measured)


def grouped(those: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Returns `those` in groups by their `key`, in their order."""
    groups: dict[str, list[T]] = {}
    for one in those:
        groups.setdefault(key(one), []).append(one)
    return groups


def _split(runs: Sequence[Run], keys: Sequence[str]) -> list[list[Run]]:
    return list(grouped(runs, lambda run: repr([run.settings.get(key) for key in keys])).values())


def order(value: Any) -> tuple[int, float, str]:
    """Returns the sort key of a setting's value: None (not used) comes first, then numbers by size, then texts."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, 0.0, "") if value is None else (1, float(value), "") if number else (2, 0.0, str(value))


def _ladder(configurations: Sequence[Configuration], metric: Metric) -> list[float]:
    """Returns the levels 1, 2, 5, 10 and so on that some run reached and none had at its start, the hardest first."""
    name, sign = metric.name, metric.sign
    starts = [
        sign * float(run.curve[name][0])
        for c in configurations
        for run in c.counted
        if len(run.finite(name)) and run.finite(name)[0]
    ]
    reached = [sign * best for c in configurations if (best := _best(c, metric)) is not None]
    if not starts or (sign > 0 and min(starts) <= 0):
        return []
    series = [digit * 10.0**power for power in range(-12, 13) for digit in (1, 2, 5)]
    return [level for level in series[::sign] if min(reached) <= sign * level < min(starts)]


def _levels(configurations: Sequence[Configuration], metric: Metric, ladder: Sequence[float]) -> list[float]:
    """Returns the hardest levels of the ladder that at least half of the configurations reached."""
    reached = [best for c in configurations if (best := _best(c, metric)) is not None]
    return [
        level for level in ladder if 2 * sum(metric.reached(best, level) for best in reached) >= len(configurations)
    ][:_LEVELS]


def _best(c: Configuration, metric: Metric) -> float | None:
    """Returns the best value that any run of the configuration reached."""
    values = [float(run.curve[metric.name][at]) for run in c.counted if (at := run.best(metric.name)) is not None]
    return min(values, key=lambda value: metric.sign * value, default=None)


def _sequential(configurations: Sequence[Configuration]) -> Configuration | None:
    """Returns the first configuration of one worker without exchanges, else the first of one worker, else None."""
    alone = [c for c in configurations if c.setting("workers") == 1]
    if len(configurations) < 2 or not alone:
        return None
    return next((c for c in alone if c.runs[0].sequential), alone[0])


def _asked(text: str, configurations: Sequence[Configuration]) -> Configuration:
    words = _words(text)
    if not all("=" in word for word in words):
        raise UsageError(
            f"--baseline {text}: is written as settings, such as --baseline algo=msgd or --baseline algo=easgd,tau=10."
        )
    wanted = {key.strip(): value.strip() for key, _, value in (word.partition("=") for word in words)}
    for key in wanted:
        if all(key not in c.runs[0].settings for c in configurations):
            raise UsageError(f"--baseline {text}: there is no setting {key} in these runs.")
    found = [c for c in configurations if all(_same(c.setting(key), value) for key, value in wanted.items())]
    if len(found) != 1:
        names = "; ".join(c.label for c in (found or configurations)[:6])
        said = "no configuration is like that; there are"
        if found:
            said = f"{len(found)} configurations are like that; say which of"
        raise UsageError(f"--baseline {text}: {said}: {names}.")
    return found[0]


def _words(text: str) -> list[str]:
    """Splits the text at commas outside brackets."""
    words, depth = [""], 0
    for c in text:
        depth += (c == "[") - (c == "]")
        if c == "," and not depth:
            words.append("")
        else:
            words[-1] += c
    return words


def _same(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return written(value) == text.replace(" ", "")
