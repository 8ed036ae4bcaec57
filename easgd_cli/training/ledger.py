"""What the owner of a center has done, kept where the next owner finds it if this one is killed.

A process that dies leaves its stores in the order in which it made them. So a few numbers beside the center say how far
it was: which messages made the update under way, which block was being changed, and the order of exchanges. The block
being changed has a copy of what it was. From these the next owner ends the update as this one would have, to the bit:
the messages lie in the workers' memory, and no worker changes its own before it has its reply.

Written for death of a process, not of the machine: nothing is flushed, and nothing waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.transport.base import Kind, Request

ORDER: Final = 1 << 15  # exchanges whose workers are kept; their owner reports them long before that many

# Numbers of their own, then three columns of members and three of workers, then the order. _AT is twice the number of
# blocks that have been changed, and one more while the next is being changed: a single store says both.
_SERVED, _CLOCK, _TARGET, _NEXT_CLOCK, _AT, _MEMBERS, _FIXED = range(7)

Pairs = list[tuple[Tensor, Tensor]]  # the vectors of a block, each with the place of its copy


class Ledger:
    """`served` exchanges and the center's `clock`, as they are while no update is under way."""

    def __init__(self, memory: SharedTensors, workers: int):
        self._numbers: memoryview = memory["numbers"].numpy().data  # a store is a fifth of one into a tensor
        self._copy = memory["copy"]
        self._workers = workers
        at = [_FIXED + i * workers for i in range(7)]
        self._member, self._at, self._vector, self._t, self._clock, self._count = (
            self._numbers[a:b] for a, b in itertools.pairwise(at)
        )
        self._order = self._numbers[at[-1] :]

    @staticmethod
    def allocate(vectors: int, block: int, dtype: torch.dtype, workers: int) -> SharedTensors:
        """For a center of so many vectors, changed in blocks of so many entries. Raises MemoryError."""
        memory = SharedTensors.allocate(
            {"numbers": ((_FIXED + 6 * workers + ORDER,), torch.int64), "copy": ((vectors, block), dtype)}
        )
        memory["numbers"][_FIXED + 3 * workers : _FIXED + 4 * workers] = -1  # no exchange of theirs has been served
        return memory

    def begin_run(self, served: int, clock: int) -> None:
        """Nothing is under way, at so many exchanges."""
        self._numbers[_SERVED] = self._numbers[_TARGET] = served
        self._numbers[_CLOCK] = clock

    @property
    def served(self) -> int:
        return self._numbers[_SERVED]

    @property
    def clock(self) -> int:
        n = self._numbers
        return n[_CLOCK] if n[_TARGET] == n[_SERVED] else n[_NEXT_CLOCK] - 1

    # ---------------------------------------------------------------- an update

    def begin(self, members: Sequence[Request]) -> None:
        """These messages make the next update."""
        n = self._numbers
        for i, request in enumerate(members):
            self._member[i], self._at[i], self._vector[i] = request.worker, request.t, request.vector
        n[_MEMBERS], n[_AT], n[_NEXT_CLOCK] = len(members), 0, n[_CLOCK] + 1
        n[_TARGET] = n[_SERVED] + len(members)  # from here on it is under way

    def pairs(self, vectors: Sequence[Tensor]) -> Pairs:
        """The vectors of one block as `change` takes them."""
        return [(v, kept[: len(v)]) for v, kept in zip(vectors, self._copy, strict=True)]

    def change(self, block: int, pairs: Pairs) -> None:
        """These vectors of that block are changed next."""
        for v, kept in pairs:
            kept.copy_(v)
        self._numbers[_AT] = 2 * block + 1

    def changed(self, block: int) -> None:
        """They have been, and so has the reply."""
        self._numbers[_AT] = 2 * block + 2

    def end(self) -> None:
        """The update is whole: its exchanges have been served. The last store decides; the others may be made twice."""
        n = self._numbers
        before, served, clock = n[_SERVED], n[_TARGET], n[_NEXT_CLOCK]
        for i in range(served - before):
            worker = self._member[i]
            self._order[(before + i) % ORDER] = worker
            self._t[worker], self._clock[worker], self._count[worker] = self._at[i], clock, served
        n[_CLOCK] = clock
        n[_SERVED] = served

    # ---------------------------------------------------------------- for the next owner

    def under_way(self) -> tuple[list[Request], int] | None:
        """The messages of an update that has not ended, and the first block it has not changed."""
        n = self._numbers
        if n[_TARGET] == n[_SERVED]:
            return None
        members = [Request(self._member[i], Kind.EXCHANGE, self._at[i], self._vector[i]) for i in range(n[_MEMBERS])]
        return members, n[_AT] // 2

    def take_back(self, pairs: Pairs) -> None:
        """Makes the vectors of the block that was being changed what they were."""
        if self._numbers[_AT] % 2:
            for v, kept in pairs:
                v.copy_(kept)

    def answer(self, request: Request) -> tuple[int, int] | None:
        """The center's clock and the exchanges served after this message's own, if it has been served already."""
        if self._t[request.worker] != request.t:
            return None
        return self._clock[request.worker], self._count[request.worker]

    def forget(self, worker: int) -> None:
        """Its next message is a new one, whatever its clock: it has come back."""
        self._t[worker] = -1

    def order(self, since: int) -> list[int]:
        """Whose exchanges have been served since there were so many. Raises ValueError if they are not kept any
        more.
        """
        if not self.served - ORDER <= since <= self.served:
            raise ValueError(f"{self.served - since} exchanges have not been reported, and {ORDER} are kept")
        return [self._order[i % ORDER] for i in range(since, self.served)]
