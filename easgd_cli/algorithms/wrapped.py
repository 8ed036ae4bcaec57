"""Methods around another method: whatever such a method does not define itself is that of the inner one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from easgd_cli.algorithms.base import Courier, Exchange, Method, Rule, Variable, Worker


@dataclass(frozen=True)
class Wrapped(Method):
    """Base of a method around `method`."""

    method: Method

    @property
    def state(self) -> tuple[str, ...]:
        return self.method.state

    @property
    def scratch(self) -> tuple[str, ...]:
        return self.method.scratch

    @property
    def variables(self) -> Mapping[str, Variable]:
        return self.method.variables

    @property
    def couriers(self) -> Mapping[str, Courier]:
        return self.method.couriers

    def home(self, worker: int) -> str:
        return self.method.home(worker)

    @property
    def closes(self) -> bool:
        return self.method.closes

    def closing(self, w: Worker) -> Exchange | None:
        return self.method.closing(w)


def relayed(rule: Rule, ask: Callable[[Any], Any], answer: Callable[[Any, Any], Any]) -> Rule:
    """Runs `rule`. Yields `ask(request)` for each of its requests; sends it `answer(ask(request), given)` for what is
    given in return.
    """
    given: Any = None
    while True:
        try:
            asked = rule.send(given)
        except StopIteration:
            return
        several = isinstance(asked, tuple)
        wanted = [None if one is None else ask(one) for one in (asked if several else (asked,))]
        answered = yield tuple(wanted) if several else wanted[0]
        answers = [
            None if one is None else answer(one, what)
            for one, what in zip(wanted, answered if several else (answered,), strict=True)
        ]
        given = tuple(answers) if several else answers[0]
