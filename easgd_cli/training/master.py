"""The master: owns the variables, the center above all, serves exchanges one after another, and does nothing else.

Whatever else ran Python here would delay every worker, so the master neither evaluates nor writes files: it posts
snapshots and the order of exchanges to the launcher, and serves on.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from easgd_cli.algorithms.average import Average
from easgd_cli.algorithms.base import CENTER, Method
from easgd_cli.algorithms.schedule import Constant, Schedule
from easgd_cli.settings.schema import Interval
from easgd_cli.system.channel import Channel
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.couriers import Couriers
from easgd_cli.training.gathering import Gathering, gathering_of
from easgd_cli.training.ledger import ORDER, Ledger
from easgd_cli.training.snapshot import Moment, Snapshots
from easgd_cli.training.variables import Variables
from easgd_cli.transport.base import PULL, Kind, Mark, Reply, Request
from easgd_cli.transport.on_device import hand_out
from easgd_cli.transport.shared import Link, SharedMasterEnd

_REPORT_SECONDS = 0.2  # how often the order of exchanges is posted and the launcher is listened to


@dataclass
class MasterStart:
    """What a master begins with; `center`: the vectors of its variables; `clocks` are the workers' clocks as last seen,
    `variables` those of the variables and `couriers` of their couriers by name, `served` exchanges so far.

    `step`: the mean local step that has been told already, by a run that goes on. `tau`, `schedule`, `steps`: as the
    workers have them, for couriers.
    """

    method: Method
    average: Average | None
    center: SharedTensors
    links: list[Link]
    interval: Interval | None
    variables: dict[str, int] = field(default_factory=dict)
    served: int = 0
    clocks: dict[int, int] = field(default_factory=dict)
    step: float = 0.0
    pace: Sequence[float] | None = None
    device: str = "cpu"  # where the center is to lie, and the workers' vectors if that is a GPU
    # Where each update is noted, so that a next master ends what this one leaves. None: there will be none.
    ledger: SharedTensors | None = None
    # Whether the launcher starts lost workers again, or says of each that it does not. Else whoever is lost stays lost.
    returns: bool = False
    lost: Sequence[int] = ()  # workers that are, of those that have had a session
    cpu_seconds: float = 0.0  # used before, by a run that goes on
    couriers: dict[str, int] = field(default_factory=dict)
    tau: int = 1
    schedule: Schedule | None = None
    steps: int | None = None
    closing: bool = False  # whether a master before this one has kept what a longer run goes on from


class Master:
    """The variables, their sessions, and what has been seen of the workers' clocks."""

    def __init__(self, start: MasterStart, channel: Channel):
        torch.set_num_threads(1)  # a second thread ruins small vectors when the workers are busy
        self._interval, self._pace = start.interval, start.pace
        self._channel = channel
        device = torch.device(start.device)
        torch.get_device_module(device).set_device(device)
        fragments = [of.fragments for of in start.method.variables.values()]
        self._ledger = None if start.ledger is None else Ledger(start.ledger, len(start.links), fragments)
        vectors = {name: v.to(device) for name, v in start.center.tensors.items()}
        self._variables = Variables(start.method, vectors, start.variables, start.average, self._ledger)
        self._centers = list(self._variables.centers.values())
        self._sessions = SharedMasterEnd(start.links, None if device.type == "cpu" else hand_out(start.links, device))
        self._clocks = {link.worker: start.clocks.get(link.worker, 0) for link in start.links}
        self._gatherings = [gathering_of(center.variable, self._sessions.open) for center in self._centers]
        self._in_rounds = start.method.in_rounds
        self._waiting: dict[int, Request] = {}  # messages that have no reply yet
        self._closing: set[int] = set()  # of those, the workers that have taken their last step
        self._kept = start.closing  # whether what a longer run goes on from has been
        self._stopped = False  # whether all are told to end
        self._checkpoint_due: set[int] = set()  # the variables whose next round belongs to a checkpoint
        self._joining: dict[int, Request] = {}  # workers that are back, and wait for the center
        self._reached = dict(self._clocks)  # up to which of each worker's steps its work has reached the center
        self._served = start.served
        self._lost = set(start.lost)
        self._returns, self._away = start.returns, set[int]()  # whether lost workers may come back, and those that may
        self._order: list[int] = []  # what has been served since it was last reported
        # vectors that exchanges would have taken over a network, since this master began with so many exchanges
        self._vectors, self._began_at = 0.0, start.served
        self._names = list(self._variables.centers)
        assert start.schedule is not None or not start.method.couriers
        self._couriers = Couriers(
            start.method, len(start.links), start.tau, start.schedule or Constant(0.0), self._centers[0].vectors["x"],
            self._carry, start.steps, start.couriers,
        )  # fmt: skip
        if self._ledger is not None:
            self._go_on(self._ledger)
        self._step = max(start.step, self._mean_step())
        self._reported = 0.0
        self._cpu_before = start.cpu_seconds - time.process_time()

    def run(self, began: float) -> None:
        """Serves until every session has ended. `began`: the monotonic time of training second 0.

        Raises ChannelClosed when the launcher has ended.
        """
        self._snapshots = Snapshots(self._channel, self._variables, self._interval, began, self._pace)
        while self._sessions.open or self._away:
            for request in self._sessions.requests(_REPORT_SECONDS):
                self._answer(request)
            if self._snapshots.seconds() - self._reported >= _REPORT_SECONDS:
                self._report()
                self._listen()
            if self._closing_updates():
                self._listen()  # to the end of a run that is told to end, before it ends by itself
                if updates := self._closing_updates():
                    self._close(updates)
        self._keep("final")

    def _listen(self) -> None:
        for message, enclosed in self._channel.receive():
            if message["kind"] in ("session", "gone"):
                self._succeed(message["worker"], enclosed)
            elif message["kind"] == "snapshot":
                self._snapshots.take("evaluate", self._moment())
            elif message["kind"] == "checkpoint":
                self._checkpoint_due = {i for i, c in enumerate(self._centers) if c.variable.in_rounds}
            elif message["kind"] in ("over", "stop"):
                self._stopped = self._stopped or message["kind"] == "stop"
                self._finish(self._gatherings)
                self._give_back(list(self._closing) if self._stopped else [])
                self._welcome_back()

    def _succeed(self, worker: int, session: socket.socket | None) -> None:
        """A worker's process has ended; another has this `session` in its place, or None follows."""
        for request in self._sessions.rest(worker):  # what it has said before is served before
            self._answer(request)
        self._away.discard(worker)
        if session is not None:
            self._sessions.admit(worker, session)

    def _go_on(self, ledger: Ledger) -> None:
        """Ends what a master before this one has left in the middle."""
        self._served = ledger.served
        for place, center in enumerate(self._centers):
            center.begin_at(ledger.clocks(place))
        if (left := ledger.under_way()) is not None:
            members, block = left
            self._centers[members[0].to].take_back(block)
            self._update(members, block)
            self._order += [request.entry for request in members]

    def _update(self, members: Sequence[Request], first: int = 0) -> None:
        """One update by these messages, or what is left of it from its block `first` on."""
        lent = [(request.worker, *self._sessions.lent(request)) for request in members]
        self._vectors += self._centers[members[0].to].serve(lent, first, members[0].fragment)
        if self._ledger is not None:
            self._ledger.end()
        self._served += len(members)

    def _carry(self, courier: int, message: Tensor | None, reply: Tensor, to: str) -> Reply:
        """An exchange of a courier, at once."""
        place = self._names.index(to)
        self._vectors += self._centers[place].serve([(courier, message, reply)])
        self._served += 1
        self._note([Request(courier, Kind.EXCHANGE, 0, PULL if message is None else 0, place)])
        return Reply(reply, self._centers[place].clock, self._served)

    def _note(self, members: Sequence[Request]) -> None:
        """They have been served: what follows from it, but for their replies."""
        self._order += [request.entry for request in members]
        if self._couriers.clocks and any(request.vector != PULL for request in members):
            self._couriers.updated(self._names[members[0].to], members[0].worker)

    def _answer(self, request: Request) -> None:
        worker = request.worker
        if request.kind is Kind.LOST:
            self._lost.add(worker)
            self._waiting.pop(worker, None)
            self._closing.discard(worker)
            self._joining.pop(worker, None)
            self._leave_rounds(worker)
            if self._returns:
                self._away.add(worker)
            self._channel.post({"kind": "lost", "worker": worker})
        elif request.kind is not Kind.JOIN:
            self._clocks[worker] = request.t
            # it must not step back when a worker is lost, nor when one has come back with its old clock
            self._step = max(self._step, self._mean_step())
        if request.kind in (Kind.EXCHANGE, Kind.CLOSING):
            self._reached[worker] = request.t
            if self._ledger is not None and (told := self._ledger.answer(request)) is not None:
                self._sessions.reply(request, *told)  # a master before this one has served it, and died
                return
            self._waiting[worker] = request
            if request.kind is Kind.CLOSING:
                self._closing.add(worker)
                self._finish(self._taking(worker))
                if self._stopped:
                    self._give_back([worker])
            elif (gathering := self._gatherings[request.to]).over:
                self._give_back([worker])
                return
            else:
                gathering.arrive(worker)
        elif request.kind is Kind.JOIN:
            self._joining[worker] = request
            self._leave_rounds(worker)  # until it has the center, no round waits for it
        elif request.kind is Kind.CHECKPOINT:
            self._keep("checkpoint")
        elif request.kind is Kind.CLOSE:
            self._finish(self._taking(worker))
        for gathering in [self._gatherings[request.to]] if request.kind is Kind.EXCHANGE else self._gatherings:
            while members := gathering.next():
                self._serve([self._waiting.pop(member) for member in members])
        self._welcome_back()

    def _taking(self, worker: int) -> list[Gathering]:
        """Of the variables that take messages of this worker."""
        return [self._gatherings[i] for i, c in enumerate(self._centers) if c.variable.takes(worker)]

    def _leave_rounds(self, worker: int) -> None:
        for gathering in self._gatherings:
            gathering.lose(worker)

    def _finish(self, gatherings: Sequence[Gathering]) -> None:
        for gathering in gatherings:
            self._give_back(gathering.finish())

    def _give_back(self, workers: Sequence[int]) -> None:
        """Their messages wait for a round that will not be complete any more."""
        for worker in workers:
            request = self._waiting.pop(worker)
            self._sessions.reply(request, self._centers[request.to].clock, self._served, Mark.WITHDRAWN)
        self._closing.difference_update(workers)

    def _closing_updates(self) -> list[list[int]]:
        """Whose closing messages make the last updates, when it is time for them: all that are there have ended, and
        none comes back.
        """
        if self._away or not self._closing or self._closing != set(self._sessions.open):
            return []
        updates: list[list[int]] = []
        for place, center in enumerate(self._centers):
            members = sorted(worker for worker in self._closing if self._waiting[worker].to == place)
            updates += [members] if center.variable.in_rounds else [[member] for member in members]
        return [update for update in updates if update]

    def _close(self, updates: Sequence[Sequence[int]]) -> None:
        """The closing exchange, after what a longer run goes on from has been kept."""
        if not self._kept:
            self._keep("last")
            while not self._channel.flush():  # the launcher has it before anything changes
                time.sleep(0.001)
            self._kept = True
        self._closing.clear()
        for members in updates:
            self._exchange([self._waiting.pop(member) for member in members], Mark.NONE)

    def _welcome_back(self) -> None:
        """Lets those go on that have joined; in rounds with the next one, unless there is nobody to make it."""
        for place in {request.to for request in self._joining.values()}:
            gathering = self._gatherings[place]
            if gathering.over:
                for request in self._joined(place):
                    self._sessions.reply(request, self._centers[place].clock, self._served, Mark.WITHDRAWN)
            elif not gathering.awaited:
                latest = max(*self._clocks.values(), *(request.t for request in self._joining.values()))
                self._welcome(place, latest if self._centers[place].variable.in_rounds else 0)

    def _joined(self, place: int) -> list[Request]:
        """Takes those that wait for the variable of this place, to begin again with it."""
        joined = [request for request in self._joining.values() if request.to == place]
        for request in joined:
            del self._joining[request.worker]
        return joined

    def _welcome(self, place: int, t: int) -> None:
        """Those that have joined get their variable as it is: it is no exchange. Their clocks are `t` or, where there
        are no rounds, their own if those are later.
        """
        center, in_rounds = self._centers[place], self._centers[place].variable.in_rounds
        for request in self._joined(place):
            worker = request.worker
            _, reply = self._sessions.lent(request)
            center.pull(reply)
            died = max(request.t, self._clocks[worker])
            # in rounds exactly that: a worker whose clock is another would wait for rounds that nobody else makes
            self._clocks[worker] = t if in_rounds else max(t, died)
            self._lost.discard(worker)
            for gathering, of in zip(self._gatherings, self._centers, strict=True):
                if of.variable.takes(worker):
                    gathering.join(worker)
            if self._ledger is not None:
                self._ledger.forget(worker)
            self._sessions.reply(request, center.clock, self._served, t=self._clocks[worker])
            self._report()
            t_back, lost = self._clocks[worker], died - self._reached[worker]
            self._reached[worker] = t_back
            self._channel.post(
                {
                    "kind": "returned",
                    "worker": worker,
                    "t": t_back,
                    "lost": max(0, lost),
                    "missed": max(0, t_back - died),
                }
            )

    def _exchange(self, members: Sequence[Request], mark: Mark) -> None:
        """One update by these messages, their replies, and the note of it."""
        if self._ledger is not None:
            self._ledger.begin(members)
        self._update(members)
        for request in members:  # before anything else: they may be waiting
            self._sessions.reply(request, self._centers[request.to].clock, self._served, mark)
        self._note(members)
        if len(self._order) > ORDER // 2:
            self._report()

    def _serve(self, members: Sequence[Request]) -> None:
        """One update by these messages, and what depends on it."""
        place, mark = members[0].to, Mark.NONE
        if place in self._checkpoint_due:
            mark = Mark.CHECKPOINT
            self._checkpoint_due.discard(place)
        self._exchange(members, mark)
        if self._joining and self._centers[place].variable.in_rounds:
            self._welcome(place, members[0].t + 1)
        self._snapshots.changed(self._step, self._served, self._clocks)
        if mark is Mark.CHECKPOINT and not self._checkpoint_due:  # of several groups, the last
            self._keep("checkpoint")

    def _mean_step(self) -> float:
        live = [t for worker, t in self._clocks.items() if worker not in self._lost]
        return sum(live) / len(live) if live else 0.0

    def _cpu_seconds(self) -> float:
        return self._cpu_before + time.process_time()

    def _moment(self) -> Moment:
        return Moment(self._snapshots.seconds(), self._step, self._served, self._clocks)

    def _keep(self, purpose: str) -> None:
        self._report()  # the order up to here arrives before the vectors it led to
        clocks = {name: clock for name, clock in self._variables.clocks.items() if name != CENTER}
        self._snapshots.take(
            purpose, self._moment(), clock=self._variables.clock, cpu=self._cpu_seconds(), variables=clocks,
            couriers=self._couriers.clocks,
        )  # fmt: skip

    def _report(self) -> None:
        self._reported = self._snapshots.seconds()
        self._channel.post(
            {
                "kind": "served",
                "workers": self._order,
                "seconds": self._reported,
                "step": self._step,
                "exchanges": self._served,
                "cpu": self._cpu_seconds(),
                "waiting": list(self._waiting),
                "vectors": self._vectors / (self._served - self._began_at) if self._served > self._began_at else 2.0,
            }
        )
        self._order = []
