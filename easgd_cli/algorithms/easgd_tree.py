"""EASGD Tree: elastic averaging on a tree of variables (Zhang's thesis, "Distributed stochastic optimization for deep
learning", 2016, chapter 6; after its abstract, since its listing was not at hand).

The workers are the leaves; only they compute gradients. Every inner node is a variable, the root is the center. A node
moves toward what it receives from a neighbour:

    x^i <- x^i + alpha (x^j - x^i)              x^j from the parent or from a child

    leaf:   x <- x^i                            the old local value
            x^i <- x^i - alpha (x - x^parent)   where the parent's x has come down
            x^i <- x^i - eta g^i(x)             gradient at the OLD x, as in EASGD: the local step

Messages go up and down a link with one of two schemes of periods, counted in local steps of the leaves:

    tau1 on the links of the leaves (tau), tau2 on those above (algo.tau2), both ways at once; or
    tau_up for what goes up and tau_down for what comes down, on all links.

An inner node's courier makes the node's exchanges with its parent: it carries the node's x up, and down the parent's x
as it was before. A node does not see the clocks of leaves, so its courier counts the updates by the children: c
children that send every tau1 steps make c tau2 / tau1 updates in tau2 steps. A lost child makes none, so the links
above are used less often.

A tree of depth 1 is EASGD with this alpha. A node that is lost begins again with its parent's x; meanwhile its children
go on alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from easgd_cli.algorithms.base import (
    CENTER,
    Courier,
    Exchange,
    Gradient,
    Rule,
    Variable,
    WithLocalStep,
    Worker,
    check_moving_rate,
)
from easgd_cli.algorithms.easgd import EASGD
from easgd_cli.algorithms.local import PLAIN, LocalStep


@dataclass(frozen=True)
class EASGDTree(WithLocalStep):
    """Elastic averaging on a tree whose inner nodes have at most `degree` children.

    `depth`: links from the root to a leaf, by default as few as the degree allows. `alpha`: moving rate of all nodes,
    by default beta / (degree + 1).
    """

    workers: int
    tau: int
    beta: float = 0.9
    alpha: float | None = None
    degree: int = 16
    depth: int | None = None
    tau2: int | None = None  # 10 tau unless given
    tau_up: int | None = None
    tau_down: int | None = None
    local: LocalStep = PLAIN

    def __post_init__(self) -> None:
        for name in ("degree", "depth", "tau2", "tau_up", "tau_down"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"algo.{name}={value}: must be a positive whole number.")
        if self.degree < 2 and self.workers > 1:
            raise ValueError(f"algo.degree={self.degree}: a node of the tree has 2 children or more.")
        if (self.tau_up is None) != (self.tau_down is None):
            raise ValueError("algo.tau_up and algo.tau_down belong together; give both, or use tau and algo.tau2.")
        if self.tau_up is not None and self.tau2 is not None:
            raise ValueError(
                f"algo.tau2={self.tau2} algo.tau_up={self.tau_up}: are two schemes of periods; leave out one."
            )
        if self.depth is not None and self.degree**self.depth < self.workers:
            raise ValueError(
                f"algo.depth={self.depth} algo.degree={self.degree}: such a tree has at most "
                f"{self.degree**self.depth} leaves, and workers={self.workers}; give a greater depth or degree."
            )
        check_moving_rate(self._alpha)

    @property
    def _alpha(self) -> float:
        return self.beta / (self.degree + 1) if self.alpha is None else self.alpha

    # ---------------------------------------------------------------- the tree

    @cached_property
    def _levels(self) -> list[int]:
        """How many nodes each level has, from the root to the leaves."""
        levels = [self.workers]
        while levels[0] > self.degree or (self.depth is not None and len(levels) < self.depth):
            levels.insert(0, -(-levels[0] // self.degree))
        return [1, *levels]

    @cached_property
    def _parents(self) -> dict[str | int, str]:
        """The parent of every leaf, by its worker's number, and of every inner node but the root, by its name."""
        parents: dict[str | int, str] = {}
        for level in range(1, len(self._levels)):
            for i in range(self._levels[level]):
                leaf = level == len(self._levels) - 1
                parents[i if leaf else self._node(level, i)] = self._node(level - 1, i // self.degree)
        return parents

    def _node(self, level: int, i: int) -> str:
        return CENTER if level == 0 else f"node_{sum(self._levels[1:level]) + i + 1}"

    def _children(self, node: str) -> list[str | int]:
        return [child for child, parent in self._parents.items() if parent == node]

    @cached_property
    def _inner(self) -> list[str]:
        """Names of the inner nodes except the root, from the top down."""
        return [name for name in self._parents if isinstance(name, str)]

    @property
    def variables(self) -> Mapping[str, Variable]:
        couriers = {name: self.workers + i for i, name in enumerate(self._inner)}
        receive = EASGD(self._alpha).receive
        return {
            name: Variable(receive, owner=couriers.get(name), origin=self._parents.get(name))
            for name in (CENTER, *self._inner)
        }

    @property
    def couriers(self) -> Mapping[str, Courier]:
        return {name: Courier(partial(self._carry, name, *self._updates(name))) for name in self._inner}

    def home(self, worker: int) -> str:
        return self._parents[worker]

    def _updates(self, node: str) -> tuple[int, int]:
        """Returns two periods of a node's courier, in updates by the node's children: how often it carries the node's x
        up, and how often the parent's x down.
        """
        children = self._children(node)
        if self.tau_up is not None and self.tau_down is not None:
            return len(children), max(1, round(len(children) * self.tau_down / self.tau_up))
        above_leaves = isinstance(children[0], int)
        period = max(1, round(len(children) * self._tau2 / self.tau)) if above_leaves else len(children)
        return period, period

    @property
    def _tau2(self) -> int:
        return 10 * self.tau if self.tau2 is None else self.tau2

    # ---------------------------------------------------------------- the rules

    def step(self, w: Worker) -> Rule:
        up = w.t % (self.tau_up or self.tau) == 0
        down = w.t % (self.tau_down or self.tau) == 0
        asked = Exchange(w.x if up else None, to=self._parents[w.number]) if up or down else None
        g, parent = yield Gradient(self.local.at(w)), asked
        if parent is not None and down:
            w.x.lerp_(parent, self._alpha)
        self.local.move(w, g)

    def _carry(self, node: str, up_every: int, down_every: int, w: Worker) -> Rule:
        """The rule of the courier of `node`, after the children's update t; w.x: the vector that it carries."""
        up, down = w.t % up_every == 0, w.t % down_every == 0
        own = (yield Exchange(None, to=node)) if up else None
        if own is not None:
            w.x.copy_(own)
        elif up:  # the node is lost
            return
        if up or down:
            parent = yield Exchange(w.x if up else None, to=self._parents[node])
            if down and parent is not None:
                w.x.copy_(parent)
                yield Exchange(w.x, to=node)
