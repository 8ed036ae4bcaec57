"""What each event of a virtual cluster means for its workers, masters and couriers."""

from __future__ import annotations

import math
from collections.abc import Callable

from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.launcher.supervisor.supervisor import Supervisor
from easgd_cli.launcher.virtual.master import SERVE
from easgd_cli.launcher.virtual.parties import VirtualParties
from easgd_cli.launcher.virtual.reports import VirtualReports
from easgd_cli.launcher.virtual.worker import READY, VirtualWorker
from easgd_cli.order_entry import entry_worker
from easgd_cli.record.checkpoint import Checkpoint
from easgd_cli.training.faults import Rejoin
from easgd_cli.transport.simulated import ARRIVE, ENTER, REPLY, SHARED, Event

BEGIN = "begin"  # the event of a worker whose next step begins
BACK = "back"  # the event of a lost variable that is back; its `worker` is the variable's place
JOIN = "join"  # the event of a worker that has been started again, or whose link is back


class VirtualTraining:
    """Carries out the events of one run. `obey`: carries out the supervisor's commands; `state`: returns the checkpoint
    of this moment.
    """

    def __init__(
        self, experiment: Experiment, costs: CostModel, parties: VirtualParties, supervisor: Supervisor,
        reports: VirtualReports, obey: Callable[[], None], state: Callable[[], Checkpoint],
    ):  # fmt: skip
        self._steps, self._minutes, self._costs = experiment.steps, experiment.settings.minutes, costs
        self._parties, self._supervisor, self._reports = parties, supervisor, reports
        self._obey, self._state = obey, state
        self._events = parties.events
        self._kept = False  # whether the checkpoint at the first end of a worker has been written

    def begin(self) -> None:
        """Begins the first step of every worker."""
        for m in self._parties.workers:
            self._begin_step(m)

    def is_too_late(self, event: Event) -> bool:
        """Returns whether this event must not happen: its request could only wait for ever, so that the worker's step
        is dropped and no other follows; or the messages on its shared link have changed since it was made.
        """
        if event.kind == SHARED:
            return self._parties.wire.is_stale(event)
        worker = entry_worker(event.worker)
        if event.kind not in (ARRIVE, ENTER, JOIN) or not self._parties.too_late(worker):
            return False
        self._parties.workers[worker].step = None  # its message is given back
        return True

    def happen(self, event: Event) -> None:
        """Carries out the event."""
        if event.kind == SERVE:
            self._served(event.worker)
        elif event.kind == BACK:
            self._supervisor.journal.note(f"{self._parties.begin_again(event.worker)} is back")
            self._reports.returned(event.worker)
        elif event.kind in (ARRIVE, ENTER, SHARED):
            self._parties.wire.deliver(event)
            self._listen()
        elif event.kind == REPLY:
            if (all_are_there := self._parties.wire.replied(event)) is not None:
                self._replied(all_are_there)
        else:
            self._happen_to(self._parties.workers[event.worker], event)

    def _replied(self, event: Event) -> None:
        if (courier := self._parties.courier(event.worker)) is not None:
            courier.replied()
        else:
            self._happen_to(self._parties.workers[event.worker], event)

    def _happen_to(self, m: VirtualWorker, event: Event) -> None:
        if event.kind == BEGIN:
            self._begin_step(m, event)
        elif event.kind == READY:
            self._go_on(m, event)
        elif event.kind == JOIN:
            m.join()
        elif m.closes:
            m.close()
            self._listen()
        elif m.joins:
            self._supervisor.joined(m.number, m.joined())
            self._begin_step(m, event)
        else:
            m.replied()

    def _listen(self) -> None:
        """Has the masters take the requests that have arrived."""
        while arrived := list(self._parties.wire.arrived):
            for place in arrived:
                for worker in self._parties.masters[place].listen():
                    self._parties.workers[worker].step = None  # its message is given back
                self._reports.returned(place)

    def _begin_step(self, m: VirtualWorker, event: Event | None = None) -> None:
        steps, minutes = self._steps, self._minutes
        if (steps is not None and m.w.t >= steps) or (minutes is not None and self._events.now >= minutes * 60):
            self._finish(m, event)
            return
        if m.faults is not None and self._fails(m):
            return
        try:
            m.begin()
        except Rejoin as e:
            self._rejoins(m, e)

    def _fails(self, m: VirtualWorker) -> bool:
        """Carries out the worker's faults for its step. Returns whether one keeps it from beginning the step now."""
        assert m.faults is not None
        for fault in m.faults.at(m.w.t):
            if fault.kind == "stop" and m.stood < m.w.t:
                m.stand_still(fault.seconds)
                self._events.add(self._events.now + fault.seconds, BEGIN, m.number)
                return True
            if fault.kind == "link":
                m.link_down = self._events.now + fault.seconds if fault.seconds else math.inf
            elif fault.kind in ("kill", "exception"):
                self._lose(m, "killed by SIGKILL" if fault.kind == "kill" else "InjectedFault: a fault on purpose")
                return True
        return False

    def _lose(self, m: VirtualWorker, how: str) -> None:
        self._reports.clock(m.number, m.w.t)
        self._reports.owner()
        m.lose()
        self._listen()
        self._supervisor.ended(m.number, how)
        self._obey()

    def _rejoins(self, m: VirtualWorker, why: Rejoin) -> None:
        """Sends the worker back to the center, in the session that it has."""
        self._supervisor.rejoins(m.number, m.w.t, str(why))
        m.step = None
        self._events.add(max(self._events.now, why.until), JOIN, m.number)
        self._obey()

    def _go_on(self, m: VirtualWorker, event: Event) -> None:
        """Hands the worker's rule all that it waits for; where that ends the step, reports it and begins the next."""
        try:
            if m.go_on() is None:
                return
        except Rejoin as e:
            self._rejoins(m, e)
            return
        w, average, alone = m.w, self._parties.average, not self._parties.masters
        if average is not None and alone:
            w.average.lerp_(w.x, average(w.t))
        if m.meter.due(w.t):
            self._supervisor.row(m.meter.row(w, self._events.now, w.seen.served, m.last_reply))
        if alone:
            self._reports.clock(0, w.t)
            self._reports.changed()
        self._begin_step(m, event)

    def _served(self, place: int) -> None:
        """Ends the service at the variable of this place."""
        parties = self._parties
        served = parties.masters[place].serve()
        self._reports.served(served)
        self._reports.returned(place)
        if parties.masters[place].away:
            self._supervisor.journal.note(
                f"{parties.name(place)} died; its children go on alone until it is started again"
            )
            self._events.add(self._events.now + self._costs.restart_seconds, BACK, place)
        parties.updated(served)
        self._reports.changed()

    def _finish(self, m: VirtualWorker, event: Event | None) -> None:
        """Ends the worker's training. When the first worker ends, the last checkpoint is written: up to here a longer
        run is the same.
        """
        m.step = None
        if not self._kept and event is not None:
            self._events.again(event._replace(kind=BEGIN))  # with which a longer run, resumed, begins
            self._kept = True
            self._reports.order()
            self._supervisor.checkpoint(self._state(), last=True)
            self._events.next()
        self._reports.clock(m.number, m.w.t)
        m.close()
        self._listen()
