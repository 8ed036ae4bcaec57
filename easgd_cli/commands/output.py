"""Makes the directories and writes the files that a command was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.system import files


def directory(out: Path, given: bool = True) -> Path:
    """Returns `out`, created if missing. Raises UsageError if it is not writable, or a link that is not `given`."""
    if out.is_symlink() and not given:
        raise UsageError(f"{out}: is a link, and nothing is written through one; say where with --out DIR.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as e:
        raise UsageError(
            f"--out {out}: nothing can be written there ({why(e)}); choose another directory with --out DIR."
        ) from e
    return out


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` write `path`, whole or not at all. Creates the directory where it is missing. Raises RunError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.put(path, write)
    except OSError as e:
        raise RunError(f"{path}: cannot be written ({why(e)}).") from e
