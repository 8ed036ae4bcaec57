"""Gossiping SGD: no center while training (Jin, Yuan, Iandola, Keutzer, "How to scale distributed deep learning?",
arXiv 1611.04581; after notes on it). j is another worker, uniformly random.

    pull, if tau divides t^i:                   push, if tau divides t^i:
        i publishes x^i                             i sends x^i to j
        x^i <- (x^i + x^j) / 2                      x^i <- (x^i + all received since) / (1 + their number)
    both, every step:
        x^i <- x^i - eta g^i(x)                 x: the old local value, so that exchange and gradient overlap

x^j is what j has published last, at the beginning of its own last step that was due. Each worker owns a variable, which
has what it publishes or has received; a worker's message to its own variable crosses no network. The mean of what all
have published is evaluated and saved, and the spread around it recorded. After its last step each worker publishes x
once more.

Both forms keep the mean of all x in expectation only: what is added to x^i is not taken from any other x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Rule, Variable, Vectors, WithLocalStep, Worker
from easgd_cli.algorithms.local import PLAIN, LocalStep
from easgd_cli.randomness import RULE, uniform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gossip(WithLocalStep):
    """Base of both forms: the peers, and which other worker each meets."""

    workers: int
    seed: int
    local: LocalStep = PLAIN

    def __post_init__(self) -> None:
        if self.workers < 2:
            raise ValueError(f"workers={self.workers}: gossip takes two or more; one worker is algo=sgd.")

    def home(self, worker: int) -> str:
        return f"peer_{worker}"

    def closing(self, w: Worker) -> Exchange:
        return Exchange(w.x, to=self.home(w.number))  # so that the evaluated mean is of the workers' last x

    def other(self, w: Worker) -> int:
        """Returns the number of the worker that `w` meets at its step t, drawn uniformly from the others."""
        j = int(uniform(self.seed, RULE, w.number, w.t) * (self.workers - 1))
        return j + (j >= w.number)


class GossipPull(Gossip):
    """Averages x with what a random other worker has published."""

    def step(self, w: Worker) -> Rule:
        theirs = None
        if w.due:
            yield Exchange(w.x, to=self.home(w.number))
            theirs = Exchange(None, to=self.home(self.other(w)))
        g, other = yield Gradient(self.local.at(w)), theirs
        if other is not None:
            w.x.lerp_(other, 0.5)
        self.local.move(w, g)

    def _publish(self, peer: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        peer.x.copy_(m)

    @property
    def variables(self) -> Mapping[str, Variable]:
        return {self.home(i): Variable(self._publish, owner=i) for i in range(self.workers)}


class GossipPush(Gossip):
    """Sends x to a random other worker, which averages all that it has received with its own x."""

    @property
    def scratch(self) -> tuple[str, ...]:
        return ("mean", *self.local.scratch)

    def step(self, w: Worker) -> Rule:
        mean = (yield Exchange(w.x, to=self.home(w.number))) if w.due else None
        if mean is not None:
            w.mean.copy_(mean)  # the next reply may lie where this one does
        g, _ = yield Gradient(self.local.at(w)), Exchange(w.x, to=self.home(self.other(w))) if w.due else None
        if mean is not None:
            w.x.copy_(w.mean)
        self.local.move(w, g)

    def _receive(self, peer: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        peer.sum.add_(m)
        peer.n.add_(1)

    def _average(self, peer: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        peer.x.copy_(peer.sum.add_(m)).div_(peer.n.add_(1))
        reply.copy_(peer.x)
        peer.sum.zero_()
        peer.n.zero_()

    @property
    def variables(self) -> Mapping[str, Variable]:
        state = ("x", "sum", "n")
        return {
            self.home(i): Variable(self._receive, state, owner=i, own=self._average, answers=False)
            for i in range(self.workers)
        }
