"""What communicating costs in the whole: real runs of p workers against p plain loops that never communicate."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace

from easgd_cli import build
from easgd_cli.bench.measure import Row, alternate
from easgd_cli.bench.plain import WARM_UP, plain_images_per_second
from easgd_cli.config import Checkpoint, Eval, Settings
from easgd_cli.devices import worker_threads
from easgd_cli.errors import UsageError
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job
from easgd_cli.record.metrics import Row as MetricsRow
from easgd_cli.record.metrics import worker_name
from easgd_cli.record.recorder import read_rows
from easgd_cli.scratch import scratch_directory


def run(s: Settings, prepared: build.Prepared, windows: int = 10) -> Iterator[Row]:
    """Images a second of the run that `s` describes, `steps` long a window, against the same number of plain loops."""
    if prepared.steps is None:
        raise UsageError(f"bench scaling minutes={s.minutes}: give steps=, the length of a window.")
    if prepared.images is None:
        raise UsageError(f"bench scaling problem={s.problem['name']}: the plain loops it is held against learn from images; use problem=dataset.")
    steps, threads = prepared.steps, worker_threads(s)
    images = prepared.images.share()
    quiet = replace(s, eval=Eval(every=None, when="deferred", train_images=1), checkpoint=Checkpoint())
    launch = kinds.launcher(s)

    def ours() -> float:
        with scratch_directory() as directory, redirect_stdout(io.StringIO()):
            launch(Job(quiet, directory), prepared)
            rows = list(read_rows(directory / "metrics.jsonl"))
        return sum(_rate([r for r in rows if r["party"] == worker_name(i)], s.batch_size) for i in range(s.workers))

    yield alternate(
        f"{s.algo['name']}, {s.workers} workers, tau={s.tau}, batch {s.batch_size}, {s.model['name']}, {threads} threads each", ours,
        f"{s.workers} plain loops", lambda: plain_images_per_second(s, images, s.workers, threads, steps), "images/s", windows,
    )  # fmt: skip


def _rate(rows: list[MetricsRow], batch_size: int) -> float:
    """Images a second of one worker's step loop, its first steps left out as its peer's are."""
    first, last = next(r for r in rows if r["step"] >= WARM_UP), rows[-1]
    return float((last["step"] - first["step"]) * batch_size / (_loop(last) - _loop(first)))


def _loop(row: MetricsRow) -> float:
    return float(sum(row[f"seconds_{part}"] for part in ("compute", "data", "communication", "other")))
