"""What communicating costs in the whole: real runs of p workers against p plain loops that never communicate."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from easgd_cli import build
from easgd_cli.bench.measure import Row, alternate
from easgd_cli.bench.plain import plain_images_per_second
from easgd_cli.config import Checkpoint, Eval, Settings
from easgd_cli.devices import worker_threads
from easgd_cli.errors import UsageError
from easgd_cli.launcher.job import Job


def run(s: Settings, prepared: build.Prepared, windows: int = 10) -> Iterator[Row]:
    """Images a second of the run that `s` describes, `steps` long a window, against the same number of plain loops."""
    if prepared.steps is None:
        raise UsageError(f"bench scaling minutes={s.minutes}: give steps=, the length of a window.")
    steps, threads = prepared.steps, worker_threads(s)
    images = prepared.images.share()
    quiet = replace(s, eval=Eval(every=None, when="deferred", train_images=1), checkpoint=Checkpoint())
    launch = build.locate("launcher", s.launcher["target"])

    def ours() -> float:
        with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()):
            summary = launch(Job(quiet, Path(directory)), prepared).summary
        return float(s.workers * steps * s.batch_size / sum(summary["seconds"].values()))  # a worker's step loop, as with its peer

    yield alternate(
        f"{s.algo['name']}, {s.workers} workers, tau={s.tau}, batch {s.batch_size}, {s.model['name']}, {threads} threads each", ours,
        f"{s.workers} plain loops", lambda: plain_images_per_second(s, images, s.workers, threads, steps), "images/s", windows,
    )  # fmt: skip
