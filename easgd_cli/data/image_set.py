"""The members that all sets of labelled images have in common, in memory or in files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from easgd_cli.data.conversion import checked_channels
from easgd_cli.data.dataset import Targets


class ImageSet:
    """Base of a frozen dataclass with the fields `num_classes`, `mean` and `std`."""

    if TYPE_CHECKING:
        num_classes: int

        @property
        def input_shape(self) -> tuple[int, int, int]: ...

        def _tensors(self) -> dict[str, Tensor]: ...

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
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._tensors().values())

    def normalised(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> Self:
        """Returns this set with (pixel - mean) / std as the net's input; one number a channel. Raises UsageError."""
        channels = self.input_shape[0]
        both = {"mean": checked_channels("mean", mean, channels), "std": checked_channels("std", std, channels)}
        changed: Any = replace(self, **both)  # type: ignore[type-var]
        return changed
