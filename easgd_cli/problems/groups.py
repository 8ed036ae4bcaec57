"""Which entries of the flat vector have which l2 and which factor for eta."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from easgd_cli.errors import UsageError
from easgd_cli.problems.flat import Flat
from easgd_cli.settings.groups import ParameterGroup


def parts(
    flat: Flat, groups: Sequence[ParameterGroup], otherwise: Mapping[str, float | None]
) -> list[tuple[int, int, tuple[Any, ...]]]:
    """Returns the whole vector as a list of as few parts as possible, each as (the entry where it begins, the entry
    before which it ends, its values of the settings in `otherwise`). `otherwise`: the values of parameters whose groups
    say nothing.

    Where several groups fit a parameter and have a value of a setting, the last group counts. Raises UsageError for a
    pattern that fits no parameter.
    """
    _check(flat, groups)
    found: list[tuple[int, int, tuple[Any, ...]]] = []
    for names, (begin, end) in zip(flat.names, flat.places, strict=True):
        values = dict(otherwise)
        for group in groups:
            if _fits(group.match, names):
                values |= {key: v for key in otherwise if (v := getattr(group, key)) is not None}
        if found and found[-1][2] == tuple(values.values()):
            begin = found.pop()[0]
        found.append((begin, end, tuple(values.values())))
    return found


def _fits(pattern: str, names: Iterable[str]) -> bool:
    """Returns whether the pattern fits any of a parameter's names; one that is used in several places has several."""
    return any(fnmatchcase(name, pattern) for name in names)


def _check(flat: Flat, groups: Sequence[ParameterGroup]) -> None:
    trained = [name for names in flat.names for name in names]
    for i, group in enumerate(groups):
        if _fits(group.match, trained):
            continue
        written = f"groups[{i}].match={group.match}"
        if _fits(group.match, (name for name, _ in flat.model.named_parameters())):
            raise UsageError(f"{written}: fits only parameters that are frozen (requires_grad=False); leave it out.")
        near = difflib.get_close_matches(group.match, trained, 3, 0.4) or trained[:3]
        raise UsageError(
            f"{written}: fits the name of no parameter of this net, such as {', '.join(near)}; * stands for any "
            "letters."
        )
