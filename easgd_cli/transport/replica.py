"""What the workers of a run have beside their sessions where the center is replicated (`collective.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easgd_cli.system.shared_memory import AnonymousFile, Layout, SharedTensors


@dataclass
class Replica:
    """What a worker has of the center, [d] each by name; where the lead puts the `sum` [d], which all share; and the
    file in which the members of a group find each other.
    """

    center: SharedTensors
    sum: SharedTensors
    meeting: AnonymousFile
    workers: int

    @classmethod
    def new(cls, center: Sequence[str], size: int, dtype: torch.dtype, workers: int) -> list[Replica]:
        """Of every worker. Raises MemoryError."""
        layout: Layout = {name: ((size,), dtype) for name in center}
        meeting = AnonymousFile()
        total = SharedTensors.allocate({"sum": ((size,), dtype)})
        return [cls(SharedTensors.allocate(layout), total, meeting, workers) for _ in range(workers)]

    def begin(self, center: Mapping[str, Tensor]) -> None:
        """It is as the center is."""
        for name, v in self.center.tensors.items():
            v.copy_(center[name])

    def close(self) -> None:
        """Gives its descriptors back."""
        for part in (self.center, self.sum, self.meeting):
            part.close()
