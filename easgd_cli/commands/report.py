"""`easgd report`: tables, figures and one page of what runs have shown, side by side."""

from __future__ import annotations

import difflib
import io
import json
import math
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.commands import output
from easgd_cli.commands.words import taken
from easgd_cli.errors import RunError, UsageError
from easgd_cli.system.terminal import for_terminal, help_text, printable, tell

if TYPE_CHECKING:
    from easgd_cli.reports.comparison import Comparison
    from easgd_cli.reports.table import ResultTable

_HELP = """usage: easgd report PATH... [--levels N,N,...] [--baseline KEY=VALUE,...] [--metric NAME] [--x AXIS]
                           [--rows KEY,...] [--grid KEY,KEY] [--out DIR] [--json FILE]

Compares runs: a run's directory, several, a sweep's, or a pattern in quotes; also those that run still, were
interrupted or diverged. Runs that differ by their seed only are one row: mean ± standard deviation over them. Says
which configuration is best and how sure that is, prints what each reached and what it cost; writes report.html (one
page, needs no network) and its figures as PNG and SVG.

  --levels     seconds of training to each of these levels of the metric: 20,10,5. Without it a few are chosen and named
  --baseline   the configuration that speed-ups are over: algo=msgd, or algo=easgd,tau=10. Without it the first with one
               worker, best one that exchanges with nobody, where there is one. A speed-up is the baseline's seconds to
               a level over those of the configuration; none where not every run of both reached it
  --metric     what runs are judged by: their primary metric, test_error of a classification, else train_loss; any
               metric of the center in metrics.jsonl. It is that of the average where a run keeps one
  --x          what curves are drawn against: seconds (of training, virtual ones where simulated), steps, or bytes
  --rows       settings whose values make the rows of panels: algo,gamma. Without it tau or else workers, where they
               vary beside others
  --grid       two settings: a figure and a table of who comes first to the last of the levels at each pair of their
               values, by what --x says: workers,launcher.bandwidth
  --out        where the page and figures go: report in the one directory that is named, ./report for several
  --json       the tables' numbers, there, and the sentences

  easgd report runs/sweeps/fig2_small
  easgd report runs/sweeps/fig10_small --levels 20,10,5,3 --baseline algo=msgd
  easgd report 'runs/2026-11-24_*' --x bytes --out november
"""

_AXES = ("seconds", "steps", "bytes")  # what curves are drawn against
_OPTIONS = ("--levels", "--baseline", "--metric", "--x", "--rows", "--grid", "--out", "--json")


@dataclass
class _Asked:
    paths: list[str]
    levels: list[float] = field(default_factory=list)
    baseline: str | None = None
    metric: str | None = None
    x: str = "seconds"
    rows: list[str] = field(default_factory=list)
    grid: list[str] = field(default_factory=list)
    out: Path | None = None
    json: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Reads, prints and writes; returns the exit status. Raises UsageError."""
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(_HELP), end="")
        return 0
    _make(_asked(argv))
    return 0


def write(words: Sequence[str]) -> Path:
    """Writes the report that these words ask for, silently, and returns the path of its page. Raises UsageError."""
    with redirect_stdout(io.StringIO()):
        return _make(_asked(words))


def check(options: str) -> None:
    """Raises UsageError for `options` that cannot be the `report=` of a sweep."""
    _of_sweep(Path(), options)


def at_the_end_of(root: Path, options: str) -> None:
    """Makes the report on the sweep in `root`. Where that fails, prints a sentence and raises nothing."""
    print()
    try:
        _make(_of_sweep(root, options))
    except Exception as e:
        reason = str(e) if isinstance(e, UsageError | RunError) else f"{type(e).__name__}: {e}"
        again = f"{shlex.join(['easgd', 'report', str(root)])} {options}".rstrip()
        tell(f"the report on the sweep could not be made: {reason} The runs are as they were; {again} tries again.")


def _of_sweep(root: Path, options: str) -> _Asked:
    try:
        words = shlex.split(options)
    except ValueError as e:
        raise UsageError(
            f"report={options}: cannot be read ({e}); write options of easgd report, such as report='--rows tau'."
        ) from e
    try:
        asked = _asked([str(root), *words])
    except UsageError as e:
        raise UsageError(f"report={options}: {e}") from e
    if len(asked.paths) > 1:
        raise UsageError(
            f"report={options}: {asked.paths[1]} is no option; write those of easgd report, such as "
            "report='--rows tau', or report= for none."
        )
    return asked


def _make(asked: _Asked) -> Path:
    """Reads, prints and writes; returns the path of the page. Raises UsageError."""
    from easgd_cli.reports import run_paths  # only now: a mistake and the help are answered in a moment

    runs, left_out = run_paths.read_all(asked.paths)

    from easgd_cli.reports import findings, grid, notes, table
    from easgd_cli.reports.comparison import compare

    c = compare(runs, asked.metric, asked.levels, asked.baseline)
    differ = [*c.told_apart, *c.also_differ]
    for option, keys in (("rows", asked.rows), ("grid", asked.grid)):
        for key in keys:
            if all(key not in run.settings for run in c.runs):
                there = f"; those that differ are: {', '.join(differ)}" if differ else ""
                raise UsageError(f"--{option} {','.join(keys)}: there is no setting {key} in these runs{there}.")
    if asked.grid and not c.levels:
        raise UsageError(f"--grid {','.join(asked.grid)}: no level was reached; give one with --levels.")
    rows = [key for key in asked.rows if key in differ]
    out = output.directory(
        asked.out
        or (Path(asked.paths[0]) if len(asked.paths) == 1 and Path(asked.paths[0]).is_dir() else Path()) / "report",
        given=asked.out is not None,
    )
    said, tables = findings.findings(c), table.tables(c)
    if asked.grid:
        tables.append(grid.result(c, asked.grid, asked.x))
    told = [*run_paths.unfinished(asked.paths), *left_out, *notes.notes(c)]
    if same := [key for key in asked.rows if key not in rows]:
        told.append(
            f"--rows {','.join(asked.rows)}: no rows for {' and '.join(same)}, which is the same in all of these runs."
        )
    title = Path(asked.paths[0]).resolve().name if len(asked.paths) == 1 else f"{len(runs)} runs"
    # before anything is printed, since a reader such as head may end the command early
    written = _write(out, title, c, said, tables, told, asked, rows)
    if asked.json is not None:
        content = json.dumps(table.numbers(c) | {"findings": said}, indent=1) + "\n"
        output.put(asked.json, lambda path: path.write_text(content, encoding="utf-8"))
    for sentence in said:
        print(for_terminal(sentence, sys.stdout))
    print("\n" if said else "", end="")
    for t in tables:
        _show(t)
    for note in told:
        print(for_terminal(note, sys.stdout))
    if len(written) == 1:
        print(f"There is no figure: no run has two evaluations{' and an exchange' if asked.x == 'bytes' else ''} yet.")
    print(for_terminal(f"Wrote {', '.join(written)} in {out}", sys.stdout), flush=True)
    return out / "report.html"


def _asked(argv: Sequence[str]) -> _Asked:
    given, paths = taken(argv, _OPTIONS)
    asked = _Asked(paths)
    if strange := next((word for word in paths if word.startswith("-")), None):
        near = difflib.get_close_matches(strange.partition("=")[0], _OPTIONS, 1)
        raise UsageError(
            f"{strange}: there is no such option; "
            + (f"did you mean {near[0]}?" if near else "see easgd report --help.")
        )
    for option, value in given.items():
        if not value:
            raise UsageError(f"{option}: a value is missing; see easgd report --help.")
        if option == "--levels":
            asked.levels = [_level(text, value) for text in value.split(",")]
        elif option == "--x" and value not in _AXES:
            raise UsageError(f"--x {value}: curves are drawn against one of {', '.join(_AXES)}.")
        elif option in ("--rows", "--grid"):
            setattr(asked, option[2:], value.split(","))
        elif option in ("--out", "--json"):
            setattr(asked, option[2:], Path(value))
        else:
            setattr(asked, option[2:], value)
    if not asked.paths:
        raise UsageError("report: name a run, several, or a directory that holds runs; see easgd report --help.")
    if asked.grid and len(set(asked.grid)) != 2:
        raise UsageError(f"--grid {','.join(asked.grid)}: is two settings, such as --grid workers,launcher.bandwidth.")
    if asked.json is not None and not asked.json.absolute().parent.is_dir():
        raise UsageError(f"--json {asked.json}: there is no directory {asked.json.parent}.")
    return asked


def _level(text: str, value: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = math.nan
    if not math.isfinite(level):
        what = f"{text.strip()} is no number" if text.strip() else "a number is missing"
        raise UsageError(
            f"--levels {value}: {what}; levels are numbers with commas between, without a unit, such as --levels "
            "20,10,5."
        )
    return level


def _show(t: ResultTable) -> None:
    """Prints the table. On a narrow terminal rows run over, cells stay whole, and headings are wrapped."""
    from rich.table import Table as Drawn
    from rich.text import Text

    from easgd_cli.record.display import Screen
    from easgd_cli.record.table import STYLES, WIDE

    console = Screen(width=None if sys.stdout.isatty() else WIDE)
    drawn = Drawn(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, heading in enumerate(t.headings):
        cells = [*heading.split(), *(row[i] for row in t.rows)]
        said = textwrap.fill(heading, max(map(len, cells))) if console.is_terminal else heading
        drawn.add_column(Text(said), justify="left" if i < t.numbers else "right", vertical="bottom", no_wrap=True)
    for row in t.rows:
        drawn.add_row(*(Text(printable(cell), style=STYLES.get(cell, "")) for cell in row))
    console.width = max(console.width, Screen(width=10_000).measure(drawn).maximum)
    console.print(Text(t.title, style="bold"))
    console.print(drawn, highlight=False)
    console.print()


def _write(
    out: Path, title: str, c: Comparison, said: list[str], tables: list[ResultTable], notes: list[str], asked: _Asked,
    rows: list[str],
) -> list[str]:  # fmt: skip
    """Writes the figures and the page, each whole or not at all; returns the files' names."""
    from easgd_cli import picture
    from easgd_cli.reports import curves, figures, grid, page

    written, on_page, x = [], {}, asked.x
    with picture.style():
        of_pair = {"grid": grid.figure(c, asked.grid, x)} if asked.grid else {}
        for name, figure in (of_pair | figures.figures(c, x, rows)).items():
            for suffix in ("png", "svg"):
                output.put(out / f"{name}.{suffix}", partial(picture.save, figure))
                written.append(f"{name}.{suffix}")
            told = grid.caption(c, x) if name == "grid" else figures.caption(c, name, x)
            on_page[name] = (out / f"{name}.svg", told)
    for name in set(figures.NAMES) - on_page.keys():
        _remove_earlier(out, name)
    text = page.page(title, c, said, tables, notes, on_page, curves.curves(c, x, rows))
    output.put(out / "report.html", lambda path: path.write_text(text, encoding="utf-8"))
    return ["report.html", *written]


def _remove_earlier(out: Path, name: str) -> None:
    """Removes a figure of an earlier report that this one does not draw. A file that the earlier page lacks stays."""
    from easgd_cli.record import reader
    from easgd_cli.reports import page

    with suppress(OSError, ValueError, UsageError):
        if page.has(reader.read_text(out / "report.html"), out / f"{name}.svg"):
            for suffix in ("png", "svg"):
                (out / f"{name}.{suffix}").unlink(missing_ok=True)
