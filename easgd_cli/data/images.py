"""A set of labelled images, whole in memory, and the batches cut from it.

Small sets are fastest without loader processes: the set is one tensor (in shared memory for the workers of a machine,
or on the GPU), and a batch is one indexing of it (docs/results.md has the rates).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from easgd_cli.data.conversion import Channels, as_input, sent
from easgd_cli.data.dataset import Batch, Split
from easgd_cli.data.holding_out import held_out
from easgd_cli.data.image_set import ImageSet
from easgd_cli.system.shared_memory import SharedTensors

_TENSORS = ("train", "train_labels", "test", "test_labels", "held_out", "held_out_labels")


@dataclass(frozen=True, eq=False)
class Images(ImageSet):
    """Training and test images with their labels, and how training changes images at random.

    Pixels are uint8, handed to the net times `scale`, or floating-point numbers used as they are. With `crop`,
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
    mean: Channels | None = None  # for each channel, in [0, 1]: subtracted from pixels
    std: Channels | None = None  # for each channel: divides the difference

    ahead: ClassVar[int] = 0  # indexing memory is not worth beginning early
    about: ClassVar[str | None] = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the net sees."""
        channels, rows, columns = self.train.shape[1:]
        return (channels, *(self.crop or (rows, columns)))

    def count(self, split: Split) -> int:
        """Returns how many images a split has."""
        return len(self._tensors().get(f"{split}_labels", ()))

    def with_shifts(self, most: int) -> Images:
        """Returns this set with training images shifted at random by up to `most` pixels each way, zeros moving in.

        A shift is a crop from an image with a margin of zeros, so the margin is added here, once.
        """
        return replace(self, crop=self.input_shape[1:], train=F.pad(self.train, (most,) * 4)) if most else self

    def hold_out(self, n: int) -> Images:
        """Returns this set with `n` training images set aside as `held_out`, by which settings can be chosen.

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
        """Returns this set in anonymous shared memory, one copy a machine for all processes. Raises MemoryError."""
        return _rebuilt(SharedTensors.of(self._tensors()), self._rest())

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves the pixels out of the pickle when they are in shared memory."""
        return _rebuilt, (self.memory if self.memory is not None else self._tensors(), self._rest())

    def _rest(self) -> dict[str, Any]:
        """Returns all fields but the tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_TENSORS, "memory")}

    def training_on(self, device: torch.device) -> Images:
        """Returns this set with the training images on `device`, where batches are then cut; test images stay."""
        if self.train.device == device:
            return self
        return replace(self, train=self.train.to(device), train_labels=self.train_labels.to(device), memory=None)

    def training_batch(
        self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Returns the training images `indices` [B], cropped and mirrored at random, as [B, *input_shape], and their
        labels [B].

        Both lie where the training images do. `generator` and `indices` are on the CPU in any case, so that a batch
        is the same on every device.
        """
        device, (rows, columns), kinds = self.train.device, self._corners, 2 if self.flip else 1
        if rows * columns * kinds == 1:
            i = sent(indices, device)
            return self._as_input(self.train[i], dtype), self.train_labels[i]
        # one number for both: where a patch begins, and whether it is mirrored
        draws = torch.randint(rows * columns * kinds, indices.shape, generator=generator)
        if device.type == "cpu":
            patches = _patches_in_numpy(self._windows, indices, draws, columns, self.flip)
            return self._as_input(patches, dtype), self.train_labels[indices]
        i, draws = sent(torch.stack((indices, draws)), device)
        return self._as_input(_patches(self._windows, i, draws, columns, self.flip), dtype), self.train_labels[i]

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """Makes the batch at once, and returns a function that returns it."""
        batch = self.training_batch(indices, generator, dtype)
        return lambda: batch

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields center patches, `size` at most, and their labels, on `device`, of a split or its images `indices`."""
        images, labels = self._tensors()[split], self._tensors()[f"{split}_labels"]
        for part in (torch.arange(len(images)) if indices is None else indices).split(size):
            part = part.to(images.device)
            yield self._as_input(self._center(images[part]).to(device), dtype), labels[part].to(device)

    @property
    def _corners(self) -> tuple[int, int]:
        """The number of rows and the number of columns at which a patch can begin."""
        _, height, width = self.input_shape
        return self.train.shape[2] - height + 1, self.train.shape[3] - width + 1

    @cached_property
    def _windows(self) -> Any:
        """Views [N, C, row, column, height, width] of all patches of all training images; on the CPU a numpy array."""
        _, height, width = self.input_shape
        if self.train.device.type == "cpu":
            return sliding_window_view(self.train.numpy(), (height, width), axis=(2, 3))
        return self.train.unfold(2, height, 1).unfold(3, width, 1)

    def _center(self, images: Tensor) -> Tensor:
        height, width = self.input_shape[1:]
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]

    def _as_input(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns contiguous numbers of `dtype` for the net."""
        return as_input(pixels, dtype, self.scale, self.mean, self.std)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}


def _patches(windows: Tensor, i: Tensor, draws: Tensor, columns: int, flip: bool) -> Tensor:
    """Returns patches [B, C, height, width] of the images `i` [B]. `draws` [B]: the number of a corner, counted row by
    row; with `flip` twice that number, plus 1 for a mirrored patch.
    """
    corners = draws // 2 if flip else draws
    patches = windows[i, :, corners // columns, corners % columns]
    return torch.where((draws % 2 == 1)[:, None, None, None], patches.flip(3), patches) if flip else patches


def _patches_in_numpy(windows: np.ndarray[Any, Any], i: Tensor, draws: Tensor, columns: int, flip: bool) -> Tensor:
    """Does the same on the CPU, twice as fast: numpy copies row by row where torch's indexing goes pixel by pixel."""
    images, numbers = i.numpy(), draws.numpy()
    corners = numbers // 2 if flip else numbers
    patches = windows[images, :, corners // columns, corners % columns]
    if flip:
        mirrored = numbers % 2 == 1
        patches[mirrored] = patches[mirrored, :, :, ::-1]
    return torch.from_numpy(patches)


def _rebuilt(tensors: SharedTensors | dict[str, Tensor], rest: dict[str, Any]) -> Images:
    memory = tensors if isinstance(tensors, SharedTensors) else None
    named: dict[str, Any] = tensors.tensors if isinstance(tensors, SharedTensors) else dict(tensors)
    return Images(**named, **rest, memory=memory)
