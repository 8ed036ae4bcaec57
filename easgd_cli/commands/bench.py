"""`easgd bench`: what computing, loading data and communicating cost on this hardware, each beside its floor or peer."""

from __future__ import annotations

import difflib
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from easgd_cli import build
from easgd_cli.bench.measure import Row
from easgd_cli.commands import arguments, compose, running
from easgd_cli.config import Settings
from easgd_cli.errors import UsageError

_HELP = """usage: easgd bench WHAT [KEY=VALUE ...] [--windows N] [--json FILE]

Each figure is measured in windows that alternate with those of its floor or peer, in the same run; the ratio is the
median over the windows, with its range.

  exchange   the center's rule, and a whole exchange as a worker sees it, against copying memory
  scaling    a run of the given settings against as many plain PyTorch loops that never communicate (workers=1: against one)
  data       batches of the given data set, cropped and mirrored, against torchvision's DataLoader, on one core
  startup    seconds from the command to the first step of every worker

  easgd bench exchange
  easgd bench scaling algo=easgd dataset=synthetic model=convnet7 workers=2 tau=10 batch_size=128 steps=40
  easgd bench startup workers=8

Settings are those of easgd train. --windows: how many windows of each side (10). --json: write the figures there, too.
"""

_WHAT = ("exchange", "scaling", "data", "startup")


def main(argv: Sequence[str]) -> int:
    """Measures and prints a table; returns the exit status. Raises UsageError."""
    if not argv or "-h" in argv or "--help" in argv:
        print(_HELP, end="")
        return 0
    what, *rest = argv
    if what not in _WHAT:
        near = difflib.get_close_matches(what, _WHAT, 1)
        raise UsageError(f"bench {what}: there is no such benchmark; " + (f"did you mean {near[0]}?" if near else f"there are: {', '.join(_WHAT)}."))
    windows, out, overrides = 10, None, []
    words = iter(rest)
    for word in words:
        if word == "--windows":
            windows = _whole(next(words, ""))
        elif word == "--json":
            out = Path(next(words, ""))
        else:
            overrides.append(word)
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--json {out}: there is no directory {out.parent}.")
    rows = list(_measure(what, overrides, windows))
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def _measure(what: str, overrides: list[str], windows: int) -> Iterator[Row]:
    settings = _settings(overrides)
    console = Console()
    if what == "startup":
        from easgd_cli.bench.startup import seconds_to_first_steps

        seconds = [seconds_to_first_steps(overrides, settings.workers) for _ in range(windows)]
        console.print(
            f"command to the first step of every one of {settings.workers} workers: median {statistics.median(seconds):.2f} s, "
            f"from {min(seconds):.2f} to {max(seconds):.2f} s, {windows} times"
        )
        return
    if what == "exchange":
        from easgd_cli.bench.exchange import run as measure_exchange

        if not build.method(settings).center:
            raise UsageError(f"bench exchange algo={settings.algo['name']}: this method never exchanges; leave algo out, or name one with a center.")
        found = measure_exchange(build.method(settings), windows)
    elif what == "data":
        from easgd_cli.bench.data import run as measure_data

        images = build.prepare(settings).images
        if images is None:
            raise UsageError(f"bench data problem={settings.problem['name']}: this problem has no data set; use problem=dataset.")
        found = iter(measure_data(images, settings.batch_size, windows))
    else:
        from easgd_cli.bench.scaling import run as measure_scaling

        found = measure_scaling(settings, build.prepare(settings), windows)
    for row in found:
        console.print(_table(row))
        yield row


def _table(row: Row) -> Table:
    table = Table(title=row.what, title_justify="left")
    for heading in (row.unit, f"{row.peer_name}, {row.unit}", "ratio", "range", "windows", "target"):
        table.add_column(heading, justify="right")
    target = "" if row.target is None else f">= {row.target:g}"
    table.add_row(f"{row.figure:.4g}", f"{row.peer:.4g}", f"{row.ratio:.3f}", f"{row.least:.3f} to {row.greatest:.3f}", str(row.windows), target)
    return table


def _settings(overrides: list[str]) -> Settings:
    asked = arguments.parse(overrides)
    arguments.parse_overrides(asked.overrides)
    with compose.composing(asked.config_name) as composed:
        settings = composed(asked.overrides).settings
    running.checked(settings)
    return settings


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--windows {text}: must be a whole number of at least 1.")
    return int(text)
