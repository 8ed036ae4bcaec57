"""What a virtual cluster as a whole reports to its supervisor: moment, order of exchanges, snapshots, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from easgd_cli.launcher.journal.snapshot_queue import InPlace
from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.launcher.supervisor.supervisor import Supervisor
from easgd_cli.launcher.virtual.parties import VirtualParties
from easgd_cli.training.snapshot import Moment, Pace
from easgd_cli.transport.base import Request


class VirtualReports:
    """The reports of one run. `pace`: when snapshots are due; `rows`: when rows of the run as a whole are; `obey`:
    carries out the supervisor's commands.
    """

    def __init__(
        self, parties: VirtualParties, supervisor: Supervisor, pace: Pace, rows: SystemRows, obey: Callable[[], None]
    ):
        self._parties, self._supervisor, self._pace, self._rows, self._obey = parties, supervisor, pace, rows, obey
        self._order: list[int] = []  # the exchanges that have been served and not yet reported

    @property
    def moment(self) -> Moment:
        """The present moment of the owner of what is evaluated."""
        return self._parties.moment(self._supervisor.members.step)

    def clock(self, worker: int, t: int) -> None:
        """Notes and reports a worker's clock that the owner of what is evaluated has seen."""
        self._parties.clocks[worker] = t
        self._supervisor.advanced(worker, t)

    def served(self, requests: Sequence[Request]) -> None:
        """Notes that these requests have been served together; `order` reports them."""
        for request in requests:
            self._order.append(request.entry)
            if request.worker in self._parties.clocks:
                self.clock(request.worker, request.t)

    def order(self) -> None:
        """Reports the exchanges so far, so that they are in the record before whatever follows from them."""
        if self._order:  # empty where the record could not be opened
            self._supervisor.served(self._order)
        self._order = []

    def owner(self) -> None:
        """Reports the exchanges so far, and where the owner of what is evaluated is."""
        self.order()
        self._supervisor.owner_at(self.moment)

    def returned(self, place: int) -> None:
        """Reports the workers that have been given the variable at this place."""
        master = self._parties.masters[place]
        if master.returned:
            self.owner()
            for worker, t, lost, missed in master.returned:
                self._parties.clocks[worker] = t
                if not self._parties.sharded:
                    self._supervisor.returned(worker, t, lost, missed)
                else:  # the steps are lost once, so one master reports them
                    self._supervisor.returned(worker, t, *((0, 0) if place else (lost, missed)), place)
            master.returned.clear()

    def changed(self) -> None:
        """Takes a snapshot and reports figures where they are due. To be called when what is evaluated has changed."""
        now = self._parties.events.now
        if self._pace.due(self._supervisor.members.step, now):
            self.snapshot()
            self._obey()
        if self._parties.masters and self._rows.due(now):
            queue = self._parties.queueing
            self._supervisor.system(
                self.moment, queue_seconds=queue.waited / queue.served, master_busy=100 * queue.busy / now
            )

    def snapshot(self) -> None:
        """Takes a snapshot of what is evaluated, as it is now."""
        self.order()
        self.spread()
        self._supervisor.snapshot(self.moment, InPlace(self._parties.evaluated()))

    def spread(self) -> None:
        """Reports how far peers are apart, where there is no center."""
        if (spread := self._parties.variables.spread()) is not None:
            self._supervisor.measured(self.moment, spread=spread)

    def state(self) -> tuple[list[float], list[Any]]:
        """Returns when the next snapshot is due, and when the next row of the run as a whole is."""
        return [self._pace.next_step, self._pace.next_seconds], self._rows.state()
