"""The center variable as its owner keeps it: vectors, a clock, and the method's rule applied in cache-sized blocks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from easgd_cli.algorithms.base import Method, Vectors

# 256 KiB of float32: message, reply and center stay in the second-level cache between the lines of a rule, so that each
# is read and written once in main memory. Replaying a run bit for bit needs the same blocks: a vectorised kernel may
# round the last few elements of a slice differently.
BLOCK = 65_536

Lent = list[tuple[Vectors, Tensor, Tensor]]


class Center:
    """`vectors`: the method's center vectors by name, each [d]; `clock` counts updates."""

    def __init__(self, method: Method, vectors: Mapping[str, Tensor], clock: int = 0):
        self.method, self.vectors, self.clock = method, dict(vectors), clock
        self.size = self.vectors["x"].numel()
        self._slices = [slice(at, min(at + BLOCK, self.size)) for at in range(0, self.size, BLOCK)]
        self._blocks = [Vectors({name: v[part] for name, v in self.vectors.items()}) for part in self._slices]

    def lend(self, message: Tensor, reply: Tensor) -> Lent:
        """The blocks of one exchange, made once per pair of vectors: slicing costs more than the arithmetic of a small net."""
        return [(block, message[part], reply[part]) for block, part in zip(self._blocks, self._slices, strict=True)]

    def receive(self, lent: Lent, n: int = 1) -> None:
        """One update: the method's rule on every block; the clock advances by one."""
        rule = self.method.receive
        for block, message, reply in lent:
            rule(block, message, reply, n)
        self.clock += 1
