"""Processes that read samples of a user's Dataset, where reading them holds the interpreter's lock.

A batch is read by one of them, in turn, and comes back in anonymous shared memory. Each has a pipe of its own and
shares neither queue nor lock with anybody, so one that is killed leaves nothing locked, and its pipe ends at once. They
are forked, keep none of the sockets by which a run sees its processes end, and end with the process that has begun
them.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Any

import torch

from easgd_cli.data import packing
from easgd_cli.errors import RunError, UsageError
from easgd_cli.system import interruption
from easgd_cli.system.shared_memory import SharedTensors

PATIENCE_SECONDS = 300.0  # for one batch

Read = Callable[..., Any]


class Loaders:
    """`count` of them for the Dataset `name`. `begun` is called in each, and returns what reads a batch."""

    def __init__(self, begun: Callable[[], Read], count: int, name: str):
        self._loaders = [_Loader(begun, name) for _ in range(count)]
        self._next = 0

    def begin(self, *job: Any) -> Callable[[], Any]:
        """Has the next of them read a batch. Called, the result waits for it; it raises UsageError for what the Dataset
        raises or one that stands still, and RunError for one that has died.
        """
        self._next += 1
        return self._loaders[self._next % len(self._loaders)].begin(job)


class _Loader:
    def __init__(self, begun: Callable[[], Read], name: str):
        self._pipe, theirs = Pipe()
        self._name = name
        self._asked: deque[list[Any]] = deque()  # an empty place for each batch that is being read
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which a loader does not use
            self.pid = os.fork()
        if not self.pid:
            _serve(begun, theirs, parent)
        theirs.close()
        weakref.finalize(self, _end, self._pipe, self.pid, parent)

    def begin(self, job: Any) -> Callable[[], Any]:
        place: list[Any] = []
        with suppress(ConnectionError):  # it has died: told when the batch is wanted
            self._pipe.send(job)
        self._asked.append(place)

        def finish() -> Any:
            while not place:  # those that are wanted later, or by nobody any more, come before it
                received = self._received()
                self._asked.popleft().append(received)
            if isinstance(place[0], UsageError):
                raise place[0]
            return place.pop()

        return finish

    def _received(self) -> Any:
        """The next batch, or the UsageError that reading it has raised."""
        if not self._pipe.poll(PATIENCE_SECONDS):
            raise UsageError(
                f"dataset={self._name}: a loader (process {self.pid}) has not read a batch within "
                f"{PATIENCE_SECONDS:g} s; with dataset.loaders=0 samples are read in the process that trains."
            )
        try:
            refused, packed, layout = self._pipe.recv()
            if refused is not None:
                return UsageError(refused)
            memory = SharedTensors(layout, reduction.recv_handle(self._pipe))
        except (EOFError, ConnectionError) as e:
            raise RunError(
                f"dataset={self._name}: a loader (process {self.pid}) {_how(self.pid)}; where memory ran short, give "
                "fewer dataset.loaders or smaller batches."
            ) from e
        return packing.unpack(packed, memory)


def _how(pid: int) -> str:
    """How it has ended, for a sentence."""
    with suppress(ChildProcessError):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return "has ended"


def _end(pipe: Connection, pid: int, parent: int) -> None:
    """Ends it: it holds nothing that is wanted."""
    if os.getpid() != parent:  # another loader, forked with a copy of this one's object
        return
    pipe.close()
    with suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _serve(begun: Callable[[], Read], pipe: Connection, parent: int) -> None:
    """What a loader does: it reads what it is asked for, until nobody asks any more. It does not return."""
    status = 1
    try:
        for number in interruption.NUMBERS:  # sent to all of a run's processes: its launcher decides
            signal.signal(number, signal.SIG_IGN)
        interruption.end_with(parent, signal.SIGKILL)
        _let_go_of_sockets(pipe.fileno())
        with suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as f:
            f.write("easgd-loader")
        torch.set_num_threads(1)  # others would wait for threads that were not forked
        read = begun()
        while True:
            packed, memory, refused = b"", None, None
            job = pipe.recv()
            try:
                packed, memory = packing.pack(read(*job))
            except UsageError as e:
                refused = str(e)
            except BaseException as e:
                traceback.print_exc()
                refused = f"a batch could not be read: {type(e).__name__}: {' '.join(str(e).split())}."
            pipe.send((refused, packed, None if memory is None else memory.layout))
            if memory is not None:
                reduction.send_handle(pipe, memory.fd, parent)
    except (EOFError, ConnectionError):
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def _let_go_of_sockets(own: int) -> None:
    """A socket ends when its last holder does, and by that a run sees its processes end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the listing's own
            if fd > 2 and fd != own and stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.dup2(nothing, fd)  # closed, its number would be another file's when its object is dropped
