"""All variables in the one process that owns them: exchanges are applied, noted, counted and answered, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easgd_cli.order_entry import entry_place, entry_worker
from easgd_cli.training.couriers import Couriers
from easgd_cli.training.ledger import Ledger
from easgd_cli.training.variables import Variables
from easgd_cli.transport.base import PULL, Kind, Mark, MasterEnd, Reply, Request

if TYPE_CHECKING:
    from easgd_cli.training.master import MasterStart


class Serving:
    """Serves exchanges. `served`: how many so far; `order`: the entries of those not reported yet. An update that a
    master before this one has left in the middle is completed first, by its `ledger`.
    """

    def __init__(self, start: MasterStart, sessions: MasterEnd):
        method, self._sessions = start.method, sessions
        fragments = [of.fragments for of in method.variables.values()]
        names, self._workers = list(method.variables), len(start.links)
        carried = [names.index(name) for name in method.couriers]
        self.ledger = None if start.ledger is None else Ledger(start.ledger, len(start.links), fragments, carried)
        vectors = {name: v.to(torch.device(start.device)) for name, v in start.center.tensors.items()}
        self.variables = Variables(method, vectors, start.variables, start.average, self.ledger)
        self.centers = list(self.variables.centers.values())
        self._names = list(self.variables.centers)
        self.served = start.served
        self.order: list[int] = []
        # the vectors that exchanges would have moved over a network, and the exchanges at which this count began
        self._vectors, self._began_at = 0.0, start.served
        self._couriers: Couriers | None = None
        if method.couriers:
            assert start.schedule is not None
            self._couriers = Couriers(
                method, len(start.links), start.tau, start.schedule, self.centers[0].vectors["x"], self._carry,
                start.steps, start.couriers, None if start.ledger is None else start.ledger.tensors,
            )  # fmt: skip
        if self.ledger is not None:
            self._go_on(self.ledger)

    @property
    def couriers(self) -> dict[str, int]:
        """The couriers' clocks, by variable."""
        return {} if self._couriers is None else self._couriers.clocks

    @property
    def vectors_per_exchange(self) -> float:
        """How many vectors an exchange would have moved over a network, on the average."""
        return self._vectors / (self.served - self._began_at) if self.served > self._began_at else 2.0

    def exchange(self, members: Sequence[Request], mark: Mark = Mark.NONE) -> None:
        """Makes one update by these messages, replies to them, and notes the update; or gives all of them back."""
        asked, members = members, self._sessions.summed(members)
        if not members:
            for request in asked:
                self.reply(request, Mark.WITHDRAWN)
            return
        if self.ledger is not None:
            self.ledger.begin(members)
        if self._sessions.sums:  # the workers' replicas have the sum, too: no need to wait for the update
            clock, served = self.centers[members[0].to].clock + 1, self.served + len(members)
            for request in members:
                self._sessions.reply(request, clock, served, mark)
        self._update(members)
        for request in members if not self._sessions.sums else ():  # before anything else: the workers may be waiting
            self.reply(request, mark)
        self._note(members)

    def reply(self, request: Request, mark: Mark = Mark.NONE, t: int | None = None) -> None:
        """Replies with the clock of the variable that was asked, and the exchanges served."""
        self._sessions.reply(request, self.centers[request.to].clock, self.served, mark, t)

    def _go_on(self, ledger: Ledger) -> None:
        """Completes what a master before this one has left in the middle."""
        self.served = ledger.served
        for place, center in enumerate(self.centers):
            center.begin_at(ledger.clocks(place))
        if (left := ledger.under_way()) is not None:
            members, block = left
            self.centers[members[0].to].take_back(block)
            self._update(members, block)
            self.order += [request.entry for request in members]
        if self._couriers is not None and self.served:
            self._couriers_go_on(self._couriers, ledger)

    def _couriers_go_on(self, couriers: Couriers, ledger: Ledger) -> None:
        """Sets the couriers' clocks, and announces the last update again: couriers have followed all before it."""
        places = {name: self._names.index(name) for name in couriers.clocks}
        for name, place in places.items():
            couriers.begin_at(name, ledger.others(place) + 1)
        [last] = ledger.order(self.served - 1)
        party, variable = entry_worker(last), self._names[entry_place(last)]
        if party >= self._workers:  # a courier's, whose step may have been under way
            variable = list(couriers.clocks)[party - self._workers]
        if variable in places:
            couriers.again(variable, -1, ledger.others(places[variable]))

    def _update(self, members: Sequence[Request], first: int = 0) -> None:
        """Makes one update by these messages, or the rest of it from its block `first` on."""
        lent = [(request.worker, *self._lent(request)) for request in members]
        self._vectors += self.centers[members[0].to].serve(lent, first, members[0].fragment, summed=self._sessions.sums)
        if self.ledger is not None:
            self.ledger.end()
        self.served += len(members)

    def _lent(self, request: Request) -> tuple[Tensor | None, Tensor]:
        if request.worker >= self._workers:
            assert self._couriers is not None
            return self._couriers.lent(request.worker, request.vector, request.t)
        return self._sessions.lent(request)

    def _carry(self, courier: int, message: Tensor | None, reply: Tensor, to: str) -> Reply:
        """Makes an exchange of a courier at once, unless a master before this one has served it."""
        assert self._couriers is not None
        place = self._names.index(to)
        vector = PULL if message is None else self._couriers.index(courier, message)
        request = Request(courier, Kind.EXCHANGE, self._couriers.at, vector, place)
        if self.ledger is not None and self.ledger.has_served(request):
            if message is not None and to in self._couriers.clocks:
                self._couriers.again(to, courier, self.ledger.others(place))
        else:
            if self.ledger is not None:
                self.ledger.begin([request])
            self._update([request])
            self._note([request])
        return Reply(reply, self.centers[place].clock, self.served)

    def _note(self, members: Sequence[Request]) -> None:
        """Records exchanges that have been served, and lets couriers follow. Replies are not sent here."""
        self.order += [request.entry for request in members]
        if self._couriers is not None and any(request.vector != PULL for request in members):
            self._couriers.updated(self._names[members[0].to], members[0].worker)
