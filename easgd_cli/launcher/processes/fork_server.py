"""The server that a run's processes are forked from: multiprocessing's, with what multiprocessing leaves open.

Whether the server lives is known, also to a process that has not started it; its socket has no name that could stay
behind or be too long; and when it is gone, the next child gets another server. Children that run do not need it: it
only tells how a process has ended, and on Linux that a process has ended is known without it (`Process.sentinel`).

The server is a fresh interpreter that has imported torch or, for objects that cannot be sent to one, a copy of this
process (`begin_here`). In neither does a child run the program's main module, as multiprocessing's children do: a
script without a guard would train again there. The server is ours alone: a program's own use of multiprocessing is as
it was.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import context, forkserver, popen_forkserver, process, reduction, resource_tracker, util
from multiprocessing.forkserver import ForkServer
from typing import Any

from easgd_cli.errors import RunError
from easgd_cli.launcher.processes.server_process import READY, make_ready
from easgd_cli.system import interruption

_PRELOAD = ["easgd_cli.launcher.preload"]
_STATUS_SECONDS = 2.0  # for the server to tell how a process ended; it does so at once
_SIGNALS = {*interruption.NUMBERS, signal.SIGQUIT}
_FORKS = "the server that a run's processes are forked from"

_server: Any = ForkServer()
_running: Server | None = None


class Server:
    """A server that runs, or has run. `sentinel`: a descriptor that can be read once it has ended; None where the
    system has none.
    """

    def __init__(self, pid: int, socket: int | None):
        self.pid, self._socket = pid, socket
        self.sentinel = _pidfd(pid)
        self.told = False  # True once its end has been told
        self._released = False

    @property
    def lives(self) -> bool:
        return not self._released and (self.sentinel is None or not _readable(self.sentinel, 0))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def release(self) -> None:
        """Gives back what is held of a server that has ended."""
        self._released = True
        for descriptor in (self.sentinel, self._socket):
            if descriptor is not None:
                os.close(descriptor)

    def __str__(self) -> str:
        return f"{_FORKS} (process {self.pid})"


def running() -> Server | None:
    """Returns the server that children are forked from now, or were until it ended."""
    return _running


def gone() -> str | None:
    """Returns the sentence that the server has ended, once; else None."""
    if _running is None or _running.told or _running.lives:
        return None
    _running.told = True
    return f"{_running} has ended"


def ready() -> bool:
    """Starts the server if need be; returns whether a child can be forked at once, True if unknown. Raises OSError."""
    begin()
    assert _running is not None
    try:
        with open(f"/proc/{_running.pid}/comm", encoding="utf-8") as f:
            return f.read().strip() == READY
    except OSError:
        return True


def leave_removed_directory() -> None:
    """Goes to / if the working directory has been removed: multiprocessing and the look-up of modules need its name."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def _here() -> str:
    """Returns the working directory, by a name that it keeps when it is removed, where the system can."""
    return f"/proc/{os.getpid()}/cwd" if os.path.isdir("/proc/self/fd") else os.getcwd()


def begin() -> None:
    """Starts the server, unless one runs, without waiting for it: it imports torch while the caller goes on. Raises
    OSError.
    """
    global _running
    # Server and tracker inherit this mask: no signal that goes to every process of a terminal or job may end them. The
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


def begin_here() -> None:
    """Has children forked from a copy of this process as it is now, in the place of the server there was. Raises
    OSError.

    The copy is made in a thread of its own, which has never computed: OpenMP's threads do not outlive a fork, and a
    thread that has had some waits for them for ever.
    """
    global _running
    end()
    resource_tracker.ensure_running()
    with _nameless() as name, socket.socket(socket.AF_UNIX) as listener:
        address = name("listener")
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        told, alive = os.pipe()
        forked: list[int] = []
        thread = threading.Thread(target=lambda: forked.append(_fork(listener, told, alive)))
        thread.start()
        thread.join()
        os.close(told)
        if not forked:
            os.close(alive)
            raise OSError(errno.EAGAIN, "this process could not be copied")
        _server._forkserver_address, _server._forkserver_alive_fd, _server._forkserver_pid = address, alive, forked[0]
        _running = _reach(forked[0])


def _fork(listener: socket.socket, told: int, alive: int) -> int:
    """Copies this process; returns the copy's number. The copy serves until all descriptors like `alive` are closed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # for this thread alone, and for the copy
    if pid := os.fork():
        return pid
    try:
        os.close(alive)
        make_ready()
        forkserver.main(listener.detach(), told, [])
    finally:
        os._exit(0)


def end() -> None:
    """Ends the server, if this process has started one that runs; the next child gets another."""
    global _running
    if _running is None:
        return
    _forget(_running, wait=True)
    _running = None


class _Popen(popen_forkserver.Popen):
    """Starts a child from our server, and tells it nothing of the program's main module."""

    def _launch(self, process_obj: Any) -> None:
        told = {
            "name": process_obj.name, "authkey": process.current_process().authkey, "dir": _here(),
            "sys_path": [path or process.ORIGINAL_DIR for path in sys.path], "sys_argv": sys.argv,  # type: ignore[attr-defined]
            "orig_dir": process.ORIGINAL_DIR,  # type: ignore[attr-defined]
        }  # fmt: skip
        sent = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(told, sent)
            reduction.dump(process_obj, sent)
        finally:
            context.set_spawning_popen(None)
        watched, kept = os.pipe()  # `kept` is closed when this process ends, and then the child ends
        try:
            self.sentinel, to_child = _server.connect_to_new_process([*self._fds, watched])  # type: ignore[attr-defined]
        except BaseException:
            os.close(kept)
            raise
        finally:
            os.close(watched)
        kept_too = os.dup(to_child)  # when it is closed, multiprocessing in the child learns of our end
        close: Any = util.close_fds  # type: ignore[attr-defined]
        self.finalizer = util.Finalize(self, close, (kept, kept_too, self.sentinel))
        with open(to_child, "wb") as f:
            f.write(sent.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


class _Forked(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:
        return _Popen(process_obj)


class Process:
    """A process forked from the server. `sentinel`: a descriptor that can be read once it has ended. Raises RunError
    where it could not be started.
    """

    def __init__(self, name: str, target: Any, args: tuple[Any, ...]):
        self._process = _Forked(target=target, args=args, name=name, daemon=True)
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
        """Waits until the process has ended, at most so long. Returns whether it has."""
        return _readable(self.sentinel, seconds)

    @property
    def how(self) -> str:
        """How the process has ended, for a sentence."""
        self._process.join(_STATUS_SECONDS)
        code = self._process.exitcode
        if code is None or (code == 255 and self._server is not None and not self._server.lives):
            gone = "stands still" if code is None else "is gone"
            return f"how is not known: {self._server} {gone}"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    @property
    def killed_by(self) -> int | None:
        """The signal that has ended the process, if that is known."""
        self._process.join(_STATUS_SECONDS)
        code = self._process.exitcode
        return -code if code is not None and code < 0 else None

    def send_signal(self, number: int) -> None:
        """Sends the process a signal, if it lives."""
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self._process.exitcode is None:
                os.kill(self.pid, number)

    def close(self) -> None:
        """Gives back what is held of a process that has ended."""
        self._process.join(_STATUS_SECONDS)
        if self._process.exitcode is None and self._server is not None:
            self._server.kill()  # the server stands still, and would keep this process from ending
            self._process.join()
        self._process.close()
        if self._pidfd is not None:
            os.close(self._pidfd)


def _start() -> Server:
    """Starts a server. multiprocessing then asks for the program's start method, and so settles it, for data that the
    server is not sent; that is undone.
    """
    _server.set_forkserver_preload(_PRELOAD)
    default: Any = context._default_context
    settled = default._actual_context
    with _nameless():
        try:
            ForkServer.ensure_running(_server)
        finally:
            default._actual_context = settled
        return _reach(_server._forkserver_pid)


def _reach(pid: int) -> Server:
    """Returns the server with this process number. Where the system can, its socket is reached by a descriptor from now
    on, and needs no name any more.
    """
    if not os.path.isdir("/proc/self/fd"):
        return Server(pid, None)
    socket_there = os.open(_server._forkserver_address, os.O_PATH)
    _server._forkserver_address = f"/proc/self/fd/{socket_there}"
    return Server(pid, socket_there)


@contextmanager
def _nameless() -> Iterator[Callable[[str], str]]:
    """While it lasts, multiprocessing puts its socket into a directory that is removed afterwards, by a short path,
    where the system can. Yields a function that makes such a path.

    Only an orderly end removes multiprocessing's own directories, and their path may be longer than a socket's may be.
    """
    config: Any = process.current_process()._config  # type: ignore[attr-defined]
    before = config.get("tempdir")
    if not os.path.isdir("/proc/self/fd"):
        yield lambda name: os.path.join(util.get_temp_dir(), f"{name}-{os.getpid()}-{time.monotonic_ns()}")
        return
    with tempfile.TemporaryDirectory(prefix="easgd-") as made:
        directory = os.open(made, os.O_RDONLY)
        config["tempdir"] = short = f"/proc/self/fd/{directory}"
        try:
            yield lambda name: f"{short}/{name}"
        finally:
            config["tempdir"] = before
            os.close(directory)


def _forget(server: Server, wait: bool = False) -> None:
    """Closes the descriptor whose end ends the server, and forgets the server; `wait`: waits until it has ended, and
    kills one that does not end.
    """
    os.close(_server._forkserver_alive_fd)
    if wait and server.sentinel is not None and not _readable(server.sentinel, _STATUS_SECONDS):
        server.kill()
    with suppress(ChildProcessError):  # another process has started it
        os.waitpid(server.pid, 0 if wait else os.WNOHANG)
    _server._forkserver_address = _server._forkserver_alive_fd = _server._forkserver_pid = None
    server.release()


def _pidfd(pid: int) -> int | None:
    """Returns a descriptor that can be read once that process has ended; None where the system has none, or the process
    is gone already.
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
