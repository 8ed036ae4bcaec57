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
    """One worker's part. `center`: its replica of the center's vectors, [d] each by name; `shared`: the places for the
    lead's sums, [d] each; `meeting`: where the members of a group find each other.

    The lead uses two places in turn, since the master may still be reading the other. The third one replaces a place in
    which a sum that has been left may still be written.
    """

    center: SharedTensors
    shared: SharedTensors
    meeting: Meeting
    workers: int

    @classmethod
    def new(
        cls, center: Sequence[str], size: int, dtype: torch.dtype, workers: int, meeting: Meeting | None = None
    ) -> list[Replica]:
        """Allocates one for each worker; `meeting`: a file of this machine unless given. Raises MemoryError."""
        layout: Layout = {name: ((size,), dtype) for name in center}
        meeting = meeting or Meeting(AnonymousFile())
        total = SharedTensors.allocate(dict.fromkeys(("first", "second", "third"), ((size,), dtype)))
        return [cls(SharedTensors.allocate(layout), total, meeting, workers) for _ in range(workers)]

    @property
    def sums(self) -> list[Tensor]:
        """The places for sums, [d] each."""
        return list(self.shared.tensors.values())

    def number(self, place: Tensor) -> int:
        """Returns the number of this place among `sums`."""
        return [v.data_ptr() for v in self.sums].index(place.data_ptr())

    def begin(self, center: Mapping[str, Tensor]) -> None:
        """Copies the center into the replica."""
        for name, v in self.center.tensors.items():
            v.copy_(center[name])

    def close(self) -> None:
        """Gives all descriptors back."""
        for part in (self.center, self.shared, self.meeting):
            part.close()
