"""What is kept of a process for the one that is started in its place, and how that one begins."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

from easgd_cli.experiment.build import Recipe
from easgd_cli.launcher.processes.children import Children
from easgd_cli.launcher.processes.initial_state import InitialState
from easgd_cli.launcher.processes.masters import Masters
from easgd_cli.launcher.supervisor.supervisor import Supervisor
from easgd_cli.training.ledger import Ledger
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.training.worker import WorkerLoop
from easgd_cli.transport.shared import Link


class Recovery:
    """Keeps the workers' vectors and last rows, and each master's center with its ledger. `masters`: knows how far the
    order of each master's exchanges has been heard.
    """

    def __init__(self, children: Children, supervisor: Supervisor, initial: InitialState, masters: Masters):
        self._children, self._supervisor, self._initial, self._masters = children, supervisor, initial, masters
        self._recipe: Recipe | None = None
        self._links: dict[int, Link] = {}
        self._rows: dict[int, dict[str, Any]] = {}
        self._owners: list[MasterStart] = []

    def keep(self, recipe: Recipe, links: list[Link], owners: list[MasterStart]) -> None:
        """Keeps what the first processes have; where no process is ever started again, gives it back."""
        self._recipe = recipe
        recovers = self._supervisor.plan.max_restarts > 0
        for owner in owners if not recovers else ():
            owner.center.close()
        self._owners = owners
        for link in links:
            link.close_sockets()  # or neither side would ever see the other's end
            if recovers:
                self._links[link.worker] = link
            else:
                link.close_memory()

    def row(self, worker: int, row: dict[str, Any]) -> None:
        """Keeps the worker's last row."""
        self._rows[worker] = row

    def worker(self, worker: int, t: int) -> None:
        """Starts a worker that was lost, with the memory it had, and with new sessions with all masters."""
        assert self._recipe is not None
        parties = self._masters.parties
        pairs = [socket.socketpair() for _ in parties]
        ours = [pair[0] for pair in pairs]
        link = self._links[worker].with_sockets(ours[0], further=ours[1:])
        start = self._initial.returning(link, self._recipe, t, self._rows.get(worker))
        self._children.start(worker, WorkerLoop, start)
        for party, (mine, theirs) in zip(parties, pairs, strict=True):
            mine.close()
            self._children.tell(party, {"kind": "session", "worker": worker}, theirs)

    def unheard(self, place: int) -> list[int] | None:
        """Returns the exchanges of the dead master at `place` that the launcher has not heard of; None where the run
        has failed, since they are not known any more.
        """
        owner = self._owners[place]
        assert owner.ledger is not None
        method = owner.method
        fragments = [of.fragments for of in method.variables.values()]
        carried = [list(method.variables).index(name) for name in method.couriers]
        ledger = Ledger(owner.ledger, len(self._links), fragments, carried)
        try:
            return ledger.order(self._masters.heard[place])
        except ValueError as e:  # the launcher has not listened for tens of thousands of exchanges
            self._supervisor.fail(f"the master died, and {e}: the order of exchanges is not whole any more")
            return None

    def master(self, place: int, stopped: bool) -> None:
        """Starts the next master at `place`, with the center as the last one has left it, and new sessions with all
        workers that train. `stopped`: tells it that no round comes any more.
        """
        supervisor, children, links = self._supervisor, self._children, []
        party, entries = self._masters.parties[place], self._owners[place].links[0].entries
        for worker, member in supervisor.members.items():
            end = None
            if member.live or member.away or not children[worker].done:  # or waits for the closing exchange
                ours, end = socket.socketpair()
                children.tell(worker, {"kind": "session", "place": place}, ours)
            links.append(replace(self._links[worker].with_sockets(master=end), entries=entries))
        clocks = {worker: member.t for worker, member in supervisor.members.items()}
        lost = list(supervisor.members.lost)
        closing = supervisor.course.before is not None
        before, moment = self._owners[place], supervisor.moment
        owner = self._owners[place] = self._initial.next_master(before, links, clocks, lost, moment, closing)
        children.start(party, Master, owner)
        for link in links:
            link.close_sockets()
        if stopped:
            children.tell(party, {"kind": "stop" if supervisor.stopping else "over"})

    def close(self) -> None:
        """Gives back the memory that it keeps."""
        for link in self._links.values():
            link.close_memory()
