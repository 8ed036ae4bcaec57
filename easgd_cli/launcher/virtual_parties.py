"""The parties of a virtual cluster, made from a run's settings, and everything of them that a checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easgd_cli.algorithms.base import Variable, Worker
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.launcher.job import Job
from easgd_cli.launcher.virtual_master import VirtualMaster
from easgd_cli.launcher.virtual_worker import VirtualWorker
from easgd_cli.problems.base import statistics_of
from easgd_cli.record.checkpoint import Checkpoint, WorkerState
from easgd_cli.record.reader import read_order, returns_of
from easgd_cli.settings import faults
from easgd_cli.settings.schema import samples_a_step
from easgd_cli.system.devices import deal_devices
from easgd_cli.training.center import Center
from easgd_cli.training.drive import ProblemGradients
from easgd_cli.training.gathering import Each, Gathering, Recorded, Round
from easgd_cli.training.meter import Meter
from easgd_cli.training.snapshot import EVALUATED
from easgd_cli.transport.simulated import Events, Wire


class VirtualParties:
    """Workers, master and what lies between them, on one clock. `master`: None in a method without a center.

    `clocks`: the workers' as the owner of what is evaluated has seen them. `resumed`: the checkpoint to go on from.
    """

    def __init__(self, job: Job, experiment: Experiment, costs: CostModel, resumed: Checkpoint | None):
        s = self._settings = experiment.settings
        self._experiment, self._costs = experiment, costs
        self.average, shared = experiment.average, experiment.method.shared
        self.device = torch.device(deal_devices(s.device, 1)[0])
        self._parts = experiment.parts_on(self.device)
        self.problem = self._parts.problem
        self._gradients = ProblemGradients(self.problem, s.clip)
        self.events = Events()
        self.wire = Wire(costs.network(experiment.size * experiment.dtype.itemsize), self.events)
        self.workers = [self._worker(i) for i in range(s.workers)]
        self.master: VirtualMaster | None = None
        if shared is not None:
            self._center = self._new_center(shared)
            self.master = VirtualMaster(
                self._center, self.wire.master(), self._gathering(shared, resumed), self.events, costs.service,
                lambda worker, t: self.workers[worker].come_back(self._center.vectors["x"], self._center.clock, t),
            )  # fmt: skip
        self.clocks = dict.fromkeys(range(s.workers), 0)

    def _worker(self, i: int) -> VirtualWorker:
        s, method = self._settings, self._parts.method
        start = self._experiment.problem.start(i).to(self.device)
        vectors = self._vectors_from(start, (*method.state, *method.scratch))
        if method.shared is None and self.average is not None:
            vectors["average"] = start.clone()
        session = None if method.shared is None else self.wire.end(i, vectors, torch.zeros_like(start))
        w = Worker(vectors, s.tau, self._parts.schedule, number=i)
        given, checked = faults.read(s), s.on_nan == "rejoin" and method.shared is not None
        suffers = faults.Faults(given, s.seed, i) if given or checked else None
        return VirtualWorker(
            method, w, session, self._meter(i), self._gradients, self._costs, s.seed, self.events, suffers, checked
        )

    def _meter(self, worker: int, tally: dict[str, Any] | None = None) -> Meter:
        s = self._settings
        samples, statistics = samples_a_step(s), statistics_of(self.problem)
        return Meter(worker, samples, s.workers, self._experiment.steps, self.device, statistics, tally)

    def _new_center(self, shared: Variable) -> Center:
        names = (*shared.state, *(("average",) if self.average is not None else ()))
        return Center(
            self._parts.method, self._vectors_from(self._experiment.start.to(self.device), names), average=self.average
        )

    def _vectors_from(self, start: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: start.clone() if name in EVALUATED else torch.zeros_like(start) for name in names}

    def _gathering(self, shared: Variable, resumed: Checkpoint | None) -> Gathering:
        s = self._settings
        if s.replay is not None:  # of one that is resumed, the checkpoint has what is left of the order
            source = Path(str(s.replay))
            order = [] if resumed is not None else read_order(source / "exchanges.bin", s.workers)
            returns = [] if resumed is not None else returns_of(source / "metrics.jsonl", s.workers)
            return Recorded(order, shared.in_rounds, returns)
        return Round(range(s.workers)) if shared.in_rounds else Each()

    # ---------------------------------------------------------------- what is known of them

    @property
    def served(self) -> int:
        """Exchanges so far."""
        return 0 if self.master is None else self.master.served

    @property
    def owner_clock(self) -> int:
        """Of the owner of what is evaluated: updates of the center, or steps of the single worker."""
        return self._center.clock if self.master is not None else self.workers[0].w.t

    @property
    def vectors(self) -> dict[str, Tensor]:
        """Those of the owner of what is evaluated, by name."""
        return self._center.vectors if self.master is not None else self.workers[0].lasting

    def evaluate(self, x: Tensor) -> dict[str, float]:
        """Figures of `x` [d]."""
        return self.problem.evaluate(x.to(self.device))

    def communication(self) -> dict[str, Any]:
        """What exchanging has cost: the master's queue, and the share of the workers' time spent waiting,
        in percent.
        """
        if self.master is None:
            return {}
        tallies = [m.meter.tally for m in self.workers]
        loop = sum(tally.seconds_loop for tally in tallies)
        waiting = 100 * sum(tally.seconds_communication for tally in tallies) / loop if loop else 0.0
        return {"communication": self.master.queueing.figures(self.events.now) | {"waiting": waiting}}

    # ---------------------------------------------------------------- checkpoints

    def states(self) -> dict[int, WorkerState]:
        """Of the workers. Their tensors are the workers' own."""
        return {m.number: m.state() for m in self.workers}

    def place(self) -> dict[str, Any]:
        """Where everything stands, as plain numbers."""
        master = None if self.master is None else self.master.state()
        return {**self.events.state(), "master": master, "members": [m.place() for m in self.workers]}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts everything where it was."""
        place, owner = checkpoint.simulated, checkpoint.owner
        assert place is not None
        self.events.restore(place)
        if self.master is not None:
            for name, v in self._center.vectors.items():
                v.copy_(owner.vectors[name])
            self._center.clock = owner.clock
            self.master.restore(place["master"])
        self.clocks = dict(sorted(owner.moment.clocks.items()))
        for m, stood in zip(self.workers, place["members"], strict=True):
            state = checkpoint.workers[m.number]
            m.restore(state, stood, self._meter(m.number, state.tally))
