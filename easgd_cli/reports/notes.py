"""Notes on how to read the tables and figures of a comparison."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from easgd_cli.reports.comparison import Comparison
from easgd_cli.reports.reading import MOMENT, Run


def notes(c: Comparison) -> list[str]:
    """Returns sentences on the runs, the numbers, and where they must not be compared."""
    evaluated = [run for run in c.runs if len(run.curve["seconds"])]
    said = [*_of_counting(c), *_of_what_was_measured(c, evaluated), *_of_time(c)]
    if len(evaluated) < len(c.runs):
        said.append(f"{len(c.runs) - len(evaluated)} of {len(c.runs)} runs have not been evaluated yet.")
    said += _of_single_runs(c)
    if not c.metric.primary:
        said.append(f"Judged by {c.metric.name}, {c.metric.direction} is better.")
    return said


def _of_counting(c: Comparison) -> Iterator[str]:
    """Yields sentences on which runs are counted in the numbers."""
    if any(len(of.counted) > 1 for of in c.configurations):
        yield (
            "Numbers are mean ± sample standard deviation over the runs of a configuration (n), which differ by "
            "their seed only."
        )
    if c.also_differ:
        yield f"Settings that differ as well, along with these: {', '.join(c.also_differ)}."
    if any(len(of.counted) < len(of.runs) for of in c.configurations):
        yield "Only completed and diverged runs are counted in a configuration that has any."
    if twice := [
        of for of in c.configurations if len({run.settings.get("seed") for run in of.counted}) < len(of.counted)
    ]:
        named = "; ".join(of.label or "the one configuration" for of in twice)
        yield f"Several runs with the same seed are counted in {named}."


def _of_what_was_measured(c: Comparison, evaluated: list[Run]) -> Iterator[str]:
    if len(tasks := dict.fromkeys(of.task for of in c.configurations)) > 1:
        yield f"Runs of different problems are here ({'; '.join(tasks)}): what they reached cannot be compared."
    if without := [
        of.label
        for of in c.configurations
        if any(len(run.curve["seconds"]) and c.metric.name not in run.curve for run in of.runs)
    ]:
        others = [m for m in evaluated[0].curve if m not in MOMENT and all(m in run.curve for run in evaluated)]
        instead = f"; --metric {others[0]} is in all" if others else ""
        yield f"No {c.metric.title} was measured in: {'; '.join(without)}{instead}."
    parties = {run.party for run in c.runs}
    if "average" in parties:
        yield "Measured of the average of the center" + (
            " where a run keeps one, else of the center." if len(parties) > 1 else "."
        )


def _of_time(c: Comparison) -> Iterator[str]:
    """Yields sentences on what seconds, levels and speed-ups mean in this comparison."""
    if any(run.virtual for run in c.runs):
        yield "Seconds of simulated runs (launcher=simulated) are virtual."
    crowded = [
        of
        for of in c.configurations
        if any(not run.virtual and run.cores and run.settings.get("workers", 1) > run.cores for run in of.runs)
    ]
    if crowded:
        had = sorted({run.cores for of in crowded for run in of.runs if run.cores})
        cores = f"{' or '.join(map(str, had))} core{'' if had == [1] else 's'}"
        named = "; ".join(of.label or of.runs[0].path.name for of in crowded)
        yield (
            f"More workers than the {cores} that a run had, which they shared: {named}. With a core for each they "
            "would be sooner."
        )
    for of in c.configurations:
        if chosen := [f"{run.chosen_tau}" for run in of.counted if run.chosen_tau is not None]:
            yield f"{of.label or 'The only configuration'}: tau=auto has chosen {', '.join(chosen)}."
    if c.levels_chosen:
        yield f"Levels are {c.levels_chosen}; --levels names others."
    if c.levels and (apart := _seconds_apart(c)):
        yield f"Seconds to a level are as fine as the evaluations, which are {apart} s apart (eval.every)."
    if c.baseline is not None and c.levels:
        other = "." if c.baseline_chosen else "; --baseline names another."
        yield f"Speed-up is over {c.baseline.label or 'the only configuration'}{other}"


def _of_single_runs(c: Comparison) -> Iterator[str]:
    """Yields sentences on single runs: what is doubtful, damaged or lost in them, and why they ended early."""
    for run in c.runs:
        yield from run.doubts
        if run.damaged:
            yield (
                f"{run.path.name}: {_lines(run.damaged)} of metrics.jsonl "
                f"{'are' if len(run.damaged) > 1 else 'is'} damaged and left out."
            )
    for of in c.configurations:
        for run in of.runs:
            if run.status not in ("completed", "running") and run.reason:
                yield f"{run.path.name}: {run.status}: {run.reason}{_last_measured(run)}"
            yield from (f"{run.path.name}: lost {line}." for line in run.lost)


def _last_measured(run: Run) -> str:
    """Returns when a run was last evaluated, if it ended before its final center was measured; else an empty text."""
    if run.status not in ("interrupted", "failed") or not len(run.curve["step"]):
        return ""
    end = "" if str(run.reason).endswith(".") else "."
    return f"{end} Its last evaluation was at step {run.curve['step'][-1]:,.0f}."


def _seconds_apart(c: Comparison) -> str | None:
    """Returns the seconds between two evaluations: the runs' medians, from the least to the greatest."""
    seconds = [run.curve["seconds"] for of in c.configurations for run in of.counted]
    medians = [float(np.median(np.diff(at))) for at in seconds if len(at) > 1]
    if not medians:
        return None
    least, most = f"{min(medians):.2g}", f"{max(medians):.2g}"
    return least if least == most else f"{least} to {most}"


def _lines(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:5]))}{more}"
