"""What outlives a process that is started again, and how the next one begins with it."""

from __future__ import annotations

import socket
from typing import Any

from easgd_cli.experiment.build import Recipe
from easgd_cli.launcher.children import Children
from easgd_cli.launcher.initial_state import InitialState
from easgd_cli.launcher.parties import MASTER
from easgd_cli.launcher.supervisor import Supervisor
from easgd_cli.training.ledger import Ledger
from easgd_cli.training.master import Master, MasterStart
from easgd_cli.training.worker import WorkerLoop
from easgd_cli.transport.shared import Link


class Recovery:
    """The workers' vectors and last rows, the center with its ledger, and how far its order has been heard."""

    def __init__(self, children: Children, supervisor: Supervisor, initial: InitialState):
        self._children, self._supervisor, self._initial = children, supervisor, initial
        self._recipe: Recipe | None = None
        self._links: dict[int, Link] = {}
        self._rows: dict[int, dict[str, Any]] = {}
        self._owner: MasterStart | None = None
        self._order_heard = initial.moment.exchanges  # exchanges whose order has been said

    def keep(self, recipe: Recipe, links: list[Link], owner: MasterStart | None) -> None:
        """The first processes have these; where nobody is started again, nothing is kept of them."""
        self._recipe = recipe
        recovers = self._supervisor.plan.max_restarts > 0
        if owner is not None and not recovers:
            owner.center.close()
        self._owner = owner
        for link in links:
            link.close_sockets()  # or no end would ever be seen by the other
            if recovers:
                self._links[link.worker] = link
            else:
                link.close_memory()

    def row(self, worker: int, row: dict[str, Any]) -> None:
        """What the worker has said last."""
        self._rows[worker] = row

    def served(self, entries: list[int]) -> None:
        """These exchanges have been served."""
        self._order_heard += len(entries)
        self._supervisor.served(entries)

    def worker(self, worker: int, t: int) -> None:
        """Starts a worker that was lost, to come back in a session of its own, with the memory it had."""
        assert self._recipe is not None
        ours, theirs = socket.socketpair()
        link = self._links[worker].with_sockets(worker=ours)
        start = self._initial.returning(link, self._recipe, t, self._rows.get(worker))
        self._children.start(worker, WorkerLoop, start)
        ours.close()
        self._children.tell(MASTER, {"kind": "session", "worker": worker}, theirs)

    def master(self, stopped: bool) -> None:
        """Starts the next master, with the center as the last one has left it, and sessions of its own with all that
        train.
        """
        supervisor, children, links = self._supervisor, self._children, []
        assert self._owner is not None and self._owner.ledger is not None
        method = self._owner.method
        fragments = [of.fragments for of in method.variables.values()]
        carried = [list(method.variables).index(name) for name in method.couriers]
        ledger = Ledger(self._owner.ledger, len(self._links), fragments, carried)
        try:
            self.served(ledger.order(self._order_heard))
        except ValueError as e:  # the launcher has not listened for tens of thousands of exchanges
            supervisor.fail(f"the master died, and {e}: the order of exchanges is not whole any more")
            return
        for worker, member in supervisor.members.items():
            end = None
            if member.live or member.away or not children[worker].done:  # the last may wait for its closing
                ours, end = socket.socketpair()
                children.tell(worker, {"kind": "session"}, ours)
            links.append(self._links[worker].with_sockets(master=end))
        clocks = {worker: member.t for worker, member in supervisor.members.items()}
        lost = list(supervisor.members.lost)
        closing = supervisor.before is not None
        self._owner = self._initial.next_master(self._owner, links, clocks, lost, supervisor.moment, closing)
        children.start(MASTER, Master, self._owner)
        for link in links:
            link.close_sockets()
        if stopped:
            children.tell(MASTER, {"kind": "stop" if supervisor.stopping else "over"})

    def close(self) -> None:
        """Gives back what it keeps."""
        for link in self._links.values():
            link.close_memory()
