"""Where the seconds of a worker's step loop go: measured around its gradients and its session.

On a CPU the clock measures. A GPU gets its work long before it does it, so events on its stream measure how long the
device computes, loads, and stands still for an exchange. They are read once they have passed; no step waits for one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from easgd_cli.algorithms.base import CENTER, WHOLE
from easgd_cli.training.drive import Gradients
from easgd_cli.training.meter import Tally
from easgd_cli.transport.base import Reply, Session


class Timed:
    """The `gradients` and the `session` of a worker whose vectors lie on `device`; adds to `tally` the seconds spent in
    each.
    """

    def __init__(self, gradients: Gradients, session: Session, tally: Tally, device: torch.device):
        self._gradients, self._session = gradients, session
        self._watch = stopwatch_of(tally, device)

    def load(self, worker: int, t: int) -> None:
        before = self._watch.now()
        self._gradients.load(worker, t)
        self._watch.spent("seconds_data", before)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self._watch.now()
        gradient = self._gradients.gradient(x)
        self._watch.spent("seconds_compute", before)
        return gradient

    def post(self, message: Tensor | None, t: int, to: str = CENTER, *, fragment: int = WHOLE) -> None:
        before = self._watch.now()
        self._session.post(message, t, to, fragment=fragment)
        self._watch.spent("seconds_communication", before)

    def collect(self) -> Reply:
        before = self._watch.now()
        reply = self._session.collect()
        self._watch.spent("seconds_communication", before)
        return reply

    def settle(self) -> None:
        """Waits for a device that works on its own, so that the tally has all that was measured."""
        self._watch.settle()


class Stopwatch(Protocol):
    """A way to measure. `spent` takes what `now` returned."""

    def now(self) -> Any: ...

    def spent(self, name: str, before: Any) -> None:
        """Adds the time since `before` to the tally's seconds `name`."""

    def settle(self) -> None: ...


def stopwatch_of(tally: Tally, device: torch.device) -> Stopwatch:
    """Returns the way to measure work on `device`."""
    event = partial(torch.get_device_module(device).Event, enable_timing=True)
    return ByClock(tally) if device.type == "cpu" else ByEvents(tally, event)


class ByClock:
    """Measures by the clock of the host, which does the work itself."""

    def __init__(self, tally: Tally):
        self._tally = tally

    def now(self) -> float:
        return time.perf_counter()

    def spent(self, name: str, before: float) -> None:
        setattr(self._tally, name, getattr(self._tally, name) + time.perf_counter() - before)

    def settle(self) -> None:
        """Does nothing: the tally has everything at once."""


class Event(Protocol):
    """The part of torch.cuda.Event that is used."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float: ...


class ByEvents:
    """Measures by events on the current stream of a device, made by `new` and used again once they have passed.

    Between two events the device works, or waits where the host has not given it work in time.
    """

    def __init__(self, tally: Tally, new: Callable[[], Event]):
        self._tally, self._new = tally, new
        self._free: list[Event] = []
        self._recorded: deque[tuple[str, Event, Event]] = deque()  # in the order of the stream

    def now(self) -> Event:
        event = self._free.pop() if self._free else self._new()
        event.record()
        return event

    def spent(self, name: str, before: Event) -> None:
        self._recorded.append((name, before, self.now()))
        while self._recorded and self._recorded[0][2].query():
            self._count()

    def settle(self) -> None:
        while self._recorded:
            self._recorded[0][2].synchronize()
            self._count()

    def _count(self) -> None:
        name, before, after = self._recorded.popleft()
        setattr(self._tally, name, getattr(self._tally, name) + before.elapsed_time(after) / 1000)  # milliseconds
        self._free += [before, after]
