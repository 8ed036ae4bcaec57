"""Room on the disk that a run keeps for its end, so that whatever fills the disk meanwhile its center finds a place."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NAME = ".reserve"


class Reserve:
    """A hidden file of `size` bytes that says nothing; none where there is no room, or none can be set aside."""

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
        """Gives the room to whoever writes next."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
