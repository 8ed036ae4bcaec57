"""Signals that end a run as events of a launcher's loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from easgd_cli.system import interruption

_listening: list[Signals] = []


def interrupt() -> bool:
    """Has whoever listens in this process, in any thread, find a SIGINT; returns whether there was somebody."""
    for signals in list(_listening):
        signals.note(signal.SIGINT)
    return bool(_listening)


class Signals:
    """For as long as it lasts, signals are noted and told when asked; the handlers before are put back.

    Only the main thread is told of signals. In another the end of the main one counts as a SIGINT: that is what Ctrl-C
    makes of it unless somebody sees to it.
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
        """As if that signal had come."""
        self._numbers.append(number)

    def take(self) -> list[int]:
        """Those that have come since the last call."""
        if not self._orphaned and not threading.main_thread().is_alive():
            self._orphaned = True
            self.note(signal.SIGINT)
        numbers, self._numbers = self._numbers, []
        return numbers
