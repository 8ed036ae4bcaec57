"""Answers what a rule yields: the one place where a step is taken and a worker's clock advances.

`Step` is a step in progress and knows neither time nor processes. `take_step` drives a step to its end against a
session that may block. `ByHand` holds all parties in one process, and its caller says whose turn it is: tests use it to
hold a method against its printed listing, and a replay uses it to repeat the recorded order of a real run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from easgd_cli.algorithms.average import Average
from easgd_cli.algorithms.base import CENTER, WHOLE, Courier, Exchange, Gradient, Method, Rule, Worker
from easgd_cli.algorithms.schedule import Constant, Schedule
from easgd_cli.order_entry import entry_of
from easgd_cli.problems.base import Problem, statistics_of
from easgd_cli.training.center import Center
from easgd_cli.training.couriers import Couriers
from easgd_cli.training.variables import Variables
from easgd_cli.transport.base import Mark, Reply, Session


def how_it_exchanges(method: Method, eta: float) -> str:
    """Returns what a worker does during an exchange: it `waits`, so that its loop's seconds are the exchange's; it
    `overlaps` the exchange with a gradient; it exchanges `in rounds` with all others; or it `never` exchanges.
    """
    if method.alone:
        return "never"
    if method.in_rounds:
        return "in rounds"
    one = torch.zeros(1)
    w = Worker({name: one.clone() for name in (*method.state, *method.scratch)}, 1, Constant(eta), number=0)
    step = Step(method, w)
    while step.exchange is None and not step.ended:
        step.answer((one, one), None)
    return "waits" if step.at is None and step.exchange is not None else "overlaps"


class Gradients(Protocol):
    """The part of a problem that a step needs: its batch, and gradients at the vectors that a rule names."""

    def load(self, worker: int, t: int) -> None:
        """Makes the batch of that worker's local step t."""

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient [d] of the loaded batch's loss at x [d], l2 term included, and the loss [] without the
        l2 term; valid until the next call.
        """


class ProblemGradients:
    """The gradients of a problem (problems/base.py), scaled down to the norm `clip` where they are longer: g min(1,
    clip / ||g||).

    Pascanu, Mikolov, Bengio 2013, algorithm 1. The norm is that of the whole gradient as a rule gets it, l2 term
    included. The last entries of a problem with statistics are no gradient: they stay as they are. With `clip` None
    nothing is scaled.
    """

    def __init__(self, problem: Problem, clip: float | None = None):
        self._problem, self._clip, self._statistics = problem, clip, statistics_of(problem)
        self._g: Tensor | None = None

    def load(self, worker: int, t: int) -> None:
        """Makes the batch of that worker's local step t."""
        self._problem.load(worker, t)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient [d] at x [d] and the loss [] of the batch; valid until the next call. A clipped gradient
        lies in a buffer of its own.
        """
        g = self._problem.gradient(x)
        if self._clip is not None:
            g = self._clipped(g, self._clip)
        return g, self._problem.loss

    def _clipped(self, g: Tensor, clip: float) -> Tensor:
        # The factor is a tensor, not a number: on a GPU nobody waits for it. A gradient of 0 makes it infinite before
        # the clamp and 1 after it.
        d = len(g) - self._statistics
        self._g = torch.mul(g, (clip / torch.linalg.vector_norm(g[:d])).clamp_(max=1), out=self._g)
        if self._statistics:
            self._g[d:] = g[d:]
        return self._g


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brings back: the loss [] of its batch; the staleness of its exchange, None if it had none; and the
    mark of the reply.
    """

    loss: Tensor | None
    staleness: int | None = None
    mark: Mark = Mark.NONE


class Step:
    """One step of one worker, or of a `courier`, in progress, and what its rule waits for now: a gradient, a reply, or
    both at once.

    A worker in mid-step is determined by its state, its clock and the answers so far: a rule that is run again with the
    same answers comes to the same place. `result`: what the step brought back, once it has ended.
    """

    __slots__ = ("_asked", "_home", "_loss", "_replies", "_rule", "at", "ended", "exchange", "result", "w")

    def __init__(self, method: Method, w: Worker, courier: Courier | None = None):
        self.w = w
        self._rule: Rule = method.step(w) if courier is None else courier.step(w)
        self._home = method.home(w.number) if courier is None else None  # a courier has no home
        self._asked: Any = None
        self._loss: Tensor | None = None
        self._replies: list[tuple[str, Reply]] = []  # each with its variable's name
        self.at: Tensor | None = None  # the vector at which the rule wants a gradient
        self.exchange: Exchange | None = None  # the exchange that the rule asks for
        self.ended = False
        self.result = StepResult(None)
        self._go_on(None)

    def answer(self, gradient: tuple[Tensor, Tensor] | None, reply: Reply | None) -> None:
        """Hands the rule the gradient at `at`, which comes with its loss, and the reply to `exchange`; None for an
        answer that the rule has not asked for.
        """
        g = None
        if gradient is not None:
            g, self._loss = gradient
        if reply is not None and self.exchange is not None:
            self._replies.append((self.exchange.to, reply))
        vector = None if reply is None or reply.mark is Mark.AWAY else reply.vector

        def to(ask: Gradient | Exchange | None) -> Tensor | None:
            return g if isinstance(ask, Gradient) else vector if isinstance(ask, Exchange) else None

        self._go_on(tuple(map(to, self._asked)) if isinstance(self._asked, tuple) else to(self._asked))

    def _go_on(self, answer: Any) -> None:
        self.at = self.exchange = None
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
            if isinstance(ask, Gradient):
                if self._loss is not None or self.at is not None:  # two would share a buffer
                    raise TypeError("a step asks for at most one gradient; this one yields a second Gradient")
                self.at = ask.at
            elif ask is not None:
                # two at once would share a buffer; and a variable's owner knows an exchange by its worker's clock
                again = self._replies and self._home is not None and ask.to in (to for to, _ in self._replies)
                if self.exchange is not None or again:
                    raise TypeError(
                        "a step asks for one exchange at a time, and for at most one with each variable; this one "
                        "yields a second Exchange"
                    )
                self.exchange = ask

    def _end(self) -> None:
        self.ended = True
        w, replies = self.w, self._replies
        staleness, mark = None, Mark.NONE
        for to, reply in replies:
            if reply.mark is Mark.AWAY:
                continue
            mark = max(mark, reply.mark)
            if to == self._home:
                staleness = w.seen.note(reply.clock, reply.served)
            else:
                w.seen.served = reply.served
                w.seen.exchanges += 1
        self.result = StepResult(self._loss, staleness, mark)
        w.t += 1


def take_step(method: Method, w: Worker, gradients: Gradients, session: Session | None) -> StepResult:
    """Takes one local step of `w`. A gradient and an exchange that a rule asks for in one yield overlap: the message is
    on its way while the gradient is computed.
    """
    step = Step(method, w)
    loaded = False
    while not step.ended:
        asked = step.exchange
        if asked is not None:
            assert session is not None, "only a method with a center exchanges"
            session.post(asked.message, w.t, asked.to, fragment=asked.fragment)
        if not loaded:  # a batch depends on the clock alone, so making it overlaps every method's exchange
            gradients.load(w.number, w.t)
            loaded = True
        gradient = None if step.at is None else gradients.gradient(step.at)
        step.answer(gradient, None if asked is None or session is None else session.collect())
    return step.result


def new_vectors(names: Iterable[str], start: Tensor) -> dict[str, Tensor]:
    """Returns new vectors of these names, each like `start` [d]: x equal to it, the others 0."""
    return {name: start.clone() if name == "x" else torch.zeros_like(start) for name in names}


class ByHand:
    """All parties of a run in one process; the caller names whose turn it is.

    `problem` serves all workers. `start` [d]: where the variables and every worker begin; `starts`: the workers' own
    starts instead. `average`: the center's; ignored in a method without center. `clip`: greatest norm of a gradient.
    `steps`: the local steps of each worker, for couriers. `order`: the exchanges as a real run records them, an entry
    for each one of a worker or courier (`order_entry.py`).
    """

    def __init__(
        self, method: Method, problem: Problem, *, workers: int, tau: int, schedule: Schedule, start: Tensor,
        starts: Sequence[Tensor] | None = None, average: Average | None = None, clip: float | None = None,
        steps: int | None = None,
    ):  # fmt: skip
        self.method, self._gradients = method, ProblemGradients(problem, clip)
        kept = average is not None and CENTER in method.variables
        names = Variables.names(method, average=kept)
        self._variables = Variables(method, Variables.begin(names, start), average=average if kept else None)
        self._couriers = Couriers(method, workers, tau, schedule, start, self._exchange, steps)
        self.order: list[int] = []
        self.workers: list[Worker] = []
        self._sessions: list[_Direct | None] = []
        for i, begin in zip(range(workers), starts if starts is not None else [start] * workers, strict=True):
            self.workers.append(Worker(new_vectors((*method.state, *method.scratch), begin), tau, schedule, number=i))
            self._sessions.append(None if method.alone else _Direct(i, torch.empty_like(start), self._exchange))

    @property
    def center(self) -> Center | None:
        """The center; None if the method has none."""
        return self.centers.get(CENTER)

    @property
    def centers(self) -> Mapping[str, Center]:
        """All variables by name."""
        return self._variables.centers

    def _exchange(self, worker: int, message: Tensor | None, reply: Tensor, to: str, fragment: int = WHOLE) -> Reply:
        """Makes one exchange at once."""
        return self._together(to, [(worker, message, reply)], fragment)

    def _together(self, to: str, members: Sequence[tuple[int, Tensor | None, Tensor]], fragment: int = WHOLE) -> Reply:
        """Makes the exchanges of these members with the variable `to` at once; returns the first one's reply."""
        center, place = self._variables.centers[to], list(self.method.variables).index(to)
        center.serve(members, fragment=fragment)
        self.order += [entry_of(worker, place) for worker, _, _ in members]
        told = Reply(members[0][2], center.clock, len(self.order))
        if any(message is not None for _, message, _ in members):
            self._couriers.updated(to, members[0][0])
        return told

    def step(self, worker: int) -> None:
        """Takes one local step of that worker, with its exchange when one is due. Raises TypeError for a method that
        exchanges in rounds.
        """
        if self.method.in_rounds:
            raise TypeError(f"{type(self.method).__name__} exchanges in rounds: call round()")
        take_step(self.method, self.workers[worker], self._gradients, self._sessions[worker])

    def round(self, workers: Iterable[int] | None = None) -> None:
        """Takes one local step of every worker, or of these, all at the same clock. Exchanges with a variable that
        takes rounds are made together.

        Raises TypeError for a method whose variables all take each message by itself.
        """
        if not self.method.in_rounds:
            raise TypeError(f"{type(self.method).__name__} has no rounds: call step(worker)")
        steps = [Step(self.method, self.workers[i]) for i in (workers if workers is not None else self._all)]
        while not all(step.ended for step in steps):
            asked = {step.w.number: step.exchange for step in steps if step.exchange is not None}
            replies = self._exchange_all(asked)
            for step in steps:  # a gradient is valid until the next worker's is computed
                if not step.ended:
                    gradient = None
                    if step.at is not None:
                        self._gradients.load(step.w.number, step.w.t)
                        gradient = self._gradients.gradient(step.at)
                        # the rule may exchange before it uses the gradient, whose buffer all workers share
                        if step.exchange is None or len(self._variables.centers) > 1:
                            gradient = gradient[0].clone(), gradient[1]
                    step.answer(gradient, replies.get(step.w.number))

    def close(self, workers: Sequence[int] | None = None) -> None:
        """Makes the closing exchange of these workers, or of all, after their last step. Does nothing in a method
        without one.
        """
        asked = {i: self.method.closing(self.workers[i]) for i in (self._all if workers is None else workers)}
        self._exchange_all({i: exchange for i, exchange in asked.items() if exchange is not None})

    def _exchange_all(self, asked: Mapping[int, Exchange]) -> dict[int, Reply]:
        """Makes the exchanges that these workers ask for, rounds together. Returns the replies by worker."""
        replies: dict[int, Reply] = {}
        for to in dict.fromkeys(exchange.to for exchange in asked.values()):
            members = [
                (i, exchange.message, self._session(i).reply) for i, exchange in asked.items() if exchange.to == to
            ]
            together = [members] if self.method.variables[to].in_rounds else [[member] for member in members]
            for group in together:
                told = self._together(to, group, asked[group[0][0]].fragment)
                for i, _, reply in group:
                    replies[i] = self._session(i).told = replace(told, vector=reply)
        return replies

    @property
    def _all(self) -> range:
        return range(len(self.workers))

    def _session(self, worker: int) -> _Direct:
        session = self._sessions[worker]
        assert session is not None, "only a method with variables exchanges"
        return session

    def exchange(self, worker: int, steps: int | None = None) -> None:
        """Takes that worker's steps up to and including the next one in which it exchanges; at the clock `steps` it
        makes its closing exchange instead.
        """
        before = len(self.order)
        while len(self.order) == before:
            if self.workers[worker].t == steps:
                self.close([worker])
                return
            self.step(worker)

    def replay(self, order: Iterable[int], steps: int | None = None) -> None:
        """Makes the exchanges in the recorded order. `steps`: of each worker, after which its closing exchange comes.
        Only for a method whose workers exchange with the center, each by itself; raises TypeError for others.
        """
        for worker in order:
            self.exchange(worker, steps)

    def vectors(self) -> Mapping[str, Tensor]:
        """Returns the vectors that are evaluated and saved, and those that go with them: the center's; without a center
        the mean of the variables, as x; without exchange the single worker's.
        """
        if self.method.alone:
            return {name: getattr(self.workers[0], name) for name in self.method.state}
        return self.center.vectors if self.center is not None else self._variables.evaluated()


class _Direct:
    """A session whose variables answer at once, in the same process."""

    def __init__(self, worker: int, reply: Tensor, exchange: Callable[[int, Tensor | None, Tensor, str, int], Reply]):
        self._worker, self.reply, self._exchange = worker, reply, exchange
        self.told: Reply | None = None  # the last reply

    def post(self, message: Tensor | None, t: int, to: str = CENTER, *, fragment: int = WHOLE) -> None:
        self.told = self._exchange(self._worker, message, self.reply, to, fragment)

    def collect(self) -> Reply:
        assert self.told is not None
        return self.told
