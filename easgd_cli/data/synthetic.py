"""Images made up on the spot, of any shape: to measure throughput, or to try out a net before its data are there."""

from __future__ import annotations

import math

import torch

from easgd_cli.data.images import Images
from easgd_cli.errors import UsageError
from easgd_cli.randomness import CONTENT, key
from easgd_cli.system.shared_memory import available_memory


def synthetic(
    shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    train: int = 10_000,
    test: int = 1_000,
    crop: int | None = 28,
    flip: bool = True,
) -> Images:
    """Returns `train` and `test` images of `shape` (channels, rows, columns): a pattern for each class, under noise.

    The images are the same in every run, whatever its seed. `crop`: side of the random patches, None for whole images.
    Labels take turns, so that the classes are equally frequent. Raises UsageError when a size is out of range.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError(
            f"dataset.shape={list(shape)}: must be three positive whole numbers: channels, rows, columns, such as "
            "dataset.shape=[3,32,32]."
        )
    if not 2 <= classes <= 100_000:
        raise UsageError(f"dataset.classes={classes}: must be from 2 to 100000.")
    for name, count in (("train", train), ("test", test)):
        if count < 1:
            raise UsageError(f"dataset.{name}={count}: must be a whole number of at least 1.")
    if crop is not None and not 1 <= crop <= min(shape[1:]):
        raise UsageError(
            f"dataset.crop={crop}: must be from 1 to {min(shape[1:])}, the shorter side of dataset.shape, or null "
            "for whole images."
        )
    # Bytes: pixels and labels (8 each) of the images; patterns of the classes as numbers (4) and as pixels (1).
    needed = (train + test) * (math.prod(shape) + 8) + classes * 5 * math.prod(shape)
    available = available_memory()
    if available is not None and needed > available:
        raise UsageError(
            f"dataset.shape={list(shape)} dataset.train={train} dataset.test={test} "
            f"dataset.classes={classes}: these images need {needed / 2**30:,.1f} GiB "
            f"and {available / 2**30:,.1f} GiB are free; make them smaller or fewer."
        )
    generator = torch.Generator().manual_seed(key(0, CONTENT))
    # Patterns of 4x4 blown up to the shape: so coarse that crops of one class still look alike.
    coarse = torch.rand(classes, shape[0], 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear").mul_(160).to(torch.uint8)
    train_labels, test_labels = torch.arange(train) % classes, torch.arange(test) % classes
    pixels = []
    for labels in (train_labels, test_labels):
        made = torch.empty(len(labels), *shape, dtype=torch.uint8).random_(0, 96, generator=generator)
        for begin in range(0, len(labels), 1024):  # in pieces, so that the patterns of a whole set never lie in memory
            made[begin : begin + 1024] += patterns[labels[begin : begin + 1024]]
        pixels.append(made)
    patch = None if crop is None else (crop, crop)
    return Images(pixels[0], train_labels, pixels[1], test_labels, num_classes=classes, crop=patch, flip=flip)
