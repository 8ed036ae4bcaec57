"""A file that only grows, by whole entries."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path

from easgd_cli.record.checksum import Held, digits


class AppendFile:
    """Collects entries and appends them together.

    When a write fails (a full disk), the file is cut back to its last whole entry, and the unwritten entries are kept
    for the next attempt: no entry is torn or lost, and the caller decides whether to go on.
    """

    def __init__(self, path: Path, keep: int | None = None):
        """Opens `path`, creating it where it is missing, and cuts it to its first `keep` bytes (None: leaves it whole).
        Raises OSError, also for a symbolic link.
        """
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        if keep is not None:
            os.ftruncate(self._fd, keep)
        self._size = self._crc = 0
        while there := os.pread(self._fd, 1 << 22, self._size):
            self._size, self._crc = self._size + len(there), zlib.crc32(there, self._crc)
        self._waiting = bytearray()

    def add(self, entry: bytes) -> None:
        self._waiting += entry

    def flush(self) -> None:
        """Hands all waiting entries to the operating system. Raises OSError."""
        if not self._waiting:
            return
        # a copy: an error that is kept holds this frame and its view, and a bytearray with a view cannot grow
        data = memoryview(bytes(self._waiting))
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(self._fd, data[at:], self._size + at)
        except OSError:
            with suppress(OSError):  # cutting may fail, too: on a file system that has become read-only, for example
                os.ftruncate(self._fd, self._size)
            raise
        self._size, self._crc = self._size + len(self._waiting), zlib.crc32(self._waiting, self._crc)
        self._waiting = bytearray()

    def sync(self) -> None:
        """Waits until all flushed entries are on the disk. Raises OSError."""
        os.fsync(self._fd)

    @property
    def held(self) -> Held:
        """Size and checksum of the file, without waiting entries."""
        return Held(self._size, digits(self._crc))

    def close(self) -> None:
        """Closes the file; waiting entries are dropped."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
