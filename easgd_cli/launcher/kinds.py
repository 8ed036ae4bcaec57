"""The launchers by what is asked of them: settings, checked before torch is loaded. What they do is in a file each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from easgd_cli.experiment import build
from easgd_cli.launcher.cost_model import CostModel
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings
from easgd_cli.system import limits

if TYPE_CHECKING:
    from easgd_cli.experiment.build import Experiment
    from easgd_cli.launcher.job import Job, Outcome


class Launcher(Protocol):
    """Runs jobs."""

    # whether every worker is a process, with all that it needs in memory (experiment/memory_estimate.py)
    forks: ClassVar[bool]

    def begin(self) -> None:
        """Everything has been checked and a job is about to come: what takes long may begin."""

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        """Runs a job to its end. Raises RunError when it could not be started or recorded."""


def launcher(s: Settings) -> Launcher:
    """The one that these settings name. Raises UsageError."""
    return targets.make("launcher", s.launcher, build.symbols(s) | {"masters": s.masters})


# what a launcher has open at most: on the whole, and for each worker its vectors, both ends of its session and of its
# channel, and what tells of its end
_FILES, _FILES_OF_A_WORKER = 44, 8
_OTHERS = 5  # processes beside the workers: launcher, master, evaluator, their server and multiprocessing's tracker
_MOST_MASTERS = 64
_MOST_LOCAL = 120  # a child is started with at most 256 descriptors, and the master gets two for every worker


@dataclass(frozen=True)
class Local:
    """This machine: a process for each master, for every worker and for the evaluator. Raises ValueError for more
    of them than it carries.
    """

    workers: int
    masters: int = 1
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
        files = _FILES + (_FILES_OF_A_WORKER + 2 * (self.masters - 1)) * self.workers + 4 * (self.masters - 1)
        limits.check(f"workers={self.workers}", files, self.workers + self.masters - 1 + _OTHERS)

    def begin(self) -> None:
        from easgd_cli.launcher import fork_server

        fork_server.begin()  # torch is imported there meanwhile

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        from easgd_cli.launcher.local import launch

        return launch(job, experiment)


@dataclass(frozen=True)
class Simulated(CostModel):
    """A virtual cluster in this process: the same rules, problem and data on a virtual clock. Its settings are those of
    the cost model.
    """

    forks: ClassVar[bool] = False  # one problem serves all workers

    def begin(self) -> None:
        """Nothing takes long."""

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        from easgd_cli.launcher.simulated import launch

        return launch(job, experiment, self)
