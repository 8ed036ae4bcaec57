"""A worker on the virtual clock: where it is in its step, and what it waits for.

A gradient is computed when its answer is handed to the rule, and not when it was asked for: the point it belongs to
cannot have changed (a rule changes its state only after its last yield), and so one gradient buffer serves any number
of workers. For the same reason a worker in mid-step is saved as its state, its clock and the answers it has had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from torch import Tensor

from easgd_cli.algorithms.base import Method, Seen, Worker
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.record.checkpoint import WorkerState
from easgd_cli.settings.faults import Faults
from easgd_cli.training.drive import Gradients, Step, StepResult
from easgd_cli.training.faults import Rejoin, Watched
from easgd_cli.training.meter import Meter
from easgd_cli.transport.base import Kind, Reply
from easgd_cli.transport.simulated import Events, ShardedWorkerEnd, SimulatedWorkerEnd

READY: Final = "ready"  # the event of a worker whose rule has got all that it waits for


class VirtualWorker:
    """A worker. `gradients`: shared by all workers; `session`: None in a method without exchange."""

    def __init__(
        self, method: Method, w: Worker, session: SimulatedWorkerEnd | ShardedWorkerEnd | None, meter: Meter,
        gradients: Gradients,
        costs: CostModel, seed: int, events: Events, faults: Faults | None = None, checked: bool = False,
    ):  # fmt: skip
        self.w, self.session, self.meter = w, session, meter
        self._method, self._costs, self._seed, self._events = method, costs, seed, events
        self._exchanges_again = len(method.variables) > 1  # perhaps, between asking for a gradient and using it
        self.faults = faults  # None: the worker has none, and its gradients are not checked
        self._watched = None if faults is None else Watched(gradients, faults, checked=checked)
        self._gradients: Gradients = gradients if self._watched is None else self._watched
        self.stood = -1  # the last step at whose beginning it stood still
        self.closes = False  # whether it has sent its closing message
        self.joins = False  # whether it waits for the center, to begin again with it
        self.link_down = 0.0  # until when its messages get lost; infinite: the next one does
        self.step: Step | None = None  # None between two steps, and after the last
        self._answered: list[tuple[bool, bool]] = []  # of each answer in this step: whether a gradient, a reply came
        self._earlier: list[Reply] = []  # copies of this step's replies but the last, which overwrites their place
        self._asked = 0.0  # when the present wait began
        self._computed = 0.0  # when the gradient of this wait is ready

    @property
    def number(self) -> int:
        return self.w.number

    @property
    def last_reply(self) -> Tensor | None:
        """The last reply [d], None before the first."""
        return self.session.reply if self.session is not None and self.w.seen.exchanges else None

    @property
    def lasting(self) -> dict[str, Tensor]:
        """The worker's vectors by name, from which it goes on."""
        return {name: v for name, v in vars(self.w).items() if isinstance(v, Tensor)}

    def begin(self) -> None:
        """Begins the next step. Raises Rejoin."""
        self.step, self._answered, self._earlier = Step(self._method, self.w), [], []
        self._ask(self.step)

    def stand_still(self, seconds: float) -> None:
        """Stands still for so many seconds from now on, before its step."""
        self.step, self.stood = None, self.w.t
        self.meter.tally.seconds_loop += seconds

    def lose(self) -> None:
        """Kills the worker, and its session with it."""
        self.step, self.joins = None, False
        if self.session is not None:
            self.session.lose()

    def join(self) -> None:
        """Asks for the center, to begin again with it."""
        assert self.session is not None
        self.step, self.joins, self._asked = None, True, self._events.now
        self.session.join(self.w.t)

    def close(self) -> None:
        """Ends the session after the last step. In a method with a closing exchange the first call posts that message,
        and the next one, after the reply, ends the session.
        """
        if self.session is None:
            return
        ask = None if self.closes else self._method.closing(self.w)
        if ask is not None and (self._watched is None or self._watched.passes(ask.message)):
            self.closes = True
            self.session.post(ask.message, self.w.t, ask.to, Kind.CLOSING, fragment=ask.fragment)
        else:
            self.session.close(self.w.t)

    def joined(self) -> int:
        """Begins again with the center that it has been given. Returns the clock at which it goes on."""
        assert self.session is not None
        reply = self.session.collect()
        for name in self._method.state:
            getattr(self.w, name).zero_()
        self.w.x.copy_(reply.vector)
        if self.faults is not None:
            self.faults.spared = max(self.faults.spared, self.w.t)
        self.w.t, self.w.seen.clock, self.w.seen.served = reply.t, reply.clock, reply.served
        self.joins = False
        waited = self._events.now - self._asked
        self.meter.tally.seconds_communication += waited
        self.meter.tally.seconds_loop += waited
        return self.w.t

    def come_back(self, x: Tensor, clock: int, t: int) -> None:
        """In a replay of a killed worker: begins again at the clock `t`, with the center's `x` and 0 elsewhere."""
        assert self.session is not None
        self.session.withdraw()
        for v in self.lasting.values():
            v.zero_()
        self.w.x.copy_(x)
        self.w.t, self.w.seen.clock = t, clock
        self.begin()

    def replied(self) -> None:
        """Notes that the reply has come; the gradient that was asked for with it may not be ready yet."""
        self._events.add(max(self._events.now, self._computed), READY, self.number)

    def go_on(self) -> StepResult | None:
        """Hands the rule all that it waits for. Returns what the step brought back, if it has ended."""
        step, tally, now = self.step, self.meter.tally, self._events.now
        assert step is not None
        overhead = self._overhead(step)
        tally.seconds_compute += self._computed - self._asked - overhead
        tally.seconds_communication += now - self._computed + overhead
        tally.seconds_loop += now - self._asked
        self._answered.append((step.at is not None, step.exchange is not None))
        self._answer(step)
        if not step.ended:
            self._ask(step)
            return None
        assert step.result.loss is not None
        self.meter.step(step.result.loss, step.result.staleness)
        return step.result

    def _ask(self, step: Step) -> None:
        """Begins what the rule asks for now; a gradient and an exchange asked for at once overlap."""
        self._asked = self._events.now
        begin = self._asked + self._overhead(step)
        seconds = 0.0 if step.at is None else self._costs.compute_seconds(self._seed, self.number, self.w.t)
        self._computed = begin + seconds
        if self.faults is not None:
            seconds *= self.faults.slowness(self.w.t)
            self._computed = begin + seconds
        if (asked := step.exchange) is not None:
            assert self.session is not None
            if self._watched is not None and asked.message is not None:
                self._check(self._watched, asked.message)
            if any(reply for _, reply in self._answered):
                self._earlier.append(kept(self.session.collect()))
            self.session.post(asked.message, self.w.t, asked.to, fragment=asked.fragment)
        else:
            self._events.add(self._computed, READY, self.number)

    def _check(self, watched: Watched, message: Tensor) -> None:
        """Raises Rejoin for a message that must not or cannot reach the center."""
        down, self.link_down = self.link_down, 0.0
        if down > self._events.now:
            raise Rejoin("its link was lost", 0.0 if down == math.inf else down)
        watched.check(message)

    def _overhead(self, step: Step) -> float:
        """Returns the seconds of the worker's own work before its message leaves."""
        asked = step.exchange
        if asked is None or self.session is None or not self.session.takes_way(asked.to):
            return 0.0
        return self._costs.overhead

    def _answer(self, step: Step, earlier: Reply | None = None) -> None:
        """Computes the gradient, if one was asked for, and hands it to the rule with the reply, the last one or an
        `earlier` one.
        """
        gradient = None
        if step.at is not None:
            self._gradients.load(self.number, self.w.t)
            gradient = self._gradients.gradient(step.at)
            # the rule may exchange before it uses the gradient, and all workers share the buffer
            if self.session is not None and (step.exchange is None or self._exchanges_again):
                gradient = gradient[0].clone(), gradient[1]
        reply = earlier
        if reply is None and self.session is not None and step.exchange is not None:
            reply = self.session.collect()
        step.answer(gradient, reply)

    # ---------------------------------------------------------------- checkpoints

    def state(self) -> WorkerState:
        """Returns what the worker goes on from; the tensors are its own, no copies."""
        vectors = self.lasting
        if self.session is not None and self.session.reply is not None:
            vectors["reply"] = self.session.reply
        seen = self.w.seen
        spared = -1 if self.faults is None else self.faults.spared
        return WorkerState(self.w.t, vectors, seen.clock, seen.served, seen.exchanges, self.meter.state(), spared)

    def position(self) -> dict[str, Any]:
        """Returns where the worker is in its step."""
        return {
            "in_step": self.step is not None, "closes": self.closes, "answered": self._answered, "asked": self._asked,
            "computed": self._computed,
            **({} if not self._earlier else {"earlier": [vars_of(reply) for reply in self._earlier]}),
            "session": None if self.session is None else self.session.state(),
            **({} if self.faults is None else {"faults": [self.stood, self.joins, self.link_down]}),
        }  # fmt: skip

    def restore(self, state: WorkerState, position: Mapping[str, Any], meter: Meter) -> None:
        """Takes over what `state` and `position` have returned: the rule is run again with the answers it has had."""
        for name, v in self.lasting.items():
            v.copy_(state.vectors[name])
        w, seen = self.w, Seen(state.center_clock, state.served, state.exchanges)
        self.w, self.meter = Worker(self.lasting, w.tau, w.schedule, state.t, w.number, seen), meter
        if self.session is not None:
            assert self.session.reply is not None
            self.session.reply.copy_(state.vectors["reply"])
            self.session.restore(position["session"])
        if self.faults is not None:
            self.faults.spared = state.spared
            self.stood, self.joins, self.link_down = position.get("faults", (-1, False, 0.0))
            self._asked = position["asked"]
        self.closes = position.get("closes", False)
        if position["in_step"]:
            self.step = Step(self._method, self.w)
            self._earlier = [Reply(*reply) for reply in position.get("earlier", [])]
            earlier = iter(self._earlier)
            for _, reply in position["answered"]:
                self._answer(self.step, next(earlier, None) if reply else None)
            self._answered = [(bool(gradient), bool(reply)) for gradient, reply in position["answered"]]
            self._asked, self._computed = position["asked"], position["computed"]


def kept(reply: Reply) -> Reply:
    """Returns the reply with a copy of its vector, which no later reply overwrites."""
    return replace(reply, vector=reply.vector.clone())


def vars_of(reply: Reply) -> list[Any]:
    """Returns the reply's vector and plain numbers, in the order of its fields."""
    return [reply.vector, reply.clock, reply.served, int(reply.mark), reply.t]
