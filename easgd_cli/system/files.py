"""Temporary files: in a directory that is removed at the end, or beside the file that they become."""

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
    """Makes a directory in `parent` (or where the system keeps temporary ones) and removes it at the end, also when a
    signal ends the process. Raises OSError.
    """
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made,
        undone_by(lambda: shutil.rmtree(made, ignore_errors=True)),
    ):
        yield Path(made)


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file beside `path`, then renames it, so that a reader finds the old file or the new one,
    whole. Raises OSError.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")  # the ending stays: some writers go by it
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
