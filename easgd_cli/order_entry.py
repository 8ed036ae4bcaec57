"""An entry of the order of exchanges: one number made of the worker and the place of its partner.

The place is that of a variable among the method's own, or of a master among several: no run has several of both. With
one variable and one master the entry is the worker's number.
"""

from __future__ import annotations

_WORKERS = 16  # bits of a worker's number


def entry_of(worker: int, place: int = 0) -> int:
    """Returns the entry of an exchange between `worker` and the variable or master at `place`."""
    return worker + (place << _WORKERS)


def entry_worker(entry: int) -> int:
    """Returns the number of the worker whose exchange it was."""
    return entry & ((1 << _WORKERS) - 1)


def entry_place(entry: int) -> int:
    """Returns the place of the variable or master with which the worker exchanged."""
    return entry >> _WORKERS
