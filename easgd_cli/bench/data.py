"""Batches of a data set, made as a worker makes them, against torchvision's DataLoader doing the same, on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from easgd_cli.bench.measure import Row, alternate, rate
from easgd_cli.data import vision
from easgd_cli.data.images import Images
from easgd_cli.data.stored import StoredImages
from easgd_cli.errors import UsageError
from easgd_cli.memory import keep_freed_memory
from easgd_cli.problems.images import Batches

_SECONDS = 0.3  # of each window
_SECONDS_OF_PHOTOS = 1.0


def run(images: Images, batch_size: int, windows: int) -> list[Row]:
    """Images a second, ready for the net: cropped and mirrored as the set asks, as floats in batches of `batch_size`.

    Raises UsageError for images that are no pictures.
    """
    if images.train.dtype != torch.uint8 or images.train.shape[1] not in (1, 3):
        raise UsageError("bench data: torchvision's peer takes uint8 images of 1 or 3 channels, and this data set has others.")
    loader: Any = torch.utils.data.DataLoader(_OneByOne(images), batch_size, shuffle=True)  # type: ignore[arg-type]
    ours, theirs = _batches(images, batch_size), _again_and_again(loader)
    with _one_thread():
        return [
            alternate(
                f"batches of {batch_size} images {_by(images.input_shape)}, one core",
                lambda: rate(ours, batch_size, _SECONDS),
                "torchvision DataLoader",
                lambda: rate(theirs, batch_size, _SECONDS),
                "images/s",
                windows,
                target=5.0,
            )
        ]


def run_stored(images: StoredImages, originals: Path, batch_size: int, windows: int) -> list[Row]:
    """Images a CPU second, ready for the net, against torchvision's ImageFolder on the originals, which it decodes, resizes and crops.

    CPU seconds of this process, which does both without threads or loader processes.
    """
    transforms, datasets = vision.torchvision().transforms, vision.torchvision().datasets
    flip = [transforms.RandomHorizontalFlip()] if images.flip else []
    steps = [transforms.Resize(images.resize), transforms.RandomCrop(images.crop), *flip, transforms.ToTensor()]
    loader: Any = torch.utils.data.DataLoader(datasets.ImageFolder(str(originals), transforms.Compose(steps)), batch_size, shuffle=True, drop_last=True)
    ours, theirs = _batches(replace(images, loaders=0), batch_size), _again_and_again(loader)

    def a_second(work: Callable[[], None]) -> float:
        began, images_made = time.process_time(), 0
        while time.process_time() - began < _SECONDS_OF_PHOTOS:
            work()
            images_made += batch_size
        return images_made / (time.process_time() - began)

    keep_freed_memory()  # as a worker does: a batch of photos is 75 MB
    with _one_thread():
        what = f"batches of {batch_size} photos {_by(images.crop)}, one core"
        return [alternate(what, lambda: a_second(ours), "torchvision ImageFolder", lambda: a_second(theirs), "images/CPU s", windows, target=4.0)]


def _batches(images: Images | StoredImages, batch_size: int) -> Callable[[], None]:
    """Makes the next batch of a worker at each call."""
    batches, generator = Batches(images.count("train"), batch_size, seed=0), torch.Generator()
    steps = count()

    def work() -> None:
        step = next(steps)
        images.training_batch(batches.indices(0, step), generator.manual_seed(step))

    return work


def _again_and_again(loader: Any) -> Callable[[], None]:
    """Takes the next batch of `loader` at each call, pass after pass."""
    batches = chain.from_iterable(repeat(loader))
    return lambda: next(batches)


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
    """The set as torchvision keeps it: an array for each image, turned into a picture and through its transforms one at a time."""

    def __init__(self, images: Images):
        transforms = vision.torchvision().transforms
        steps = [transforms.RandomCrop(images.input_shape[1:])]
        if images.flip:
            steps.append(transforms.RandomHorizontalFlip())
        self._transform = transforms.Compose([*steps, transforms.ToTensor()])
        pixels = images.train.permute(0, 2, 3, 1).contiguous().numpy()
        self._pixels, self._labels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels, images.train_labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._pixels[i])), self._labels[i]
