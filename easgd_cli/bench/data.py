"""Batches of a data set, made as by a worker, compared with torch's DataLoader and torchvision, on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from easgd_cli.bench.measure import Row, alternate
from easgd_cli.data import vision
from easgd_cli.data.images import Images
from easgd_cli.data.sources import Shards
from easgd_cli.data.stored import StoredImages
from easgd_cli.errors import UsageError
from easgd_cli.problems.batches import Batches
from easgd_cli.system.shared_memory import keep_freed_memory

_SECONDS = 0.3  # of each window
_SECONDS_OF_PHOTOS = 1.0


def run(images: Images, batch_size: int, windows: int) -> Row:
    """Measures images a second, made ready for the net: cropped, mirrored and normalised as the set asks, as floats in
    batches of `batch_size`.

    Raises UsageError for images that are not uint8 with 1 or 3 channels.
    """
    if images.train.dtype != torch.uint8 or images.train.shape[1] not in (1, 3):
        raise UsageError(
            "bench data: torchvision's peer takes uint8 images of 1 or 3 channels, and this data set has others."
        )
    loader: Any = torch.utils.data.DataLoader(_OneByOne(images), batch_size, shuffle=True)  # type: ignore[arg-type]
    ours, theirs = _batches(images, batch_size), _again_and_again(loader)
    figure, peer = (partial(_rate, work, time.perf_counter, _SECONDS) for work in (ours, theirs))
    what = f"batches of {batch_size} images {_by(images.input_shape)}, one core"
    with _one_thread():
        return alternate(what, figure, "torchvision DataLoader", peer, "images/s", windows, target=5.0)


def run_stored(images: StoredImages, originals: Path, batch_size: int, windows: int) -> Row:
    """Measures images a CPU second, made ready for the net, against torchvision's ImageFolder, which decodes, resizes
    and crops the photos in `originals`.

    CPU seconds are of this process, which does both without threads or loader processes.
    """
    transforms, datasets = vision.torchvision().transforms, vision.torchvision().datasets
    seen = transforms.Compose([transforms.Resize(images.resize), *_seen(images, images.crop)])
    loader: Any = torch.utils.data.DataLoader(datasets.ImageFolder(str(originals), seen), batch_size, shuffle=True)
    ours, theirs = _batches(replace(images, loaders=0), batch_size), _again_and_again(loader)

    figure, peer = (partial(_rate, work, time.process_time, _SECONDS_OF_PHOTOS) for work in (ours, theirs))
    keep_freed_memory()  # as a worker does: a batch of photos is 75 MB
    source, target = ("the resized copy", 4.0) if isinstance(images.train, Shards) else ("the originals", None)
    what = f"batches of {batch_size} photos {_by(images.crop)} from {source}, one core"
    with _one_thread():
        return alternate(what, figure, "torchvision ImageFolder", peer, "images/CPU s", windows, target)


def _rate(work: Callable[[], int], clock: Callable[[], float], least_seconds: float) -> float:
    """Returns images a second by `clock`, over at least `least_seconds`. `work`: makes images and returns how many."""
    began, made = clock(), 0
    while True:
        made += work()
        if (elapsed := clock() - began) >= least_seconds:
            return made / elapsed


def _seen(images: Images | StoredImages, crop: tuple[int, int]) -> list[Any]:
    """Returns torchvision's transforms that make a net's input of a picture."""
    transforms = vision.torchvision().transforms
    steps = [
        transforms.RandomCrop(crop),
        *([transforms.RandomHorizontalFlip()] if images.flip else []),
        transforms.ToTensor(),
    ]
    if images.mean is not None or images.std is not None:
        steps.append(transforms.Normalize(images.mean or (0.0,), images.std or (1.0,)))
    return steps


def _batches(images: Images | StoredImages, batch_size: int) -> Callable[[], int]:
    """Returns a function that makes a worker's next batch at each call, and returns its size."""
    batches, generator = Batches(images.count("train"), batch_size, seed=0), torch.Generator()
    steps = count()

    def work() -> int:
        step = next(steps)
        _, labels = images.training_batch(batches.indices(0, step), generator.manual_seed(step))
        return len(labels)

    return work


def _again_and_again(loader: Any) -> Callable[[], int]:
    """Returns a function that takes the next batch of `loader` at each call, pass after pass, and returns its size."""
    batches = chain.from_iterable(repeat(loader))
    return lambda: len(next(batches)[1])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


class _OneByOne:
    """The images as a data set of torchvision's has them: an array each, made a picture and transformed one by one."""

    def __init__(self, images: Images):
        self._transform = vision.torchvision().transforms.Compose(_seen(images, images.input_shape[1:]))
        pixels = images.train.permute(0, 2, 3, 1).contiguous().numpy()
        self._pixels, self._labels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels, images.train_labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._pixels[i])), self._labels[i]
