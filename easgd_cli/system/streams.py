"""Standard input, output and error as a shell, a scheduler or a service may leave them: closed, full, or not UTF-8."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TextIO


class OutputFailed(OSError):
    """Standard output does not take what is written; not of a pipe whose reader has left."""


class _Raw(io.FileIO):
    """Standard output, of which a failure tells that it is its own."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as e:
            raise OutputFailed(e.errno, e.strerror) from e


class _Patient(io.FileIO):
    """A log, which loses what a full disk does not take: nothing that is logged is worth an end."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def log_to(file: Path | int) -> TextIO:
    """A log at the end of that file or descriptor; no write to it raises. Raises OSError if it cannot be opened."""
    raw = _Patient(file, "a", closefd=not isinstance(file, int))
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)


def prepare() -> None:
    """To be called once, first of all: no file may take the place of a closed stream, paths and files are read as
    UTF-8 whatever the locale is, and what a stream cannot show is shown as an escape.

    Where the locale is not UTF-8 this process is started again in Python's UTF-8 mode.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    said = sys.stdout  # as Python has understood environment and locale; None where it was closed
    if said is None or isinstance(said, io.TextIOWrapper):
        encoding = "utf-8" if said is None else said.encoding
        raw = _Raw(1, "w", closefd=False)
        at_once = said is not None and said.write_through
        sys.stdout = io.TextIOWrapper(
            raw if at_once else io.BufferedWriter(raw), encoding, "backslashreplace",
            line_buffering=said is not None and said.line_buffering, write_through=at_once,
        )  # fmt: skip
        if encoding.lower() not in ("utf-8", "utf8"):  # processes of ours write into logs
            os.environ["PYTHONIOENCODING"] = f"{encoding}:backslashreplace"
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def unseen(file: IO[str]) -> None:
    """What is written to `file` goes nowhere from here on: Python's last flush would change the exit status."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
