"""The settings of launcher=local and launcher=simulated, and what all launchers share of theirs. All are checked before
torch is loaded. distributed.py and peers.py have the other launchers' settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from easgd_cli.algorithms.base import CENTER
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings
from easgd_cli.system import limits

if TYPE_CHECKING:
    from easgd_cli.algorithms.base import Method
    from easgd_cli.experiment.build import Experiment
    from easgd_cli.launcher.job import Job, Outcome


class Launcher(Protocol):
    """Runs jobs."""

    # True if every worker is a process, with all that it needs in memory (experiment/memory_estimate.py)
    forks: ClassVar[bool]

    def begin(self) -> None:
        """Begins what takes long: everything has been checked and a job is about to come."""

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        """Runs a job to its end. Raises RunError when it could not be started or recorded."""


def launcher(s: Settings) -> Launcher:
    """Returns the launcher that these settings name. Raises UsageError."""
    return targets.make("launcher", s.launcher, build.symbols(s) | {"masters": s.masters})


# the most files that a launcher has open: in general, and for each worker its vectors, both ends of its session and of
# its channel, and the descriptors that tell of its end
_FILES, _FILES_OF_A_WORKER = 44, 8
_OTHERS = 5  # processes beside the workers: launcher, master, evaluator, their server and multiprocessing's tracker
_MOST_MASTERS = 64
_MOST_LOCAL = 120  # a child is started with at most 256 descriptors, and the master gets two for every worker
_MOST_SUMMED = 48  # the same where messages go into a sum, and the master gets five


@dataclass(frozen=True)
class Local:
    """This machine: a process for each master, for every worker and for the evaluator. Raises ValueError for more
    processes than it carries.

    `transport`: how messages travel. sessions: each to the master; collective: those of a round by an all-reduce.
    """

    workers: int
    masters: int = 1
    transport: str = "sessions"
    forks: ClassVar[bool] = True  # each worker is a process with a problem of its own

    def __post_init__(self) -> None:
        if self.workers > _MOST_LOCAL:
            raise ValueError(
                f"workers={self.workers}: launcher=local starts at most {_MOST_LOCAL} workers on one machine; use "
                "fewer, or launcher=simulated."
            )
        if self.masters > _MOST_MASTERS:  # each has a socket to every worker
            raise ValueError(
                f"masters={self.masters}: launcher=local starts at most {_MOST_MASTERS} masters on one machine; use "
                "fewer, or launcher=simulated."
            )
        if self.transport not in ("sessions", "collective"):
            raise ValueError(f"launcher.transport={self.transport}: is sessions or collective.")
        if self.collective and self.workers > _MOST_SUMMED:
            raise ValueError(
                f"launcher.transport=collective workers={self.workers}: starts at most {_MOST_SUMMED} workers; use "
                "fewer, or leave out launcher.transport=."
            )
        further = self.masters - 1
        files = _FILES + (_FILES_OF_A_WORKER + self.collective + 2 * further) * self.workers + 4 * further
        limits.check(f"workers={self.workers}", files, self.workers + further + _OTHERS)

    @property
    def collective(self) -> bool:
        """True if messages go into a sum."""
        return self.transport == "collective"

    @staticmethod
    def check(s: Settings, method: Method) -> None:
        """Raises UsageError for settings that its transport cannot serve."""
        check_transport(s, method)

    def begin(self) -> None:
        from easgd_cli.launcher.processes import fork_server

        fork_server.begin()  # torch is imported there meanwhile

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        from easgd_cli.launcher.processes.local import launch

        return launch(job, experiment, self.collective)


def summed(s: Settings) -> bool:
    """Returns whether messages go into a sum (transport/collective.py)."""
    return bool(s.launcher.get("transport") == "collective")


def check_transport(s: Settings, method: Method) -> None:
    """Raises UsageError where messages are to go into a sum and cannot."""
    if not summed(s):
        return
    algo = f"launcher.transport=collective algo={s.algo['name']}"
    [*variables] = method.variables.values()
    if not all(variable.in_rounds for variable in variables) or not variables:
        raise UsageError(
            f"{algo}: a sum is of the messages of all workers together, and this method has none such; use a "
            "synchronous method such as algo=sync_easgd, or leave out launcher.transport=."
        )
    if list(method.variables) != [CENTER] or variables[0].owner is not None or variables[0].members is not None:
        raise UsageError(
            f"{algo}: only a center is replicated, and this method has other variables; leave out launcher.transport=."
        )
    refused = {
        f"fragments={s.fragments}": s.fragments > 1 or variables[0].fragments > 1,
        f"masters={s.masters}": s.masters > 1,
        f"wire={s.wire}": s.wire != "fp32",
        f"center_device={s.center_device}": s.center_device != "cpu",
        f"on_nan={s.on_nan}": s.on_nan != "diverge",
        "faults=[{kind: link}]": any(fault.get("kind") == "link" for fault in s.faults),
    }
    for written in (key for key, asked in refused.items() if asked):
        raise UsageError(
            f"launcher.transport=collective {written}: is for messages that each go to the master; leave out one "
            "of the two."
        )


@dataclass(frozen=True)
class Simulated(CostModel):
    """A virtual cluster in this process: the same rules, problem and data on a virtual clock. The settings are those of
    the cost model.
    """

    forks: ClassVar[bool] = False  # one problem serves all workers

    def begin(self) -> None:
        """Does nothing, since nothing takes long."""

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        from easgd_cli.launcher.virtual.simulated import launch

        return launch(job, experiment, self)
