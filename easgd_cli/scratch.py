"""A place for files that nobody is to find afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easgd_cli.interruption import undone_by


@contextmanager
def scratch_directory(parent: Path | None = None, prefix: str | None = None) -> Iterator[Path]:
    """A new directory in `parent` (or where the system keeps such), removed at the end, also when a signal is it. Raises OSError."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made, undone_by(lambda: shutil.rmtree(made, ignore_errors=True)):
        yield Path(made)
