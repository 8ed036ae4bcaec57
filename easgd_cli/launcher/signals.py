"""Signals that end a run, as events in a launcher's loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from easgd_cli.system import interruption

_listening: list[Signals] = []


def interrupt() -> bool:
    """Has every launcher that listens in this process, in any thread, find a SIGINT; returns whether any listens."""
    for signals in list(_listening):
        signals.note(signal.SIGINT)
    return bool(_listening)


class Signals:
    """Notes signals while it lasts, and returns them when asked; then puts the earlier handlers back.

    Only the main thread is told of signals. In any other thread the end of the main thread counts as a SIGINT, since
    Ctrl-C ends the main thread unless it is caught there.
    """

    def __enter__(self) -> Signals:
        self._numbers: list[int] = []
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._orphaned = False
        _listening.append(self)
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in interruption.ending():
            self._before[number] = signal.signal(number, lambda n, _: self._numbers.append(n))
        return self

    def __exit__(self, *_: object) -> None:
        _listening.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int) -> None:
        """Notes this signal as if it had come."""
        self._numbers.append(number)

    def take(self) -> list[int]:
        """Returns the signals that have come since the last call."""
        if not self._orphaned and not threading.main_thread().is_alive():
            self._orphaned = True
            self.note(signal.SIGINT)
        numbers, self._numbers = self._numbers, []
        return numbers
