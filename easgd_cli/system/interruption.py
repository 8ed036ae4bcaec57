"""Signals that end the program, before a launcher has taken over, and SIGQUIT, which asks where it is.

A KeyboardInterrupt in the middle of an import, or of another library's callback, is lost there or comes out as
something else. So until a launcher listens, nothing is raised: what was begun is undone and the process ends where it
stands.
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
    """Those of NUMBERS that end this process: a terminal that is gone does not where SIGHUP is ignored, as by nohup."""
    return [n for n in NUMBERS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


def said(number: int) -> str:
    """What such a signal has done to the program, in a word or three."""
    return {2: "interrupted", 15: "terminated"}.get(number, f"ended by {signal.Signals(number).name}")


@contextmanager
def ending_the_process() -> Iterator[None]:
    """While it lasts, a signal of NUMBERS ends this process with a line and exit status 128 + its number."""

    def end(number: int, _: FrameType | None) -> None:
        with suppress(Exception):  # the signal may have come in the middle of a write to the same stream
            sys.stdout.flush()
        tell(f"{said(number)}.")
        os._exit(128 + number)

    with _reacting({number: end for number in ending()}):
        yield


@contextmanager
def stacks_shown(show: Callable[[], object] | None = None) -> Iterator[None]:
    """While it lasts, SIGQUIT calls `show`, or shows the stacks of all threads on stderr, and nothing ends."""
    with _reacting({signal.SIGQUIT: lambda *_: show_stacks(2) if show is None else show()}):
        yield


def show_stacks(file: Any) -> None:
    """Writes the Python stacks of all threads of this process to a file or descriptor, the newest call first."""
    with suppress(OSError):
        faulthandler.dump_traceback(file)


@contextmanager
def undone_by(undo: Callable[[], object]) -> Iterator[None]:
    """While it lasts, a signal of NUMBERS first calls `undo`, then does what it would have done."""
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
    """While it lasts, signals of NUMBERS wait; they come at its end."""
    came: list[int] = []
    with _reacting({number: lambda number, _: came.append(number) for number in ending()}):
        yield
    for number in came:
        signal.raise_signal(number)


@contextmanager
def noted() -> Iterator[list[int]]:
    """While it lasts, signals of NUMBERS do nothing but stand in the list that it yields."""
    came: list[int] = []
    with _reacting({number: lambda number, _: came.append(number) for number in ending()}):
        yield came


@contextmanager
def raised() -> Iterator[list[int]]:
    """While it lasts, signals of NUMBERS are a KeyboardInterrupt, as other programs expect. Yields those that came."""
    came: list[int] = []

    def react(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    with _reacting({number: react for number in ending()}):
        yield came


def end_with(parent: int, number: signal.Signals) -> None:
    """From here on this process is sent `number` when its parent, process `parent`, ends. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended before
            signal.raise_signal(number)


def end_with_pipe(watched: int) -> None:
    """From here on this process is killed when the writing end of that pipe is closed, at once, whatever it does: the
    system needs nothing of it, no lock of the interpreter's either, and it may have been stopped. On Linux only, which
    lets a signal be chosen; elsewhere nothing happens.

    `watched`: its reading end, of which nobody else has a copy, and into which nothing is written.
    """
    if hasattr(fcntl, "F_SETSIG"):
        with suppress(OSError):  # a system that looks like Linux
            fcntl.fcntl(watched, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(watched, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(watched, fcntl.F_SETFL, fcntl.fcntl(watched, fcntl.F_GETFL) | os.O_ASYNC)
    if has_ended(watched):  # before it was asked for
        os._exit(1)


def has_ended(watched: int) -> bool:
    """Whether the writing end of a pipe has been closed, into which nothing is written; `watched`: its reading end."""
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    return bool(poll.poll(0))


def tell(text: str) -> None:
    """A line on stderr, written past its buffer, which a signal may have found in use."""
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
