"""The master: owns the variables, the center above all, serves exchanges one after another, and does nothing else.

Any further Python in its process would delay every worker. So the master neither evaluates nor writes files: it posts
snapshots and the order of exchanges to the launcher, and serves on.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from easgd_cli.algorithms.average import Average
from easgd_cli.algorithms.base import CENTER, Method
from easgd_cli.algorithms.schedule import Schedule
from easgd_cli.settings.schema import Interval
from easgd_cli.system.channel import Channel
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.gathering import Gathering, gathering_of
from easgd_cli.training.ledger import ORDER
from easgd_cli.training.messages import Lost, Served
from easgd_cli.training.returning import Progress, Returning
from easgd_cli.training.serving import Serving
from easgd_cli.training.snapshot import Moment, Snapshots
from easgd_cli.transport.base import Kind, Mark, Request
from easgd_cli.transport.collective import CollectiveMasterEnd
from easgd_cli.transport.on_device import hand_out
from easgd_cli.transport.shared import Link, SharedMasterEnd

_REPORT_SECONDS = 0.2  # how often the order of exchanges is posted and the launcher is listened to


@dataclass
class MasterStart:
    """What a master begins with. `center`: the vectors of its variables. `clocks`: the workers' clocks as last seen;
    `variables`, `couriers`: the clocks of the variables and of their couriers, by variable; `served`: exchanges so far.

    `step`: the mean local step that a run that goes on has reported already. `tau`, `schedule`, `steps`: those of the
    workers, for couriers.
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
    device: str = "cpu"  # where the center is to lie; on a GPU the workers' vectors lie there, too
    # Where each update is noted, so that a next master completes what this one leaves. None: no next master will come.
    ledger: SharedTensors | None = None
    # True: for each lost worker the launcher sends a new session, or says that none will come. False: it stays lost.
    returns: bool = False
    lost: Sequence[int] = ()  # the lost workers, of those that have had a session
    cpu_seconds: float = 0.0  # used by the masters before, in a run that goes on
    couriers: dict[str, int] = field(default_factory=dict)
    tau: int = 1
    schedule: Schedule | None = None
    steps: int | None = None
    closing: bool = False  # whether a master before this one has kept the vectors from which a longer run goes on
    # whether several masters have a slice each; then the launcher says when all are ready for the closing exchange
    several: bool = False
    # of these, what another host is told as it is
    plain: ClassVar = ("variables", "served", "step", "pace", "returns", "cpu_seconds", "lost")


class Master:
    """Serves the sessions of all workers: decides which message is served when, and tells the launcher."""

    def __init__(self, start: MasterStart, channel: Channel):
        torch.set_num_threads(1)  # a second thread ruins small vectors when the workers are busy
        self._interval, self._pace = start.interval, start.pace
        self._channel = channel
        device = torch.device(start.device)
        torch.get_device_module(device).set_device(device)
        self._sessions = self._ends(start, device)
        self._serving = Serving(start, self._sessions)
        self._centers = self._serving.centers
        self._gatherings = [gathering_of(center.variable, self._sessions.open) for center in self._centers]
        self._waiting: dict[int, Request] = {}  # messages that have no reply yet
        self._closing: set[int] = set()  # the workers in _waiting whose message is the closing one
        self._kept = start.closing  # whether the vectors from which a longer run goes on have been posted
        self._several, self._closes = start.several, start.closing or not start.several
        self._stopped = False  # whether the launcher has told all to end
        self._checkpoint_due: set[int] = set()  # the variables whose next round belongs to a checkpoint
        clocks = {link.worker: start.clocks.get(link.worker, 0) for link in start.links}
        self._progress = Progress(clocks, start.lost, start.step)
        self._returning = Returning(
            self._serving, self._sessions, self._gatherings, self._progress, self._tell_returned
        )
        self._returns, self._away = start.returns, set[int]()  # whether lost workers may come back; which may
        self._reported = 0.0
        self._cpu_before = start.cpu_seconds - time.process_time()

    def _ends(self, start: MasterStart, device: torch.device) -> SharedMasterEnd:
        if start.links and start.links[0].replica is not None:
            return CollectiveMasterEnd(start.links, start.center.tensors, self._gives_up)
        return SharedMasterEnd(start.links, None if device.type == "cpu" else hand_out(start.links, device))

    def _gives_up(self) -> bool:
        """Listens while a round's sum is awaited; returns whether to give the round back, as all are told to end."""
        self._report()
        self._listen()
        return self._stopped

    def run(self, began: float) -> None:
        """Serves until every session has ended. `began`: the monotonic time of training second 0.

        Raises ChannelClosed when the launcher has ended.
        """
        # the launcher puts several masters' words together: each says its order up to a snapshot before the snapshot
        before = self._report if self._several else None
        self._snapshots = Snapshots(self._channel, self._serving.variables, self._interval, began, self._pace, before)
        if self._several:  # listens at once: all masters' snapshots are to be of one moment, as far as possible
            self._sessions.watch(self._channel.fileno())
        while self._sessions.open or self._away:
            for request in self._sessions.requests(_REPORT_SECONDS):
                self._answer(request)
            if self._snapshots.seconds() - self._reported >= _REPORT_SECONDS:
                self._report()
                self._listen()
            elif self._sessions.called:
                self._listen()
            if self._closing_updates():
                self._listen()  # a run that is told to end must hear of it before it closes by itself
                if updates := self._closing_updates():
                    self._close(updates)
        self._keep("final")

    def _listen(self) -> None:
        for message, enclosed in self._channel.receive():
            if message["kind"] in ("session", "gone"):
                self._succeed(message["worker"], enclosed)
            elif message["kind"] == "snapshot":
                self._snapshots.take("evaluate", self._moment(), number=message["number"])
            elif message["kind"] == "close":
                self._closes = True
            elif message["kind"] == "checkpoint":
                self._checkpoint_due = {i for i, c in enumerate(self._centers) if c.variable.in_rounds}
            elif message["kind"] in ("over", "stop"):
                self._stopped = self._stopped or message["kind"] == "stop"
                self._finish(self._gatherings)
                self._give_back(list(self._closing) if self._stopped else [])
                self._returning.go_on()

    def _succeed(self, worker: int, session: socket.socket | None) -> None:
        """Replaces an ended process of a worker by the next one, with this `session`; None: none follows."""
        for request in self._sessions.rest(worker):  # what the process that ended has still said comes first
            self._answer(request)
        self._away.discard(worker)
        if session is not None:
            self._sessions.admit(worker, session)

    def _answer(self, request: Request) -> None:
        worker = request.worker
        if request.kind is Kind.LOST:
            self._progress.lose(worker)
            self._waiting.pop(worker, None)
            self._closing.discard(worker)
            self._returning.lose(worker)
            self._leave_rounds(worker)
            if self._returns:
                self._away.add(worker)
            self._channel.post(Lost(kind="lost", worker=worker))
        elif request.kind is not Kind.JOIN:
            self._progress.heard(worker, request.t)
        if request.kind in (Kind.EXCHANGE, Kind.CLOSING):
            self._progress.reached[worker] = request.t
            ledger = self._serving.ledger
            if ledger is not None and (told := ledger.answer(request)) is not None:
                self._sessions.reply(request, *told)  # a master before this one has served the message, and died
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
            self._returning.ask(request)
            self._leave_rounds(worker)  # until the worker has the center, no round waits for it
        elif request.kind is Kind.CHECKPOINT:
            self._keep("checkpoint", request.t)
        elif request.kind is Kind.CLOSE:
            self._finish(self._taking(worker))
        for gathering in [self._gatherings[request.to]] if request.kind is Kind.EXCHANGE else self._gatherings:
            while members := gathering.next():
                self._serve([self._waiting.pop(member) for member in members])
        self._returning.go_on()

    def _taking(self, worker: int) -> list[Gathering]:
        """Returns the gatherings of the variables that take messages of this worker."""
        return [self._gatherings[i] for i, c in enumerate(self._centers) if c.variable.takes(worker)]

    def _leave_rounds(self, worker: int) -> None:
        for gathering in self._gatherings:
            gathering.lose(worker)

    def _finish(self, gatherings: Sequence[Gathering]) -> None:
        for gathering in gatherings:
            self._give_back(gathering.finish())

    def _give_back(self, workers: Sequence[int]) -> None:
        """Gives back the waiting messages of these workers: the exchange that they wait for will not be made."""
        for worker in workers:
            self._serving.reply(self._waiting.pop(worker), Mark.WITHDRAWN)
        self._closing.difference_update(workers)

    def _closing_updates(self) -> list[list[int]]:
        """Returns, for each of the last updates, the workers whose closing messages make it. Empty until every live
        worker has sent its closing message and no lost worker may come back.
        """
        if self._away or not self._closing or self._closing != set(self._sessions.open):
            return []
        updates: list[list[int]] = []
        for place, center in enumerate(self._centers):
            members = sorted(worker for worker in self._closing if self._waiting[worker].to == place)
            updates += [members] if center.variable.in_rounds else [[member] for member in members]
        return [update for update in updates if update]

    def _close(self, updates: Sequence[Sequence[int]]) -> None:
        """Makes the closing exchange, after the vectors from which a longer run goes on have been kept."""
        if not self._kept:
            self._keep("last")
            while not self._channel.flush():  # the launcher has them before anything changes
                time.sleep(0.001)
            self._kept = True
        if not self._closes:  # none closes before all masters have kept theirs: until then the run may be told to end
            return
        self._closing.clear()
        for members in updates:
            self._exchange([self._waiting.pop(member) for member in members], Mark.NONE)

    def _exchange(self, members: Sequence[Request], mark: Mark) -> None:
        self._serving.exchange(members, mark)
        if len(self._serving.order) > ORDER // 2:
            self._report()

    def _serve(self, members: Sequence[Request]) -> None:
        """Makes one update by these messages, and whatever follows from it: returns, snapshots, checkpoints."""
        place, mark = members[0].to, Mark.NONE
        if place in self._checkpoint_due:
            mark = Mark.CHECKPOINT
            self._checkpoint_due.discard(place)
        self._exchange(members, mark)
        self._returning.round_ended(place, members[0].t + 1)
        self._snapshots.changed(self._progress.step, self._serving.served, self._progress.clocks)
        if mark is Mark.CHECKPOINT and not self._checkpoint_due:  # the last one, if there are several groups
            self._keep("checkpoint")

    def _cpu_seconds(self) -> float:
        return self._cpu_before + time.process_time()

    def _moment(self) -> Moment:
        return Moment(self._snapshots.seconds(), self._progress.step, self._serving.served, self._progress.clocks)

    def _tell_returned(self, how: dict[str, Any]) -> None:
        self._report()
        self._channel.post({"kind": "returned", **how})

    def _keep(self, purpose: str, mark: int = 0) -> None:
        self._report()  # the order up to here arrives before the vectors it led to
        variables = self._serving.variables
        clocks = {name: clock for name, clock in variables.clocks.items() if name != CENTER}
        self._snapshots.take(
            purpose, self._moment(), clock=variables.clock, cpu=self._cpu_seconds(), variables=clocks,
            couriers=self._serving.couriers, mark=mark,
        )  # fmt: skip

    def _report(self) -> None:
        serving, self._reported = self._serving, self._snapshots.seconds()
        self._channel.post(
            Served(
                kind="served",
                workers=serving.order,
                seconds=self._reported,
                step=self._progress.step,
                exchanges=serving.served,
                cpu=self._cpu_seconds(),
                waiting=list(self._waiting),
                vectors=serving.vectors_per_exchange,
            )
        )
        serving.order = []
