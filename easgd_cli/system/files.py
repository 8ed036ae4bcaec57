"""Files that nobody is to find: in a directory that goes, or beside the one they become."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from easgd_cli.system.interruption import undone_by


@contextmanager
def scratch_directory(parent: Path | None = None, prefix: str | None = None) -> Iterator[Path]:
    """A new directory in `parent` or the system's place, removed at the end, also by a signal. Raises OSError."""
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made,
        undone_by(lambda: shutil.rmtree(made, ignore_errors=True)),
    ):
        yield Path(made)


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file beside `path` written and renames it: whoever looks finds the old or new one. Raises OSError."""
    beside = path.with_name(f".{os.getpid()}.{path.name}")  # the ending stays: some writers go by it
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
