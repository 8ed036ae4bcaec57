"""A variable as its owner keeps it, the center above all: vectors, a clock, and its rule, applied in cache-sized
blocks.
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
    """`vectors`: the variable's state by name, each [d], and `average` where one is kept; `clock` counts updates, and
    is the sum of the `clocks` of its fragments, where it has several. `ledger`: where what is being changed is noted,
    None where nobody would read it.
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
        # a GPU takes a call a block, and those cost more than what its cache saves
        block = BLOCK if x.device.type == "cpu" else max(1, self.size)
        self._slices: list[slice] = []
        self._rules: list[tuple[Receive, Receive]] = []  # of a message of anybody, and of the owner's
        begin = 0
        for (end, rule), (_, own) in zip(variable.parts(self.size), variable.parts(self.size, own=True), strict=True):
            slices = [slice(at, min(at + block, end)) for at in range(begin, end, block)]
            self._slices += slices
            self._rules += [(rule, own)] * len(slices)
            begin = end
        ends = fragment_ends(self.size, variable.fragments)
        self._entries = [slice(a, b) for a, b in zip((0, *ends), ends, strict=False)]  # of each fragment
        stops = [sum(part.stop <= end for part in self._slices) for end in ends]
        self._of = [range(a, b) for a, b in zip((0, *stops), stops, strict=False)]  # its blocks
        # of a round's messages
        self._mean = torch.empty(min(block, self.size) if variable.in_rounds else 0, dtype=x.dtype, device=x.device)
        # whose views keep the vectors alive, so that no other can come to lie there
        self._lent: dict[tuple[int, int, bool], Lent] = {}
        self._blocks = [Vectors({name: v[part] for name, v in self.vectors.items()}) for part in self._slices]
        self._kept = [] if ledger is None else [ledger.pairs(list(vars(block).values())) for block in self._blocks]

    def begin_at(self, clocks: Sequence[int]) -> None:
        """Its fragments have had so many updates."""
        self.clock = sum(clocks)
        self.clocks = list(clocks) if self.variable.fragments > 1 else []

    def lend(self, message: Tensor, reply: Tensor, own: bool = False) -> Lent:
        """The blocks of one exchange, made once per pair of vectors: slicing costs more than the arithmetic of a small
        net. `own`: it is the owner's.
        """
        pair = (message.data_ptr(), reply.data_ptr(), own)
        if pair not in self._lent:
            parts = zip(self._rules, self._blocks, self._slices, strict=True)
            self._lent[pair] = [(rules[own], block, message[part], reply[part]) for rules, block, part in parts]
        return self._lent[pair]

    def pull(self, reply: Tensor) -> None:
        """Fills `reply` [d] with x. It is no update."""
        reply.copy_(self.vectors["x"])

    def serve(
        self, members: Sequence[tuple[int, Tensor | None, Tensor]], first: int = 0, fragment: int = WHOLE,
        *, summed: bool = False,
    ) -> float:  # fmt: skip
        """What these exchanges ask for, each the number of its worker, its message [d] and where its reply goes [d]:
        one update by their messages, or what is left of it from the block `first` on; a pull has no message. All are
        of the same `fragment`. `summed`: each message is already the sum of all. Returns how many vectors that takes
        over a network.
        """
        if self._plain and len(members) == 1 and members[0][1] is not None:  # the way of most exchanges
            self._update(self.lend(members[0][1], members[0][2]), first, self.clock)
            return 2
        owner, answers = self.variable.owner, self.variable.answers
        lent = [self.lend(m, reply, worker == owner) for worker, m, reply in members if m is not None]
        if self.variable.in_rounds and lent:
            self.receive_round(lent[:1] if summed else lent, first, fragment, len(lent))
        else:
            for one in lent:  # of which only a closing exchange has several
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
        """One update by one message: the method's rule on every block, from the `first` on, or on those of one
        `fragment`; its clock advances by one.
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
        """One update by the mean of a round's messages, summed in the order given; everybody gets the same reply. `n`:
        how many messages these are the sum of, where they are not one each.
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
        """The rule on these blocks from the `first` on, which have had so many updates."""
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
        """Undoes what a killed owner has done to a block that it was changing."""
        if self._ledger is not None and block < len(self._kept):
            self._ledger.take_back(self._kept[block])

    def _weight(self, clock: int) -> float:
        """Of the center in its average at the update after so many; 0 where none is kept."""
        return 0.0 if self._average is None else self._average(clock + 1)
