"""DOWNPOUR: Algorithm 3 of Zhang, Choromanska, LeCun (2015), p. 20.

    if tau divides t^i:
        a) x~  <- x~ + v^i
        b) x^i <- x~                            after a): the worker's own push is in what it pulls
        c) v^i <- 0
    x^i <- x^i - eta g^i(x^i)                   ONE gradient, at the x^i before the update,
    v^i <- v^i - eta g^i(x^i)                   used in both lines
    t^i <- t^i + 1

The center receives the sum over the workers, no 1/p, so the largest stable eta shrinks like 1/p. The gradient belongs
to the pulled x, so this exchange cannot overlap it; fetching the batch can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Vectors, Worker

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DOWNPOUR(Method):
    """Pushes what has accumulated since the last push, then pulls."""

    state = ("x", "v")

    def step(self, w: Worker) -> Rule:
        pulled = (yield Exchange(w.v)) if w.due else None  # a)
        g = yield Gradient(w.x if pulled is None else pulled)
        if pulled is not None:  # only now: a rule changes its state after its last yield
            w.x.copy_(pulled)  # b)
            w.v.zero_()  # c)
        w.x.sub_(g, alpha=w.eta)
        w.v.sub_(g, alpha=w.eta)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.add_(m, alpha=n)  # a)
        reply.copy_(center.x)
