"""The couriers of variables that lie in one process: each takes its step as soon as its variable has been updated.

So the couriers' exchanges follow from the order of the workers' exchanges, and need no time of their own. The vectors
that couriers lend, and the replies of a step, may lie in memory that outlives the process. Then the next process
repeats the step that was under way: exchanges that have been served are not made again; their replies are still there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from easgd_cli.algorithms.base import EXCHANGES, Method, Rule, Worker
from easgd_cli.algorithms.schedule import Schedule
from easgd_cli.transport.base import Reply

Exchanged = Callable[[int, "Tensor | None", Tensor, str], Reply]


class Couriers:
    """All couriers of one process. `exchange`: makes one exchange; takes the courier's number, its message [d], the
    place of the reply [d] and the variable's name. `steps`: the local steps of each worker, None if unknown; `clocks`:
    the couriers' clocks in a run that goes on, by variable; `memory`: the vectors, by the names of `vectors_of`.

    `at`: the number of the exchange under way; it rises from each exchange of a courier to its next.
    """

    def __init__(
        self, method: Method, workers: int, tau: int, schedule: Schedule, like: Tensor, exchange: Exchanged,
        steps: int | None, clocks: Mapping[str, int] | None = None, memory: Mapping[str, Tensor] | None = None,
    ):  # fmt: skip
        self._exchange = exchange
        self._couriers: dict[str, tuple[Worker, Callable[[Worker], Rule], int | None]] = {}
        names = self.vectors_of(method)
        lying = memory if memory is not None else {name: torch.zeros_like(like) for name in names}
        for i, (name, courier) in enumerate(method.couriers.items()):
            vectors = {vector: lying[f"{name}.{vector}"] for vector in courier.vectors}
            w = Worker(vectors, tau, schedule, (clocks or {}).get(name, 1), workers + i)
            last = steps if method.variables[name].in_rounds else None
            self._couriers[name] = (w, courier.step, last)
        self._lends = {
            w.number: [getattr(w, v) for v in courier.vectors]
            for (w, _, _), courier in zip(self._couriers.values(), method.couriers.values(), strict=True)
        }
        self._replies = [lying[name] for name in names if name.startswith("reply")]
        self._due: deque[str] = deque()
        self._under_way = False
        self.at = 0

    @staticmethod
    def vectors_of(method: Method) -> list[str]:
        """Returns the names of all couriers' vectors, and of the replies of a step."""
        if not method.couriers:
            return []
        own = [f"{name}.{vector}" for name, courier in method.couriers.items() for vector in courier.vectors]
        return [*own, *(f"reply {i}" for i in range(EXCHANGES))]

    @property
    def clocks(self) -> dict[str, int]:
        """The couriers' clocks, each by the variable with which the courier keeps time."""
        return {name: w.t for name, (w, _, _) in self._couriers.items()}

    def index(self, courier: int, message: Tensor) -> int:
        """Returns the place of `message` among the vectors that the courier lends."""
        return [v.data_ptr() for v in self._lends[courier]].index(message.data_ptr())

    def lent(self, courier: int, vector: int, at: int) -> tuple[Tensor | None, Tensor]:
        """Returns the message of the exchange `at`, None for a pull (`vector` < 0), and the place of its reply."""
        return None if vector < 0 else self._lends[courier][vector], self._replies[at % EXCHANGES]

    def updated(self, variable: str, worker: int) -> None:
        """Lets the updated variable's courier take its step, unless the courier is the `worker` that updated it."""
        if variable not in self._couriers or self._couriers[variable][0].number == worker:
            return
        self._due.append(variable)
        if self._under_way:
            return
        self._under_way = True
        while self._due:
            self._take_step(*self._couriers[self._due.popleft()])
        self._under_way = False

    def begin_at(self, variable: str, t: int) -> None:
        """Makes t the next step of the variable's courier."""
        self._couriers[variable][0].t = t

    def again(self, variable: str, worker: int, t: int) -> None:
        """Repeats the courier's step that follows the update t, unless the update was the courier's own. For an owner
        that does not know how far the owner before it came with that step.
        """
        if variable in self._couriers and self._couriers[variable][0].number != worker:
            self.begin_at(variable, t)
            self.updated(variable, worker)

    def _take_step(self, w: Worker, step: Callable[[Worker], Rule], last: int | None) -> None:
        """Takes the courier's next step; where rounds end at `last` steps, only its clock advances from then on."""
        if last is None or w.t < last:
            rule, answer = step(w), None
            with suppress(StopIteration):
                for i in range(EXCHANGES + 1):
                    asked = rule.send(answer)
                    if i == EXCHANGES:
                        raise TypeError(f"a courier's step makes at most {EXCHANGES} exchanges; this one makes more")
                    self.at = w.t * EXCHANGES + i
                    answer = self._exchange(w.number, asked.message, self._replies[i], asked.to).vector
        w.t += 1
