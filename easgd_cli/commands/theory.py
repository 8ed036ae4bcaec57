"""`easgd theory`: the paper's analysis as numbers and figures, and how it agrees with the algorithms' own code."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.commands import output
from easgd_cli.commands.words import taken
from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.system.terminal import help_text
from easgd_cli.theory.settings import STUDIES, default, read

if TYPE_CHECKING:
    from easgd_cli.theory.studies.study import Cell, Study, Table

_HELP = """usage: easgd theory [WHAT] [KEY=VALUE ...] [--out DIR]

Without WHAT, or with all: every study below with its defaults. Each prints its tables and writes numbers as JSON and
CSV and figures as PNG and SVG into DIR (runs/theory); files of an earlier call are replaced. Several values are
separated by commas.

{studies}
  easgd theory
  easgd theory moments p=7 eta=0.3 beta=0.5 h=2 sigma=3 t=17,inf
  easgd theory roundrobin p=8 eta=0.002 rho=4
  easgd theory family eta=0.3 beta=0.1 alpha=-0.05
"""


def main(argv: Sequence[str]) -> int:
    """Computes, prints and writes; returns the exit status. A point that diverges is a result. Raises UsageError."""
    if "-h" in argv or "--help" in argv:
        print(help_text(_HELP.format(studies="\n".join(map(_described, STUDIES)))), end="")
        return 0
    given, words = taken(argv, ("--out",))
    if given.get("--out") == "":
        raise UsageError("--out: names no directory; write --out DIR.")
    if strange := next((word for word in words if word.startswith("-")), None):
        raise UsageError(f"{strange}: there is no such option; see easgd theory --help.")
    what = words.pop(0) if words and "=" not in words[0] else "all"
    if what != "all" and what not in STUDIES:
        near = difflib.get_close_matches(what, ("all", *STUDIES), 1, cutoff=0.5)
        raise UsageError(
            f"theory {what}: there is no such study; "
            + (f"did you mean {near[0]}?" if near else f"there are: {', '.join(STUDIES)}.")
        )
    if what == "all" and words:
        raise UsageError(
            f"{words[0]}: settings belong to one study; name it first, such as easgd theory moments {words[0]}. "
            "See easgd theory --help."
        )
    asked = {name: read(name, words) for name in (STUDIES if what == "all" else [what])}
    directory = output.directory(Path(given.get("--out", "runs/theory")))

    import torch  # only now: a mistake and the help are answered in a moment

    from easgd_cli import picture

    torch.set_num_threads(1)
    for name, settings in asked.items():
        with picture.style():
            study = importlib.import_module(f"easgd_cli.theory.studies.{name}").study(settings)
            try:
                written = study.write(directory)
            except OSError as e:
                raise RunError(f"{directory}: {name} could not be written there ({why(e)}).") from e
        _show(study, written)
    return 0


def _described(name: str) -> str:
    kind = STUDIES[name]
    lines = [f"  {name:<12}{kind.__doc__}"]
    for f in fields(kind):
        value = default(f.default)
        lines.append(f"      {f.name + '=' + value:<50}{f.metadata['what']}")
    return "\n".join(lines) + "\n"


def _show(study: Study, written: Sequence[Path]) -> None:
    for table in study.tables:
        print(_text(table))
    for sentence in study.findings:
        print(sentence)
    print(f"{study.name}: wrote {', '.join(p.name for p in written)} in {written[0].parent}\n", flush=True)


def _text(table: Table) -> str:
    """Returns the table as text, with every digit, however narrow the terminal is."""
    kept = [n for n, column in enumerate(table.columns) if column not in table.unprinted]
    headings = [table.columns[n].split("_") for n in kept]
    deep = max(map(len, headings))
    rows = [list(line) for line in zip(*([""] * (deep - len(h)) + h for h in headings), strict=True)]
    rows += [[_cell(row[n], table.columns[n]) for n in kept] for row in table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(kept))]
    lines = ("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join([table.title, *lines, ""])


def _cell(value: Cell, column: str) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "diverges"
    return f"{value:.2f}" if column.endswith("_in_se") else f"{value:.7g}"
