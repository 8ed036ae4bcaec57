"""What problems ask of data: the members of `Dataset`. Forms that have them are images whole in memory
(`images.Images`) or in files (`stored.StoredImages`), arrays (`arrays.Arrays`), text (`text.Text`) and a torch Dataset
of the user's (`mapped.Mapped`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from easgd_cli.randomness import SUBSET, key

Split = Literal["train", "test", "held_out"]
# The kind of targets. "labels": whole numbers, one a sample or one for each place of it; "several labels": a bool for
# each class; "tokens": none, since samples are sequences of whole numbers.
Targets = Literal["labels", "numbers", "several labels", "tokens"]
# Inputs, a tensor [B, ...] or a tuple or dictionary of tensors, and targets, a tensor [B, ...] (None: tokens)
Batch = tuple[Any, Any]
Shape = Any  # of one sample's inputs: a tuple of numbers, or a tuple or dictionary of these


class Dataset(Protocol):
    """Training and test samples with their targets, and training samples held out where that was asked for."""

    @property
    def targets(self) -> Targets: ...

    @property
    def num_classes(self) -> int | None:
        """The number of classes or of different tokens; None: other targets, or not known."""

    def class_count(self, ignored: int | None) -> int | None:
        """Returns `num_classes`, found without the label `ignored`, which stands for no class."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the labels; None where classes have no names."""

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's target: () for a single number; None without targets."""

    @property
    def ahead(self) -> int:
        """How many batches to begin before they are needed; 0 where making a batch costs next to nothing."""

    @property
    def input_shape(self) -> Shape:
        """Shape of a sample's inputs as the net sees them; of an image channels, rows and columns."""

    @property
    def described(self) -> str:
        """The net's inputs in words, for a sentence."""

    @property
    def sample_size(self) -> int:
        """How many numbers the net sees of a sample."""

    @property
    def nbytes(self) -> int:
        """Bytes of the memory with this data set that the workers of a machine share."""

    @property
    def about(self) -> str | None:
        """A sentence that tells the user where the samples come from; None where there is nothing to say."""

    def count(self, split: Split) -> int:
        """Returns how many samples a split has."""

    def hold_out(self, n: int) -> Self:
        """Returns this data set with `n` training samples set aside as the split `held_out`. Raises UsageError."""

    def share(self) -> Self:
        """Returns this data set, such that child processes to which it is sent share one copy. Raises MemoryError."""

    def training_on(self, device: torch.device) -> Self:
        """Returns this data set with training batches on `device`."""

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """Begins the batch of the training samples `indices` [B]. Returns a function that waits for the batch.

        Random numbers are drawn from `generator` before this returns, or later by generators whose seed was drawn from
        it, so the batch depends on nothing else.
        """

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        """Yields batches of at most `size` samples on `device`, of a split or of its samples `indices`. Of images
        they have the center patches.
        """


def fixed_subset(total: int, n: int) -> Tensor:
    """Returns ascending indices of at most `n` of `total` samples: the same in every run, whatever its seed."""
    if n >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(key(0, SUBSET)))[:n].sort().values
