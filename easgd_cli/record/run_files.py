"""Opens the files of a run's directory, which may be anything: no pipe makes anybody wait, and no size fills memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from easgd_cli.errors import UsageError
from easgd_cli.system.terminal import printable

MOST = 1 << 26  # bytes of a file that is read at once, unless told otherwise
_WRONG = 400  # characters of what a file has that are shown
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


class BadFile(UsageError):
    """A file of a run that cannot be used: `path`, the `line` from 1 or None, and `fact`, all of it in words."""

    def __init__(self, path: Path, wrong: str, line: int | None = None):
        self.path, self.line = path, line
        wrong = wrong if len(wrong) <= _WRONG else f"{wrong[:_WRONG]}..."
        self.fact = printable(f"{path}: {'' if line is None else f'line {line} '}{wrong}")
        super().__init__(f"{self.fact}.")


class MissingFile(BadFile):
    """A file of a run that is not there."""


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened; never waits, as opening a pipe would. Raises BadFile."""
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
    """A regular file, opened for as long as this lasts. Raises BadFile, also for what fails in reading it."""
    with open_file(path) as f:
        try:
            yield f
        except OSError as e:
            raise BadFile(path, f"cannot be read ({e.strerror})") from e


def read(path: Path, most: int = MOST) -> bytes:
    """The content of a regular file. Raises BadFile, also for one of more than `most` bytes."""
    with reading(path) as f:
        data = f.read(most + 1) if os.fstat(f.fileno()).st_size <= most else None
    if data is None or len(data) > most:
        raise BadFile(path, f"is larger than {most >> 20} MiB, and easgd writes no such file")
    return data


def read_text(path: Path, most: int = MOST) -> str:
    """Raises BadFile."""
    data = read(path, most)
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise BadFile(path, "is not UTF-8 text", data.count(b"\n", 0, e.start) + 1) from e


def check_directory(path: Path) -> bool:
    """Whether that directory is there. Raises BadFile where something else is."""
    try:
        _refuse(path, stat.S_IFDIR)
        os.scandir(path).close()
    except MissingFile:
        return False
    except OSError as e:
        raise BadFile(path, f"cannot be looked into ({e.strerror})") from e
    return True


def check_own(path: Path) -> None:
    """Refuses what easgd would write into, where it is anything but a file of this directory alone. Raises BadFile."""
    if path.is_symlink():
        raise BadFile(path, "is a link, and easgd writes to nothing outside the run's directory")
    try:
        _refuse(path, stat.S_IFREG)
    except MissingFile:
        return
    if not os.access(path, os.W_OK):
        raise BadFile(path, "cannot be written (Permission denied)")


def _refuse(path: Path, wanted: int) -> None:
    """Raises BadFile where there is something of another kind, MissingFile where there is nothing."""
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
