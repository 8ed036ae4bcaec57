"""Reads the words of a command that Hydra does not read: options with a value each, and names that may be mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


def taken(words: Iterable[str], options: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the values of these options, written `--name VALUE` or `--name=VALUE` ("" where a value is missing), and
    the other words. The last value of an option counts.
    """
    values: dict[str, str] = {}
    others, rest = [], iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in options:
            values[option] = value if equals else next(rest, "")
        else:
            others.append(word)
    return values, others


def meant(name: str, known: Sequence[str]) -> str:
    """Returns the end of a sentence on an unknown name: what to write in its place."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}."
