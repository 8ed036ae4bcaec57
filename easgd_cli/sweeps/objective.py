"""objective=: the number that a search over settings minimises, taken from the record of a finished run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.metric import TRAIN_LOSS, Metric
from easgd_cli.settings.schema import Settings

if TYPE_CHECKING:
    from easgd_cli.reports.reading import Run

_SPLITS = {"validation": "held-out", "test": "test"}


@dataclass(frozen=True)
class Objective:
    """What a search minimises, measured of the center, or of its average where one is kept.

    `what`: best or final, the value of the problem's `primary` metric; seconds_to, the training seconds until that
    metric is as good as `level`; train_loss, the loss at the last evaluation. `split`: the data of the metric,
    validation (held out of training) or test.
    """

    what: str
    primary: Metric | None = None
    split: str = "validation"
    level: float | None = None

    def __str__(self) -> str:
        if self.primary is None:
            return "train loss at the end"
        metric = f"{_SPLITS[self.split]} {_base(self.primary).replace('_', ' ')}"
        if self.what == "seconds_to":
            return f"seconds to {self.primary.with_unit(f'{self.level:g}')} {metric}"
        return f"{self.primary.lowest} {metric}" if self.what == "best" else f"{metric} at the end"

    def shown(self, value: float) -> str:
        """Returns a value of the objective in words, with the objective."""
        if not math.isfinite(value):
            return f"{self}: never"
        if self.primary is None or self.what == "seconds_to":
            return f"{self} {value:.4g}"
        return f"{self} {self.primary.shown(self.primary.sign * value)}"

    def value(self, path: Path) -> float:
        """Returns the run's value, the smaller the better; inf if it diverged or missed the level. Raises RunError."""
        run, metric = _read(path), self._metric
        if metric not in run.curve:
            raise RunError(
                f"{path}: no evaluation has a {metric}, which the search is to judge by; choose another objective=."
            )
        at = self._evaluation(run)
        if run.status == "diverged" or at is None:
            return math.inf
        if self.what == "seconds_to":
            return float(run.curve["seconds"][at])
        value = float(run.curve[metric][at]) * (self.primary.sign if self.primary is not None else 1)
        return value if math.isfinite(value) else math.inf

    def errors(self, path: Path) -> dict[str, float]:
        """Returns the held-out and test values that the primary metric has at the evaluation of `value`."""
        run = _read(path)
        at, base = self._evaluation(run), _base(self.primary or run.metrics.primary or TRAIN_LOSS)
        metrics = {f"{name} {base.replace('_', ' ')}": f"{split}_{base}" for split, name in _SPLITS.items()}
        there = {name: m for name, m in metrics.items() if at is not None and m in run.curve and run.finite(m)[at]}
        return {name: float(run.curve[m][at]) for name, m in there.items()}

    def others(self, path: Path) -> list[str]:
        """Returns `errors` as texts, without the one that is the objective itself."""
        shown = (self.primary or _read(path).metrics.primary or TRAIN_LOSS).shown
        known = "" if self.what == "seconds_to" else str(self)
        return [f"{name} {shown(value)}" for name, value in self.errors(path).items() if name not in known]

    @property
    def _metric(self) -> str:
        return TRAIN_LOSS.name if self.primary is None else f"{self.split}_{_base(self.primary)}"

    def _evaluation(self, run: Run) -> int | None:
        """Returns the index of the evaluation that is judged; None without one."""
        if self.what == "best":
            return run.best(self._metric)
        if self.what == "seconds_to" and self.primary is not None:
            reached, values = self.primary.reached, run.curve[self._metric]
            return next((i for i, value in enumerate(values) if reached(float(value), self.level or 0.0)), None)
        return len(run.curve["seconds"]) - 1 if len(run.curve["seconds"]) else None


def of(s: Settings) -> Objective:
    """Returns the objective that the settings name, or the usual one of their problem. Raises UsageError."""
    primary = build.declared_metrics(s).primary if s.dataset["name"] != "none" else None
    base = "error" if primary is None else _base(primary)
    text = s.objective or (TRAIN_LOSS.name if primary is None else f"best_{base}")
    if text == TRAIN_LOSS.name:
        return Objective(text)
    found = re.fullmatch(rf"(test:)?(?:(best|final)_{base}|(seconds_to)_{base}:(\d+\.?\d*|\.\d+))", text)
    if found is None:
        unit = "" if primary is None or primary.unit != "%" else " (in percent)"
        raise UsageError(
            f"objective={text}: is best_{base}, final_{base}, seconds_to_{base}:LEVEL{unit}, each of what is held out "
            "of training or with test: before it of the test set, or train_loss."
        )
    if primary is None:
        raise UsageError(
            f"objective={text}: problem={s.problem['name']} has no data set, so it has no {base}; write "
            "objective=train_loss."
        )
    if not found[1] and not s.dataset.get("validation"):
        raise UsageError(
            "dataset.validation=0: a search chooses settings by what is held out of training; hold some out, such as "
            f"dataset.validation=200, or let it choose by the test set with objective=test:{text}, which flatters the "
            f"{base} it gives."
        )
    split = "test" if found[1] else "validation"
    return Objective(found[2] or found[3], primary, split, float(found[4]) if found[4] else None)


def _base(primary: Metric) -> str:
    """Returns the metric's name without `test_`."""
    return primary.name.removeprefix("test_")


def _read(path: Path) -> Run:
    from easgd_cli.reports import reading  # here, since it loads numpy: a refusal is to come without that wait

    return reading.read(path)
