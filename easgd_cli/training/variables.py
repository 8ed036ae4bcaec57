"""All variables of a method, in the one process that owns them, and what is evaluated of them.

Their vectors are allocated, sent and saved by name: the center's as `x` and whatever else it has, those of another
variable as `name.x` and so on.
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
    """`vectors`: those of all variables, each [d]; `clocks`: by variable, 0 unless given; `average`: the center's."""

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
        """Returns the names of all variables' vectors, and of the center's average where one is kept."""
        names = [_whole(name, v) for name, variable in method.variables.items() for v in variable.state]
        return names + (["average"] if average else [])

    @staticmethod
    def begin(names: Iterable[str], start: Tensor) -> dict[str, Tensor]:
        """Returns the vectors of these names at the start: x and the average equal `start` [d], the others are 0."""
        return {
            name: start.clone() if name.rpartition(".")[2] in ("x", "average") else torch.zeros_like(start)
            for name in names
        }

    @property
    def clock(self) -> int:
        """The center's clock; without a center, the updates of all variables."""
        center = self.centers.get(CENTER)
        return sum(c.clock for c in self.centers.values()) if center is None else center.clock

    @property
    def clocks(self) -> dict[str, int]:
        """The clock of each variable, and of each fragment of those with several."""
        of_fragments = {
            _fragment(name, f): clock for name, center in self.centers.items() for f, clock in enumerate(center.clocks)
        }
        return {name: center.clock for name, center in self.centers.items()} | of_fragments

    def evaluated(self) -> dict[str, Tensor]:
        """Returns what is measured and saved [d]: the center's x and average; without a center, the mean x of all."""
        center = self.centers.get(CENTER)
        if center is not None:
            return {name: v for name, v in center.vectors.items() if name in ("x", "average")}
        first, *others = (c.vectors["x"] for c in self.centers.values())
        mean = first.clone()
        for x in others:
            mean += x
        return {"x": mean.div_(len(self.centers))}

    def spread(self) -> float | None:
        """Returns the variables' root mean square distance from their mean; None with a center or no variables."""
        if CENTER in self.centers or not self.centers:
            return None
        mean = self.evaluated()["x"]
        distances = torch.stack([torch.dist(c.vectors["x"], mean) for c in self.centers.values()])
        return float(distances.square().mean().sqrt())


def clocks_of(clocks: Mapping[str, int], variable: str, fragments: int) -> list[int]:
    """Returns the clocks of a variable's fragments, out of what `Variables.clocks` gives; 0 for those missing there."""
    names = [variable] if fragments == 1 else [_fragment(variable, f) for f in range(fragments)]
    return [clocks.get(name, 0) for name in names]


def _fragment(variable: str, fragment: int) -> str:
    return f"{variable}/{fragment}"


def _whole(variable: str, vector: str) -> str:
    return vector if variable == CENTER else f"{variable}.{vector}"
