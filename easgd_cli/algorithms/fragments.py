"""Any method on a vector that is exchanged in fragments: one every tau / F steps, in place of all of it every tau.

    fragment f of F, by itself, for as long as the run lasts:
        x_f follows the method's own lines, but is due where tau divides t - f tau / F (rounded down) instead of t
        x~_f and the same entries of the center's other vectors follow them with a clock of their own

The bytes are as many, without the burst: each message and each reply is one fragment. Rules are elementwise, so a
fragment is a vector to them. What changes is the point at which a worker differentiates: one fragment has just been
exchanged, another will be in a few steps.

One gradient serves all fragments: each fragment's rule asks for its part, and the gradient is taken at the vector that
is made of the points at which the rules ask. The closing exchange is of the whole vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Variable, Worker, entries_of, fragment_ends
from easgd_cli.algorithms.elementwise import moved
from easgd_cli.algorithms.groups import Part, with_parts
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.algorithms.wrapped import Wrapped

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InFragments(Wrapped):
    """`method` on vectors in fragments; `of`: for each fragment the method, with the fragment's own rates if any."""

    of: tuple[Method, ...]

    @property
    def scratch(self) -> tuple[str, ...]:
        return (*self.of[0].scratch, "at_fragments")

    @property
    def variables(self) -> Mapping[str, Variable]:
        return {name: replace(of, fragments=len(self.of)) for name, of in self.method.variables.items()}

    def step(self, w: Worker) -> Rule:
        steps = [_Step(method, w, f, len(self.of)) for f, method in enumerate(self.of)]
        while True:
            exchange = None
            for step in steps:
                while step.exchange is not None and step.at is None:  # asks for no gradient yet
                    step.answer(None, (yield step.exchange))
                exchange = step.exchange or exchange
            if all(step.ended for step in steps):
                return
            asking = [step for step in steps if step.at is not None]
            g, reply = yield Gradient(self._where(w, asking)), exchange
            # the due fragment first: its rule may ask for more exchanges, before which no other may change its state
            for step in sorted(asking, key=lambda step: not step.w.due):
                step.answer(g, reply)
                while step.exchange is not None and step.at is None:
                    step.answer(None, (yield step.exchange))

    def _where(self, w: Worker, steps: Sequence[_Step]) -> Tensor:
        """Returns the point [d] at which these steps ask for the gradient: one of the worker's own vectors, where all
        ask at fragments of it; else a vector put together from the fragments.
        """
        owners = {step.whole(step.at) for step in steps}
        if len(owners) == 1 and (name := owners.pop()) is not None:
            return getattr(w, name)
        for step in steps:
            assert step.at is not None
            w.at_fragments[step.entries].copy_(step.at)
        return w.at_fragments


def in_fragments(method: Method, fragments: int, size: int, parts: Sequence[Part], like: Tensor) -> Method:
    """Returns the method on vectors [size] in so many fragments. `parts`: the whole vector in parts with rates of their
    own, or nothing; `like`: any tensor on the device where the method is tried. Raises ValueError where the method does
    not allow fragments.
    """
    if fragments > size:
        raise ValueError(f"fragments={fragments}: x has {size} entries, so there are at most {size} fragments.")
    x = like.new_tensor([0.3, -0.8, 0.5, -0.2, 0.7]).double()
    whole = moved(method, x, 0.1)
    for entries in (slice(0, 2), slice(2, 5)):
        alone = moved(method, x[entries].clone(), 0.1)
        if any((v[entries] - a).abs().max() > 1e-12 for v, a in zip(whole, alone, strict=True)):
            raise ValueError(
                f"fragments={fragments}: this method or local step looks at more of a vector than the entry it moves, "
                "so fragments do not make the whole; leave out fragments=."
            )
    if _exchanges_when_not_due(method, x):
        raise ValueError(
            f"fragments={fragments}: this method does not exchange by tau alone, so its fragments have no turns; leave "
            "out fragments=."
        )
    ends = (0, *fragment_ends(size, fragments))
    of = [with_parts(method, _within(parts, a, b)) if parts else method for a, b in itertools.pairwise(ends)]
    return InFragments(method, tuple(of))


def _within(parts: Sequence[Part], begin: int, end: int) -> list[Part]:
    """Returns what of the parts lies from entry `begin` to before `end`, with entries counted from `begin`."""
    cut = [p._replace(begin=max(p.begin, begin) - begin, end=min(p.end, end) - begin) for p in parts]
    return [part for part in cut if part.begin < part.end]


def _exchanges_when_not_due(method: Method, x: Tensor) -> bool:
    vectors = {name: x.clone() for name in (*method.state, *method.scratch)}
    rule, given = method.step(Worker(vectors, 2, Constant(0.1), phase=1)), None
    with suppress(StopIteration):
        while True:
            asked = rule.send(given)
            asks = asked if isinstance(asked, tuple) else (asked,)
            if any(isinstance(ask, Exchange) for ask in asks):
                return True
            answers = tuple(x if isinstance(ask, Gradient) else None for ask in asks)
            given = answers if isinstance(asked, tuple) else answers[0]
    return False


class _Step:
    """One fragment's step in progress. `at`: where its rule asks for a gradient, None: it does not; `exchange`: the
    exchange that its rule asks for, or None.
    """

    def __init__(self, method: Method, w: Worker, fragment: int, fragments: int):
        self.entries, self._fragment = entries_of(w.x.numel(), fragments, fragment), fragment
        self._all = w
        own = {name: getattr(w, name)[self.entries] for name in (*method.state, *method.scratch)}
        self._names = {v.data_ptr(): name for name, v in own.items()}
        phase = fragment * w.tau // fragments
        self.w = Worker(own, w.tau, w.schedule, w.t, w.number, w.seen, phase)
        self._rule, self._asked = method.step(self.w), None
        self.at: Tensor | None = None
        self.exchange: Exchange | None = None
        self.ended = False
        self._go_on(None)

    def whole(self, v: Any) -> str | None:
        """Returns the name of the worker's own vector whose fragment `v` is; None where it is no such fragment."""
        return self._names.get(v.data_ptr())

    def answer(self, g: Tensor | None, reply: Tensor | None) -> None:
        """Hands the rule the fragment's entries of the gradient `g` [d] and of `reply` [d]."""

        def to(ask: Any) -> Tensor | None:
            given = g if isinstance(ask, Gradient) else reply if isinstance(ask, Exchange) else None
            return None if given is None else given[self.entries]

        self._go_on(tuple(map(to, self._asked)) if isinstance(self._asked, tuple) else to(self._asked))

    def _go_on(self, answer: Any) -> None:
        self.at = self.exchange = None
        try:
            self._asked = self._rule.send(answer)
        except StopIteration:
            self.ended = True
            return
        for ask in self._asked if isinstance(self._asked, tuple) else (self._asked,):
            if isinstance(ask, Gradient):
                self.at = ask.at
            elif isinstance(ask, Exchange):
                self.exchange = self._of_all(ask)

    def _of_all(self, ask: Exchange) -> Exchange:
        if not self.w.due:
            raise TypeError("a method whose vectors are exchanged in fragments exchanges where tau divides its clock")
        if ask.message is None:
            return Exchange(None, ask.to, self._fragment)
        name = self.whole(ask.message)
        # a message that is none of the worker's own vectors is passed on: the transport refuses it
        return Exchange(ask.message if name is None else getattr(self._all, name), ask.to, self._fragment)
