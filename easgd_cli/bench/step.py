"""What a step costs: a worker's whole step loop in real runs, compared with loops written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from easgd_cli.bench.ddp import data_parallel_images_per_second
from easgd_cli.bench.measure import Row, alternate
from easgd_cli.bench.plain import plain_images_per_second
from easgd_cli.bench.runs import images_per_second, steps_and_images
from easgd_cli.bench.scaling import against_plain, described
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Settings
from easgd_cli.training.data_parallel import backend

_ONE_WORKER = 0.98  # target of one worker's rate, as a share of a plain loop's


def run(s: Settings, windows: int = 10) -> Iterator[Row]:
    """Measures images a second: one worker against one plain loop; for several workers also the run of `s` against as
    many plain loops, the run at tau=1 against DistributedDataParallel with as many processes, and that one against the
    plain loops.

    Raises UsageError for settings without images or a length, RunError when a run fails.
    """
    one = replace(s, workers=1)
    yield against_plain("step", one, windows, _ONE_WORKER)
    if s.workers == 1:
        return
    yield against_plain("step", s, windows)
    often = replace(s, tau=1)
    prepared = build.prepare(often)
    steps, images = steps_and_images("step", often, prepared)
    shared = images.share()
    name = f"DistributedDataParallel on {backend(s)}, {s.workers} processes"

    peer = partial(data_parallel_images_per_second, often, shared, steps)
    plain = partial(plain_images_per_second, often, shared, steps)
    figure = partial(images_per_second, often, prepared)
    yield alternate(described(often), figure, name, peer, "images/s", windows, target=1.0)
    yield alternate(name, peer, f"{s.workers} plain loops", plain, "images/s", windows)
