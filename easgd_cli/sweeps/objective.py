"""objective=: what a search over settings minimises, as a number that the record of a finished run gives."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.errors import RunError, UsageError
from easgd_cli.settings.schema import Settings

if TYPE_CHECKING:
    from easgd_cli.report.reading import Run

_SPLITS = {"validation": "held-out", "test": "test"}


@dataclass(frozen=True)
class Objective:
    """Of the center, or of its average where one is kept.

    `what`: best_error and final_error, in percent; seconds_to_error, training seconds until the error is at most `level`
    percent; train_loss, that of the last evaluation. `split`: whose error, validation (images held out of training) or test.
    """

    what: str
    split: str = "validation"
    level: float | None = None

    def __str__(self) -> str:
        if self.what == "train_loss":
            return "train loss at the end"
        error = f"{_SPLITS[self.split]} error"
        if self.what == "seconds_to_error":
            return f"seconds to {self.level:g} % {error}"
        return f"lowest {error}" if self.what == "best_error" else f"{error} at the end"

    def shown(self, value: float) -> str:
        """A value of it, with what it is."""
        if not math.isfinite(value):
            return f"{self}: never"
        return f"{self} {value:.2f} %" if self.what in ("best_error", "final_error") else f"{self} {value:.4g}"

    def value(self, path: Path) -> float:
        """Of the run in `path`: what is to be small. Infinite where it diverged or has not come to the level. Raises RunError."""
        run = _read(path)
        if self._metric not in run.curve:
            raise RunError(f"{path}: no evaluation has a {self._metric}, which the search is to judge by; choose another objective=.")
        at = self._evaluation(run)
        if run.status == "diverged" or at is None:
            return math.inf
        value = float(run.curve["seconds" if self.what == "seconds_to_error" else self._metric][at])
        return value if math.isfinite(value) else math.inf

    def errors(self, path: Path) -> dict[str, float]:
        """Held-out and test error, in percent, of the evaluation that `value` is about; those that there are."""
        run = _read(path)
        at = self._evaluation(run)
        metrics = {f"{name} error": f"{split}_error" for split, name in _SPLITS.items()}
        return {name: float(run.curve[m][at]) for name, m in metrics.items() if m in run.curve and at is not None and run.finite(m)[at]}

    @property
    def _metric(self) -> str:
        return "train_loss" if self.what == "train_loss" else f"{self.split}_error"

    def _evaluation(self, run: Run) -> int | None:
        """Which one is judged."""
        if self.what == "best_error":
            return run.lowest(self._metric)
        if self.what == "seconds_to_error":
            return next((i for i, error in enumerate(run.curve[self._metric]) if error <= (self.level or 0.0)), None)
        return len(run.curve["seconds"]) - 1 if len(run.curve["seconds"]) else None


def of(s: Settings) -> Objective:
    """The objective that these settings ask for, or the usual one of their problem. Raises UsageError."""
    on_data = s.dataset["name"] != "none"
    text = s.objective or ("best_error" if on_data else "train_loss")
    found = re.fullmatch(r"(test:)?(?:(best_error|final_error)|(seconds_to_error):([0-9.]+)|(train_loss))", text)
    level = float(found[4]) if found and found[4] and found[4].count(".") < 2 and found[4] != "." else None
    if found is None or (found[3] and level is None) or (found[1] and found[5]):
        raise UsageError(
            f"objective={text}: is best_error, final_error, seconds_to_error:LEVEL (in percent), each of held-out images or with test: before it "
            "of the test images, or train_loss."
        )
    what = found[2] or found[3] or found[5]
    if what == "train_loss":
        return Objective(what)
    if not on_data:
        raise UsageError(f"objective={text}: problem={s.problem['name']} classifies no images, so it has no error; write objective=train_loss.")
    if found[1]:
        return Objective(what, "test", level)
    if not s.dataset.get("validation"):
        raise UsageError(
            f"dataset.validation=0: a search chooses settings by images held out of training; hold some out, such as dataset.validation=200, or let it "
            f"choose by the test images with objective=test:{text}, which flatters the error they give."
        )
    return Objective(what, "validation", level)


def _read(path: Path) -> Run:
    from easgd_cli.report import reading  # here, since it loads numpy, for which a refusal does not wait

    return reading.read(path)
