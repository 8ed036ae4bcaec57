"""Looks after processes that stand still: tells the supervisor of them, and wakes those that a fault on purpose has
stopped. Master and evaluator suffer their faults on purpose from here.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Sequence

from easgd_cli.launcher.journal.links import Links
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.processes.children import Children
from easgd_cli.launcher.processes.standstill import Standstill
from easgd_cli.launcher.supervisor.parties import EVALUATOR, MASTER, ProcessName, party_of
from easgd_cli.launcher.supervisor.supervisor import Supervisor
from easgd_cli.settings.faults import Fault
from easgd_cli.training.snapshot import Moment


class Watch:
    """What is seen of a run's processes, and done to them. `faults`: all of the run; `served`: exchanges before this
    start, whose faults have happened already.
    """

    def __init__(self, children: Children, supervisor: Supervisor, faults: Sequence[Fault], served: int):
        self._children, self._supervisor = children, supervisor
        self._standstill = Standstill()
        self._links: Links | None = None  # made once there are links to tell of
        self._silent: set[ProcessName] = set()
        self._asleep: dict[ProcessName, float] = {}  # when processes that a fault has stopped are to be woken
        self._of_master = [f for f in faults if f.exchange is not None and f.exchange >= served]
        self._of_evaluator = [f for f in faults if f.evaluation is not None]
        self._measured = 0

    def heard(self, party: ProcessName) -> None:
        """Notes that the process has said something."""
        self._asleep.pop(party, None)
        if self._children.began is not None:
            self._standstill.heard(party, time.monotonic())

    def look(self, waiting: Collection[ProcessName]) -> None:
        """Tells the supervisor which processes but the `waiting` ones stand still; wakes those whose fault is over."""
        now = time.monotonic()
        if self._standstill.due(now):
            self._tell(waiting, now)
            self.links()
        for party, until in self._asleep.items():
            if now >= until:  # repeated until the process speaks: it may stop a moment after it said so
                self._children.signal(signal.SIGCONT, [party])

    def links(self, last: bool = False) -> None:
        """Tells how the links to other hosts stand; `last`: training has ended."""
        if self._children.began is not None and (links := self._children.links()):
            self._links = self._links or Links(self._supervisor.journal)
            told = self._supervisor.moment
            moment = Moment(max(self._supervisor.now, told.seconds), told.step, told.exchanges)
            self._links.look(links, moment, last)

    def _tell(self, waiting: Collection[ProcessName], now: float) -> None:
        there = {party: self._children.state(party) for party, child in self._children.items() if not child.done}
        silent = self._standstill.look(there, waiting if self._children.began is not None else list(there), now)
        for party in self._silent - silent.keys():
            self._supervisor.goes_on(party_of(party))
        for party, (seconds, stopped) in silent.items():
            self._supervisor.silent(party_of(party), seconds, stopped=stopped)
        self._silent = set(silent)

    # ---------------------------------------------------------------- faults on purpose

    def said(self, party: ProcessName, what: str, seconds: float) -> None:
        """Notes that a process is about to suffer a fault; a stopped one is woken after so many `seconds`."""
        log.info("%s: a fault on purpose, %s", self._children[party].name, what)
        if what == "stop":
            self._asleep[party] = time.monotonic() + seconds

    def served(self, exchanges: int) -> None:
        """Has the master suffer the faults that are due now that it has served so many exchanges in all, each once."""
        due = [f for f in self._of_master if f.exchange is not None and f.exchange <= exchanges]
        for fault in due:
            self._of_master.remove(fault)
            self._inflict(MASTER, fault)

    def measuring(self) -> None:
        """Has the evaluator suffer the fault that is due at the snapshot it has been given."""
        for fault in [f for f in self._of_evaluator if f.evaluation == self._measured]:
            self._of_evaluator.remove(fault)  # the next evaluator is given the snapshot again, and is spared
            self._inflict(EVALUATOR, fault)

    def measured(self) -> None:
        """Notes that the evaluator has measured the snapshot."""
        self._measured += 1

    def _inflict(self, party: ProcessName, fault: Fault) -> None:
        self.said(party, fault.kind, fault.seconds)
        self._children.signal(signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP, [party])
