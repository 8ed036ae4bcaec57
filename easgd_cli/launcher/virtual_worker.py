"""A worker on the virtual clock: where it is in its step, and what it waits for.

A gradient is computed when its answer is handed to the rule, and not when it was asked for: the point it belongs to
cannot have changed (a rule changes its state only after its last yield), and so one gradient buffer serves any number
of workers. For the same reason a worker in mid-step is saved as its state, its clock and the answers it has had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from easgd_cli.algorithms.base import Method, Seen, Worker
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.record.checkpoint import WorkerState
from easgd_cli.training.drive import Gradients, StepResult, Turn
from easgd_cli.training.meter import Meter
from easgd_cli.transport.simulated import Events, SimulatedWorkerEnd

READY: Final = "ready"  # the event of a worker: all its rule waits for is there


class VirtualWorker:
    """One of them. `gradients` serve all; `session`: None where there is no center."""

    def __init__(
        self, method: Method, w: Worker, session: SimulatedWorkerEnd | None, meter: Meter, gradients: Gradients,
        costs: CostModel, seed: int, events: Events
    ):  # fmt: skip
        self.w, self.session, self.meter = w, session, meter
        self._method, self._gradients, self._costs, self._seed, self._events = method, gradients, costs, seed, events
        self.turn: Turn | None = None  # none between two steps, and after the last
        self._answered: list[tuple[bool, bool]] = []  # in this step: whether with a gradient, with a reply
        self._asked = 0.0  # when it began to wait for what it waits for now
        self._computed = 0.0  # when the gradient among it is ready

    @property
    def number(self) -> int:
        return self.w.number

    @property
    def last_reply(self) -> Tensor | None:
        """The last reply [d], None before the first."""
        return self.session.reply if self.session is not None and self.w.seen.exchanges else None

    @property
    def lasting(self) -> dict[str, Tensor]:
        """The vectors it goes on from, by name."""
        return {name: v for name, v in vars(self.w).items() if isinstance(v, Tensor)}

    def begin(self) -> None:
        """Its next step begins."""
        self.turn, self._answered = Turn(self._method, self.w), []
        self._ask(self.turn)

    def come_back(self, x: Tensor, clock: int, t: int) -> None:
        """It was killed, and begins again at its clock `t` with the center's `x` and nothing else."""
        assert self.session is not None
        self.session.withdraw()
        for v in self.lasting.values():
            v.zero_()
        self.w.x.copy_(x)
        self.w.t, self.w.seen.clock = t, clock
        self.begin()

    def replied(self) -> None:
        """The reply has come; the gradient asked for with it may still be computed."""
        self._events.add(max(self._events.now, self._computed), READY, self.number)

    def go_on(self) -> StepResult | None:
        """Everything the rule waits for is there. Returns what the step brought back, if it has ended."""
        turn, tally, now = self.turn, self.meter.tally, self._events.now
        assert turn is not None
        overhead = self._overhead(turn)
        tally.seconds_compute += self._computed - self._asked - overhead
        tally.seconds_communication += now - self._computed + overhead
        tally.seconds_loop += now - self._asked
        self._answered.append((turn.at is not None, turn.message is not None))
        self._answer(turn)
        if not turn.ended:
            self._ask(turn)
            return None
        assert turn.result.loss is not None
        self.meter.step(turn.result.loss, turn.result.staleness)
        return turn.result

    def _ask(self, turn: Turn) -> None:
        """What the rule waits for now is under way; what it asks for at once overlaps."""
        self._asked = self._events.now
        begin = self._asked + self._overhead(turn)
        seconds = 0.0 if turn.at is None else self._costs.compute_seconds(self._seed, self.number, self.w.t)
        self._computed = begin + seconds
        if turn.message is not None:
            assert self.session is not None
            self.session.post(turn.message, self.w.t)
        else:
            self._events.add(self._computed, READY, self.number)

    def _overhead(self, turn: Turn) -> float:
        """Seconds of the worker's own before what its rule waits for is under way."""
        return self._costs.overhead if turn.message is not None else 0.0

    def _answer(self, turn: Turn) -> None:
        """Computes the gradient, if one was asked for, and hands it to the rule with the reply."""
        gradient = None
        if turn.at is not None:
            self._gradients.load(self.number, self.w.t)
            gradient = self._gradients.gradient(turn.at)
            # the rule may exchange before it uses it, and the buffer is everybody's
            if self.session is not None and turn.message is None:
                gradient = gradient[0].clone(), gradient[1]
        turn.answer(gradient, self.session.collect() if self.session is not None and turn.message is not None else None)

    # ---------------------------------------------------------------- checkpoints

    def state(self) -> WorkerState:
        """What it goes on from. Its tensors are the worker's own."""
        vectors = self.lasting
        if self.session is not None and self.session.reply is not None:
            vectors["reply"] = self.session.reply
        seen = self.w.seen
        return WorkerState(self.w.t, vectors, seen.clock, seen.served, seen.exchanges, self.meter.state())

    def place(self) -> dict[str, Any]:
        """Where it is in its step, as plain numbers."""
        return {
            "in_step": self.turn is not None, "answered": self._answered, "asked": self._asked,
            "computed": self._computed,
            "session": None if self.session is None else self.session.state(),
        }  # fmt: skip

    def restore(self, state: WorkerState, place: Mapping[str, Any], meter: Meter) -> None:
        """Puts it where it was: the rule is run again with the answers it has had."""
        for name, v in self.lasting.items():
            v.copy_(state.vectors[name])
        w, seen = self.w, Seen(state.center_clock, state.served, state.exchanges)
        self.w, self.meter = Worker(self.lasting, w.tau, w.schedule, state.t, w.number, seen), meter
        if self.session is not None:
            assert self.session.reply is not None
            self.session.reply.copy_(state.vectors["reply"])
            self.session.restore(place["session"])
        if place["in_step"]:
            self.turn = Turn(self._method, self.w)
            for _ in place["answered"]:
                self._answer(self.turn)
            self._answered = [(bool(gradient), bool(reply)) for gradient, reply in place["answered"]]
            self._asked, self._computed = place["asked"], place["computed"]
