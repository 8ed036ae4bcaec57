"""What the workers of a run have beside their sessions where the center is replicated (`collective.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easgd_cli.system.shared_memory import AnonymousFile, Layout, SharedTensors
from easgd_cli.transport.meeting import Meeting


@dataclass
class Replica:
    """What a worker has of the center, [d] each by name; where the lead puts its sums [d]; and where the members of a
    group find each other.

    The lead takes two places in turn, since the master may still be busy with the other, and a third instead of one in
    which a sum that was left may be under way.
    """

    center: SharedTensors
    shared: SharedTensors
    meeting: Meeting
    workers: int

    @classmethod
    def new(
        cls, center: Sequence[str], size: int, dtype: torch.dtype, workers: int, meeting: Meeting | None = None
    ) -> list[Replica]:
        """Of every worker; they meet in a file of this machine unless it is said where. Raises MemoryError."""
        layout: Layout = {name: ((size,), dtype) for name in center}
        meeting = meeting or Meeting(AnonymousFile())
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
