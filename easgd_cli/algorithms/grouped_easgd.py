"""Groups around a center: all-reduced SGD inside a group, elastic averaging between groups (after the abstract of
Mamidala et al., "MXNET-MPI", arXiv 1801.03855).

    worker i of group k, n of them, every step:
        x^k <- x^k - (1/n) sum_i eta g^i(x^k)   in rounds of the group: its workers share one x
    group k, if tau divides its clock, t > 0:
        a) x^k <- x^k - alpha (x - x~)          x: the group's old value
        b) x~  <- x~  + alpha (x - x~)          the same difference, with x~ as it was before b)

The group's x is a variable, and its courier exchanges with the center while the group computes its next gradient, at
the old x. So one group is EASGD with a single worker of the concatenated batch. Groups do not wait for one another.
alpha = beta / groups, since groups, not workers, exchange with the center.

A group of one worker needs no variable: p of them are EASGD itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import (
    CENTER,
    Courier,
    Exchange,
    Gradient,
    Method,
    Rule,
    Variable,
    Vectors,
    Worker,
    check_moving_rate,
)
from easgd_cli.algorithms.easgd import EASGD

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GroupedEASGD(Method):
    """Elastic averaging of so many `groups` of equally many workers. `alpha`: moving rate, beta / groups unless
    given.
    """

    workers: int
    beta: float = 0.9
    alpha: float | None = None
    groups: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.groups <= self.workers or self.workers % self.groups:
            fitting = ", ".join(str(n) for n in range(1, self.workers + 1) if self.workers % n == 0)
            raise ValueError(
                f"algo.groups={self.groups} workers={self.workers}: all groups have the same number of workers; "
                f"use {fitting}."
            )
        check_moving_rate(self._alpha)

    @property
    def _alpha(self) -> float:
        return self.beta / self.groups if self.alpha is None else self.alpha

    @property
    def _size(self) -> int:
        return self.workers // self.groups

    @property
    def scratch(self) -> tuple[str, ...]:
        return ("m",) if self._size > 1 else ()

    def step(self, w: Worker) -> Rule:
        return EASGD(self._alpha).step(w) if self._size == 1 else self._step_together(w)

    def _step_together(self, w: Worker) -> Rule:
        g = yield Gradient(w.x)
        w.m.copy_(g).mul_(w.eta)  # the group's clock knows no schedule: eta travels with the message
        w.x.copy_((yield Exchange(w.m, to=self.home(w.number))))

    def _receive(self, group: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        group.x.sub_(m)
        reply.copy_(group.x)

    def _carry(self, group: str, w: Worker) -> Rule:
        """The rule of a group's courier, after the group's round t; w.x: the vector that it carries."""
        if w.due:
            w.x.copy_((yield Exchange(None, to=group)))
            center = yield Exchange(w.x)  # b)
            if center is not None:
                w.x.copy_(center)
                yield Exchange(w.x, to=group)  # a)

    @property
    def variables(self) -> Mapping[str, Variable]:
        elastic = EASGD(self._alpha).receive
        groups = {
            f"group_{k}": Variable(
                self._receive, gathers="round", members=range(k * self._size, (k + 1) * self._size),
                owner=self.workers + k, own=elastic,
            )
            for k in range(self.groups if self._size > 1 else 0)
        }  # fmt: skip
        return {CENTER: Variable(elastic), **groups}

    @property
    def couriers(self) -> Mapping[str, Courier]:
        return {name: Courier(partial(self._carry, name)) for name in self.variables if name != CENTER}

    def home(self, worker: int) -> str:
        return f"group_{worker // self._size}" if self._size > 1 else CENTER
