"""What communication costs in all: real runs of p workers, compared with p plain loops that never communicate."""

from __future__ import annotations

from functools import partial

from easgd_cli.bench.measure import Row, alternate
from easgd_cli.bench.plain import plain_images_per_second
from easgd_cli.bench.runs import images_per_second, steps_and_images
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Settings
from easgd_cli.system.devices import worker_threads


def against_plain(what: str, s: Settings, windows: int = 10, target: float | None = None) -> Row:
    """Measures the efficiency: images a second of the run that `s` describes, against as many plain loops as it has
    workers. A window has the run's number of steps.

    `what`: the benchmark's name, for messages. Raises UsageError for settings without images or a length, RunError when
    a run fails.
    """
    prepared = build.prepare(s)
    steps, images = steps_and_images(what, s, prepared)
    name = f"{s.workers} plain loop{'s' if s.workers > 1 else ''}"
    figure, peer = partial(images_per_second, s, prepared), partial(plain_images_per_second, s, images.share(), steps)
    return alternate(described(s), figure, name, peer, "images/s", windows, target)


def described(s: Settings) -> str:
    """Returns everything on which the speed of a run depends, in words, except for the machine."""
    threads, many = worker_threads(s), s.workers
    return (
        f"{s.algo['name']}, {many} worker{'s' if many > 1 else ''}, tau={s.tau}, batch {s.batch_size}, "
        f"{s.model['name']}, {threads} thread{'s' if threads > 1 else ''} each"
    )
