"""The couriers of variables that lie in one process: each takes its step as soon as it may, which is at once.

So what they do follows from the order of the other exchanges, and takes no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from easgd_cli.algorithms.base import Method, Rule, Worker
from easgd_cli.algorithms.schedule import Schedule
from easgd_cli.transport.base import Reply

Exchanged = Callable[[int, "Tensor | None", Tensor, str], Reply]


class Couriers:
    """`exchange`: makes an exchange of a courier's number, with its message [d], the place of its reply [d] and its
    variable. `steps`: local steps in all, None where nobody knows; `clocks`: of a run that goes on, by variable.
    """

    def __init__(
        self, method: Method, workers: int, tau: int, schedule: Schedule, like: Tensor, exchange: Exchanged,
        steps: int | None, clocks: Mapping[str, int] | None = None,
    ):  # fmt: skip
        self._exchange = exchange
        self._couriers: dict[str, tuple[Worker, Callable[[Worker], Rule], int | None]] = {}
        for i, (name, courier) in enumerate(method.couriers.items()):
            vectors = {vector: torch.zeros_like(like) for vector in courier.vectors}
            w = Worker(vectors, tau, schedule, (clocks or {}).get(name, 1), workers + i)
            last = steps if method.variables[name].in_rounds else None
            self._couriers[name] = (w, courier.step, last)
        self._reply = torch.zeros_like(like) if self._couriers else like
        self._due: deque[str] = deque()
        self._under_way = False

    @property
    def clocks(self) -> dict[str, int]:
        """Of each, by the variable with which it keeps time."""
        return {name: w.t for name, (w, _, _) in self._couriers.items()}

    def updated(self, variable: str, worker: int) -> None:
        """The variable has been updated by that worker or courier."""
        if variable not in self._couriers or self._couriers[variable][0].number == worker:
            return
        self._due.append(variable)
        if self._under_way:
            return
        self._under_way = True
        while self._due:
            self._take_step(*self._couriers[self._due.popleft()])
        self._under_way = False

    def _take_step(self, w: Worker, step: Callable[[Worker], Rule], last: int | None) -> None:
        """Its next one."""
        if last is None or w.t < last:
            rule, answer = step(w), None
            with suppress(StopIteration):
                while True:
                    asked = rule.send(answer)
                    answer = self._exchange(w.number, asked.message, self._reply, asked.to).vector
        w.t += 1
