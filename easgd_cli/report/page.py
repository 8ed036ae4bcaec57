"""The report as one HTML page that needs nothing else: tables, figures, what differs, commands, how each run ended."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from easgd_cli.report.comparison import Comparison, written
from easgd_cli.report.table import ResultTable

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { vertical-align: bottom; border-bottom: 2px solid #666; } .number { text-align: right; white-space: nowrap; }
code { font: 0.85rem ui-monospace, monospace; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; } figure img { width: 100%; max-width: 62rem; } figcaption { color: #555; }
"""


def page(
    title: str, c: Comparison, findings: Sequence[str], tables: Sequence[ResultTable], notes: Sequence[str], figures: Mapping[str, tuple[Path, str]]
) -> str:
    """`figures`: by name the SVG file and what it shows. Every text from a run is escaped."""
    parts = [f"<h1>{escape(title)}</h1>", _list(findings)]
    for table in tables:
        parts.append(f"<h2>{escape(table.title)}</h2>{_table(table.headings, table.rows, table.numbers)}")
    parts.append(_list(notes))
    for name, (path, caption) in figures.items():
        parts.append(
            f'<figure id="{escape(name)}"><img alt="{escape(caption)}" src="{_picture(path)}"/>'
            f"<figcaption>{escape(caption)} <code>{escape(path.name)}</code></figcaption></figure>"
        )
    parts += [f"<h2>Differences</h2>{_differences(c)}", f"<h2>Runs</h2>{_runs(c)}"]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>{escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def has(written: str, svg: Path) -> bool:
    """Whether a page that was written before has this picture. Raises OSError."""
    return _picture(svg) in written


def _picture(svg: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""


def command(overrides: Sequence[str]) -> str:
    """The command that starts such a run again."""
    return shlex.join(["easgd", "train", *overrides])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        marks = ["" if i < numbers else ' class="number"' for i in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{mark}>{escape(cell)}</{tag}>' for mark, cell in zip(marks, cells, strict=True))}</tr>"

    return f'<div class="wide"><table><thead>{line("th", headings)}</thead><tbody>{"".join(line("td", row) for row in rows)}</tbody></table></div>'


def _differences(c: Comparison) -> str:
    """Every setting that differs between configurations, also those that follow from others."""
    keys = [*c.told_apart, *c.also_differ]
    if not keys:
        return "<p>The runs differ in nothing but their seeds.</p>" if len(c.runs) > 1 else "<p>There is one run.</p>"
    return _table(keys, [[written(of.setting(key)) for key in keys] for of in c.configurations], len(keys))


def _runs(c: Comparison) -> str:
    cells = []
    for of in c.configurations:
        for run in of.runs:
            reason = f": {run.reason}" if run.reason else ""
            left_out = "" if run in of.counted else " (not counted)"
            cells.append(
                f"<tr><td>{escape(run.path.name)}</td><td>{escape(run.status + reason + left_out)}</td>"
                f"<td><code>{escape(command(run.overrides))}</code></td></tr>"
            )
    return f'<div class="wide"><table><thead><tr><th>run</th><th>status</th><th>command</th></tr></thead><tbody>{"".join(cells)}</tbody></table></div>'
