"""All the variables of a method where one process has them, and what is evaluated of them.

Their vectors have names by which they are allocated, sent and saved together: the center's are `x` and whatever else it
has, those of another variable `name.x` and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from easgd_cli.algorithms.average import Average
from easgd_cli.algorithms.base import CENTER, Method
from easgd_cli.training.center import Center
from easgd_cli.training.ledger import Ledger


class Variables:
    """`vectors`: all of theirs, each [d]; `clocks`: by variable, 0 unless given; `average`: of the center."""

    def __init__(
        self,
        method: Method,
        vectors: Mapping[str, Tensor],
        clocks: Mapping[str, int] | None = None,
        average: Average | None = None,
        ledger: Ledger | None = None,
    ):
        self.vectors = dict(vectors)
        self.centers: dict[str, Center] = {}
        for name, variable in method.variables.items():
            kept = average if name == CENTER else None
            own = (*variable.state, *(("average",) if kept is not None else ()))
            of = {vector: vectors[_whole(name, vector)] for vector in own}
            self.centers[name] = Center(variable, of, average=kept, ledger=ledger)
            self.centers[name].begin_at(clocks_of(clocks or {}, name, variable.fragments))

    @staticmethod
    def names(method: Method, *, average: bool) -> list[str]:
        """Of all their vectors, and of the center's average where one is kept."""
        names = [_whole(name, v) for name, variable in method.variables.items() for v in variable.state]
        return names + (["average"] if average else [])

    @staticmethod
    def begin(names: Iterable[str], start: Tensor) -> dict[str, Tensor]:
        """The vectors of these names where they begin: x, and an average of it, at `start` [d], the others 0."""
        return {
            name: start.clone() if name.rpartition(".")[2] in ("x", "average") else torch.zeros_like(start)
            for name in names
        }

    @property
    def clock(self) -> int:
        """The center's, or the updates of all variables where there is none."""
        center = self.centers.get(CENTER)
        return sum(c.clock for c in self.centers.values()) if center is None else center.clock

    @property
    def clocks(self) -> dict[str, int]:
        """Of each, and of their fragments where they have several."""
        of_fragments = {
            _fragment(name, f): clock for name, center in self.centers.items() for f, clock in enumerate(center.clocks)
        }
        return {name: center.clock for name, center in self.centers.items()} | of_fragments

    def evaluated(self) -> dict[str, Tensor]:
        """What is measured and saved [d]: the center's x and its average, or the mean of all variables' x as x."""
        center = self.centers.get(CENTER)
        if center is not None:
            return {name: v for name, v in center.vectors.items() if name in ("x", "average")}
        first, *others = (c.vectors["x"] for c in self.centers.values())
        mean = first.clone()
        for x in others:
            mean += x
        return {"x": mean.div_(len(self.centers))}

    def spread(self) -> float | None:
        """The root mean square distance of the variables from their mean; None where there is a center, or nothing."""
        if CENTER in self.centers or not self.centers:
            return None
        mean = self.evaluated()["x"]
        distances = torch.stack([torch.dist(c.vectors["x"], mean) for c in self.centers.values()])
        return float(distances.square().mean().sqrt())


def clocks_of(clocks: Mapping[str, int], variable: str, fragments: int) -> list[int]:
    """The clocks of its fragments, of those that `Variables.clocks` has; 0 unless they are there."""
    names = [variable] if fragments == 1 else [_fragment(variable, f) for f in range(fragments)]
    return [clocks.get(name, 0) for name in names]


def _fragment(variable: str, fragment: int) -> str:
    return f"{variable}/{fragment}"


def _whole(variable: str, vector: str) -> str:
    return vector if variable == CENTER else f"{variable}.{vector}"
