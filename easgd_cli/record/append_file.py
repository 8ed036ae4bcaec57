"""A file that only grows, by whole entries."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path

from easgd_cli.record.checksum import Held, digits


class AppendFile:
    """Collects entries and appends them together.

    When a write fails (a full disk), the file is cut back to its last whole entry and what could not be written is kept
    for the next attempt: nothing is torn, nothing is lost, and the caller decides whether to go on.
    """

    def __init__(self, path: Path, keep: int | None = None):
        """Opens `path`, made if need be, cut to its first `keep` bytes. Raises OSError, also for a link."""
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
        """Hands everything to the operating system. Raises OSError."""
        if not self._waiting:
            return
        # a copy: whoever keeps an error that a write raised would keep its buffer, to which nothing could be added
        data = memoryview(bytes(self._waiting))
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(self._fd, data[at:], self._size + at)
        except OSError:
            with suppress(OSError):  # a file system that has become read-only, say
                os.ftruncate(self._fd, self._size)
            raise
        self._size, self._crc = self._size + len(self._waiting), zlib.crc32(self._waiting, self._crc)
        self._waiting = bytearray()

    def sync(self) -> None:
        """Waits until the disk has what has been flushed. Raises OSError."""
        os.fsync(self._fd)

    @property
    def held(self) -> Held:
        """What the file holds, but for what waits."""
        return Held(self._size, digits(self._crc))

    def close(self) -> None:
        """Closes the file; what has not been flushed is dropped."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
