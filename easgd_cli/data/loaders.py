"""Loaders: processes that read samples of a user's Dataset, for Datasets that hold the interpreter's lock.

The loaders take turns, a batch each, which comes back in anonymous shared memory. Each loader has a pipe of its own and
shares no queue or lock with other processes, so a killed loader leaves nothing locked, and its pipe ends at once.
Loaders are forked, let go of the sockets by which a run sees its processes end, and end with the process that started
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

PATIENCE_SECONDS = 300.0  # that a loader may take for one batch

Read = Callable[..., Any]


class Loaders:
    """`count` loaders for the Dataset `name`. Each calls `begun`, which returns a function that reads a batch."""

    def __init__(self, begun: Callable[[], Read], count: int, name: str):
        self._loaders = [_Loader(begun, name) for _ in range(count)]
        self._next = 0

    def begin(self, *job: Any) -> Callable[[], Any]:
        """Has the next loader read a batch. Returns a function that waits for the batch and raises UsageError where the
        Dataset raises or the loader stands still, and RunError where the loader has died.
        """
        self._next += 1
        return self._loaders[self._next % len(self._loaders)].begin(job)


class _Loader:
    def __init__(self, begun: Callable[[], Read], name: str):
        self._pipe, theirs = Pipe()
        self._name = name
        self._asked: deque[list[Any]] = deque()  # for each batch that is being read, a list to put it into
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: a loader uses none
            self.pid = os.fork()
        if not self.pid:
            _serve(begun, theirs, parent)
        theirs.close()
        weakref.finalize(self, _end, self._pipe, self.pid, parent)

    def begin(self, job: Any) -> Callable[[], Any]:
        place: list[Any] = []
        with suppress(ConnectionError):  # the loader has died: `finish` says so
            self._pipe.send(job)
        self._asked.append(place)

        def finish() -> Any:
            while not place:  # batches that were begun earlier arrive first, wanted or not
                received = self._received()
                self._asked.popleft().append(received)
            if isinstance(place[0], UsageError):
                raise place[0]
            return place.pop()

        return finish

    def _received(self) -> Any:
        """Returns the next batch, or the UsageError that reading it has raised in the loader."""
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
    """Returns how the loader has ended, for a sentence."""
    with suppress(ChildProcessError):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return "has ended"


def _end(pipe: Connection, pid: int, parent: int) -> None:
    """Kills the loader, which has nothing to save."""
    if os.getpid() != parent:  # this is another loader, forked with a copy of the object
        return
    pipe.close()
    with suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _serve(begun: Callable[[], Read], pipe: Connection, parent: int) -> None:
    """Reads batches in a loader until the pipe's other end is closed, then ends the process. Does not return."""
    status = 1
    try:
        for number in interruption.NUMBERS:  # sent to all processes of a run, whose launcher decides
            signal.signal(number, signal.SIG_IGN)
        interruption.end_with(parent, signal.SIGKILL)
        _let_go_of_sockets(pipe.fileno())
        with suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as f:
            f.write("easgd-loader")
        torch.set_num_threads(1)  # with more, torch would wait for threads that a fork does not copy
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
    """Lets go of all sockets but `own`, so that each ends with its owner: by that a run sees its processes end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the listing had a descriptor, too, which is closed by now
            if fd > 2 and fd != own and stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.dup2(nothing, fd)  # not closed: its object would later close another file of that number
