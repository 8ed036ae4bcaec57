"""An entry of the order of exchanges: whose it was, and with what, in one number.

The place is that of a variable among a method's own, or of a master among several: no run has both. With one of each
the number is the worker's.
"""

from __future__ import annotations

_WORKERS = 16  # bits of a worker's number


def entry_of(worker: int, place: int = 0) -> int:
    """Of an exchange of this worker."""
    return worker + (place << _WORKERS)


def entry_worker(entry: int) -> int:
    """Whose exchange it was."""
    return entry & ((1 << _WORKERS) - 1)


def entry_place(entry: int) -> int:
    """The place of the variable or the master that it was with."""
    return entry >> _WORKERS
