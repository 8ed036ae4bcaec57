"""Opens the files of a run's directory, whatever they are: no pipe makes a reader wait, no size fills the memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from easgd_cli.errors import UsageError
from easgd_cli.system.terminal import printable

MOST = 1 << 26  # most bytes of a file that is read whole, unless the caller names another bound
_WRONG = 400  # most characters of a message on what is wrong with a file
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


class BadFile(UsageError):
    """A file of a run that cannot be used. `line`: the line that is wrong, from 1, or None; `fact`: a sentence on what
    is wrong, with path and line.
    """

    def __init__(self, path: Path, wrong: str, line: int | None = None):
        self.path, self.line = path, line
        wrong = wrong if len(wrong) <= _WRONG else f"{wrong[:_WRONG]}..."
        self.fact = printable(f"{path}: {'' if line is None else f'line {line} '}{wrong}")
        super().__init__(f"{self.fact}.")


class MissingFile(BadFile):
    """A file of a run that is not there."""


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file; never waits, as opening a pipe would. Raises BadFile."""
    _refuse(path, stat.S_IFREG)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise BadFile(path, f"cannot be read ({e.strerror})") from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadFile(path, "is no file any more")
    return open(descriptor, "rb")


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file during the block. Raises BadFile, also for an OSError of the block."""
    with open_file(path) as f:
        try:
            yield f
        except OSError as e:
            raise BadFile(path, f"cannot be read ({e.strerror})") from e


def read(path: Path, most: int = MOST) -> bytes:
    """Returns the content of a regular file. Raises BadFile, also for a file of more than `most` bytes."""
    with reading(path) as f:
        data = f.read(most + 1) if os.fstat(f.fileno()).st_size <= most else None
    if data is None or len(data) > most:
        raise BadFile(path, f"is larger than {most >> 20} MiB, and easgd writes no such file")
    return data


def read_text(path: Path, most: int = MOST) -> str:
    """Returns the content of a regular file as text. Raises BadFile as `read` does, and if it is not UTF-8."""
    data = read(path, most)
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise BadFile(path, "is not UTF-8 text", data.count(b"\n", 0, e.start) + 1) from e


def check_directory(path: Path) -> bool:
    """Returns whether the directory `path` exists. Raises BadFile if `path` is something else."""
    try:
        _refuse(path, stat.S_IFDIR)
        os.scandir(path).close()
    except MissingFile:
        return False
    except OSError as e:
        raise BadFile(path, f"cannot be looked into ({e.strerror})") from e
    return True


def check_own(path: Path) -> None:
    """Raises BadFile if `path`, if it exists, is a link, no regular file or not writable: easgd writes into it."""
    if path.is_symlink():
        raise BadFile(path, "is a link, and easgd writes to nothing outside the run's directory")
    try:
        _refuse(path, stat.S_IFREG)
    except MissingFile:
        return
    if not os.access(path, os.W_OK):
        raise BadFile(path, "cannot be written (Permission denied)")


def _refuse(path: Path, wanted: int) -> None:
    """Raises BadFile if `path` is not of the kind `wanted`, MissingFile if nothing is there."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError) as e:
        if path.is_symlink():
            raise BadFile(path, "is a link that leads nowhere") from e
        raise MissingFile(path, f"cannot be read ({e.strerror})") from e
    except OSError as e:
        raise BadFile(path, f"cannot be read ({e.strerror})") from e
    if kind != wanted:
        belongs = "a directory" if wanted == stat.S_IFDIR else "a file"
        raise BadFile(path, f"is {_KINDS.get(kind, 'something else')}, where {belongs} belongs")
