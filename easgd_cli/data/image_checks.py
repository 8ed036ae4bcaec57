"""Checks of the images that a data set's function has returned, before anything is trained on them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from easgd_cli.data.conversion import as_tensor, checked_channels
from easgd_cli.data.images import Images
from easgd_cli.errors import UsageError


def as_images(given: Images | tuple[Any, Any, Any, Any], name: str) -> Images:
    """Returns checked `Images` of what the function returned: `Images`, or (x_train, y_train, x_test, y_test).

    Images are tensors or arrays [N, C, H, W], uint8 or floating point; labels [N] whole numbers from 0. Raises
    UsageError naming the data set, what is wrong, and the rule.
    """
    if not isinstance(given, Images):
        train, test = _pixels(given[0], name, "x_train"), _pixels(given[2], name, "x_test")
        train_labels, test_labels = _labels(given[1], name, "y_train"), _labels(given[3], name, "y_test")
        highest = max((int(labels.max()) for labels in (train_labels, test_labels) if len(labels)), default=0)
        given = Images(train, train_labels, test, test_labels, num_classes=highest + 1)
    else:
        given = replace(
            given,
            train=_pixels(given.train, name, "train"),
            train_labels=_labels(given.train_labels, name, "train_labels"),
            test=_pixels(given.test, name, "test"),
            test_labels=_labels(given.test_labels, name, "test_labels"),
        )
    _check(given, name)
    return given


def _check(images: Images, name: str) -> None:
    if images.crop is not None and not (
        isinstance(images.crop, tuple) and len(images.crop) == 2 and all(isinstance(side, int) for side in images.crop)
    ):
        raise UsageError(f"dataset={name}: crop={images.crop} must be two whole numbers, (rows, columns).")
    for split in ("train", "test"):
        pixels, labels = images._tensors()[split], images._tensors()[f"{split}_labels"]
        if len(pixels) == 0:
            raise UsageError(f"dataset={name}: there are no {split} images; at least one is needed.")
        if len(pixels) != len(labels):
            raise UsageError(
                f"dataset={name}: there are {len(pixels)} {split} images and {len(labels)} labels; each image "
                "needs one."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= images.num_classes:
            wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise UsageError(
                f"dataset={name}: has the {split} label {wrong}; with {images.num_classes} classes labels run "
                f"from 0 to {images.num_classes - 1}."
            )
        if pixels.is_floating_point() and not bool(torch.isfinite(pixels).all()):
            raise UsageError(f"dataset={name}: some {split} pixels are not finite numbers.")
    if images.num_classes < 2:
        raise UsageError(f"dataset={name}: all labels are 0; there must be at least two classes, labelled 0, 1, ...")
    if images.classes is not None and len(images.classes) != images.num_classes:
        raise UsageError(
            f"dataset={name}: there are {len(images.classes)} class names for {images.num_classes} classes."
        )
    if not (math.isfinite(images.scale) and images.scale > 0):
        raise UsageError(
            f"dataset={name}: scale={images.scale} is the value of a pixel of 1; it must be a finite number "
            "greater than 0, such as 1 / 255."
        )
    for part, values in (("mean", images.mean), ("std", images.std)):
        try:
            checked_channels(part, values, images.train.shape[1])
        except UsageError as e:
            raise UsageError(f"dataset={name}: {e}") from e
    train, test = tuple(images.train.shape[1:]), tuple(images.test.shape[1:])
    if images.crop is None and train != test:
        raise UsageError(
            f"dataset={name}: training images are {_by(train)} and test images {_by(test)}; without a crop they "
            "must agree."
        )
    if train[0] != test[0]:
        raise UsageError(
            f"dataset={name}: training images have {train[0]} channels and test images {test[0]}; they must agree."
        )
    if images.crop is not None and not all(
        1 <= side <= min(own) for side, own in zip(images.crop, zip(train[1:], test[1:], strict=True), strict=True)
    ):
        raise UsageError(
            f"dataset={name}: crop {_by(images.crop)} does not fit into training images {_by(train)} and test "
            f"images {_by(test)}."
        )


def _pixels(given: Any, name: str, part: str) -> Tensor:
    pixels = as_tensor(given, name, part).detach().to("cpu").contiguous()
    if pixels.dim() != 4:
        remedy = f"; {part}[:, None] adds the missing channel axis" if pixels.dim() == 3 else ""
        raise UsageError(
            f"dataset={name}: {part} has shape {tuple(pixels.shape)}; images are [N, channels, rows, columns]{remedy}."
        )
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise UsageError(
            f"dataset={name}: {part} is of type {_short(pixels.dtype)}; pixels are uint8 (0 to 255) or "
            "floating-point numbers."
        )
    return pixels.to(torch.float32)


def _labels(given: Any, name: str, part: str) -> Tensor:
    labels = as_tensor(given, name, part).detach().to("cpu").contiguous()
    if labels.dim() != 1:
        column = labels.dim() == 2 and labels.shape[1] == 1
        remedy = f"; {part}[:, 0] makes them so" if column else ""
        if labels.dim() == 2 and not column:
            remedy = f"; {part}.argmax(1) turns one-hot rows into numbers"
        raise UsageError(
            f"dataset={name}: {part} has shape {tuple(labels.shape)}; labels are [N], one number an image{remedy}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(f"dataset={name}: {part} is of type {_short(labels.dtype)}; labels are whole numbers from 0.")
    return labels.to(torch.int64)


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in sides)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
