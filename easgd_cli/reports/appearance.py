"""What the figures of a comparison share: the colour, dash and hatch of each name, and the words for seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easgd_cli import picture
from easgd_cli.reports.comparison import Comparison, label
from easgd_cli.system.terminal import printable

DASHES = ("-", "--", ":", "-.")  # tell curves of one colour apart; after the last dash, the colour gets paler
HATCHES = (None, "///", "...", "xxx")  # tell bars of one colour apart
RANGES = 8  # the most curves in a panel, or bars side by side, that have ranges: more would hide each other


def looks(c: Comparison, names: Mapping[int, str], without: Sequence[str]) -> dict[str, tuple[Any, int]]:
    """Returns the colour of each name, and the number of its dash or hatch.

    `names`: the name of each configuration, by its id(). `without`: the settings that the figure shows elsewhere, and
    not in names. Configurations with the same method, and the same other settings that are texts, have one colour, in
    all figures; where that would be one colour for all, each name has its own.
    """
    texts = [key for key in c.told_apart if any(isinstance(of.values[key], str) for of in c.configurations)]
    named = [key for key in texts if key not in without]
    groups: dict[str, dict[str, None]] = {}
    for of in c.configurations:
        groups.setdefault(label({key: of.values[key] for key in named}), {})[names[id(of)]] = None
    if len(groups) == 1:
        groups = {name: {name: None} for group in groups.values() for name in group}
    rounds = -(-len(groups) // len(picture.COLOURS))  # how many groups share a colour
    found: dict[str, tuple[Any, int]] = {}
    for number, group in enumerate(groups.values()):
        for at, name in enumerate(group):
            among = at * rounds + number // len(picture.COLOURS)
            colour = picture.COLOURS[number % len(picture.COLOURS)]
            found[name] = picture.paler(colour, min(0.75, among // len(DASHES) / 4)), among % len(DASHES)
    return found


def seconds(c: Comparison) -> str:
    virtual = {run.virtual for run in c.runs}
    if len(virtual) > 1:
        return "seconds of training, some virtual,"
    return "virtual seconds of training" if virtual == {True} else "seconds of training"


def text(name: str) -> str:
    """Returns the name for matplotlib: no dollar sign begins a formula, and no control character breaks the file."""
    return printable(name).replace("$", r"\$")
