"""What a problem asks of data, whatever they are and wherever they lie: images whole in memory (`images.Images`) or in
files (`stored.StoredImages`), arrays (`arrays.Arrays`), a torch Dataset of the user's (`mapped.Mapped`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from easgd_cli.randomness import SUBSET, key

Split = Literal["train", "test", "held_out"]
# What samples are to give. Labels are whole numbers, of a sample or of each place of it; tokens are sequences of whole
# numbers without targets.
Targets = Literal["labels", "numbers", "several labels", "tokens"]
# Inputs, a tensor [B, ...] or a tuple or dictionary of such, and targets, a tensor [B, ...] (None: tokens)
Batch = tuple[Any, Any]
Shape = Any  # of one sample's inputs: a tuple of numbers, or a tuple or dictionary of such


class Dataset(Protocol):
    """Training and test samples with their targets, and training samples held out where that was asked for."""

    @property
    def targets(self) -> Targets: ...

    @property
    def num_classes(self) -> int | None:
        """How many classes labels name, or how many tokens there are; None: other targets, or not known."""

    def class_count(self, ignored: int | None) -> int | None:
        """The same, but for a label that does not count."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """What each class is called, in the order of the labels; None where they are numbers only."""

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """That of one sample's target: () for a single number; None without targets."""

    @property
    def ahead(self) -> int:
        """Batches that are worth beginning before they are wanted; 0 where making one costs next to nothing."""

    @property
    def input_shape(self) -> Shape:
        """That of what the net sees of a sample: of an image channels, rows and columns."""

    @property
    def described(self) -> str:
        """What the net sees, for a sentence."""

    @property
    def sample_size(self) -> int:
        """How many numbers the net sees of a sample."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the workers of a machine share."""

    @property
    def about(self) -> str | None:
        """What a user should know of where the samples come from, a sentence; None where there is nothing to say."""

    def count(self, split: Split) -> int:
        """How many samples a split has."""

    def hold_out(self, n: int) -> Self:
        """The same with `n` training samples set aside as the split `held_out`. Raises UsageError."""

    def share(self) -> Self:
        """The same, in such a way that a child process it is sent to has no copy of its own. Raises MemoryError."""

    def training_on(self, device: torch.device) -> Self:
        """The same with training batches on `device`."""

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """Begins the batch of the training samples `indices` [B]; called, the result waits for it and returns it.

        What is random in it is drawn from `generator` before this returns, or seeded by a number drawn from it, so it
        depends on nothing else.
        """

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        """Batches of at most `size` on `device`, of a split or its samples `indices`; of images the center patches."""


def fixed_subset(total: int, n: int) -> Tensor:
    """Indices, ascending, of at most `n` of `total` samples: the same in every run, whatever its seed."""
    if n >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(key(0, SUBSET)))[:n].sort().values
