"""Takes a few numbers through a method's rules, so that callers can see whether each entry is moved by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Vectors, Worker
from easgd_cli.algorithms.schedule import Constant

if TYPE_CHECKING:
    from torch import Tensor


def moved(method: Method, x: Tensor, eta: float) -> list[Tensor]:
    """Returns the x of a single worker after five steps from `x`, and the x of each variable of the method. Each entry
    of the gradient is a function of the same entry of the point at which it is taken.
    """

    def new(names: Sequence[str]) -> dict[str, Tensor]:
        return {name: x.clone() if name == "x" else x * 0 for name in names}

    w = Worker(new((*method.state, *method.scratch)), 2, Constant(eta))
    shared = {name: (variable, Vectors(new(variable.state))) for name, variable in method.variables.items()}

    def answer(ask: Any) -> Tensor | None:
        if isinstance(ask, Gradient):
            return (3 * ask.at + w.t).sin()
        if isinstance(ask, Exchange):
            variable, vectors = shared[ask.to]
            if ask.message is None:
                return vectors.x
            reply = x * 0
            variable.receive(vectors, ask.message, reply, 1)
            return reply
        return None

    for t in range(5):
        w.t = t
        rule, given = method.step(w), None
        while True:
            try:
                asked = rule.send(given)
            except StopIteration:
                break
            given = tuple(map(answer, asked)) if isinstance(asked, tuple) else answer(asked)
    return [w.x, *(vectors.x for _, vectors in shared.values())]
