"""Any method on vectors whose parts have rates of their own: a factor for eta, and the local step's weight_decay.

    a local step (local=)        moves each part by itself, with eta times the part's factor
    a method with its own step   gets each part of g times its factor: there eta occurs in the product eta g alone

The factor comes after clipping, and scales the l2 term with the gradient, as the rate of a parameter group does in
torch.optim. Both ways fail for a step that looks at the whole gradient, or whose eta does more than scale a move. So
`in_parts` first tries the method on a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from easgd_cli.algorithms.base import Gradient, Method, Rule, WithLocalStep, Worker
from easgd_cli.algorithms.elementwise import moved
from easgd_cli.algorithms.local import LocalStep
from easgd_cli.algorithms.schedule import Schedule
from easgd_cli.algorithms.wrapped import Wrapped, relayed

if TYPE_CHECKING:
    from torch import Tensor


class Part(NamedTuple):
    """The entries from `begin` to before `end`, with a factor for `eta`; `weight_decay`: None for the local step's."""

    begin: int
    end: int
    eta: float = 1.0
    weight_decay: float | None = None


def in_parts(method: Method, parts: Sequence[Part], like: Tensor) -> Method:
    """Returns the method with these `parts`, which cover the whole vector. `like`: any tensor on the device where the
    method is tried. Raises ValueError where rates by parts have no meaning in its rule.
    """
    made = with_parts(method, parts)
    first, second = Part(0, 2), Part(2, 5, eta=0.5)
    x, eta = like.new_tensor([0.3, -0.8, 0.5, -0.2, 0.7]).double(), 0.1
    as_one, in_two = moved(method, x, eta), moved(with_parts(method, [first, second]), x, eta)
    for whole, part in ((as_one, first), (as_one, second._replace(eta=1.0)), (in_two, first), (in_two, second)):
        alone = moved(method, x[part.begin : part.end].clone(), eta * part.eta)
        if any((v[part.begin : part.end] - a).abs().max() > 1e-12 for v, a in zip(whole, alone, strict=True)):
            raise ValueError(
                "groups: rates of their own have no meaning in this method or local step, which looks at more of "
                "a gradient than the entry it moves, or whose eta does more than scale a move; give l2 only."
            )
    return made


def with_parts(method: Method, parts: Sequence[Part]) -> Method:
    """Returns the method with these parts, untried. Raises ValueError for a weight_decay where the step has none."""
    if isinstance(method, WithLocalStep):
        own = method.local
        steps = tuple(own if p.weight_decay is None else _decaying(own, p.weight_decay) for p in parts)
        return replace(method, local=ByParts(method.local, tuple(parts), steps))  # type: ignore[type-var]
    for part in parts:
        if part.weight_decay is not None:
            _decaying(method, part.weight_decay)
    return Scaled(method, tuple(parts))


def _decaying(step: Any, weight_decay: float) -> Any:
    if not (isinstance(step, LocalStep) and hasattr(step, "weight_decay")):
        raise ValueError(
            "groups: weight_decay is a constant of local=adamw, and the step of this run has none; give l2, which is "
            "in the gradient, or local=adamw."
        )
    return replace(step, weight_decay=weight_decay)  # type: ignore[type-var]


@dataclass(frozen=True)
class _Scaled:
    """A schedule times a factor."""

    schedule: Schedule
    factor: float

    def __call__(self, t: int) -> float:
        return self.factor * self.schedule(t)


@dataclass(frozen=True)
class ByParts(LocalStep):
    """The local step `whole`, taken on each of the `parts` by itself, with that part's one of the `steps`."""

    whole: LocalStep
    parts: tuple[Part, ...]
    steps: tuple[LocalStep, ...]

    @property
    def state(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.whole.state

    @property
    def scratch(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.whole.scratch

    def at(self, w: Worker) -> Tensor:
        return self.whole.at(w)

    def move(self, w: Worker, g: Tensor) -> None:
        for part, step in zip(self.parts, self.steps, strict=True):
            vectors = {name: getattr(w, name)[part.begin : part.end] for name in ("x", *self.state, *self.scratch)}
            own = Worker(vectors, w.tau, _Scaled(w.schedule, part.eta), w.t, w.number, w.seen)
            step.move(own, g[part.begin : part.end])


@dataclass(frozen=True)
class Scaled(Wrapped):
    """`method`, which gets each part of a gradient multiplied by the part's factor."""

    parts: tuple[Part, ...]

    @property
    def scratch(self) -> tuple[str, ...]:
        return (*self.method.scratch, "g_by_parts")

    def step(self, w: Worker) -> Rule:
        return relayed(self.method.step(w), lambda asked: asked, lambda asked, given: self._scaled(w, asked, given))

    def _scaled(self, w: Worker, ask: Any, given: Any) -> Any:
        if not isinstance(ask, Gradient):
            return given
        for begin, end, factor, _ in self.parts:
            w.g_by_parts[begin:end].copy_(given[begin:end]).mul_(factor)
        return w.g_by_parts
