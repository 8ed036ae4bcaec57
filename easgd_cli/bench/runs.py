"""Makes a real run, launched as by `easgd train`, for the sake of its record."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from easgd_cli.bench.plain import WARM_UP
from easgd_cli.data.dataset import Dataset
from easgd_cli.data.images import Images
from easgd_cli.data.stored import StoredImages
from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job
from easgd_cli.record.metrics import PARTS, Row, worker_name
from easgd_cli.record.reader import read_rows
from easgd_cli.settings.schema import Checkpoint, Eval, Settings
from easgd_cli.system.files import scratch_directory

_TESTED = 16  # test images, at the beginning and the end of a run


@contextmanager
def recorded(s: Settings, prepared: build.Experiment) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Makes a run and yields its directory, which is removed after the block, and its summary. Nothing is evaluated
    beside the workers, and little after them.

    Raises RunError when the run does not complete.
    """
    # 2 training images, since the variances of a batch norm need as many.
    quiet = replace(s, eval=Eval(when="deferred", device=s.eval.device, train_images=2), checkpoint=Checkpoint())
    few = replace(prepared, recipe=replace(prepared.recipe, settings=quiet, data=_little_to_test(prepared.data)))
    with scratch_directory() as directory:
        with redirect_stdout(io.StringIO()):
            outcome = kinds.launcher(s)(Job(directory), few)
        if outcome.status == "interrupted":
            # the run's launcher has taken the signal; the benchmark is to end by it, too
            signal.raise_signal(outcome.exit_code - 128)
        if outcome.status != "completed":
            many = f"{s.workers} worker{'s' if s.workers > 1 else ''}"
            why = f": {outcome.reason}" if outcome.reason else ""
            raise RunError(f"{s.algo['name']}, {many}: the run to be measured is {outcome.status}{why}.")
        yield directory, outcome.summary


def images_per_second(s: Settings, prepared: build.Experiment) -> float:
    """Makes a run and returns images a second of all its workers together, without their first WARM_UP steps."""
    with recorded(s, prepared) as (directory, _):
        rows = list(read_rows(directory / "metrics.jsonl"))
    return sum(_rate([r for r in rows if r["party"] == worker_name(i)], s.batch_size) for i in range(s.workers))


def steps_and_images(what: str, s: Settings, prepared: build.Experiment) -> tuple[int, Dataset]:
    """Returns the steps of a window and the data set. Raises UsageError for a run without such a length or data."""
    if prepared.steps is None:
        raise UsageError(f"bench {what} minutes={s.minutes}: give steps=, the length of a window.")
    if prepared.steps <= WARM_UP:
        raise UsageError(
            f"bench {what} steps={prepared.steps}: the first {WARM_UP} steps of a window do not count; give more."
        )
    if prepared.data is None:
        raise UsageError(
            f"bench {what} problem={s.problem['name']}: the loops it is held against learn from images; use "
            "problem=dataset."
        )
    return prepared.steps, prepared.data


def _little_to_test(images: Dataset | None) -> Dataset | None:
    """Returns the same training images with few test images, since a timed run need not be measured on many."""
    if isinstance(images, Images):
        return replace(images, test=images.test[:_TESTED], test_labels=images.test_labels[:_TESTED], memory=None)
    if isinstance(images, StoredImages):
        return replace(images, test=images.test.first(_TESTED), memory=None)
    return images


def _rate(rows: list[Row], batch_size: int) -> float:
    first, last = next(r for r in rows if r["step"] >= WARM_UP), rows[-1]
    return float((last["step"] - first["step"]) * batch_size / (_loop(last) - _loop(first)))


def _loop(row: Row) -> float:
    return float(sum(row[f"seconds_{part}"] for part in PARTS))
