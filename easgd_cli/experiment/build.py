"""From settings to objects, once: the experiment that a launcher is given, and the recipe of every process's own parts.

Each part comes from the maker that its group names (`settings/targets.py`). The runner offers values by name, and a
maker takes those that it has parameters for. This is the room's door: functions for one part, such as
`build.method(settings)`, stand in `methods.py`, `problems.py` or `checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from easgd_cli.experiment.checks import (
    check_devices,
    check_levels,
    check_slices,
    doubts_of,
    refuse_unused,
    workers_here,
)
from easgd_cli.experiment.checks import check_launcher as check_launcher
from easgd_cli.experiment.checks import launched_in_processes as launched_in_processes
from easgd_cli.experiment.checks import of_copies as of_copies
from easgd_cli.experiment.checks import periodic as periodic
from easgd_cli.experiment.methods import OFFERED_TO_SCHEDULES as OFFERED_TO_SCHEDULES
from easgd_cli.experiment.methods import average as average
from easgd_cli.experiment.methods import follows_the_length as follows_the_length
from easgd_cli.experiment.methods import method as method
from easgd_cli.experiment.methods import on_vectors_of as on_vectors_of
from easgd_cli.experiment.methods import schedule as schedule
from easgd_cli.experiment.methods import symbols as symbols
from easgd_cli.experiment.methods import symbols_used as symbols_used
from easgd_cli.experiment.problems import DATA as DATA
from easgd_cli.experiment.problems import OFFERED_TO_PROBLEMS as OFFERED_TO_PROBLEMS
from easgd_cli.experiment.problems import asked_by_problem as asked_by_problem
from easgd_cli.experiment.problems import asks_for_data as asks_for_data
from easgd_cli.experiment.problems import data as data
from easgd_cli.experiment.problems import declared_metrics as declared_metrics
from easgd_cli.experiment.problems import loss_arguments as loss_arguments
from easgd_cli.experiment.problems import model as model
from easgd_cli.experiment.problems import problem as problem
from easgd_cli.experiment.problems import split_parameter as split_parameter
from easgd_cli.experiment.problems import task as task
from easgd_cli.settings.schema import Settings, total_steps
from easgd_cli.settings.targets import ours

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from easgd_cli.algorithms.average import Average
    from easgd_cli.algorithms.base import Method
    from easgd_cli.algorithms.schedule import Schedule
    from easgd_cli.data.dataset import Dataset
    from easgd_cli.problems.base import Problem


@dataclass(frozen=True)
class Outline:
    """The parts that settings name and that need neither data nor problem, made and checked once, for an experiment.

    `rules`: the method as it is listed. `schedule`: None where the length of the run follows from its data.
    """

    settings: Settings
    rules: Method
    schedule: Schedule | None
    average: Average | None


def outline(s: Settings) -> Outline:
    """Returns the outline of a run. Raises UsageError."""
    rules = method(s)
    known = s.epochs is None
    return Outline(s, rules, schedule(s, total_steps(s, None)) if known else None, average(s, rules))


@dataclass(frozen=True)
class Parts:
    """What one process of a run works with: the problem on its device, the method as it is listed (`rules`) and as it
    is on that problem's vectors (`method`), the schedule and the average.
    """

    problem: Problem
    rules: Method
    method: Method
    schedule: Schedule
    average: Average | None


@dataclass(frozen=True)
class Recipe:
    """What every process of a run makes its own parts from: the settings, the data they share, and how many local steps
    each worker takes.

    `data`: None where the problem asks for none. `steps`: None when the clock on the wall ends the run.
    """

    settings: Settings
    data: Dataset | None
    steps: int | None

    def problem(self, device: torch.device) -> Problem:
        """Returns the problem that is minimised, on `device`. Raises UsageError."""
        return problem(self.settings, self.data, device)

    def parts(self, device: torch.device) -> Parts:
        """Returns all parts, on `device`. Raises UsageError."""
        s, minimised, rules = self.settings, self.problem(device), method(self.settings)
        on_vectors = on_vectors_of(minimised, rules, s)
        return Parts(minimised, rules, on_vectors, schedule(s, self.steps), average(s, rules))

    def shared(self) -> Recipe:
        """Returns the same recipe, its data in memory that all processes of this machine share."""
        return self if self.data is None else replace(self, data=self.data.share())


@dataclass(frozen=True)
class Experiment:
    """A run that has been checked to the end: everything a launcher needs, made once.

    `parts`: on the CPU. `start` [size]: where the vector that is evaluated begins, the center's or, in a method without
    one, the worker's. `memory`: bytes that the run needs at its peak, as far as they are known before. `doubts`: where
    its data may not be what was meant, in a sentence each.
    """

    recipe: Recipe
    parts: Parts
    start: Tensor
    memory: int
    doubts: tuple[str, ...] = ()

    @property
    def settings(self) -> Settings:
        return self.recipe.settings

    @property
    def data(self) -> Dataset | None:
        return self.recipe.data

    @property
    def steps(self) -> int | None:
        return self.recipe.steps

    @property
    def problem(self) -> Problem:
        return self.parts.problem

    @property
    def method(self) -> Method:
        return self.parts.method

    @property
    def average(self) -> Average | None:
        return self.parts.average

    @property
    def size(self) -> int:
        return self.start.numel()

    @property
    def slices(self) -> list[slice]:
        """The slices of every vector [size], each with a master of its own; one without a center. Raises ValueError."""
        from easgd_cli.algorithms.slices import slices

        return slices(self.size, 1 if self.method.alone else self.settings.masters)

    @property
    def parameters(self) -> int:
        """How many entries of x are parameters: all but a problem's statistics."""
        from easgd_cli.problems.base import statistics_of

        return self.size - statistics_of(self.problem)

    @property
    def dtype(self) -> torch.dtype:
        return self.start.dtype

    @property
    def vector_bytes(self) -> int:
        """The bytes of one vector as it is sent."""
        from easgd_cli.algorithms.wire import WIRES

        wire = WIRES[self.settings.wire]
        return self.size * self.dtype.itemsize if wire is None else wire.nbytes(self.size)

    def parts_on(self, device: torch.device) -> Parts:
        """Returns the parts of the one process of a simulated run, on `device`; `parts` itself on the CPU. Raises
        UsageError.
        """
        if device.type == "cpu":
            return self.parts
        minimised = self.recipe.problem(device)
        return replace(self.parts, problem=minimised, method=on_vectors_of(minimised, self.parts.rules, self.settings))


def prepare(s: Settings, workers: int | None = None, masters: int = 0) -> Experiment:
    """Returns the experiment of settings from which nothing has been made yet. Raises UsageError."""
    return experiment(outline(s), workers, masters)


def experiment(of: Outline, workers: int | None = None, masters: int = 0) -> Experiment:
    """Loads the data, builds the problem and checks all that could fail later. `workers`, `masters`: on a machine that
    has only so many of the run's workers and of several masters, and nothing else of it. Raises UsageError.
    """
    import torch

    from easgd_cli.experiment.memory_estimate import Part, check_memory
    from easgd_cli.problems.base import check_problem
    from easgd_cli.problems.classification import metrics_of

    s, rules = of.settings, of.rules
    devices = check_devices(s, rules)
    asked = asked_by_problem(s)
    refuse_unused(s, asked)
    given = data(s) if asks_for_data(s, asked) else None
    steps = total_steps(s, None if given is None else given.count("train"))
    timed = schedule(s, steps) if of.schedule is None else of.schedule  # refuses before the data set is measured
    recipe = Recipe(s, given, steps)
    minimised = recipe.problem(torch.device("cpu"))
    parts = Parts(minimised, rules, on_vectors_of(minimised, rules, s), timed, of.average)
    if given is None or not ours(s.problem):  # measuring our own on a whole data set would take seconds
        measured = tuple(check_problem(minimised, s.problem["name"], s.workers))
    else:
        measured = getattr(minimised, "measures", ())
    check_levels(s, metrics_of(minimised), measured)
    start = minimised.start(None if not rules.alone else 0)
    check_slices(s, rules, start.numel())
    computing = workers_here(s) if workers is None else min(workers, s.workers)
    here = Part(computing, devices[:computing].count("cpu"), serves=workers is None, masters=masters)
    memory = check_memory(s, parts.method, parts.average, start, given, here=here)
    return Experiment(recipe, parts, start, memory, () if given is None else doubts_of(s, given))
