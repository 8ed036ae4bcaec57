"""Notes of what the owner of the variables has done, kept where the next owner finds them if this one is killed.

The stores of a process that dies remain, in the order in which it made them. So a few numbers say how far the owner
was: which messages make the update under way, which block was being changed, and the order of exchanges. That block's
vectors, as they were before, are kept in a copy. From all this the next owner completes the update as this one would
have, to the bit: the messages lie in the workers' memory, and no worker changes its message before it has the reply.

This is for the death of a process, not of the machine: nothing is flushed, and nothing waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from easgd_cli.algorithms.base import WHOLE
from easgd_cli.order_entry import entry_of
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.transport.base import PULL, Kind, Request

ORDER: Final = 1 << 15  # exchanges whose entries are kept; the owner reports them long before there are so many

# The layout of `numbers`: single numbers, named here; three columns about the members of the update under way; three
# about the last exchange of each party; the clocks of all fragments, before and after that update; for each courier the
# updates of its variable by others, before and after; the order. _AT is twice the number of blocks changed, plus one
# while the next is being changed: a single store says both. The update advances _CLOCKS clocks, from number _FIRST on.
# _COUNTED is the number, from 1, of the courier whose variable is being updated by another party; else 0.
_SERVED, _TARGET, _AT, _MEMBERS, _TO, _FRAGMENT, _FIRST, _CLOCKS, _COUNTED, _FIXED = range(10)
_VARIABLES = 16  # bits of a variable's place in a key

Pairs = list[tuple[Tensor, Tensor]]  # the vectors of a block, each with the place of its copy


class Ledger:
    """The notes in `memory`. `served` exchanges and the variables' `clocks` are those before the update under way.
    `fragments`: of each variable; `carried`: the places of the variables that have a courier, in the order of the
    couriers' numbers.
    """

    def __init__(
        self, memory: SharedTensors, workers: int, fragments: Sequence[int] = (1,), carried: Sequence[int] = ()
    ):
        self._numbers: memoryview = memory["numbers"].numpy().data  # a store takes a fifth of a tensor's time
        self._copy = memory["copy"]
        self._couriers = {place: (i, workers + i) for i, place in enumerate(carried)}
        parties = workers + len(carried)
        self._fragments, self._first = fragments, [0, *itertools.accumulate(fragments)]
        sizes = [parties] * 6 + [self._first[-1]] * 2 + [len(carried)] * 2
        at = list(itertools.accumulate(sizes, initial=_FIXED))
        columns = [self._numbers[a:b] for a, b in itertools.pairwise(at)]
        self._member, self._at, self._vector, self._key, self._clock, self._count = columns[:6]
        self._now, self._next, self._others, self._others_next = columns[6:]
        self._order = self._numbers[at[-1] :]

    @staticmethod
    def allocate(
        vectors: int, block: int, dtype: torch.dtype, workers: int, fragments: Sequence[int] = (1,),
        couriers: int = 0, beside: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
    ) -> SharedTensors:  # fmt: skip
        """Allocates the memory of a ledger for variables of at most `vectors` vectors, changed in blocks of `block`
        entries. `beside`: further tensors to lie there. Raises MemoryError.
        """
        parties = workers + couriers
        numbers = _FIXED + 6 * parties + 2 * sum(fragments) + 2 * couriers + ORDER
        shapes = {"numbers": ((numbers,), torch.int64), "copy": ((vectors, block), dtype), **(beside or {})}
        memory = SharedTensors.allocate(shapes)
        memory["numbers"][_FIXED + 3 * parties : _FIXED + 4 * parties] = -1  # the keys: no exchange has been served
        return memory

    def begin_run(self, served: int, clocks: Sequence[Sequence[int]], others: Sequence[int] = ()) -> None:
        """Notes that `served` exchanges have been made and no update is under way. `clocks`: those of each variable's
        fragments; `others`: for each courier, the updates of its variable by others.
        """
        for i, count in enumerate(others):
            self._others[i] = count
        self._numbers[_SERVED] = self._numbers[_TARGET] = served
        for i, clock in enumerate(itertools.chain(*clocks)):
            self._now[i] = clock

    @property
    def served(self) -> int:
        return self._numbers[_SERVED]

    def clocks(self, variable: int) -> list[int]:
        """Returns the clocks of the fragments of the variable at this place."""
        n, begin = self._numbers, self._first[variable]
        changing = range(0) if n[_TARGET] == n[_SERVED] else range(n[_FIRST], n[_FIRST] + n[_CLOCKS])
        its_own = range(begin, begin + self._fragments[variable])
        return [self._next[i] - 1 if i in changing else self._now[i] for i in its_own]

    def others(self, variable: int) -> int:
        """Returns the updates by others of the variable at this place, which has a courier; not during an update."""
        return self._others[self._couriers[variable][0]]

    # ---------------------------------------------------------------- an update

    def begin(self, members: Sequence[Request]) -> None:
        """Notes that these messages make the next update; with the last store it is under way."""
        n, to, fragment, pulled = self._numbers, members[0].to, members[0].fragment, True
        for i, request in enumerate(members):
            self._member[i], self._at[i], self._vector[i] = request.worker, request.t, request.vector
            pulled = pulled and request.vector == PULL
        first, clocks = self._first[to], self._fragments[to]
        if fragment != WHOLE:
            first, clocks = first + fragment, 1
        for i in range(first, first + clocks):
            self._next[i] = self._now[i] + 1
        n[_MEMBERS], n[_AT], n[_TO], n[_FRAGMENT] = len(members), 0, to, fragment
        n[_FIRST], n[_CLOCKS], n[_COUNTED] = first, 0 if pulled else clocks, 0  # a pull is no update
        if self._couriers and not pulled and to in self._couriers:
            i, number = self._couriers[to]
            if members[0].worker != number:
                self._others_next[i], n[_COUNTED] = self._others[i] + 1, i + 1
        n[_TARGET] = n[_SERVED] + len(members)  # from here on the update is under way

    def pairs(self, vectors: Sequence[Tensor]) -> Pairs:
        """Returns the vectors of one block, each with the place of its copy, as `change` takes them."""
        return [(v, kept[: len(v)]) for v, kept in zip(vectors, self._copy, strict=False)]

    def change(self, block: int, pairs: Pairs) -> None:
        """Copies the vectors of that block, and notes that they are changed next."""
        for v, kept in pairs:
            kept.copy_(v)
        self._numbers[_AT] = 2 * block + 1

    def changed(self, block: int) -> None:
        """Notes that the block's vectors are changed, and its part of the reply is written."""
        self._numbers[_AT] = 2 * block + 2

    def end(self) -> None:
        """Notes that the update is whole, its exchanges served. The last store decides; the others may be repeated."""
        n = self._numbers
        before, served, to = n[_SERVED], n[_TARGET], n[_TO]
        for i in range(n[_FIRST], n[_FIRST] + n[_CLOCKS]):
            self._now[i] = self._next[i]
        if counted := n[_COUNTED]:
            self._others[counted - 1] = self._others_next[counted - 1]
        first, after = self._first[to], self._first[to + 1]
        clock = self._now[first] if after == first + 1 else sum(self._now[i] for i in range(first, after))
        for i in range(served - before):
            worker = self._member[i]
            self._order[(before + i) % ORDER] = entry_of(worker, to)
            self._key[worker], self._clock[worker], self._count[worker] = _key(self._at[i], to), clock, served
        n[_SERVED] = served

    # ---------------------------------------------------------------- for the next owner

    def under_way(self) -> tuple[list[Request], int] | None:
        """Returns the messages of an update that has not ended, if any, and the first block not wholly changed."""
        n = self._numbers
        if n[_TARGET] == n[_SERVED]:
            return None
        members = [
            Request(self._member[i], Kind.EXCHANGE, self._at[i], self._vector[i], n[_TO], n[_FRAGMENT])
            for i in range(n[_MEMBERS])
        ]
        return members, n[_AT] // 2

    def take_back(self, pairs: Pairs) -> None:
        """Restores the vectors of the block that was being changed, if one was."""
        if self._numbers[_AT] % 2:
            for v, kept in pairs:
                v.copy_(kept)

    def answer(self, request: Request) -> tuple[int, int] | None:
        """Returns the clock and the exchanges served in the reply to a served message; None for a new message."""
        if self._key[request.worker] != _key(request.t, request.to):
            return None
        return self._clock[request.worker], self._count[request.worker]

    def has_served(self, request: Request) -> bool:
        """Whether this exchange of a courier, or a later one, has been served: t rises from one to the next."""
        return self._key[request.worker] >> _VARIABLES >= request.t

    def forget(self, worker: int) -> None:
        """Makes the next message of a worker that has come back a new one, whatever its clock."""
        self._key[worker] = -1

    def order(self, since: int) -> list[int]:
        """Returns the entries of the exchanges after the first `since`. Raises ValueError if they are not kept any
        more.
        """
        if not self.served - ORDER <= since <= self.served:
            raise ValueError(f"{self.served - since} exchanges have not been reported, and {ORDER} are kept")
        return [self._order[i % ORDER] for i in range(since, self.served)]


def _key(t: int, variable: int) -> int:
    """Returns the key of a worker's message, which is unique: in a step a worker has at most one for a variable."""
    return (t << _VARIABLES) + variable
