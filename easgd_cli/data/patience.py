"""Tells on stderr how far a loop is, if it takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

_FIRST = 2.0  # seconds before the first line
_NEXT = 5.0  # between two lines

T = TypeVar("T")


def told(items: Sequence[T], doing: str) -> Iterator[T]:
    """Yields `items`; after two seconds, then every five, prints a line with `doing` and how many are done."""
    say_at = time.monotonic() + _FIRST
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now >= say_at:
            say_at = now + _NEXT
            print(f"easgd: {doing}: {done + 1:,} of {len(items):,}", file=sys.stderr, flush=True)
