"""A set of labelled images, whole in memory, and the batches cut from it.

Small sets are fastest without loader processes: the set is one tensor (in shared memory for the workers of a machine,
or on the GPU), and a batch is one indexing of it (docs/results.md has the rates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from easgd_cli.data.conversion import Channels, as_input, checked_channels, sent
from easgd_cli.data.dataset import Batch, Split, Targets, fixed_subset
from easgd_cli.data.holding_out import held_out
from easgd_cli.errors import UsageError
from easgd_cli.system.shared_memory import SharedTensors

_TENSORS = ("train", "train_labels", "test", "test_labels", "held_out", "held_out_labels")


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images with their labels, and what training does to them.

    Pixels are uint8, of which the value 1 means `scale`, or floating-point numbers used as they are. With `crop`,
    training sees a random patch of that many rows and columns and evaluation the center one; with `flip`, training
    mirrors an image from left to right in half of all cases, at random (paper p. 21).
    """

    train: Tensor  # [N, C, H, W]
    train_labels: Tensor  # [N] int64, 0 <= label < num_classes
    test: Tensor  # [M, C, H', W']
    test_labels: Tensor  # [M] int64
    num_classes: int
    classes: tuple[str, ...] | None = None
    crop: tuple[int, int] | None = None  # rows, columns
    flip: bool = False
    scale: float = 1 / 255
    held_out: Tensor | None = None  # [K, C, H, W], taken from the training images by hold_out
    held_out_labels: Tensor | None = None  # [K] int64
    memory: SharedTensors | None = field(default=None, repr=False)  # where the tensors lie, after share()
    mean: Channels | None = None  # of each channel, in [0, 1]: subtracted
    std: Channels | None = None  # by which the difference is divided

    ahead: ClassVar[int] = 0  # indexing memory is not worth beginning early
    about: ClassVar[str | None] = None

    @property
    def targets(self) -> Targets:
        return "labels"

    def class_count(self, ignored: int | None) -> int:
        return self.num_classes

    @property
    def target_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def described(self) -> str:
        sides = "x".join(str(side) for side in self.input_shape)
        return f"the images of this data set, {sides} (channels, rows, columns)"

    @property
    def sample_size(self) -> int:
        return math.prod(self.input_shape)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the net sees."""
        channels, rows, columns = self.train.shape[1:]
        return (channels, *(self.crop or (rows, columns)))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._tensors().values())

    def count(self, split: Split) -> int:
        """How many images a split has."""
        return len(self._tensors().get(f"{split}_labels", ()))

    def normalised(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> Images:
        """The same with (pixel - mean) / std, a number for each channel, handed to the net. Raises UsageError."""
        channels = self.train.shape[1]
        return replace(self, mean=checked_channels("mean", mean, channels), std=checked_channels("std", std, channels))

    def with_shifts(self, most: int) -> Images:
        """The same, with training images shifted at random by up to `most` pixels each way, zeros moving in.

        A shift is a crop from an image with a margin of zeros, so the margin is added here, once.
        """
        return replace(self, crop=self.input_shape[1:], train=F.pad(self.train, (most,) * 4)) if most else self

    def hold_out(self, n: int) -> Images:
        """The same with `n` training images set aside as `held_out`, on which settings can be chosen.

        Every class gives its share, and the choice is the same in every run, whatever its seed. Raises UsageError when
        `n` leaves too little to train on.
        """
        taken = held_out(self.train_labels, self.num_classes, n)
        return replace(
            self,
            train=self.train[~taken],
            train_labels=self.train_labels[~taken],
            held_out=self.train[taken],
            held_out_labels=self.train_labels[taken],
            memory=None,
        )

    def share(self) -> Images:
        """The same in anonymous shared memory: sent to a child process, it maps the same bytes, one copy a machine.

        Raises MemoryError when the memory cannot be had.
        """
        memory = SharedTensors.of(self._tensors())
        return _rebuild(memory, *self._rest())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without the pixels when they are in shared memory."""
        return _rebuild, (self.memory if self.memory is not None else self._tensors(), *self._rest())

    def _rest(self) -> tuple[Any, ...]:
        """All but the tensors."""
        return self.num_classes, self.classes, self.crop, self.flip, self.scale, self.mean, self.std

    def training_on(self, device: torch.device) -> Images:
        """The same with the training images on `device`, where batches are then cut; the others stay."""
        if self.train.device == device:
            return self
        return replace(self, train=self.train.to(device), train_labels=self.train_labels.to(device), memory=None)

    def training_batch(
        self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """The training images `indices` [B], cropped and mirrored at random, as [B, *input_shape], and their labels
        [B].

        The result lies where the training images do. `generator` and `indices` are the CPU's in any case, so that a
        batch is the same on every device.
        """
        device, (rows, columns), kinds = self.train.device, self._corners, 2 if self.flip else 1
        if rows * columns * kinds == 1:
            i = sent(indices, device)
            return self._as_input(self.train[i], dtype), self.train_labels[i]
        # one number says where and which way round
        draws = torch.randint(rows * columns * kinds, indices.shape, generator=generator)
        if device.type == "cpu":
            patches = _patches_in_numpy(self._windows, indices, draws, columns, self.flip)
            return self._as_input(patches, dtype), self.train_labels[indices]
        i, draws = sent(torch.stack((indices, draws)), device)
        return self._as_input(_patches(self._windows, i, draws, columns, self.flip), dtype), self.train_labels[i]

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """That batch, to be asked for: here it is made at once."""
        batch = self.training_batch(indices, generator, dtype)
        return lambda: batch

    def evaluation_batches(
        self,
        split: Split,
        size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        indices: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Center patches of at most `size` images at a time and their labels, on `device`.

        Of the whole split ("train", "test" or "held_out"), or of its images `indices`.
        """
        images, labels = self._tensors()[split], self._tensors()[f"{split}_labels"]
        for part in (torch.arange(len(images)) if indices is None else indices).split(size):
            part = part.to(images.device)
            yield self._as_input(self._center(images[part]).to(device), dtype), labels[part].to(device)

    def training_subset(self, n: int) -> Tensor:
        """Indices, ascending, of at most `n` training images: the same in every run, whatever its seed."""
        return fixed_subset(len(self.train_labels), n)

    @property
    def _corners(self) -> tuple[int, int]:
        """How many rows and how many columns a patch can begin at."""
        _, height, width = self.input_shape
        return self.train.shape[2] - height + 1, self.train.shape[3] - width + 1

    @cached_property
    def _windows(self) -> Any:
        """Views [N, C, row, column, height, width] of every patch of every training image: numpy's on the CPU, else
        torch's.
        """
        _, height, width = self.input_shape
        if self.train.device.type == "cpu":
            return sliding_window_view(self.train.numpy(), (height, width), axis=(2, 3))
        return self.train.unfold(2, height, 1).unfold(3, width, 1)

    def _center(self, images: Tensor) -> Tensor:
        height, width = self.input_shape[1:]
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]

    def _as_input(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Contiguous numbers of `dtype` for the net."""
        return as_input(pixels, dtype, self.scale, self.mean, self.std)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}


def _patches(windows: Tensor, i: Tensor, draws: Tensor, columns: int, flip: bool) -> Tensor:
    """Patches [B, C, height, width] of the images `i` [B]; `draws` [B] count the corners row by row, each twice with
    `flip`.
    """
    corners = draws // 2 if flip else draws
    patches = windows[i, :, corners // columns, corners % columns]
    return torch.where((draws % 2 == 1)[:, None, None, None], patches.flip(3), patches) if flip else patches


def _patches_in_numpy(windows: np.ndarray[Any, Any], i: Tensor, draws: Tensor, columns: int, flip: bool) -> Tensor:
    """The same on the CPU, twice as fast: numpy copies a row at a time where torch's indexing goes pixel by pixel."""
    images, numbers = i.numpy(), draws.numpy()
    corners = numbers // 2 if flip else numbers
    patches = windows[images, :, corners // columns, corners % columns]
    if flip:
        mirrored = numbers % 2 == 1
        patches[mirrored] = patches[mirrored, :, :, ::-1]
    return torch.from_numpy(patches)


def _rebuild(
    tensors: SharedTensors | dict[str, Tensor],
    num_classes: int,
    classes: tuple[str, ...] | None,
    crop: Any,
    flip: bool,
    scale: float,
    mean: Channels | None,
    std: Channels | None,
) -> Images:
    memory = tensors if isinstance(tensors, SharedTensors) else None
    named = tensors.tensors if isinstance(tensors, SharedTensors) else tensors
    return Images(
        **named,
        num_classes=num_classes,
        classes=classes,
        crop=crop,
        flip=flip,
        scale=scale,
        memory=memory,
        mean=mean,
        std=std,
    )


def as_images(given: Any, name: str) -> Images:
    """What a data set's function returned, checked: `Images`, or (x_train, y_train, x_test, y_test).

    Images are tensors or arrays [N, C, H, W], uint8 or floating point; labels [N] whole numbers from 0. Raises
    UsageError naming the data set, what is wrong, and the rule.
    """
    if not isinstance(given, Images):
        if not isinstance(given, tuple | list) or len(given) != 4:
            what = f"{len(given)} things" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
            raise UsageError(
                f"dataset={name}: returned {what}; it must return (x_train, y_train, x_test, y_test), or Images."
            )
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
    pixels = _tensor(given, name, part)
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
    labels = _tensor(given, name, part)
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


def _tensor(given: Any, name: str, part: str) -> Tensor:
    try:
        made = given if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
    except (TypeError, ValueError) as e:
        raise UsageError(
            f"dataset={name}: {part} is a {type(given).__name__}, which is neither a tensor nor an array of numbers."
        ) from e
    return made.detach().to("cpu").contiguous()


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in sides)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
