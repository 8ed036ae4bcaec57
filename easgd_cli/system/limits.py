"""What a shell or a scheduler allows a run: files and processes, counted before it starts."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

_MANY = 10_000  # a limit on processes above this is not counted against: that takes milliseconds, and it is far away


def check(asked: str, files: int, processes: int) -> None:
    """Raises ValueError where a run asked for by `asked` needs more of either than is allowed."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < files:
        raise ValueError(
            f"{asked}: the run opens up to {files} files, and this shell allows {allowed}; allow more with "
            f"ulimit -n {files}, or use fewer workers."
        )
    allowed, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if allowed == resource.RLIM_INFINITY or allowed > _MANY or os.geteuid() == 0:  # who is root has none
        return
    running = threads_of_user(os.getuid())
    if running is not None and running + processes > allowed:
        raise ValueError(
            f"{asked}: the run has {processes} processes, and of the {allowed} that this shell allows a user, threads "
            f"included, {running} run; allow more with ulimit -u {running + 2 * processes}, or use fewer workers."
        )


def threads_of_user(user: int, proc: Path = Path("/proc")) -> int | None:
    """How many threads of that user run, which is what its limit on processes counts; None where nobody knows."""
    found = None
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == user:
                found = (found or 0) + len(os.listdir(process / "task"))
    return found
