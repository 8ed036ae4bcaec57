"""Answers what a rule yields: the one place where a step is taken and a worker's clock advances.

`Turn` is a step in progress and knows neither time nor processes. `take_step` drives one to its end against a session
that may block. `ByHand` holds all parties in one process and lets the caller say whose turn it is: what tests use to
hold a method against its printed listing, and what replays the recorded order of a real run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Worker
from easgd_cli.center import Center
from easgd_cli.schedule import Schedule


class Objective(Protocol):
    """What a step needs of a problem (problem.py): a batch, and gradients at the vectors a rule names."""

    def load(self, worker: int, t: int) -> None:
        """Makes the batch of that worker's local step t."""

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the loaded batch's loss at x [d], l2 term included; valid until the next call."""


class Session(Protocol):
    """A worker's connection to a center: one request, one reply."""

    def post(self, message: Tensor) -> None:
        """Lends `message` to the center and returns at once."""

    def collect(self) -> Tensor:
        """Waits for the reply [d], valid until the next `post`."""


class Turn:
    """One step of one worker in progress. `asks` is what its rule waits for, empty when the step has ended.

    A worker in mid-step is its state, its clock and the answers it has had: run the rule again with the same answers
    and it stands at the same place.
    """

    __slots__ = ("_rule", "_single", "asks", "w")

    def __init__(self, method: Method, w: Worker):
        self.w = w
        self._rule = method.step(w)
        self.asks: tuple[Gradient | Exchange | None, ...] = ()
        self._single = True
        self._go_on(None)

    def answer(self, answers: Sequence[Tensor | None]) -> None:
        """Hands the rule its answers, in the order of `asks`, None where it asked for nothing."""
        self._go_on(answers[0] if self._single else tuple(answers))

    def _go_on(self, answer: Any) -> None:
        try:
            ask = self._rule.send(answer)
        except StopIteration:
            self.asks = ()
            self.w.t += 1
            return
        self._single = not isinstance(ask, tuple)
        self.asks = (ask,) if self._single else ask
        for a in self.asks:
            if a is not None and not isinstance(a, Gradient | Exchange):
                raise TypeError(f"a rule yields Gradient, Exchange, None or a tuple of these, not {type(a).__name__}")


def take_step(method: Method, w: Worker, problem: Objective, session: Session | None) -> None:
    """One local step of `w`. What a rule asks for at once overlaps: the message is on its way while the gradient is computed."""
    turn = Turn(method, w)
    loaded = False
    while turn.asks:
        waiting = False
        for ask in turn.asks:
            if isinstance(ask, Exchange):
                assert session is not None and not waiting, "one exchange at a time, and only for a method with a center"
                session.post(ask.message)
                waiting = True
        if not loaded:  # a batch depends on the clock alone, so making it overlaps every method's exchange
            problem.load(w.number, w.t)
            loaded = True
        answers: list[Tensor | None] = [problem.gradient(ask.at) if isinstance(ask, Gradient) else None for ask in turn.asks]
        if waiting:
            assert session is not None
            answers = [session.collect() if isinstance(ask, Exchange) else a for ask, a in zip(turn.asks, answers, strict=True)]
        turn.answer(answers)


def new_vectors(names: Iterable[str], start: Tensor) -> dict[str, Tensor]:
    """Vectors like `start` [d]: x equal to it, the others 0."""
    return {name: start.clone() if name == "x" else torch.zeros_like(start) for name in names}


class ByHand:
    """All parties of a run in one process; the caller names whose turn it is.

    `problem` serves all of them. `start` [d]: where the center and every worker begin, or `starts`: the workers' own
    beginnings. `order` records the exchanges as a real run does: a worker number each.
    """

    def __init__(
        self, method: Method, problem: Objective, *, workers: int, tau: int, schedule: Schedule, start: Tensor, starts: Sequence[Tensor] | None = None
    ):
        self.method, self.problem = method, problem
        self.center = Center(method, new_vectors(method.center, start)) if method.center else None
        self.order: list[int] = []
        self.workers: list[Worker] = []
        self._sessions: list[_Direct | None] = []
        for i, begin in zip(range(workers), starts if starts is not None else [start] * workers, strict=True):
            self.workers.append(Worker(new_vectors((*method.state, *method.scratch), begin), tau, schedule, number=i))
            self._sessions.append(None if self.center is None else _Direct(self.center, torch.empty_like(start), partial(self.order.append, i)))

    def step(self, worker: int) -> None:
        """One local step of that worker, its exchange included when one is due."""
        take_step(self.method, self.workers[worker], self.problem, self._sessions[worker])

    def exchange(self, worker: int) -> None:
        """That worker's steps up to and including the next one in which it exchanges."""
        before = len(self.order)
        while len(self.order) == before:
            self.step(worker)

    def replay(self, order: Iterable[int], after: Callable[[int], None] | None = None) -> None:
        """Exchanges in the recorded order; `after` is told the center's clock after each."""
        for worker in order:
            self.exchange(worker)
            if after is not None and self.center is not None:
                after(self.center.clock)

    def vectors(self) -> Mapping[str, Tensor]:
        """What is evaluated and saved: the center's vectors, or the single worker's."""
        return self.center.vectors if self.center is not None else {name: getattr(self.workers[0], name) for name in self.method.state}


class _Direct:
    """A session whose center answers at once, in the same process."""

    def __init__(self, center: Center, reply: Tensor, note: Callable[[], None]):
        self._center, self._reply, self._note = center, reply, note
        self._lent: dict[int, Any] = {}

    def post(self, message: Tensor) -> None:
        lent = self._lent.get(message.data_ptr())
        if lent is None:
            lent = self._lent[message.data_ptr()] = self._center.lend(message, self._reply)
        self._center.receive(lent)
        self._note()

    def collect(self) -> Tensor:
        return self._reply
