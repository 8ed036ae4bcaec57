"""The limits of a shell or a scheduler on files and processes, checked before a run starts."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

_MANY = 10_000  # nothing is counted where a limit is above this: counting takes milliseconds, and the limit is far away


def check(asked: str, files: int, processes: int) -> None:
    """Raises ValueError if a run asked for by `asked` needs more files or processes than are allowed."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < files:
        raise ValueError(
            f"{asked}: the run opens up to {files} files, and this shell allows {allowed}; allow more with "
            f"ulimit -n {files}, or use fewer workers."
        )
    allowed, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if allowed == resource.RLIM_INFINITY or allowed > _MANY or os.geteuid() == 0:  # root has no limit
        return
    running = threads_of_user(os.getuid())
    if running is not None and running + processes > allowed:
        raise ValueError(
            f"{asked}: the run has {processes} processes, and of the {allowed} that this shell allows a user, threads "
            f"included, {running} run; allow more with ulimit -u {running + 2 * processes}, or use fewer workers."
        )


def threads_of_user(user: int, proc: Path = Path("/proc")) -> int | None:
    """Returns how many threads of that user run, which is what the limit on processes counts; None if unknown."""
    found = None
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == user:
                found = (found or 0) + len(os.listdir(process / "task"))
    return found
