"""What is done within the server that a run's processes are forked from, beside what multiprocessing does there.

A process is bound to its launcher as the first thing it does. A launcher that is killed while it asks for a process is
no error of the server's.
"""

from __future__ import annotations

import errno
import gc
from contextlib import suppress
from multiprocessing import forkserver
from types import SimpleNamespace
from typing import Any

from easgd_cli.system import interruption

READY = "easgd-server"  # the server's process name once it has imported what children need


def name_process(name: str) -> None:
    """Names this process as `ps` and `top` show it, where the system can; longer names are cut to 15 letters."""
    with suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as f:
        f.write(name)


def make_ready() -> None:
    """Makes this process the server, in which multiprocessing's loop is about to serve."""
    server: Any = forkserver
    receive, serve = server.reduction.recvfds, server._serve_one

    def received(*socket_and_size: Any) -> Any:
        try:
            return receive(*socket_and_size)
        except EOFError as e:  # would end the server, unlike the error that is raised in its place
            raise ConnectionAbortedError(errno.ECONNABORTED, "whoever asked for a process has ended") from e

    def serve_one(child_r: int, fds: list[int], *more: Any) -> Any:
        *fds, launcher = fds
        interruption.end_with_pipe(launcher)
        try:
            return serve(child_r, fds, *more)
        except Exception:
            if interruption.has_ended(launcher):  # the launcher ended while it was sending
                return 1
            raise

    gc.freeze()  # a collection writes to all it looks at, and each child would have a copy of that: 30 MB
    server.reduction = SimpleNamespace(**{**vars(server.reduction), "recvfds": received})  # for the server alone
    server._serve_one = serve_one
    name_process(READY)
