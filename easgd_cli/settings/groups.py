"""Groups of parameters: the entries of `groups`, checked; the net's names are not known here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from easgd_cli.errors import UsageError
from easgd_cli.settings.schema import Settings
from easgd_cli.settings.targets import convert

_EXAMPLE = """'groups=[{match: "*.bias", l2: 0}, {match: "head.*", eta: 10}]'"""


@dataclass(frozen=True)
class ParameterGroup:
    """The parameters whose name fits the pattern `match`, with their own l2, their own factor for eta, and their own
    weight_decay in the local step; None: as for all others.
    """

    match: str
    l2: float | None = None
    eta: float | None = None
    weight_decay: float | None = None


_TYPES = get_type_hints(ParameterGroup)


def read(s: Settings) -> tuple[ParameterGroup, ...]:
    """Returns the groups of a run. Raises UsageError."""
    return tuple(_group(f"groups[{i}]", entry) for i, entry in enumerate(s.groups))


def _group(name: str, entry: Mapping[str, Any]) -> ParameterGroup:
    for part, value in entry.items():
        if part not in _TYPES:
            raise UsageError(f"{name}.{part}={value}: a group has match, l2, eta and weight_decay, as in {_EXAMPLE}.")
    said = {part: convert(f"{name}.{part}", value, _TYPES[part]) for part, value in entry.items() if value is not None}
    if "match" not in said or len(said) < 2:
        raise UsageError(f"{name}: has match, and what is to hold where it fits, as in {_EXAMPLE}.")
    for part, value in said.items():
        if part != "match" and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name}.{part}={value:g}: must be a finite number that is not negative.")
    return ParameterGroup(**said)
