"""The report as one HTML page that needs nothing else: tables, figures, what differs, commands, how each run ended.

Curves are drawn in the browser (report.js, with uPlot); on paper and without scripts the page shows the SVG figures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from easgd_cli.record import reader
from easgd_cli.reports.comparison import Comparison, written
from easgd_cli.reports.curves import Curve, Curves
from easgd_cli.reports.table import ResultTable
from easgd_cli.system.terminal import printable


def page(
    title: str, c: Comparison, findings: Sequence[str], tables: Sequence[ResultTable], notes: Sequence[str],
    figures: Mapping[str, tuple[Path, str]], curves: Curves | None,
) -> str:  # fmt: skip
    """Returns the page. `figures`: SVG file and caption by name; `curves`: the figure `curves` as numbers, or None.

    Every text from a run is escaped.
    """
    parts = [f"<h1>{_text(title)}</h1>", _list(findings)]
    for table in tables:
        parts.append(f"<h2>{_text(table.title)}</h2>{_table(table.headings, table.rows, table.numbers)}")
    parts.append(_list(notes))
    for name, (path, caption) in figures.items():
        data = _data(curves) if curves and name == "curves" else ""
        parts.append(
            f'<figure id="{_text(name)}">{data}'
            f'<div class="wide"><img alt="{_text(caption)}" src="{_picture(path)}"/></div>'
            f"<figcaption>{_text(caption)} <code>{_text(path.name)}</code></figcaption></figure>"
        )
    parts += [f"<h2>Differences</h2>{_differences(c)}", f"<h2>Runs</h2>{_runs(c)}"]
    style = _asset("uplot/uPlot.min.css") + _asset("report.css")
    # CDATA hides the script's < and & from readers of XML. uPlot's licence has to go with every copy of it.
    library = f"/*! uPlot: {_asset('uplot/LICENSE')}*/\n{_asset('uplot/uPlot.iife.min.js')}"
    script = f"//<![CDATA[\n{library}{_asset('report.js')}//]]>"
    # By this policy a browser loads nothing from elsewhere, and runs no script but this one.
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="{policy}"/>
<title>{_text(title)}</title><style>{style}</style></head>
<body>
{body}
<script>{script}</script></body></html>
"""


def has(written: str, svg: Path) -> bool:
    """Returns whether a page that was written before has this picture. Raises UsageError."""
    return _picture(svg) in written


def command(overrides: Sequence[str]) -> str:
    """Returns the command that starts a run with these overrides again."""
    return shlex.join(["easgd", "train", *overrides])


def _text(text: str) -> str:
    return escape(printable(text))


def _picture(path: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(reader.read(path)).decode()}"


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(shown: Curves) -> str:
    """Returns the curves for report.js, as JSON in which no text can be taken for markup."""
    numbers = {name: number for number, name in enumerate(shown.lines)}

    def written_out(curve: Curve) -> dict[str, Any]:
        edges = None if curve.range is None else [_numbers(edge) for edge in curve.range]
        line = numbers[curve.line]
        return {"line": line, "x": _numbers(curve.at), "mean": _numbers(curve.mean), "range": edges}

    def panels(row: Sequence[Sequence[Curve]]) -> list[list[dict[str, Any]]]:
        return [[written_out(curve) for curve in panel] for panel in row]

    lines = [{"name": printable(name), "colour": colour, "dash": dash} for name, (colour, dash) in shown.lines.items()]
    data = {
        "x": shown.x,
        "shares_x": shown.shares_x,
        "metrics": [{"name": printable(name), "logarithmic": logarithmic} for name, logarithmic in shown.metrics],
        "lines": lines,
        "rows": [{"title": printable(title), "panels": panels(row)} for title, row in shown.rows],
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # in ASCII
    text = text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})
    return f'<script type="application/json" id="data">{text}</script>'


def _numbers(values: np.ndarray) -> list[float | None]:
    """Returns the values with nine digits, finer than anyone can see; None for values that are not finite."""
    return [float(f"{v:.9g}") if np.isfinite(v) else None for v in values]


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        marks = ["" if i < numbers else ' class="number"' for i in range(len(cells))]
        inside = [f"<{tag}{mark}>{_text(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True)]
        return f"<tr>{''.join(inside)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", headings)}</thead><tbody>{body}</tbody></table></div>'


def _differences(c: Comparison) -> str:
    """Returns a table of all settings that differ between configurations, also those that follow from others."""
    keys = [*c.told_apart, *c.also_differ]
    if not keys:
        return "<p>The runs differ in nothing but their seeds.</p>" if len(c.runs) > 1 else "<p>There is one run.</p>"
    return _table(keys, [[written(of.setting(key)) for key in keys] for of in c.configurations], len(keys))


def _runs(c: Comparison) -> str:
    rows = []
    for of in c.configurations:
        for run in of.runs:
            reason = f": {run.reason}" if run.reason else ""
            left_out = "" if run in of.counted else " (not counted)"
            name, status = _text(run.path.name), _text(run.status + reason + left_out)
            again = _text(command(run.overrides))
            rows.append(f"<tr><td>{name}</td><td>{status}</td><td><code>{again}</code></td></tr>")
    heading = "<thead><tr><th>run</th><th>status</th><th>command</th></tr></thead>"
    return f'<div class="wide"><table>{heading}<tbody>{"".join(rows)}</tbody></table></div>'
