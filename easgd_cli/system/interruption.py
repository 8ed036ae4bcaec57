"""Signals that end the program before a launcher has taken over, and SIGQUIT, which asks for the stacks.

A KeyboardInterrupt in the middle of an import, or of another library's callback, is lost there or comes out as
something else. So until a launcher listens, nothing is raised: what was begun is undone, and the process ends at once.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# Ctrl-C, a scheduler's end, a terminal that is gone, and what SLURM sends before it takes a node away (--signal=USR1)
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

Reaction = Callable[[int, FrameType | None], Any]


def ending() -> list[signal.Signals]:
    """Returns NUMBERS, without SIGHUP where that is ignored, as under nohup."""
    return [n for n in NUMBERS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


def said(number: int) -> str:
    """Returns in a few words what such a signal has done to the program."""
    return {2: "interrupted", 15: "terminated"}.get(number, f"ended by {signal.Signals(number).name}")


@contextmanager
def ending_the_process() -> Iterator[None]:
    """Lets a signal of NUMBERS end this process at any place, with a line and exit status 128 + the signal's number."""

    def end(number: int, _: FrameType | None) -> None:
        with suppress(Exception):  # the signal may have come in the middle of a write to the same stream
            sys.stdout.flush()
        tell(f"{said(number)}.")
        os._exit(128 + number)

    with _reacting({number: end for number in ending()}):
        yield


@contextmanager
def stacks_shown(show: Callable[[], object] | None = None) -> Iterator[None]:
    """Lets SIGQUIT call `show`, or write the stacks of all threads to stderr; then the process goes on."""
    with _reacting({signal.SIGQUIT: lambda *_: show_stacks(2) if show is None else show()}):
        yield


def show_stacks(file: Any) -> None:
    """Writes the Python stacks of all threads of this process to a file or descriptor, the newest call first."""
    with suppress(OSError):
        faulthandler.dump_traceback(file)


@contextmanager
def undone_by(undo: Callable[[], object]) -> Iterator[None]:
    """Lets a signal of NUMBERS call `undo` first, then do what it would have done."""
    before = {number: signal.getsignal(number) for number in ending()}

    def react(number: int, frame: FrameType | None) -> None:
        undo()
        reaction = before[signal.Signals(number)]
        if callable(reaction):
            reaction(number, frame)
        elif reaction != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    with _reacting({number: react for number in before}):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Holds signals of NUMBERS back until the end of the context."""
    came: list[int] = []
    with _reacting({number: lambda number, _: came.append(number) for number in ending()}):
        yield
    for number in came:
        signal.raise_signal(number)


@contextmanager
def noted() -> Iterator[list[int]]:
    """Collects signals of NUMBERS in the list that it yields; they do nothing else."""
    came: list[int] = []
    with _reacting({number: lambda number, _: came.append(number) for number in ending()}):
        yield came


@contextmanager
def raised() -> Iterator[list[int]]:
    """Makes signals of NUMBERS raise KeyboardInterrupt, which is what other programs wait for. Yields the list of those
    that have come.
    """
    came: list[int] = []

    def react(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    with _reacting({number: react for number in ending()}):
        yield came


def end_with(parent: int, number: signal.Signals) -> None:
    """Has signal `number` sent to this process when process `parent`, which has started it, ends. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the parent has ended already
            signal.raise_signal(number)


def end_with_pipe(watched: int) -> None:
    """Has this process killed, from now on, as soon as the writing end of a pipe is closed, whatever it does: the
    system needs nothing of the process, no lock of the interpreter's either, and the process may have been stopped. On
    Linux only, where the signal can be chosen; elsewhere nothing happens.

    `watched`: the pipe's reading end, of which nobody else has a copy, and into which nothing is written.
    """
    if hasattr(fcntl, "F_SETSIG"):
        with suppress(OSError):  # a system that looks like Linux
            fcntl.fcntl(watched, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(watched, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(watched, fcntl.F_SETFL, fcntl.fcntl(watched, fcntl.F_GETFL) | os.O_ASYNC)
    if has_ended(watched):  # closed before the signal was asked for
        os._exit(1)


def has_ended(watched: int) -> bool:
    """Whether a pipe's writing end has been closed. `watched`: its reading end; nothing is written into the pipe."""
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    return bool(poll.poll(0))


def tell(text: str) -> None:
    """Writes a line to stderr, past its buffer, which may have been in use when a signal came."""
    with suppress(OSError):
        os.write(2, f"easgd: {text}\n".encode())


@contextmanager
def _reacting(reactions: dict[signal.Signals, Reaction]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield
        return
    before = {number: signal.signal(number, reaction) for number, reaction in reactions.items()}
    try:
        yield
    finally:
        for number, reaction in before.items():
            signal.signal(number, reaction)
