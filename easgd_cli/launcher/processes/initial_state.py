"""Where the processes of a run begin: as the problem says or, in a run that goes on, as its checkpoint says.

A worker that the checkpoint leaves out begins like one that comes back: x from the center, v = 0, its old clock. A
worker that had not come yet begins like one that comes late: with the center and the mean clock of the others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from easgd_cli.algorithms.base import CENTER, Seen
from easgd_cli.algorithms.slices import of_slice
from easgd_cli.experiment.build import Experiment, Recipe
from easgd_cli.launcher.job import Job
from easgd_cli.record.checkpoint import Checkpoint
from easgd_cli.settings.schema import Interval
from easgd_cli.system.devices import deal_devices, worker_threads
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.center import BLOCK
from easgd_cli.training.couriers import Couriers
from easgd_cli.training.ledger import Ledger
from easgd_cli.training.master import MasterStart
from easgd_cli.training.meter import Tally
from easgd_cli.training.snapshot import EVALUATED, Moment
from easgd_cli.training.variables import Variables, clocks_of
from easgd_cli.training.worker import WorkerStart
from easgd_cli.transport.base import NEW
from easgd_cli.transport.meeting import Meeting
from easgd_cli.transport.replica import Replica
from easgd_cli.transport.shared import Link


class InitialState:
    """What each process begins with. `resumed`: the checkpoint from which the run goes on.

    `meeting`: where workers find each other whose messages go into a sum (`transport/collective.py`).

    `moment`: where the run as a whole begins; `new`: workers that had not come by then, though others had trained;
    `threads`: of each worker.
    """

    def __init__(self, job: Job, experiment: Experiment, resumed: Checkpoint | None, meeting: Meeting | None = None):
        self._job, self._experiment, self._resumed, self._meeting = job, experiment, resumed, meeting
        s = self._settings = experiment.settings
        self._method, self._slices = experiment.method, experiment.slices
        self.moment = (
            resumed.owner.moment if resumed is not None else Moment(0.0, 0.0, 0, dict.fromkeys(range(s.workers), 0))
        )
        self.threads = worker_threads(s)
        self._devices = deal_devices(s.device, s.workers)
        [self._center_device] = deal_devices(s.center_device, 1, "center_device")
        self.new = self._not_yet_come()
        self.masters = len(self._slices)
        self._interval = Interval.parse("eval.every", s.eval.every)  # of snapshots, for the owner of what is evaluated
        self._pace = self._next_points()

    def _not_yet_come(self) -> frozenset[int]:
        """Returns the workers that have neither a state in the checkpoint nor taken a step; none where no worker can
        come late.
        """
        comes_late = self.returns and self._settings.max_restarts > 0 and CENTER in self._method.variables
        if self._resumed is None or self.moment.step < 1 or not comes_late:
            return frozenset()
        return frozenset(worker for worker, t in self.moment.clocks.items() if t == 0) - self._resumed.workers.keys()

    def evaluated(self) -> dict[str, Tensor]:
        """Returns the vectors that are evaluated as they are in a run that begins anew, by name: x [size] and, where
        one is kept, its average.
        """
        x = self._experiment.start
        return {"x": x} | ({"average": x} if self._experiment.average is not None else {})

    def links(self) -> list[Link]:
        """Returns a session for every worker, with its vectors in shared memory. Raises MemoryError."""
        e, workers = self._experiment, range(self._settings.workers)
        average = self._method.alone and e.average is not None
        links = [Link.new(i, self._method, e.size, e.dtype, average=average, masters=self.masters) for i in workers]
        if self._meeting is not None:
            many = Replica.new(self._method.variables[CENTER].state, e.size, e.dtype, len(links), self._meeting)
            links = [replace(link, replica=replica) for link, replica in zip(links, many, strict=True)]
        for link in links:
            vectors = self._vectors(link.worker)
            if self._method.variables:  # so the distance to the center is 0 in fragments without a reply so far
                link.memory["reply"].copy_(vectors["x"])
            for name, v in vectors.items():
                link.memory[name].copy_(v)
        return links

    def _vectors(self, worker: int) -> dict[str, Tensor]:
        """Returns those of the worker's lasting vectors that do not begin as zeros."""
        if self._resumed is not None and worker in self._resumed.workers:
            return self._resumed.workers[worker].vectors
        if self._method.alone:
            return self.evaluated() if self._resumed is None else self._resumed.owner.vectors
        return {
            "x": self._experiment.problem.start(worker) if self._resumed is None else self._resumed.owner.vectors["x"]
        }

    def worker(self, link: Link, recipe: Recipe) -> WorkerStart:
        """Returns the start of the worker of this session; `recipe`: makes its parts, and is shared by all workers."""
        number = link.worker
        interval = self._interval if self._method.alone else None
        start = WorkerStart(recipe, link.for_worker(), self._devices[number], self.threads, interval)
        start.t, start.pace, start.center_device = self.moment.clocks[number], self._pace, self._center_device
        if self._resumed is None:
            if number == 0:  # a run that goes on has its trace already
                start.trace = (self._job.run_dir / "logs" / "trace_worker_00.json").absolute()
        elif (state := self._resumed.workers.get(number)) is not None:
            start.t, start.meter, start.spared = state.t, state.tally, state.spared
            start.seen = Seen(state.center_clock, state.served, state.exchanges)
        elif number in self.new:
            start.returns = start.new = True
        return start

    @property
    def returns(self) -> bool:
        """True if a lost worker can come back: the variables lie in this machine's memory, and not on a GPU."""
        return not self._method.alone and self._center_device == "cpu"

    @property
    def master_returns(self) -> bool:
        """True if another master can follow a lost one, which none can where messages go into a sum."""
        return self.returns and self._meeting is None

    def returning(self, link: Link, recipe: Recipe, t: int, row: dict[str, Any] | None) -> WorkerStart:
        """Returns the start of a worker that was lost at its clock `t`, or of a NEW one; `row`: its last."""
        start = WorkerStart(recipe, link, self._devices[link.worker], self.threads, None)
        start.t, start.center_device, start.returns, start.spared = max(t, 0), self._center_device, True, t
        start.new = t == NEW
        if row is not None:
            start.meter = Tally.of(row)
        return start

    def next_master(
        self, before: MasterStart, links: list[Link], clocks: dict[int, int], lost: list[int], moment: Moment,
        closing: bool,
    ) -> MasterStart:  # fmt: skip
        """Returns the start of the master after one that was lost: the same center, at the moment that the last one has
        told.
        """
        pace = self._points_after(moment)
        return replace(before, links=links, clocks=clocks, lost=lost, step=moment.step, closing=closing, pace=pace)

    def served(self) -> list[int]:
        """Returns how many exchanges each master has served before this start."""
        owner = None if self._resumed is None else self._resumed.owner
        if owner is None or self.masters == 1:
            return [self.moment.exchanges] * self.masters
        return [served for _, served in owner.masters]

    def master(self, links: list[Link], clocks: dict[int, int], place: int = 0) -> MasterStart:
        """Returns the start of the master at `place`, with these sessions, whose workers begin at `clocks`. Its center
        is the caller's to close. Raises MemoryError.
        """
        s, average, entries = self._settings, self._experiment.average, self._slices[place]
        names, size = Variables.names(self._method, average=average is not None), entries.stop - entries.start
        center = SharedTensors.allocate({name: ((size,), self._experiment.dtype) for name in names})
        ends = [link.for_master(place, slice(None) if self.masters == 1 else entries) for link in links]
        start = MasterStart(
            of_slice(self._method, entries, self._experiment.size), average, center, ends, self._interval,
            clocks=clocks, pace=self._pace, device=self._center_device, several=self.masters > 1,
            tau=s.tau, steps=self._experiment.steps, schedule=self._experiment.parts.schedule,
        )  # fmt: skip
        for name in names:
            if self._resumed is not None:
                center[name].copy_(self._resumed.owner.vectors[name][entries])
            elif (of := name.rpartition(".")[2]) in EVALUATED:
                center[name].copy_(self.evaluated()[of][entries])
        for link in links:
            if link.replica is not None:
                link.replica.begin(center.tensors)
        if self._resumed is not None:
            owner = self._resumed.owner
            clock = owner.masters[place][0] if self.masters > 1 else owner.clock
            start.variables, start.couriers = {**owner.variables, CENTER: clock}, owner.couriers
            start.served, start.step, start.lost = self.served()[place], owner.moment.step, sorted(self.new)
            start.cpu_seconds = 0.0 if place else owner.cpu_seconds  # place 0 has those of all masters
        start.returns = bool(s.max_restarts and self.returns)
        if start.returns and self.master_returns:
            self._allocate_ledger(start, size)
        return start

    def _allocate_ledger(self, start: MasterStart, size: int) -> None:
        block, workers, variables = min(BLOCK, size), self._settings.workers, self._method.variables
        fragments = [of.fragments for of in variables.values()]
        most = max(len(of.state) for of in variables.values()) + (self._experiment.average is not None)
        couriers, x = self._method.couriers, ((size,), self._experiment.dtype)
        beside = dict.fromkeys(Couriers.vectors_of(self._method), x)
        start.ledger = Ledger.allocate(most, block, self._experiment.dtype, workers, fragments, len(couriers), beside)
        known = [clocks_of(start.variables, name, of.fragments) for name, of in variables.items()]
        ledger = Ledger(start.ledger, workers, fragments, [list(variables).index(name) for name in couriers])
        ledger.begin_run(start.served, known, [start.couriers.get(name, 1) - 1 for name in couriers])

    def _next_points(self) -> list[float] | None:
        """Returns the next points of evaluation as the checkpoint has them, unless eval.every has changed since."""
        resumed, interval = self._resumed, self._interval
        if resumed is None or interval is None:
            return None
        (step, seconds), moment = resumed.owner.pace, resumed.owner.moment
        if interval.steps is not None and step > 0 and step % interval.steps == 0:
            return [step, 0.0]
        if interval.seconds is not None and seconds > 0:
            return [0.0, min(seconds, moment.seconds + interval.seconds)]
        return self._points_after(moment)

    def _points_after(self, moment: Moment) -> list[float] | None:
        """Returns the first points of evaluation after this moment."""
        interval = self._interval
        if interval is None:
            return None
        if interval.steps is not None:
            return [(moment.step // interval.steps + 1) * interval.steps, 0.0]
        return [0.0, moment.seconds + (interval.seconds or 0.0)]
