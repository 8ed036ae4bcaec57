"""Sentences on what the tables show: which configuration is best, how much sooner more workers reach a level, and what
share of time communication takes.

A configuration is told apart from the best where their intervals, mean ± sample standard deviation, do not overlap. Its
deviation is taken to be at least that of the best, since a few seeds, or one, may agree by chance. This is a rule of
thumb, as every sentence that uses it says, and no test: two or three seeds do not even tell the deviation well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from easgd_cli.record import run_directory
from easgd_cli.reports import table
from easgd_cli.reports.comparison import Comparison, Configuration, Spread, grouped, label

_NAMED = 4  # the most configurations that a list names, before it says how many more there are
_GROUPS = 8  # the most groups, of a method each, that get a sentence each

Measured = list[tuple[Configuration, Spread]]


def findings(c: Comparison) -> list[str]:
    """Returns sentences on each task by itself; none where there is nothing to say."""
    said, tasks = [], dict.fromkeys(of.task for of in c.configurations)
    for task in tasks:
        those = [of for of in c.configurations if of.task == task]
        about = _diverged(those)
        for sentences in (_best, _soonest, _with_more_workers, _communication):
            about += sentences(c, those)
        said += [f"{task}: {sentence}" for sentence in about] if len(tasks) > 1 else about
    return said


def _diverged(those: Sequence[Configuration]) -> list[str]:
    counts = [(of, sum(run.status == "diverged" for run in of.counted)) for of in those]
    named = [f"{_name(of)} ({n} of {len(of.counted)})" for of, n in counts if n]
    return [f"Diverged: {_listed(named)}."] if named else []


def _best(c: Comparison, those: Sequence[Configuration]) -> list[str]:
    """Says which configuration ended best, of all and of each method, if all of its runs ended with a finite value."""
    names = (c.metric.name, c.metric.name.removeprefix("test_"))
    if any(of.setting(f"until.{name}") is not None for of in those for name in names):
        return []  # until.METRIC ended these runs at a level, so their last values are no result
    ended = [of for of in those if all(run.status in run_directory.ENDED for run in of.counted)]
    groups, named, numbered = _by_name(c, ended)

    def best_of(several: Sequence[Configuration], what: str, name: Callable[[Configuration], str]) -> list[str]:
        there = _all_there(several, lambda of: table.final(c, of))
        return _least(there, f"{c.metric.lowest.capitalize()} {what}", _unit(c), name, c.metric.sign)

    said = best_of(ended, f"final {c.metric.title}", _name)
    for group in groups:
        said += best_of(group, f"with {_label(group[0], named)}", lambda of: _label(of, numbered))
    return said


def _soonest(c: Comparison, those: Sequence[Configuration]) -> list[str]:
    """Says which configuration was first at the hardest level that two configurations or more reached in every run."""
    if len({of.virtual for of in those}) > 1:
        return []  # virtual and real seconds cannot be compared
    for level in reversed(c.levels):
        there = _at(c, those, level)
        if len(there) > 1:
            return _least(there, f"Soonest at {_level(c, level)}", f" {_seconds(those[0])}", _name)
    return []


def _with_more_workers(c: Comparison, those: Sequence[Configuration]) -> list[str]:
    """Says how much sooner more workers are than the fewest, all else equal, at the hardest level that both reached."""
    if "workers" not in c.told_apart or not c.ladder:
        return []
    others = [key for key in c.told_apart if key != "workers"]
    several = [group for group in _groups(those, others) if len(group) > 1]
    groups = [sorted(group, key=lambda of: int(of.setting("workers"))) for group in several]
    return [_sooner(c, group) for group in groups] if len(groups) <= _GROUPS else []


def _sooner(c: Comparison, group: Sequence[Configuration]) -> str:
    fewest = _name(group[0])
    for level in c.ladder:
        there = _at(c, group, level)
        if len(there) > 1 and there[0][0] is group[0]:
            (_, base), *more = there
            compared = "; ".join(
                f"workers={of.setting('workers')} is there {_times(base, s)}, after {table.shown(s)}" for of, s in more
            )
            return (
                f"To {_level(c, level)} {fewest} takes {table.shown(base)} {_seconds(group[0])} (n = {base.n}); "
                f"{compared}."
            )
    return (
        f"How much sooner more workers are than {fewest} is not known: at none of the levels was every run of it "
        "and of another."
    )


def _communication(c: Comparison, those: Sequence[Configuration]) -> list[str]:
    """Says which share of a worker's time communication takes at least and at most, for each method that exchanges."""

    def shares(several: Sequence[Configuration]) -> Measured:
        return _all_there(several, lambda of: table.share(of, "communication"))

    def time(several: Sequence[Configuration], name: Callable[[Configuration], str]) -> str:
        return _from_to(shares(several), lambda percent: f"{percent:.1f} %", name)

    exchanging = [of for of in those if not of.runs[0].sequential and table.share(of, "communication") is not None]
    if not exchanging:
        return []
    groups, named, numbered = _by_name(c, exchanging)
    times = [f"{_label(group[0], named)} {time(group, lambda of: _label(of, numbered))}" for group in groups]
    sent = _all_there(exchanging, lambda of: of.over(lambda run: run.bytes_exchanged / 1e6))
    traffic = _from_to(sent, lambda mb: f"{table.digits(mb)} MB", _name)
    said = f"{'; '.join(times or [time(exchanging, _name)])}. Exchanged: {traffic}."
    if any(round(s.mean, 1) == 0 for _, s in shares(exchanging)):
        said += " At 0.0 % no worker waits for an exchange: it is hidden behind the gradient, or costs nothing."
    return [f"Share of communication in a worker's time: {said}"]


# --- words -----------------------------------------------------------------------------------------------------------


def _least(those: Measured, before: str, unit: str, name: Callable[[Configuration], str], sign: int = 1) -> list[str]:
    """Says which configuration has the lowest mean times `sign`, or which share it, and which are not told apart."""
    if len(those) < 2:
        return []
    _, s = min(those, key=lambda one: sign * one[1].mean)
    alike = [of for of, other in those if math.isclose(other.mean, s.mean, rel_tol=1e-9, abs_tol=0)]
    # configurations alike in the mean may differ in the deviation
    same = all(table.shown(other) == table.shown(s) for of, other in those if of in alike)
    number = table.shown(s) if same else f"{table.digits(s.mean)} in the mean"
    named = f"{_listed([name(of) for of in alike])}{' alike' if len(alike) > 1 else ''}"
    said = f"{before}: {named}, {number}{unit} (n = {s.n})."
    if len(alike) == len(those):
        return [said]
    if s.std is None:
        return [f"{said} It may be chance: of a single run no deviation is known."]
    close = [
        name(of)
        for of, other in those
        if of not in alike and sign * other.mean - max(other.std or 0, s.std) <= sign * s.mean + s.std
    ]
    it = "them" if len(alike) > 1 else "it"
    if close:
        return [f"{said} Not told apart from {it} by mean ± deviation: {_listed(close)}."]
    return [f"{said} No other overlaps with {it} in mean ± deviation."]


def _from_to(those: Measured, show: Callable[[float], str], name: Callable[[Configuration], str]) -> str:
    """Returns a text such as `0.4 % (tau=64) to 19.8 % (tau=1)`, or one number where both are shown alike."""
    (least, low), (most, high) = min(those, key=lambda one: one[1].mean), max(those, key=lambda one: one[1].mean)
    first, last = show(low.mean), show(high.mean)
    return first if first == last else f"{first} ({name(least)}) to {last} ({name(most)})"


def _times(base: Spread, own: Spread) -> str:
    """Returns a text such as `2.9 times as soon (2.5 to 3.3 between single runs)`: the ratio of the means, and in
    brackets the least and the greatest ratio of two single runs.
    """
    if not base.least or not own.least:
        return "at once"
    times, least, most = base.mean / own.mean, base.least / own.most, base.most / own.least
    word = "soon"
    if times < 1:
        times, least, most, word = 1 / times, 1 / most, 1 / least, "late"
    between = f" ({_number(least)} to {_number(most)} between single runs)" if max(base.n, own.n) > 1 else ""
    return f"{_number(times)} times as {word}{between}"


def _number(times: float) -> str:
    return f"{times:.0f}" if times >= 10 else f"{times:.1f}"


def _at(c: Comparison, those: Sequence[Configuration], level: float) -> Measured:
    return _all_there(those, lambda of: c.seconds_to(of, level))


def _all_there(those: Sequence[Configuration], of: Callable[[Configuration], Spread | None]) -> Measured:
    """Returns the configurations of which every run has the number, each with its spread."""
    return [(one, s) for one in those if (s := of(one)) is not None and s.n == s.of]


def _by_name(c: Comparison, those: Sequence[Configuration]) -> tuple[list[list[Configuration]], list[str], list[str]]:
    """Returns groups of configurations with the same method and other settings that are texts, none for one group or
    too many; these settings; and the other settings.
    """
    named = [key for key in c.told_apart if any(isinstance(of.values[key], str) for of in those)]
    groups = _groups(those, named)
    return groups if 1 < len(groups) <= _GROUPS else [], named, [key for key in c.told_apart if key not in named]


def _groups(those: Sequence[Configuration], keys: Sequence[str]) -> list[list[Configuration]]:
    """Returns `those` in groups by the values of `keys`."""
    return list(grouped(those, lambda of: repr([of.values[key] for key in keys])).values())


def _level(c: Comparison, level: float) -> str:
    return f"{level:g} {c.metric.unit} {c.metric.title}" if c.metric.unit else f"a {c.metric.title} of {level:g}"


def _unit(c: Comparison) -> str:
    return f" {c.metric.unit}" if c.metric.unit else ""


def _seconds(of: Configuration) -> str:
    return "virtual seconds" if of.virtual else "seconds"


def _label(of: Configuration, keys: Sequence[str]) -> str:
    return label({key: of.values[key] for key in keys}) or _name(of)


def _name(of: Configuration) -> str:
    return of.label or of.runs[0].path.name


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more
