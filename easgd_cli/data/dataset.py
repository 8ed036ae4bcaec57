"""What a problem asks of labelled images, wherever they are kept: whole in memory (`images.Images`) or in files
(`stored.StoredImages`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from easgd_cli.randomness import SUBSET, key

Split = Literal["train", "test", "held_out"]
Batch = tuple[Tensor, Tensor]  # images [B, *input_shape] and their labels [B] int64


class Dataset(Protocol):
    """Training and test images with their labels, and training images held out where that was asked for."""

    @property
    def num_classes(self) -> int: ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """What each class is called, in the order of the labels; None where they are numbers only."""

    @property
    def ahead(self) -> int:
        """Batches that are worth beginning before they are wanted; 0 where making one costs next to nothing."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the net sees."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the workers of a machine share."""

    @property
    def about(self) -> str | None:
        """What a user should know of where the images come from, a sentence; None where there is nothing to say."""

    def count(self, split: Split) -> int:
        """How many images a split has."""

    def hold_out(self, n: int) -> Self:
        """The same with `n` training images set aside as the split `held_out`. Raises UsageError."""

    def normalised(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> Self:
        """The same with (pixel - mean) / std, a number for each channel, handed to the net. Raises UsageError."""

    def share(self) -> Self:
        """The same, in such a way that a child process it is sent to has no copy of its own. Raises MemoryError."""

    def training_on(self, device: torch.device) -> Self:
        """The same with training batches on `device`."""

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """Begins the batch of the training images `indices` [B]; called, the result waits for it and returns it.

        Crops and flips are drawn from `generator` before this returns, so they depend on nothing else.
        """

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        """Center patches of at most `size` images at a time on `device`: of the whole split, or of its images
        `indices`.
        """

    def training_subset(self, n: int) -> Tensor:
        """Indices, ascending, of at most `n` training images: the same in every run, whatever its seed."""


def fixed_subset(total: int, n: int) -> Tensor:
    """Indices, ascending, of at most `n` of `total` images: the same in every run, whatever its seed."""
    if n >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(key(0, SUBSET)))[:n].sort().values
