"""Standard input, output and error as a shell, a scheduler or a service may leave them: closed, full, or not UTF-8."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO


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
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")
    if sys.stdout.encoding.lower() not in ("utf-8", "utf8"):  # processes of ours write into logs
        os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:backslashreplace"


def failure(file: IO[str]) -> OSError | None:
    """Why what has been written to `file` does not reach it; None where it does. After a failure it goes nowhere, or
    Python's own last flush would fail, too, and change the exit status.
    """
    try:
        file.flush()
    except (OSError, ValueError) as e:
        unseen(file)
        return e if isinstance(e, OSError) else None
    return None


def unseen(file: IO[str]) -> None:
    """From here on what is written to `file` goes nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
