"""A worker's seconds: by the clock, and by events of a device, which are stand-ins here that pass when the test says
so.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from easgd_cli.training.meter import Tally
from easgd_cli.training.stopwatch import ByEvents, Timed


class Stream:
    """A device that has done its work up to `done` milliseconds; `asked` is when what it has been asked so far will be
    done.
    """

    asked = done = 0.0


@dataclass
class Event:
    stream: Stream
    at: float = -1.0

    def record(self) -> None:
        self.at = self.stream.asked

    def query(self) -> bool:
        return self.at <= self.stream.done

    def synchronize(self) -> None:
        self.stream.done = max(self.stream.done, self.at)

    def elapsed_time(self, end_event: Event) -> float:
        assert self.query() and end_event.query(), "torch raises for an event that has not passed"
        return end_event.at - self.at


def test_events_are_counted_when_they_have_passed_and_used_again() -> None:
    stream, tally, made = Stream(), Tally(), []

    def new() -> Event:
        made.append(Event(stream))
        return made[-1]

    watch = ByEvents(tally, new)

    def does(name: str, milliseconds: float) -> None:
        before = watch.now()
        stream.asked += milliseconds
        watch.spent(name, before)

    does("seconds_data", 1)
    does("seconds_compute", 30)
    does("seconds_communication", 4)
    assert (tally.seconds_data, tally.seconds_compute, tally.seconds_communication) == (0, 0, 0)  # nobody has waited
    stream.done = 31
    does("seconds_compute", 50)
    assert (tally.seconds_data, tally.seconds_compute, tally.seconds_communication) == (0.001, 0.03, 0)
    watch.settle()
    assert stream.done == 85
    assert tally.seconds == pytest.approx(
        {"seconds_data": 0.001, "seconds_compute": 0.08, "seconds_communication": 0.004, "seconds_other": 0}
    )
    count = len(made)
    for _ in range(100):
        does("seconds_compute", 1)
        stream.done = stream.asked
    assert len(made) <= count + 2
    watch.settle()
    assert tally.seconds_compute == pytest.approx(0.18)


def test_on_a_cpu_seconds_are_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Takes:
        def load(self, worker: int, t: int) -> None:
            clock[0] += 1

        def gradient(self, x: Tensor) -> Tensor:
            clock[0] += 10
            return x

        def post(self, message: Tensor | None, t: int, to: str = "center", *, fragment: int = -1) -> None:
            clock[0] += 100

        def collect(self) -> Tensor:
            clock[0] += 1000
            return torch.zeros(1)

    tally = Tally()
    timed = Timed(Takes(), Takes(), tally, torch.device("cpu"))
    timed.load(0, 0)
    timed.post(torch.zeros(1), 0)
    timed.gradient(torch.zeros(1))
    timed.collect()
    assert (tally.seconds_data, tally.seconds_compute, tally.seconds_communication) == (1, 10, 1100)
