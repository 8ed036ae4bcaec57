"""A variable, above all the center, in the process that owns it: vectors, a clock, and a rule that is applied in
cache-sized blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from easgd_cli.algorithms.average import Average
from easgd_cli.algorithms.base import WHOLE, Receive, Variable, Vectors, fragment_ends
from easgd_cli.training.ledger import Ledger

# 256 KiB of float32: message, reply and center stay in the second-level cache between the lines of a rule, so that each
# is read and written once in main memory. Replaying a run bit for bit needs the same blocks: a vectorised kernel may
# round the last few elements of a slice differently.
BLOCK = 65_536

Lent = list[tuple[Receive, Vectors, Tensor, Tensor]]


class Center:
    """One variable as its owner keeps it. `vectors`: its state by name, each [d], and `average` if the run keeps one.
    `clock`: the number of updates so far; with several fragments, the sum of their `clocks`. `ledger`: where each
    update is noted for a next owner; None if no other owner will follow.
    """

    def __init__(
        self,
        variable: Variable,
        vectors: Mapping[str, Tensor],
        average: Average | None = None,
        ledger: Ledger | None = None,
    ):
        self.variable, self.vectors, self.clock, self._average = variable, dict(vectors), 0, average
        self._ledger = ledger
        self.clocks = [0] * variable.fragments if variable.fragments > 1 else []
        self._plain = variable.owner is None and variable.answers and not variable.in_rounds and variable.fragments == 1
        self.size = self.vectors["x"].numel()
        x = self.vectors["x"]
        # on a GPU every block means further calls, which cost more than the cache saves
        block = BLOCK if x.device.type == "cpu" else max(1, self.size)
        self._slices: list[slice] = []
        self._rules: list[tuple[Receive, Receive]] = []  # of each block, for others' messages and for the owner's
        begin = 0
        for (end, rule), (_, own) in zip(variable.parts(self.size), variable.parts(self.size, own=True), strict=True):
            slices = [slice(at, min(at + block, end)) for at in range(begin, end, block)]
            self._slices += slices
            self._rules += [(rule, own)] * len(slices)
            begin = end
        ends = fragment_ends(self.size, variable.fragments)
        self._entries = [slice(a, b) for a, b in zip((0, *ends), ends, strict=False)]  # each fragment's
        stops = [sum(part.stop <= end for part in self._slices) for end in ends]
        self._of = [range(a, b) for a, b in zip((0, *stops), stops, strict=False)]  # each fragment's blocks
        # a block of the mean of a round's messages
        self._mean = torch.empty(min(block, self.size) if variable.in_rounds else 0, dtype=x.dtype, device=x.device)
        # by the vectors' addresses; the views keep the vectors alive, so that no other vector gets the same address
        self._lent: dict[tuple[int, int, bool], Lent] = {}
        self._blocks = [Vectors({name: v[part] for name, v in self.vectors.items()}) for part in self._slices]
        self._kept = [] if ledger is None else [ledger.pairs(list(vars(block).values())) for block in self._blocks]

    def begin_at(self, clocks: Sequence[int]) -> None:
        """Sets the clock of each fragment."""
        self.clock = sum(clocks)
        self.clocks = list(clocks) if self.variable.fragments > 1 else []

    def lend(self, message: Tensor, reply: Tensor, own: bool = False) -> Lent:
        """Returns the blocks of one exchange, sliced once per pair of vectors: slicing costs more than the arithmetic
        of a small net. `own`: whether the message is the owner's.
        """
        pair = (message.data_ptr(), reply.data_ptr(), own)
        if pair not in self._lent:
            parts = zip(self._rules, self._blocks, self._slices, strict=True)
            self._lent[pair] = [(rules[own], block, message[part], reply[part]) for rules, block, part in parts]
        return self._lent[pair]

    def pull(self, reply: Tensor) -> None:
        """Copies x into `reply` [d]. This is no update: the clock stays."""
        reply.copy_(self.vectors["x"])

    def serve(
        self, members: Sequence[tuple[int, Tensor | None, Tensor]], first: int = 0, fragment: int = WHOLE,
        *, summed: bool = False,
    ) -> float:  # fmt: skip
        """Applies the messages of these exchanges and fills their replies. A member is a worker's number, its message
        [d] (None: a pull) and the place of its reply [d]; all concern the same `fragment`. `first`: the block to go on
        from in an update that an earlier owner has begun. `summed`: every message is already the sum of the round's.
        Returns how many vectors the exchanges would move over a network.
        """
        if self._plain and len(members) == 1 and members[0][1] is not None:  # the way of most exchanges
            self._update(self.lend(members[0][1], members[0][2]), first, self.clock)
            return 2
        owner, answers = self.variable.owner, self.variable.answers
        lent = [self.lend(m, reply, worker == owner) for worker, m, reply in members if m is not None]
        if self.variable.in_rounds and lent:
            self.receive_round(lent[:1] if summed else lent, first, fragment, len(lent))
        else:
            for one in lent:  # more than one only in a closing exchange
                self.receive(one, first, fragment)
        answered = next((reply for _, m, reply in members if m is not None), self.vectors["x"])
        entries, share = slice(None), 1.0
        if fragment != WHOLE:
            entries, share = self._entries[fragment], 1 / self.variable.fragments
        for _, m, reply in members:
            if m is None:
                reply[entries].copy_(answered[entries])
        return share * sum((m is not None) + (answers or m is None) for worker, m, _ in members if worker != owner)

    def receive(self, lent: Lent, first: int = 0, fragment: int = WHOLE) -> None:
        """Makes one update by one message: applies the method's rule to every block from `first` on, or to those of one
        `fragment`. The clocks of the updated fragments advance by one.
        """
        if self.variable.fragments == 1:
            self._update(lent, first, self.clock)
            return
        for f in self._named(fragment):
            blocks = self._of[f]
            self._update(lent[: blocks.stop], max(first, blocks.start), self.clocks[f])
            self.clocks[f] += 1

    def receive_round(
        self, members: Sequence[Lent], first: int = 0, fragment: int = WHOLE, n: int | None = None
    ) -> None:
        """Makes one update by the mean of a round's messages, summed in the order given; every member gets the same
        reply. `n`: how many messages the given ones are the sum of, unless each is one.
        """
        n = len(members) if n is None else n
        if self.variable.fragments == 1:
            self._update_together(members, first, self.clock, n)
            return
        for f in self._named(fragment):
            blocks = self._of[f]
            self._update_together(
                [lent[: blocks.stop] for lent in members], max(first, blocks.start), self.clocks[f], n
            )
            self.clocks[f] += 1

    def _named(self, fragment: int) -> Sequence[int]:
        return range(self.variable.fragments) if fragment == WHOLE else [fragment]

    def _update(self, lent: Lent, first: int, clock: int) -> None:
        """Applies the rule to the blocks from `first` on; `clock`: the updates that these blocks have had before."""
        weight, ledger = self._weight(clock), self._ledger
        for i, (rule, block, message, reply) in enumerate(lent[first:] if first else lent, first):
            if ledger is not None:
                ledger.change(i, self._kept[i])
            block.t = clock
            rule(block, message, reply, 1)
            if weight:
                block.average.lerp_(block.x, weight)
            if ledger is not None:
                ledger.changed(i)
        self.clock += 1

    def _update_together(self, members: Sequence[Lent], first: int, clock: int, n: int) -> None:
        weight, ledger = self._weight(clock), self._ledger
        for i, parts in enumerate(list(zip(*members, strict=True))[first:], first):
            if ledger is not None:
                ledger.change(i, self._kept[i])
            rule, block, message, reply = parts[0]
            mean = self._mean[: len(message)].copy_(message)
            for _, _, other, _ in parts[1:]:
                mean.add_(other)
            mean.div_(n)
            block.t = clock
            rule(block, mean, reply, n)
            if weight:
                block.average.lerp_(block.x, weight)
            for _, _, _, other in parts[1:]:
                other.copy_(reply)
            if ledger is not None:
                ledger.changed(i)
        self.clock += 1

    def take_back(self, block: int) -> None:
        """Restores the block, if a killed owner was in the middle of changing it."""
        if self._ledger is not None and block < len(self._kept):
            self._ledger.take_back(self._kept[block])

    def _weight(self, clock: int) -> float:
        """Returns the center's weight in its average at the update after `clock` updates; 0 without an average."""
        return 0.0 if self._average is None else self._average(clock + 1)
