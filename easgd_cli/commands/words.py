"""The words of a command that Hydra does not read: options with a value each, and names that may be mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


def taken(words: Iterable[str], options: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The values of these options, written `--name VALUE` or `--name=VALUE` ("": none), and the other words.
    Of an option that is given twice the last counts.
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
    """What to write in place of a name that is not known: the end of a sentence."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}."
