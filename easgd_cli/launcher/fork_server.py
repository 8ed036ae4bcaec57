"""The server that a run's processes are forked from: multiprocessing's, with what that leaves open.

It is known whether it lives, also in a process that has not started it; its socket has no name that could stay behind
or be too long; and when it is gone the next child has another. Children that run do not need it: only how a process
ended is told by it, and that they know without it on Linux (`Process.sentinel`).
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import select
import signal
import tempfile
from contextlib import suppress
from multiprocessing import forkserver, process, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ForkServer
from typing import Any

from easgd_cli.errors import RunError
from easgd_cli.system import interruption

_PRELOAD = ["easgd_cli.launcher.preload"]
_STATUS_SECONDS = 2.0  # for the server to tell how a process ended; it does so at once
_SIGNALS = {*interruption.NUMBERS, signal.SIGQUIT}
READY = "easgd-server"  # the name it gives itself when it has imported what children need
_FORKS = "the server that a run's processes are forked from"

_server: Any = forkserver._forkserver
_running: Server | None = None


class Server:
    """The one that runs. `sentinel`: a descriptor that can be read once it has ended; None where the system has
    none.
    """

    def __init__(self, pid: int, socket: int | None):
        self.pid, self._socket = pid, socket
        self.sentinel = _pidfd(pid)
        self.told = False  # whether somebody has said that it is gone
        self._released = False

    @property
    def lives(self) -> bool:
        return not self._released and (self.sentinel is None or not _readable(self.sentinel, 0))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def release(self) -> None:
        """Of one that has ended."""
        self._released = True
        for descriptor in (self.sentinel, self._socket):
            if descriptor is not None:
                os.close(descriptor)

    def __str__(self) -> str:
        return f"{_FORKS} (process {self.pid})"


def running() -> Server | None:
    """The server that children are forked from now, or were until it ended."""
    return _running


def gone() -> str | None:
    """That it has ended, as a sentence, once."""
    if _running is None or _running.told or _running.lives:
        return None
    _running.told = True
    return f"{_running} has ended"


def ready() -> bool:
    """Whether a child can be forked at once; true where nobody knows. Raises OSError."""
    begin()
    assert _running is not None
    try:
        with open(f"/proc/{_running.pid}/comm", encoding="utf-8") as f:
            return f.read().strip() == READY
    except OSError:
        return True


def leave_removed_directory() -> None:
    """multiprocessing, and whatever looks for modules, want to know the working directory, which may be gone by now."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def name_process(name: str) -> None:
    """Names this process as `ps` and `top` show it, where the system can; of a longer name 15 letters."""
    with suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as f:
        f.write(name)


def begin() -> None:
    """Starts the server, unless one runs, without waiting for it: it imports torch while the caller goes on. Raises
    OSError.
    """
    global _running
    context()
    # Nothing that a terminal or a scheduler sends to every process ends it, or the tracker: they inherit this mask. The
    # server may still be importing, and the tracker would be started again with a warning.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        resource_tracker.ensure_running()  # the server starts it otherwise, and it would lift the block below
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if _running is not None and not _running.lives:
            _forget(_running)
            _running = None
        if _running is None:
            _running = _start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# multiprocessing asks before each child whether the server lives, by waiting for it, which only its parent can
_server.ensure_running = begin


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_PRELOAD)
    return found


class Process:
    """A process forked from the server. `sentinel`: a descriptor that can be read once it has ended. Raises RunError
    where it could not be started.
    """

    def __init__(self, name: str, target: Any, args: tuple[Any, ...]):
        self._process = context().Process(target=target, args=args, name=name, daemon=True)
        leave_removed_directory()
        try:
            self._process.start()
            self._server = _running
        except (EOFError, ConnectionError) as e:
            raise RunError(f"{_running or _FORKS} has ended before all of them were there; start the run again.") from e
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._pidfd = _pidfd(self.pid)
        self.sentinel = self._process.sentinel if self._pidfd is None else self._pidfd

    @property
    def ended(self) -> bool:
        return self.join(0)

    def join(self, seconds: float | None = None) -> bool:
        """Waits for its end, at most so long. Returns whether it has come."""
        return _readable(self.sentinel, seconds)

    @property
    def how(self) -> str:
        """How it has ended, for a sentence."""
        self._process.join(_STATUS_SECONDS)
        code = self._process.exitcode
        if code is None or (code == 255 and self._server is not None and not self._server.lives):
            gone = "stands still" if code is None else "is gone"
            return f"how is not known: {self._server} {gone}"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it lives."""
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self._process.exitcode is None:
                os.kill(self.pid, number)

    def close(self) -> None:
        """Of one that has ended."""
        self._process.join(_STATUS_SECONDS)
        if self._process.exitcode is None and self._server is not None:
            self._server.kill()  # it stands still, and would keep this process from ending
            self._process.join()
        self._process.close()
        if self._pidfd is not None:
            os.close(self._pidfd)


def _start() -> Server:
    """Starts one whose socket is reached by a descriptor, where the system can, and so has no name any more.

    multiprocessing puts it into a directory that only an orderly end removes, and whose path may be longer than a
    socket's may be.
    """
    if not os.path.isdir("/proc/self/fd"):
        ForkServer.ensure_running(_server)
        return Server(_server._forkserver_pid, None)
    config: Any = process.current_process()._config  # type: ignore[attr-defined]
    before = config.get("tempdir")
    with tempfile.TemporaryDirectory(prefix="easgd-") as made:
        directory = os.open(made, os.O_RDONLY)
        config["tempdir"] = f"/proc/self/fd/{directory}"
        try:
            ForkServer.ensure_running(_server)
            socket = os.open(_server._forkserver_address, os.O_PATH)
        finally:
            config["tempdir"] = before
            os.close(directory)
    _server._forkserver_address = f"/proc/self/fd/{socket}"
    return Server(_server._forkserver_pid, socket)


def _forget(server: Server) -> None:
    """That one is gone."""
    with suppress(ChildProcessError):  # another process has started it
        os.waitpid(server.pid, os.WNOHANG)
    os.close(_server._forkserver_alive_fd)
    _server._forkserver_address = _server._forkserver_alive_fd = _server._forkserver_pid = None
    server.release()


def _pidfd(pid: int) -> int | None:
    """A descriptor that can be read once that process has ended; None where the system has none, or the process is gone
    already.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as e:
        if e.errno in (errno.ESRCH, errno.ENOSYS, errno.EPERM):  # the last two in some containers
            return None
        raise


def _readable(descriptor: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else max(0.0, seconds) * 1000))
