"""A file of named columns or arrays: .csv, .parquet, .npy, .npz, .safetensors."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from easgd_cli.data.arrays import Arrays, arrays
from easgd_cli.data.holding_out import tested
from easgd_cli.errors import UsageError

Columns = dict[str, NDArray[Any]]  # by name, each [N, ...]
_FEW = 8  # columns that a sentence names


def table(
    root: str, targets: str, columns: tuple[str, ...] = (), test: float | str = 0.2, standardise: bool = True
) -> Arrays:
    """Returns a data set of the file `root`: inputs are its `columns`, or all but the column `targets` unless given.

    `test`: the share of rows that is tested on, or another file with the same columns. Columns are joined to one vector
    a row; a single column of arrays is the input as it is. `standardise`: subtract the training rows' mean from each
    column of numbers and divide by their standard deviation, also in targets that are no whole numbers. Targets that
    are texts are classes, in alphabetical order. Raises UsageError.
    """
    rows = _read(root)
    if targets not in rows:
        raise UsageError(f"dataset.targets={targets}: {_lacks(root, rows, targets)}")
    inputs = list(columns) or [name for name in rows if name != targets]
    for name in inputs:
        if name not in rows:
            raise UsageError(f"dataset.columns={name}: {_lacks(root, rows, name)}")
        _check(root, name, rows[name])
    if not inputs:
        raise UsageError(f"dataset.root={root}: holds nothing but {targets}; there is nothing to learn it from.")
    y, classes = _targets(root, targets, rows[targets])
    if isinstance(test, str):
        x_train, x_test = _inputs(rows, inputs), _inputs(other := _read(test, [*inputs, targets]), inputs)
        y_train, (y_test, _) = y, _targets(test, targets, other[targets], classes)
    else:
        x, taken = _inputs(rows, inputs), tested(len(y), test).numpy()
        x_train, x_test, y_train, y_test = x[~taken], x[taken], y[~taken], y[taken]
    if standardise and x_train.ndim == 2 and x_train.dtype.kind == "f":
        (x_train, x_test), _, _ = _standardised(x_train, x_test)
    about = None
    if standardise and y_train.dtype.kind == "f":
        (y_train, y_test), mean, std = _standardised(y_train, y_test)
        if y_train.ndim == 1:
            about = f"the net learns ({targets} - {mean:.6g}) / {std:.6g}, and errors are in units of {std:.6g}"
    made = arrays(_numbers(x_train), _numbers(y_train), _numbers(x_test), _numbers(y_test), "table", classes)
    return replace(made, about=about)


def _standardised(train: NDArray[Any], test: NDArray[Any]) -> tuple[tuple[NDArray[Any], NDArray[Any]], Any, Any]:
    """Returns (x - mean) / std of both arrays, and mean and std, which are those of `train` (std 1 in place of 0)."""
    mean, std = train.mean(0), train.std(0)
    scale = np.where(std > 0, std, 1.0)
    return ((train - mean) / scale, (test - mean) / scale), mean, scale


def _numbers(a: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a.astype(np.float32) if a.dtype.kind == "f" else a))


def _inputs(rows: Columns, names: Sequence[str]) -> NDArray[Any]:
    parts = [rows[name] for name in names]
    if len(parts) == 1 and parts[0].ndim > 1:
        return parts[0]
    return np.concatenate([part.reshape(len(part), -1).astype(np.float64) for part in parts], 1)


def _targets(
    file: str, name: str, values: NDArray[Any], classes: tuple[str, ...] | None = None
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    if values.dtype.kind not in "US":
        _check(file, name, values)
        return values, None
    if missing := int((values == "").sum()):
        raise UsageError(
            f"dataset.root={file}: {missing:,} values of the column {name} are missing; fill them, or remove "
            "their rows."
        )
    named = classes or tuple(sorted({str(v) for v in values}))
    numbers = {label: i for i, label in enumerate(named)}
    unknown = next((str(v) for v in values if str(v) not in numbers), None)
    if unknown is not None:
        raise UsageError(f"dataset.test={file}: has the {name} {unknown}, which the training rows have not.")
    return np.array([numbers[str(v)] for v in values], dtype=np.int64), named


def _check(file: str, name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind not in "fiub":
        what = "texts" if values.dtype.kind in "US" else "dates"
        raise UsageError(
            f"dataset.root={file}: the column {name} holds {what} such as {str(values[0])!r}; make numbers of them, or "
            "leave it out with dataset.columns=[...], the columns that are inputs."
        )
    missing = int((~np.isfinite(values)).sum()) if values.dtype.kind == "f" else 0
    if missing:
        raise UsageError(
            f"dataset.root={file}: {missing:,} values of the column {name} are missing or not finite; fill them, "
            "remove their rows, or leave the column out with dataset.columns=[...]."
        )


def _lacks(file: str, rows: Mapping[str, Any], name: str) -> str:
    near = difflib.get_close_matches(name, rows, 1)
    there = ", ".join(list(rows)[:_FEW]) + (f" and {len(rows) - _FEW} more" if len(rows) > _FEW else "")
    return f"{file} has no such column{f'; did you mean {near[0]}?' if near else '.'} It has {there}."


def _read(file: str, wanted: Sequence[str] = ()) -> Columns:
    path = Path(file).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"dataset.root={file}: is a file that ends in {', '.join(_READERS)}.")
    if not path.is_file():
        raise UsageError(f"dataset.root={file}: there is no such file.")
    try:
        rows = reader(path)
    except UsageError:
        raise
    except ImportError as e:
        raise UsageError(f"dataset.root={file}: reading it needs the package {e.name}, which is not installed.") from e
    except Exception as e:
        raise UsageError(f"dataset.root={file}: cannot be read: {' '.join(str(e).split())}.") from e
    counts = {len(values) if values.ndim else 0 for values in rows.values()}
    if len(counts) != 1 or not counts.pop():
        raise UsageError(f"dataset.root={file}: its columns differ in length, or there are no rows.")
    for name in wanted:
        if name not in rows:
            raise UsageError(f"dataset.test={_lacks(file, rows, name)}")
    return rows


def _csv(path: Path) -> Columns:
    with open(path, newline="", encoding="utf-8-sig") as f:
        lines = csv.reader(f)
        header = next(lines, [])
        rows = [row for row in lines if row]
    wrong = next((i for i, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if wrong is not None:
        raise UsageError(f"dataset.root={path}: line {wrong} has other than the header's {len(header)} values.")
    return {name.strip(): _column([row[i].strip() for row in rows]) for i, name in enumerate(header)}


def _column(texts: list[str]) -> NDArray[Any]:
    """Returns the column as whole numbers, else as numbers (nan for empty, NA and null), else as texts."""
    for kind in (np.int64, np.float64):
        try:
            filled = texts if kind is np.int64 else ["nan" if t.lower() in ("", "na", "null") else t for t in texts]
            return np.array([kind(t) for t in filled])
        except (ValueError, OverflowError):
            continue
    return np.array(texts)


def _parquet(path: Path) -> Columns:
    import pyarrow.parquet

    read = pyarrow.parquet.read_table(path)
    return {name: _of_arrow(read[name]) for name in read.column_names}


def _of_arrow(column: Any) -> NDArray[Any]:
    """Returns numbers, arrays of one shape, or texts; a missing value becomes nan or an empty text."""
    kind = str(column.type)
    if kind.startswith("dictionary"):
        column = column.cast(column.type.value_type)
    values: NDArray[Any] = column.cast("float64" if kind.startswith("decimal") else column.type).to_numpy()
    if values.dtype != object:
        return values
    if kind == "bool":
        return np.array([np.nan if v is None else float(v) for v in values])
    if len({np.shape(v) for v in values}) == 1 and any(map(np.ndim, values)):
        return np.stack(list(values))
    return np.array(["" if v is None else str(v) for v in values])


def _npy(path: Path) -> Columns:
    read = np.load(path, allow_pickle=False)
    if read.dtype.names:
        return {name: read[name] for name in read.dtype.names}
    if read.ndim != 2:
        raise UsageError(f"dataset.root={path}: is an array {list(read.shape)}; a table is [rows, columns].")
    return {str(i): read[:, i] for i in range(read.shape[1])}


def _npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as read:
        return {name: read[name] for name in read.files}


def _safetensors(path: Path) -> Columns:
    from safetensors.numpy import load_file

    return dict(load_file(path))


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _csv, ".parquet": _parquet, ".npy": _npy, ".npz": _npz, ".safetensors": _safetensors
}  # fmt: skip
