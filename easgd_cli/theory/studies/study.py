"""The result of a study, and its files: numbers as JSON and CSV, pictures as PNG and SVG."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from easgd_cli import picture
from easgd_cli.system import files
from easgd_cli.theory.linear import Array

Cell = float | int | str | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns. A cell is None without a value, inf if it diverges. `_in_se`: in standard errors."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    unprinted: tuple[str, ...] = ()  # columns that are written but not printed


@dataclass(frozen=True)
class Study:
    """`tables` are printed and written; `grids`, the numbers behind maps, only written; `findings` are sentences."""

    name: str
    settings: Any
    tables: list[Table]
    findings: list[str]
    pictures: dict[str, Figure]
    grids: list[Table] = field(default_factory=list)

    def write(self, out: Path) -> list[Path]:
        """Writes NAME.json (settings, findings, tables), a CSV file a table, PNG and SVG a picture. Returns the paths.

        JSON has no inf: null stands for it. Each file is written under another name and then renamed.
        """
        written = []

        def put(name: str, write: Callable[[Path], object]) -> None:
            files.put(out / name, write)
            written.append(out / name)

        content = {
            "study": self.name,
            "settings": {k: _plain(v) for k, v in asdict(self.settings).items()},
            "findings": self.findings,
            "tables": {
                t.name: [dict(zip(t.columns, map(_plain, row), strict=True)) for row in t.rows] for t in self.tables
            },
        }
        put(f"{self.name}.json", lambda path: path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))
        for table in (*self.tables, *self.grids):
            put(f"{self.name}_{table.name}.csv", partial(_write_csv, table))
        for name, figure in self.pictures.items():
            for suffix in ("png", "svg"):
                put(f"{name}.{suffix}", partial(picture.save, figure))
        return written


def show(
    axes: Axes, values: Array, extent: tuple[float, float, float, float], aspect: Literal["auto", "equal"] = "auto",
    interpolation: str | None = "nearest", **scale: Any,
) -> AxesImage:  # fmt: skip
    """Draws `values` [n, m] as colours over `extent`, the first row at the bottom."""
    return axes.imshow(values, extent=extent, origin="lower", aspect=aspect, interpolation=interpolation, **scale)


def _write_csv(table: Table, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(table.columns)
        rows.writerows(table.rows)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
