"""Answers what a rule yields: the one place where a step is taken and a worker's clock advances.

`Turn` is a step in progress and knows neither time nor processes. `take_step` drives one to its end against a session
that may block. `ByHand` holds all parties in one process and lets the caller say whose turn it is: what tests use to
hold a method against its printed listing, and what replays the recorded order of a real run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from easgd_cli.algorithms.average import Average
from easgd_cli.algorithms.base import CENTER, Exchange, Gradient, Method, Worker
from easgd_cli.algorithms.schedule import Constant, Schedule
from easgd_cli.problems.base import Problem, statistics_of
from easgd_cli.training.center import Center, Lent
from easgd_cli.transport.base import Mark, Reply, Session


def how_it_exchanges(method: Method, eta: float) -> str:
    """Whether a worker `waits` for an exchange and does nothing else, so that its loop's seconds are those of the
    exchange; `overlaps` it with a gradient; exchanges `in rounds` with all others; or `never` does.
    """
    if method.shared is None:
        return "never"
    if method.shared.in_rounds:
        return "in rounds"
    one = torch.zeros(1)
    w = Worker({name: one.clone() for name in (*method.state, *method.scratch)}, 1, Constant(eta), number=0)
    turn = Turn(method, w)
    while turn.message is None and not turn.ended:
        turn.answer((one, one), None)
    return "waits" if turn.at is None and turn.message is not None else "overlaps"


class Gradients(Protocol):
    """What a step needs of a problem: its batch, and gradients at the vectors a rule names."""

    def load(self, worker: int, t: int) -> None:
        """Makes the batch of that worker's local step t."""

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [d] of the loaded batch's loss at x [d], l2 term included, and that loss [] without it; valid until
        the next call.
        """


class ProblemGradients:
    """The gradients of a problem (problems/base.py), scaled down to the norm `clip` where they are longer: g min(1,
    clip / ||g||).

    Pascanu, Mikolov, Bengio 2013, algorithm 1. The norm is that of the whole gradient as a rule gets it, l2 term
    included; what is no gradient, the last entries of a problem with statistics, stays as it is. None: nothing is
    scaled.
    """

    def __init__(self, problem: Problem, clip: float | None = None):
        self._problem, self._clip, self._statistics = problem, clip, statistics_of(problem)
        self._g: Tensor | None = None

    def load(self, worker: int, t: int) -> None:
        """Makes the batch of that worker's local step t."""
        self._problem.load(worker, t)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [d] at x [d], in a buffer of its own where it is clipped, and the loss [] of the batch; valid until
        the next call.
        """
        g = self._problem.gradient(x)
        if self._clip is not None:
            g = self._clipped(g, self._clip)
        return g, self._problem.loss

    def _clipped(self, g: Tensor, clip: float) -> Tensor:
        # A tensor, not a number: on a GPU nobody waits for it. Of a gradient 0 the ratio is infinite, and 1 after the
        # clamp.
        d = len(g) - self._statistics
        self._g = torch.mul(g, (clip / torch.linalg.vector_norm(g[:d])).clamp_(max=1), out=self._g)
        if self._statistics:
            self._g[d:] = g[d:]
        return self._g


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brings back: the loss [] of its batch; of its exchange, None where it had none, the staleness and
    what the reply was marked with.
    """

    loss: Tensor | None
    staleness: int | None = None
    mark: Mark = Mark.NONE


class Turn:
    """One step of one worker in progress, and what its rule waits for now: a gradient, a reply, or both at once.

    A worker in mid-step is its state, its clock and the answers it has had: run the rule again with the same answers
    and it stands at the same place. `result`: what the step brought back, once it has ended.
    """

    __slots__ = ("_asked", "_had", "_loss", "_reply", "_rule", "at", "ended", "message", "result", "w")

    def __init__(self, method: Method, w: Worker):
        self.w = w
        self._rule = method.step(w)
        self._asked: Any = None
        self._had: list[type[Gradient | Exchange]] = []
        self._loss: Tensor | None = None
        self._reply: Reply | None = None
        self.at: Tensor | None = None  # where the gradient is wanted
        self.message: Tensor | None = None  # what is to be exchanged
        self.ended = False
        self.result = StepResult(None)
        self._go_on(None)

    def answer(self, gradient: tuple[Tensor, Tensor] | None, reply: Reply | None) -> None:
        """Hands the rule the gradient at `at`, which comes with its loss, and the reply to `message`; None for what it
        has not asked for.
        """
        g = None
        if gradient is not None:
            g, self._loss = gradient
        if reply is not None:
            self._reply = reply
        vector = None if reply is None else reply.vector

        def to(ask: Gradient | Exchange | None) -> Tensor | None:
            return g if isinstance(ask, Gradient) else vector if isinstance(ask, Exchange) else None

        self._go_on(tuple(map(to, self._asked)) if isinstance(self._asked, tuple) else to(self._asked))

    def _go_on(self, answer: Any) -> None:
        self.at = self.message = None
        try:
            self._asked = self._rule.send(answer)
        except StopIteration:
            self._end()
            return
        for ask in self._asked if isinstance(self._asked, tuple) else (self._asked,):
            if not isinstance(ask, Gradient | Exchange | None):
                raise TypeError(
                    f"a rule yields Gradient, Exchange, None or a tuple of these; this one yields {type(ask).__name__}"
                )
            if ask is None:
                continue
            if type(ask) in self._had:  # the answers would share a buffer
                raise TypeError(
                    "a step asks for at most one gradient and one exchange; this one yields a second "
                    f"{type(ask).__name__}"
                )
            self._had.append(type(ask))
            if isinstance(ask, Gradient):
                self.at = ask.at
            elif ask.to != CENTER:
                raise TypeError(f"an exchange goes to a variable of the method; this one names {ask.to}")
            else:
                self.message = ask.message

    def _end(self) -> None:
        self.ended = True
        w, reply = self.w, self._reply
        self.result = (
            StepResult(self._loss)
            if reply is None
            else StepResult(self._loss, w.seen.note(reply.clock, reply.served), reply.mark)
        )
        w.t += 1


def take_step(method: Method, w: Worker, gradients: Gradients, session: Session | None) -> StepResult:
    """One local step of `w`. What a rule asks for at once overlaps: the message is on its way while the gradient is
    computed.
    """
    turn = Turn(method, w)
    loaded = False
    while not turn.ended:
        if turn.message is not None:
            assert session is not None, "only a method with a center exchanges"
            session.post(turn.message, w.t)
        if not loaded:  # a batch depends on the clock alone, so making it overlaps every method's exchange
            gradients.load(w.number, w.t)
            loaded = True
        gradient = None if turn.at is None else gradients.gradient(turn.at)
        turn.answer(gradient, None if turn.message is None or session is None else session.collect())
    return turn.result


def new_vectors(names: Iterable[str], start: Tensor) -> dict[str, Tensor]:
    """Vectors like `start` [d]: x equal to it, the others 0."""
    return {name: start.clone() if name == "x" else torch.zeros_like(start) for name in names}


class ByHand:
    """All parties of a run in one process; the caller names whose turn it is.

    `problem` serves all of them. `start` [d]: where the center and every worker begin, or `starts`: the workers' own
    beginnings. `average` is of the center; a method without one keeps none here. `clip`: greatest norm
    of a gradient. `order` records the exchanges as a real run
    does: a worker number each.
    """

    def __init__(
        self, method: Method, problem: Problem, *, workers: int, tau: int, schedule: Schedule, start: Tensor,
        starts: Sequence[Tensor] | None = None, average: Average | None = None, clip: float | None = None,
    ):  # fmt: skip
        self.method, self._gradients, self._shared = method, ProblemGradients(problem, clip), method.shared
        self.center: Center | None = None
        if self._shared is not None:
            vectors = new_vectors(self._shared.state, start) | (
                {"average": start.clone()} if average is not None else {}
            )
            self.center = Center(method, vectors, average=average)
        self.order: list[int] = []
        self.workers: list[Worker] = []
        self._sessions: list[_Direct | None] = []
        for i, begin in zip(range(workers), starts if starts is not None else [start] * workers, strict=True):
            self.workers.append(Worker(new_vectors((*method.state, *method.scratch), begin), tau, schedule, number=i))
            self._sessions.append(
                None
                if self.center is None
                else _Direct(self.center, torch.empty_like(start), partial(self.order.append, i))
            )

    def step(self, worker: int) -> None:
        """One local step of that worker, its exchange included when one is due. Raises TypeError for a method that
        exchanges in rounds.
        """
        if self._in_rounds:
            raise TypeError(f"{type(self.method).__name__} exchanges in rounds: call round()")
        take_step(self.method, self.workers[worker], self._gradients, self._sessions[worker])

    def round(self) -> None:
        """One local step of every worker, all at the same clock; what they exchange, they exchange together.

        Raises TypeError for a method whose center takes each message by itself.
        """
        if not self._in_rounds:
            raise TypeError(f"{type(self.method).__name__} has no rounds: call step(worker)")
        turns = [Turn(self.method, w) for w in self.workers]
        while not all(turn.ended for turn in turns):
            members = [
                (session, turn.message)
                for session, turn in zip(self._sessions, turns, strict=True)
                if session is not None and turn.message is not None
            ]
            if members and self.center is not None:
                self.center.receive_round([session.lend(message) for session, message in members])
                self.order += [turn.w.number for turn in turns if turn.message is not None]
            for session, turn in zip(self._sessions, turns, strict=True):  # no gradient outlives the next worker's
                if not turn.ended:
                    gradient = None
                    if turn.at is not None:
                        self._gradients.load(turn.w.number, turn.w.t)
                        gradient = self._gradients.gradient(turn.at)
                        # the rule may exchange before it uses it, and the buffer is everybody's
                        if turn.message is None:
                            gradient = gradient[0].clone(), gradient[1]
                    turn.answer(gradient, None if turn.message is None or session is None else session.collect())

    def close(self, workers: Sequence[int] | None = None) -> None:
        """The closing exchange of these workers, after their last step, or of all. Nothing happens in a method without
        one.
        """
        asked = [
            (i, session, ask.message)
            for i in (range(len(self.workers)) if workers is None else workers)
            if (session := self._sessions[i]) is not None and (ask := self.method.closing(self.workers[i])) is not None
        ]
        if not self._in_rounds:
            for i, session, message in asked:
                session.post(message, self.workers[i].t)
        elif asked and self.center is not None:
            self.center.receive_round([session.lend(message) for _, session, message in asked])
            self.order += [i for i, _, _ in asked]

    @property
    def _in_rounds(self) -> bool:
        return self._shared is not None and self._shared.in_rounds

    def exchange(self, worker: int, steps: int | None = None) -> None:
        """That worker's steps up to and including the next one in which it exchanges; after so many `steps` that is its
        closing exchange.
        """
        before = len(self.order)
        while len(self.order) == before:
            if self.workers[worker].t == steps:
                self.close([worker])
                return
            self.step(worker)

    def replay(
        self, order: Iterable[int], after: Callable[[int], None] | None = None, steps: int | None = None
    ) -> None:
        """Exchanges in the recorded order; `after` is told how many there have been after each. Not of a method in
        rounds: TypeError. `steps`: of each worker, after which comes its closing exchange.
        """
        for worker in order:
            self.exchange(worker, steps)
            if after is not None:
                after(len(self.order))

    def vectors(self) -> Mapping[str, Tensor]:
        """What is evaluated and saved: the center's vectors, or the single worker's."""
        return (
            self.center.vectors
            if self.center is not None
            else {name: getattr(self.workers[0], name) for name in self.method.state}
        )


class _Direct:
    """A session whose center answers at once, in the same process."""

    def __init__(self, center: Center, reply: Tensor, note: Callable[[], None]):
        self._center, self._reply, self._note = center, reply, note

    def lend(self, message: Tensor) -> Lent:
        return self._center.lend(message, self._reply)

    def post(self, message: Tensor, t: int) -> None:
        self._center.receive(self.lend(message))
        self._note()

    def collect(self) -> Reply:
        return Reply(self._reply, self._center.clock)
