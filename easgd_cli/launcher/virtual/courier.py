"""A courier on the virtual clock: it lives beside its variable, computes nothing, and waits for the network alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from easgd_cli.algorithms.base import Courier, Method, Worker
from easgd_cli.launcher.virtual.worker import kept, vars_of
from easgd_cli.training.drive import Step
from easgd_cli.transport.base import Reply
from easgd_cli.transport.simulated import SimulatedWorkerEnd


class VirtualCourier:
    """A courier. Its steps follow the updates of its variable by others, later where the step before is still under
    way. `last`: the clock from which on it takes no step; None: it always does.
    """

    def __init__(self, method: Method, courier: Courier, w: Worker, session: SimulatedWorkerEnd, last: int | None):
        self._method, self._courier, self.w, self._session, self._last = method, courier, w, session, last
        self._updates = 0  # how many its variable has had by others
        self._step: Step | None = None
        self._answers: list[Reply] = []  # the replies that its step has had

    def updated(self) -> None:
        """Counts an update of its variable by another, which may begin its next step."""
        self._updates += 1
        self._begin()

    def replied(self) -> None:
        """Hands its rule the reply that has come."""
        assert self._step is not None
        self._answers.append(kept(self._session.collect()))
        self._step.answer(None, self._answers[-1])
        self._ask_or_end(self._step)
        self._begin()

    def _begin(self) -> None:
        """Begins its next step, if none is under way. A step that asks for no exchange ends at once; then the one after
        it begins.
        """
        while self._step is None and self.w.t <= self._updates and (self._last is None or self.w.t < self._last):
            self._step, self._answers = Step(self._method, self.w, self._courier), []
            self._ask_or_end(self._step)

    def _ask_or_end(self, step: Step) -> None:
        if step.ended:
            self._step = None
            return
        assert step.exchange is not None, "a courier computes no gradient"
        self._session.post(step.exchange.message, self.w.t, step.exchange.to)

    def state(self) -> dict[str, Any]:
        """Returns its clock, its replies and where its session is."""
        return {
            "t": self.w.t, "updates": self._updates, "in_step": self._step is not None,
            "answers": [vars_of(reply) for reply in self._answers], "reply": self._session.reply,
            "session": self._session.state(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` has returned: the rule is run again with the replies that it has had."""
        self.w.t, self._updates = state["t"], state["updates"]
        reply: Tensor | None = self._session.reply
        assert reply is not None
        reply.copy_(state["reply"])
        self._session.restore(state["session"])
        self._answers = [Reply(*answer) for answer in state["answers"]]
        if state["in_step"]:
            self._step = Step(self._method, self.w, self._courier)
            for answer in self._answers:
                self._step.answer(None, answer)
