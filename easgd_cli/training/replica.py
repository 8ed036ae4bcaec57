"""A worker's replica of the center: the center's rule, applied once more to the same bits in the same blocks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from easgd_cli.algorithms.base import Variable
from easgd_cli.training.center import Center


class ReplicatedCenter:
    """The replica. `vectors`: its state by name, each [d]."""

    def __init__(self, variable: Variable, vectors: Mapping[str, Tensor]):
        self._center = Center(variable, vectors)

    def update(self, total: Tensor, reply: Tensor, n: int, clock: int) -> None:
        """Makes the update to the center's clock `clock`, by the sum [d] of `n` messages; fills `reply` [d]."""
        self._center.begin_at([clock - 1])
        self._center.receive_round([self._center.lend(total, reply)], n=n)
