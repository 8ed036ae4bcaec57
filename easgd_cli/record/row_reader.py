"""Reads metrics.jsonl and exchanges.bin, whole or as they grow; old names become today's. See reader.py."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easgd_cli.order_entry import entry_place, entry_worker
from easgd_cli.record.metrics import LINK, MEASURED, MOMENT, PARTIES, SYSTEM, WORKER, Row
from easgd_cli.record.run_files import BadFile, open_file, reading

if TYPE_CHECKING:
    from easgd_cli.algorithms.base import Method

NOBODY = 0xFFFF  # in place of a worker's number: it is not known whose exchange it was
_MOST = 1 << 63  # numbers in a row are below this
_LINE = 1 << 20  # most bytes of a line
_AT_ONCE = 1 << 23  # most bytes of a growing file that are read at once
_ORDER = 1 << 31  # most bytes of an exchanges.bin that is read
_WORKER = re.compile(r"worker_(\d{2,5})")
_RENAMED = {"images_per_second": "samples_per_second"}  # old names in directories of older versions


def read_rows(path: Path, workers: int | None = None, damaged: list[int] | None = None) -> Iterator[Row]:
    """Yields the rows of a metrics.jsonl, by today's names, but not an unfinished last line.

    `workers`: how many the run has (None: any number); a row of another worker is no row. A line that is no row raises
    BadFile; with `damaged` the line is left out and its number put there. A line above 1 MiB always raises BadFile.
    """
    with open_file(path) as f:
        number = 0
        while line := _next(path, f, number + 1):
            if not line.endswith(b"\n"):
                if len(line) > _LINE:
                    raise BadFile(path, "is longer than a row of the record can be", number + 1)
                return
            number += 1
            row, wrong = _row(line[:-1], workers)
            if row is not None:
                yield row
            elif damaged is not None:
                damaged.append(number)
            else:
                raise BadFile(path, f"is not a row of the record ({wrong})", number)


def returns_of(path: Path, workers: int) -> list[tuple[int, int, int, int]]:
    """Returns, for each lost worker that came back by the rows of a metrics.jsonl: (exchanges before that, the worker's
    number, its clock, the number of the master). Damaged rows are left out.
    """
    rows = read_rows(path, workers, damaged=[]) if path.exists() else ()
    back = (row for row in rows if "returned" in row)
    return [(row["exchanges"], row["returned"], row["returned_at"], row.get("master", 0)) for row in back]


def _next(path: Path, file: Any, number: int) -> bytes:
    try:
        line: bytes = file.readline(_LINE + 1)
    except OSError as e:
        raise BadFile(path, f"cannot be read ({e.strerror})", number) from e
    return line


class NewRows:
    """Follows the rows of a growing metrics.jsonl, which may be missing or replaced. Skips lines that are no rows."""

    def __init__(self, path: Path):
        self._path, self._file, self._at = path, 0, 0

    def take(self) -> tuple[list[Row], bool]:
        """Returns the rows since the last call (of very many the first, the rest next time), and True if the file is
        another one than at the last call.
        """
        try:
            with open_file(self._path) as f:
                file = os.fstat(f.fileno()).st_ino
                replaced = file != self._file
                if replaced:
                    self._file, self._at = file, 0
                f.seek(self._at)
                data = f.read(_AT_ONCE)
        except (BadFile, OSError):
            return [], False
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole) or (len(data) if len(data) > _LINE else 0)  # a part of a line that is too long: skipped
        return [row for line in whole.splitlines() if (row := _row(line, None)[0]) is not None], replaced


@dataclass(frozen=True)
class Entries:
    """The form of exchanges.bin, which has for each exchange, little-endian, 2 bytes with the worker's number and, in a
    run with several `variables` or masters, 2 more with the place of the variable or master. `workers`: how many
    numbers there are, couriers' among them; None: not known.
    """

    workers: int | None = None
    variables: int = 1

    @classmethod
    def of(cls, method: Method, workers: int, masters: int = 1) -> Entries:
        """Returns the form for a run of `method`; each of several masters has a place, as variables have."""
        return cls(workers + len(method.couriers), max(len(method.variables), masters))

    @property
    def size(self) -> int:
        """Bytes of an entry."""
        return 2 if self.variables <= 1 else 4

    def pack(self, entries: Sequence[int]) -> bytes:
        return struct.pack(f"<{len(entries)}{'H' if self.size == 2 else 'I'}", *entries)

    def unpack(self, data: bytes) -> list[int]:
        """Returns the whole entries in `data`, see order_entry.py."""
        count = len(data) // self.size
        return list(struct.unpack(f"<{count}{'H' if self.size == 2 else 'I'}", data[: count * self.size]))

    def stranger(self, entries: Sequence[int]) -> tuple[int, int] | None:
        """Returns the first entry whose worker or place is not of this run, as (its number from 1, its worker), else
        None. NOBODY counts as such a worker.
        """
        most = self.workers
        if most is None or not entries or (self.size == 2 and max(entries) < most):
            return None
        for i, entry in enumerate(entries, 1):
            if entry_worker(entry) >= most or entry_place(entry) >= self.variables:
                return i, entry_worker(entry)
        return None


_ANY = Entries()


def read_order(path: Path, of: Entries = _ANY) -> list[int]:
    """Returns the entries of an exchanges.bin, but not an unfinished last one. With one variable an entry is the
    worker's number. Raises BadFile, also for a worker that the run does not have.
    """
    with reading(path) as f:
        data = f.read() if os.fstat(f.fileno()).st_size <= _ORDER else None
    if data is None:
        raise BadFile(path, f"holds more than {_ORDER // of.size:,} exchanges")
    order = of.unpack(data)
    if (stranger := of.stranger(order)) is not None:
        at, worker = stranger
        if worker == NOBODY:
            raise BadFile(path, f"does not say whose exchange {at} was, since the run went on without its record")
        raise BadFile(path, f"says that exchange {at} was of worker {worker}, and the run has {of.workers}, from 0")
    return order


def by_variable(order: Sequence[int], variables: int) -> list[list[int]]:
    """Returns, for each variable, the worker numbers of its entries in their order."""
    found: list[list[int]] = [[] for _ in range(variables)]
    for entry in order:
        found[entry_place(entry)].append(entry_worker(entry))
    return found


def renamed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns `content` with old names replaced by today's."""
    for old, new in _RENAMED.items():
        if old in content:
            content[new] = content.pop(old)
    return content


def _row(line: bytes, workers: int | None) -> tuple[Row | None, str]:
    """Returns the row in `line`, or None and what is wrong with the line."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return None, "it is not UTF-8 text"
    except (ValueError, RecursionError) as e:
        return None, str(e)
    wrong = "it is no JSON object" if not isinstance(row, dict) else _wrong(row, workers)
    return (None, wrong) if wrong is not None else (renamed(row), "")


def _wrong(row: dict[str, Any], workers: int | None) -> str | None:
    """Returns why `row` cannot be the recorder's; None: it can."""
    for key in MOMENT[:-1]:
        if type(row.get(key)) not in (int, float) or not 0 <= row[key] < _MOST:
            return f"it has no {key}" if key not in row else f"its {key} is {_shown(row[key])}"
    party = row.get("party")
    if not isinstance(party, str):
        return "it has no party"
    if party not in PARTIES:
        number = _WORKER.fullmatch(party)
        if number is None or (workers is not None and int(number[1]) >= workers):
            return f"there is no party {_shown(party)}" + ("" if workers is None else f" in a run of {workers} workers")
    for what, most in (("lost", workers), ("returned", workers), ("returned_at", None), ("master", None)):
        number = row.get(what, 0)
        if type(number) is not int or not 0 <= number < (most or _MOST):
            return f"its {what} is {_shown(number)}"
    if "returned" in row and ("returned_at" not in row or type(row["exchanges"]) is not int):
        return "it does not say where the worker returned"
    if party == "system" and not isinstance(row.get("host", ""), str):
        return f"its host is {_shown(row['host'])}"
    numbers = {**SYSTEM, **LINK} if party == "system" else WORKER
    for name, value in row.items():
        kind = type(value)
        finite = math.isfinite(value) if kind is float else kind is int and -_MOST < value < _MOST
        if finite or value is None or kind is bool:
            continue
        if kind is not str or (name != "party" and (party in MEASURED or name in numbers)):
            return f"its {name} is {_shown(value)}"
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
