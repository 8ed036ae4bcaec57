"""Signals that end a run as events of a launcher's loop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from easgd_cli.system import interruption


class Signals:
    """For as long as it lasts, signals are noted and told when asked; the handlers before are put back."""

    def __enter__(self) -> Signals:
        self._numbers: list[int] = []
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        for number in interruption.ending():
            self._before[number] = signal.signal(number, lambda n, _: self._numbers.append(n))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def taken(self) -> list[int]:
        """Those that have come since the last call."""
        numbers, self._numbers = self._numbers, []
        return numbers
