"""Carries out what the supervisor asks for, with processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from easgd_cli.launcher.processes.children import Children
from easgd_cli.launcher.processes.masters import Masters, Said
from easgd_cli.launcher.processes.recovery import Recovery
from easgd_cli.launcher.processes.watch import Watch
from easgd_cli.launcher.supervisor.commands import (
    Begin,
    Command,
    GiveUpWorker,
    Kill,
    Measure,
    StartEvaluator,
    StartMaster,
    StartWorker,
    Stop,
    TakeCheckpoint,
    TakeSnapshot,
    Wake,
)
from easgd_cli.launcher.supervisor.parties import EVALUATOR, MASTER
from easgd_cli.launcher.supervisor.supervisor import Supervisor
from easgd_cli.training.evaluator import Evaluator, EvaluatorStart


class CommandRunner:
    """Carries out the supervisor's commands. `second`: that of training at which the run begins; `pass_on`: takes the
    masters' messages, put together as those of one master.

    `evaluator`: what an evaluator begins with. `lead`: the worker in whose sessions the mark of a checkpoint travels.
    """

    evaluator: EvaluatorStart

    def __init__(
        self, children: Children, supervisor: Supervisor, recovery: Recovery, masters: Masters, watch: Watch,
        second: float, pass_on: Callable[[Iterable[Said]], None],
    ):  # fmt: skip
        self._children, self._supervisor, self._recovery = children, supervisor, recovery
        self._masters, self._watch, self._second, self._pass_on = masters, watch, second, pass_on
        self.lead: int | None = None
        self._asked = 0  # snapshots that have been asked for

    def obey(self) -> None:
        """Carries out all commands that there are now."""
        while commands := self._supervisor.commands():
            for command in commands:
                self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        children, recovery = self._children, self._recovery
        if isinstance(command, Begin):
            children.begin(time.monotonic() - self._second)
        elif isinstance(command, StartEvaluator):
            children.start_when_possible(EVALUATOR, partial(children.start, EVALUATOR, Evaluator, self.evaluator))
        elif isinstance(command, StartWorker):
            children.start_when_possible(command.worker, partial(recovery.worker, command.worker, command.t))
        elif isinstance(command, GiveUpWorker):
            children.forget_start(command.worker)
            self.tell_masters({"kind": "gone", "worker": command.worker})
        elif isinstance(command, StartMaster):
            children.start_when_possible(MASTER, partial(self._next_masters, command.stopped))
        elif isinstance(command, Measure):
            snapshot = command.snapshot
            children.tell(EVALUATOR, {"kind": "evaluate", "number": snapshot.number}, snapshot.shared())
            self._watch.measuring()
        elif isinstance(command, TakeSnapshot):
            self._asked += 1
            asked = {"kind": "snapshot", "number": self._asked}
            if self._supervisor.plan.has_master:
                self.tell_masters(asked)
            else:
                children.tell(0, asked)
        elif isinstance(command, TakeCheckpoint):
            self.lead = command.lead
            self._masters.marks()
            if command.lead is None:
                # the master tells the workers, in its next reply to all of them
                self.tell_masters({"kind": "checkpoint"})
            else:
                for worker in command.workers:
                    children.tell(worker, {"kind": "checkpoint", "lead": worker == command.lead})
        elif isinstance(command, Stop):
            if children.is_due(MASTER):
                children.start_when_possible(MASTER, partial(self._next_masters, stopped=True))
            # else a silent worker would keep all others in its round, and the closing exchange would take place
            self.tell_masters({"kind": "stop"})
            for worker in command.workers:
                children.tell(worker, {"kind": "stop"})
        elif isinstance(command, Wake):
            children.signal(signal.SIGCONT, list(children))
        elif isinstance(command, Kill):
            masters = [p for p in self._masters.parties if p in children and not children[p].done]
            children.signal(signal.SIGKILL, masters if command.party == MASTER else [command.party])

    def tell_masters(self, message: dict[str, Any]) -> None:
        """Sends a message to all masters, if the run has any."""
        for party in self._masters.parties if self._supervisor.plan.has_master else ():
            self._children.tell(party, message)

    def _next_masters(self, stopped: bool) -> None:
        """Starts masters in the place of those that have died."""
        for place in self._masters.to_replace():
            if (entries := self._recovery.unheard(place)) is None:
                return
            self._pass_on(self._masters.hear(place, {"kind": "order", "workers": entries}, None))
            self._recovery.master(place, stopped)
