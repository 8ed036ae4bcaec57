"""Room on the disk that a run reserves, so that its center can be written at its end even if the disk is full then."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NAME = ".reserve"


class Reserve:
    """A hidden file of `size` bytes without content. Without room for it there is no file; on a system without
    posix_fallocate the file is empty and reserves nothing.
    """

    def __init__(self, run_dir: Path, size: int):
        self._path = run_dir / NAME
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError:
            return
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
        except OSError:
            self.release()
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Removes the file, so that other files can use the room."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
