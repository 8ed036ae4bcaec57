"""Overrides as text: Hydra's quotes, and which of them are Hydra's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def quote(text: str) -> str:
    """`text` in single quotes as Hydra's grammar wants them: backslashes before a quote or at the end are doubled."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def own(overrides: Sequence[str]) -> list[str]:
    """The overrides that are not Hydra's."""
    return [o for o in overrides if not o.lstrip("+~").startswith("hydra")]


def spelt_out(overrides: Sequence[str]) -> list[str]:
    """The same with tau=auto as the setting that it stands for: tau itself is a number."""
    return ["auto.tau=true" if o == "tau=auto" else o for o in overrides]


def as_given(overrides: Iterable[str]) -> list[str]:
    """The other way round."""
    return ["tau=auto" if o == "auto.tau=true" else o for o in overrides]
