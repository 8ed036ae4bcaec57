"""Any method with a center that several masters own, a slice each: masters=k.

    worker i:     its rule as it is; a message goes to all masters at once, each takes its slice, and the reply is whole
                  when all have answered
    master j:     the center's rule on its slice, with a clock and an order of its own

The rule is elementwise, so a slice is a vector to it. What changes is that one exchange becomes k: two slices of one
message may be applied after different messages of other workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from easgd_cli.algorithms.base import CENTER, Method, Rule, Variable, Worker
from easgd_cli.algorithms.wrapped import Wrapped

# Long vectors are cut at multiples of _LONG entries, so that the kernels of one master and of several round every entry
# alike, and no cut separates entries that share an ulp when sent (wire.py's SHARING). Short ones are cut at multiples
# of _SHORT, for the first reason alone.
_LONG, _SHORT = 1024, 64


def slices(size: int, masters: int) -> list[slice]:
    """Returns the slice of a vector [size] that each master owns, of about equal lengths. Raises ValueError where the
    vector is too short for that many masters.
    """
    unit = _LONG if size >= _LONG * masters else _SHORT
    if masters > 1 and size < unit * masters:
        raise ValueError(
            f"masters={masters}: x has {size:,} entries and a master's slice at least {_SHORT}; give at most "
            f"{max(1, size // _SHORT)}."
        )
    ends = [round(size * j / masters / unit) * unit for j in range(masters)] + [size]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


@dataclass(frozen=True)
class OfSlice(Wrapped):
    """`method` for the master that owns these `entries` of vectors [size]."""

    entries: slice
    size: int

    def step(self, w: Worker) -> Rule:
        return self.method.step(w)

    @property
    def variables(self) -> Mapping[str, Variable]:
        center = self.method.variables[CENTER]
        if center.tail is None:
            return {CENTER: center}
        begin, (statistics, rule) = self.size - center.tail[0], center.tail
        inside = min(statistics, max(0, self.entries.stop - max(begin, self.entries.start)))
        return {CENTER: replace(center, tail=(inside, rule))}


def of_slice(method: Method, entries: slice, size: int) -> Method:
    """Returns the method for the master of these entries of vectors [size]; unchanged where these are all entries."""
    return method if entries.start == 0 and entries.stop == size else OfSlice(method, entries, size)


def refusal(method: Method, masters: int, fragments: int) -> str | None:
    """Returns why a method's center cannot be cut into slices; None where it can."""
    if masters == 1 or method.alone:
        return None
    if list(method.variables) != [CENTER]:
        return f"masters={masters}: slices are of one center, and this method has other variables; leave out masters=."
    if method.in_rounds:
        return (
            f"masters={masters}: this method takes rounds, and when a worker is lost two masters might not agree on "
            "whose they were; leave out masters=, or use a method that waits for nobody, such as algo=easgd."
        )
    if fragments > 1:
        return (
            f"masters={masters} fragments={fragments}: a vector is cut in one way: a fragment is exchanged by itself "
            "in its turn, a slice with all others; leave out one of the two."
        )
    return None
