"""Ctrl-C and SIGTERM before a launcher has taken over.

A KeyboardInterrupt in the middle of an import, or of another library's callback, is lost there or comes out as
something else. So until a launcher listens, nothing is raised: what was begun is undone and the process ends where it
stands.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)

Reaction = Callable[[int, FrameType | None], Any]


@contextmanager
def ending_the_process() -> Iterator[None]:
    """While it lasts, SIGINT and SIGTERM end this process with a line and exit status 130 or 143, wherever it is."""

    def end(number: int, _: FrameType | None) -> None:
        with suppress(Exception):  # the signal may have come in the middle of a write to the same stream
            sys.stdout.flush()
        tell("interrupted." if number == signal.SIGINT else "terminated.")
        os._exit(128 + number)

    with _reacting({number: end for number in _NUMBERS}):
        yield


@contextmanager
def undone_by(undo: Callable[[], object]) -> Iterator[None]:
    """While it lasts, SIGINT and SIGTERM first call `undo`, then do what they would have done."""
    before = {number: signal.getsignal(number) for number in _NUMBERS}

    def react(number: int, frame: FrameType | None) -> None:
        undo()
        reaction = before[signal.Signals(number)]
        if callable(reaction):
            reaction(number, frame)
        elif reaction != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    with _reacting({number: react for number in _NUMBERS}):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """While it lasts, SIGINT and SIGTERM wait; they come at its end."""
    came: list[int] = []
    with _reacting({number: lambda number, _: came.append(number) for number in _NUMBERS}):
        yield
    for number in came:
        signal.raise_signal(number)


@contextmanager
def raised() -> Iterator[list[int]]:
    """While it lasts, SIGINT and SIGTERM are a KeyboardInterrupt, which is what other programs wait for. Yields those
    that have come.
    """
    came: list[int] = []

    def react(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    with _reacting({number: react for number in _NUMBERS}):
        yield came


def end_with(parent: int, number: signal.Signals) -> None:
    """From here on this process is sent signal `number` when process `parent`, which has started it, ends. On Linux
    only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended before
            signal.raise_signal(number)


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
