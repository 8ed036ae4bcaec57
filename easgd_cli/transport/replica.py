"""What the workers of a run have beside their sessions where the center is replicated (`collective.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easgd_cli.system.shared_memory import AnonymousFile, Layout, SharedTensors


@dataclass
class Replica:
    """What a worker has of the center, [d] each by name; where the lead puts its sums [d]; and the file in which the
    members of a group find each other.

    The lead takes two places in turn, since the master may still be busy with the other, and a third instead of one in
    which a sum that was left may be under way.
    """

    center: SharedTensors
    shared: SharedTensors
    meeting: AnonymousFile
    workers: int

    @classmethod
    def new(cls, center: Sequence[str], size: int, dtype: torch.dtype, workers: int) -> list[Replica]:
        """Of every worker. Raises MemoryError."""
        layout: Layout = {name: ((size,), dtype) for name in center}
        meeting = AnonymousFile()
        total = SharedTensors.allocate(dict.fromkeys(("first", "second", "third"), ((size,), dtype)))
        return [cls(SharedTensors.allocate(layout), total, meeting, workers) for _ in range(workers)]

    @property
    def sums(self) -> list[Tensor]:
        """The places of sums, [d] each."""
        return list(self.shared.tensors.values())

    def number(self, place: Tensor) -> int:
        """Which of them this is."""
        return [v.data_ptr() for v in self.sums].index(place.data_ptr())

    def begin(self, center: Mapping[str, Tensor]) -> None:
        """It is as the center is."""
        for name, v in self.center.tensors.items():
            v.copy_(center[name])

    def close(self) -> None:
        """Gives its descriptors back."""
        for part in (self.center, self.shared, self.meeting):
            part.close()
