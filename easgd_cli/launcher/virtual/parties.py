"""The parties of a virtual cluster, made from a run's settings, and everything of them that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easgd_cli.algorithms.base import CENTER, Method, Variable, Worker
from easgd_cli.algorithms.slices import of_slice
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.launcher.virtual.courier import VirtualCourier
from easgd_cli.launcher.virtual.master import SERVE, Queueing, Served, VirtualMaster
from easgd_cli.launcher.virtual.worker import VirtualWorker
from easgd_cli.order_entry import entry_place
from easgd_cli.problems.base import statistics_of
from easgd_cli.record.checkpoint import Checkpoint, WorkerState
from easgd_cli.record.reader import Entries, by_variable, read_order, returns_of
from easgd_cli.settings import faults
from easgd_cli.settings.schema import Settings, samples_a_step
from easgd_cli.system.devices import deal_devices
from easgd_cli.training.center import Center
from easgd_cli.training.drive import ProblemGradients
from easgd_cli.training.gathering import Gathering, Recorded, gathering_of
from easgd_cli.training.meter import Meter
from easgd_cli.training.snapshot import EVALUATED, Moment
from easgd_cli.training.variables import Variables
from easgd_cli.transport.base import PULL, Request
from easgd_cli.transport.simulated import Events, Network, ShardedWorkerEnd, SimulatedWorkerEnd, Wire

# What was recorded of a variable: the workers of its exchanges, in their order, and the workers that came back to it,
# each as (exchanges with the variable before, worker, clock).
Recording = tuple[list[int], list[tuple[int, int, int]]]


class VirtualParties:
    """Workers, variables with their masters, couriers, and the network between them, on one clock. `masters`: by the
    variables' places; none in a method of one worker.

    `clocks`: the workers' clocks, as the owner of what is evaluated has seen them. `resumed`: the checkpoint to go on
    from, or None.
    """

    def __init__(self, experiment: Experiment, costs: CostModel, resumed: Checkpoint | None):
        s = self._settings = experiment.settings
        self._experiment, self._costs = experiment, costs
        self.average, method = experiment.average, experiment.method
        self.device = torch.device(deal_devices(s.device, 1)[0])
        self._parts = experiment.parts_on(self.device)
        self.problem = self._parts.problem
        self._gradients = ProblemGradients(self.problem, s.clip)
        self.events = Events()
        self._slices = experiment.slices
        shares = [(of.stop - of.start) / experiment.size for of in self._slices]
        network = costs.network(experiment.vector_bytes)
        self.wire = Wire(network, self.events, method.variables, shares)
        self.workers = [self._worker(i) for i in range(s.workers)]
        self.couriers = {name: self._courier(name, s.workers + i) for i, name in enumerate(method.couriers)}
        self._of = {courier.w.number: courier for courier in self.couriers.values()}
        self.variables = self._variables()
        centers = self._centers()
        self._names = [name for name, _ in centers]
        # with several masters: what of the center a worker that comes back has got so far, by the masters' places
        self._given: dict[int, dict[int, tuple[Tensor, int, int]]] = {}
        self.served_in_all = Served()
        recorded = _recording(s, method, self._names, len(self._slices), resumed is not None)
        self.masters = [
            VirtualMaster(
                center, self.wire.master(place),
                _gathering(center.variable, s.workers, None if recorded is None else recorded[place]), self.events,
                costs.service,
                partial(self._come_back, center, place), place, self.served_in_all, self._deaths(name),
                partial(_round_seconds, costs.service, network) if network.ring and center.variable.in_rounds else None,
            )
            for place, (name, center) in enumerate(centers)
        ]  # fmt: skip
        self.clocks = dict.fromkeys(range(s.workers), 0)

    def _come_back(self, home: Center, place: int, worker: int, t: int) -> None:
        if len(self._slices) == 1:
            self.workers[worker].come_back(home.vectors["x"], home.clock, t)
            return
        given = self._given.setdefault(worker, {})
        given[place] = (home.vectors["x"].clone(), home.clock, t)
        if len(given) == len(self._slices):
            x = torch.cat([given[i][0] for i in range(len(given))])
            del self._given[worker]
            self.workers[worker].come_back(x, given[0][1], max(t for _, _, t in given.values()))

    def _deaths(self, variable: str) -> list[int]:
        """Returns the numbers of exchanges after which the run's faults lose this variable, in rising order."""
        return sorted(f.exchange or 0 for f in faults.read(self._settings) if f.variable == variable)

    def begin_again(self, place: int) -> str:
        """Takes the lost variable of this place back, with the x that its origin has now. Returns its name."""
        name, center = self._names[place], self.masters[place].center
        assert center.variable.origin is not None
        self.masters[place].begin_again(self.variables.centers[center.variable.origin].vectors["x"])
        return name

    def name(self, place: int) -> str:
        """Returns the name of the variable at this place."""
        return self._names[place]

    def _worker(self, i: int) -> VirtualWorker:
        s, method = self._settings, self._parts.method
        start = self._experiment.problem.start(i).to(self.device)
        vectors = self._vectors_from(start, (*method.state, *method.scratch))
        if method.alone and self.average is not None:
            vectors["average"] = start.clone()
        session: SimulatedWorkerEnd | ShardedWorkerEnd | None = None
        if len(self._slices) > 1:
            session = self.wire.ends(i, vectors, start.clone(), self._slices)
        elif not method.alone:
            session = self.wire.end(i, vectors, start.clone(), method.home(i))
        w = Worker(vectors, s.tau, self._parts.schedule, number=i)
        given, checked = faults.read(s), s.on_nan == "rejoin" and not method.alone
        suffers = faults.Faults(given, s.seed, i) if given or checked else None
        return VirtualWorker(
            method, w, session, self._meter(i), self._gradients, self._costs, s.seed, self.events, suffers, checked
        )

    def _meter(self, worker: int, tally: dict[str, Any] | None = None) -> Meter:
        s = self._settings
        samples, statistics = samples_a_step(s), statistics_of(self.problem)
        return Meter(worker, samples, s.workers, self._experiment.steps, self.device, statistics, tally)

    def _courier(self, variable: str, number: int) -> VirtualCourier:
        method, s = self._parts.method, self._settings
        courier, start = method.couriers[variable], self._experiment.start.to(self.device)
        vectors = {name: torch.zeros_like(start) for name in courier.vectors}
        session = self.wire.end(number, vectors, torch.zeros_like(start), variable)
        w = Worker(vectors, s.tau, self._parts.schedule, 1, number)
        last = self._experiment.steps if method.variables[variable].in_rounds else None
        return VirtualCourier(method, courier, w, session, last)

    def _variables(self) -> Variables:
        method, average = self._parts.method, self.average if not self._parts.method.alone else None
        names = Variables.names(method, average=average is not None)
        return Variables(method, Variables.begin(names, self._experiment.start.to(self.device)), average=average)

    def _centers(self) -> list[tuple[str, Center]]:
        """Returns all that has a master of its own, by name: each variable, or each slice of the center."""
        if len(self._slices) == 1:
            return list(self.variables.centers.items())
        found: list[tuple[str, Center]] = []
        for place, entries in enumerate(self._slices):
            [variable] = of_slice(self._parts.method, entries, self._experiment.size).variables.values()
            vectors = {name: v[entries] for name, v in self.variables.vectors.items()}
            found.append((f"{CENTER}/{place}", Center(variable, vectors, average=self.average)))
        return found

    def _vectors_from(self, start: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: start.clone() if name in EVALUATED else torch.zeros_like(start) for name in names}

    # ---------------------------------------------------------------- what is known of them

    def moment(self, step: float) -> Moment:
        """Returns the present moment of the owner of what is evaluated; `step`: the mean clock of the live workers."""
        return Moment(self.events.now, step, self.served, dict(self.clocks))

    @property
    def sharded(self) -> bool:
        """True if several masters have a slice of the center each."""
        return len(self._slices) > 1

    @property
    def served(self) -> int:
        """Exchanges so far."""
        return self.masters[0].served if self.masters else 0

    @property
    def owner_clock(self) -> int:
        """The clock of the owner of what is evaluated: updates of the center, or steps of the single worker."""
        if len(self._slices) > 1:
            return self.masters[0].center.clock
        return self.variables.clock if self.masters else self.workers[0].w.t

    @property
    def vectors(self) -> dict[str, Tensor]:
        """All vectors that a checkpoint keeps of the owner of what is evaluated, by name."""
        return self.evaluated() | (self.variables.vectors if self.masters else self.workers[0].lasting)

    def evaluated(self) -> dict[str, Tensor]:
        """Returns the vectors that are evaluated, by name."""
        if self.masters:
            return self.variables.evaluated()
        return {name: v for name, v in self.workers[0].lasting.items() if name in EVALUATED}

    def too_late(self, worker: int) -> bool:
        """Returns whether the worker's next request could only wait for ever, since rounds are over."""
        if not self.masters or worker in self._of or self.workers[worker].closes:
            return False
        asked = self.wire.on_its_way(worker)
        place = self.wire.place(self._parts.method.home(worker)) if asked is None else asked.to
        return self.masters[place].rounds_are_over

    def close(self, away: bool) -> None:
        """Begins the closing exchanges, if it is time for them; `away`: whether a lost worker may come back."""
        if not any(master.closing for master in self.masters):
            return
        closing = {worker for master in self.masters for worker in master.closing}
        there = {worker for worker in self.wire.open if worker not in self._of}
        everybody = closing == there
        if len(self._slices) > 1:  # then the messages must have reached all masters
            everybody = all(master.closing == there for master in self.masters)
        for master in self.masters:
            if master.rounds_are_over or not away:
                master.close(everybody)

    def updated(self, requests: Sequence[Request]) -> None:
        """Tells the variable's courier that these requests have been served together, if they are an update of it."""
        courier = self.couriers.get(self._names[requests[0].to])
        if courier is None or courier.w.number == requests[0].worker:
            return
        if any(request.vector != PULL for request in requests):
            courier.updated()

    def courier(self, number: int) -> VirtualCourier | None:
        """Returns the courier of this number; None where the number is a worker's."""
        return self._of.get(number)

    @property
    def queueing(self) -> Queueing:
        """What all masters together have seen of their queues."""
        return Queueing.of_all([master.queueing for master in self.masters])

    def evaluate(self, x: Tensor) -> dict[str, float]:
        """Returns the figures of `x` [d]."""
        return self.problem.evaluate(x.to(self.device))

    def communication(self) -> dict[str, Any]:
        """Returns what exchanging has cost: vectors per exchange, the masters' queues, and the percentage of their time
        that workers waited.
        """
        if not self.masters:
            return {}
        tallies = [m.meter.tally for m in self.workers]
        loop = sum(tally.seconds_loop for tally in tallies)
        waiting = 100 * sum(tally.seconds_communication for tally in tallies) / loop if loop else 0.0
        served = self.served_in_all
        return {
            "vectors_per_exchange": served.vectors / served.exchanges if served.exchanges else 2.0,
            "communication": self.queueing.figures(self.events.now) | {"waiting": waiting},
        }

    # ---------------------------------------------------------------- checkpoints

    def states(self) -> dict[int, WorkerState]:
        """Returns the states of the workers; the tensors are the workers' own, no copies."""
        return {m.number: m.state() for m in self.workers}

    def position(self) -> dict[str, Any]:
        """Returns where events, masters, workers, network and couriers stand."""
        couriers = {name: courier.state() for name, courier in self.couriers.items()}
        return {
            **self.events.state(), "masters": [master.state() for master in self.masters],
            "members": [m.position() for m in self.workers],
            **self.wire.state(), **({"couriers": couriers} if couriers else {}),
        }  # fmt: skip

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over what a checkpoint has of all parties."""
        position, owner = checkpoint.simulated, checkpoint.owner
        assert position is not None
        masters = position.get("masters")
        if masters is None:  # an older checkpoint, with one master at most
            masters = [position["master"]] if position["master"] is not None else []
            events = [(*event[:3], 0 if event[2] == SERVE else event[3]) for event in position["events"]]
            position = {**position, "events": events}
        self.events.restore(position)
        self.wire.restore(position)
        for name, v in self.variables.vectors.items():
            v.copy_(owner.vectors[name])
        for master, stood in zip(self.masters, masters, strict=True):
            master.center.clock = owner.clock
            master.restore(stood)
        for name, stood in position.get("couriers", {}).items():
            self.couriers[name].restore(stood)
        self.clocks = dict(sorted(owner.moment.clocks.items()))
        for m, stood in zip(self.workers, position["members"], strict=True):
            state = checkpoint.workers[m.number]
            m.restore(state, stood, self._meter(m.number, state.tally))


def _round_seconds(service: float, network: Network, members: int, share: float) -> float:
    """Returns the seconds of a round on a ring. The members add their parts at the same time, so in all the additions
    take the service of one vector.
    """
    return service * share + network.ring_seconds(members, share)


def _recording(s: Settings, method: Method, names: Sequence[str], slices: int, resumed: bool) -> list[Recording] | None:
    """Returns the recorded exchanges that are to be replayed, of each of these variables; None: there is no replay. For
    a resumed run they are empty: its checkpoint has the rest.
    """
    if s.replay is None:
        return None
    if resumed:
        return [([], []) for _ in names]
    source = Path(str(s.replay))
    order = read_order(source / "exchanges.bin", Entries.of(method, s.workers, slices))
    orders = by_variable(order, len(names))
    returns: list[list[tuple[int, int, int]]] = [[] for _ in orders]
    for at, worker, t, master in returns_of(source / "metrics.jsonl", s.workers):
        place = names.index(method.home(worker)) if slices == 1 else master
        if place < len(orders):
            before = sum(entry_place(entry) == place for entry in order[:at])  # exchanges with that variable
            returns[place].append((before, worker, t))
    return list(zip(orders, returns, strict=True))


def _gathering(variable: Variable, workers: int, recorded: Recording | None) -> Gathering:
    if recorded is None:
        return gathering_of(variable, range(workers))
    order, returns = recorded
    return Recorded(order, variable.in_rounds, returns, variable.owner)
