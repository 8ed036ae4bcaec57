"""Runs in the calling process: shows the run there, brings its objects to the workers, changes nothing else."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.kinds import Launcher
from easgd_cli.launcher.processes import fork_server
from easgd_cli.python.handed import InheritedRecipe, SentRecipe, unsendable
from easgd_cli.python.run import Failed, Interrupted, Run
from easgd_cli.record.display import LineScreen, Screen, nowhere
from easgd_cli.settings.schema import Settings
from easgd_cli.system.shared_memory import give_back_freed_memory
from easgd_cli.system.unchanged import unchanged_process

_one = threading.Lock()


@contextmanager
def alone() -> Iterator[None]:
    """Allows no other run of this process during the block, and leaves the process as it was. Raises UsageError if a
    run is under way: runs of one process would share generators, threads and the default type of numbers.
    """
    if not _one.acquire(blocking=False):
        raise UsageError(
            "train: another run of this process is under way; wait for it, or run them in processes of their own, as "
            "easgd train -m jobs=2 does."
        )
    try:
        with unchanged_process(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        _one.release()


@dataclass(frozen=True)
class Here:
    """Launches a run from this process. `inherits`: why workers must be copies of this process; None: they need not."""

    launcher: Launcher
    screen: Screen | None
    in_processes: bool
    inherits: str | None
    forks: ClassVar[bool] = False

    @classmethod
    def of(cls, s: Settings, launcher: Launcher, progress: bool) -> Here:
        """Returns the launcher. Raises UsageError if objects that were handed over cannot reach the workers."""
        in_processes = build.launched_in_processes(s)
        inherits = unsendable(s) if in_processes else None
        if inherits is not None and torch.cuda.is_available():
            raise UsageError(
                f"{inherits}: workers would have to be copies of this process, which a GPU's driver does not take; put "
                "it at the top of a module, and import it from there."
            )
        return cls(launcher, _screen(progress), in_processes, inherits)

    def begin(self) -> None:
        if self.inherits is None:
            self.launcher.begin()

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        job, recipe = replace(job, screen=job.screen or self.screen), experiment.recipe
        if not self.in_processes:
            try:
                return self.launcher(job, experiment)
            finally:
                give_back_freed_memory()  # this process goes on, and no longer needs the virtual cluster's memory
        if self.inherits is None:
            sent = SentRecipe(recipe.settings, recipe.data, recipe.steps)
            return self.launcher(job, replace(experiment, recipe=sent))
        inherited = InheritedRecipe.of(recipe)
        try:
            fork_server.begin_here()
            return self.launcher(job, replace(experiment, recipe=inherited))
        finally:
            inherited.release()
            fork_server.end()


def ended(outcome: Outcome, run: Run) -> Run:
    """Returns the run if it has its result. Raises Failed; or Interrupted after a signal, which the main thread first
    raises once more, unless the signal would merely raise KeyboardInterrupt.
    """
    if outcome.status == "failed":
        raise Failed(outcome.reason or "the run failed", run)
    if outcome.status != "interrupted":
        return run
    number = outcome.exit_code - 128
    if threading.current_thread() is threading.main_thread() and (
        signal.getsignal(number) is not signal.default_int_handler
    ):
        signal.raise_signal(number)
    raise Interrupted(run)


def _screen(progress: bool) -> Screen | None:
    """Returns where a run is shown: nowhere, or a notebook's line; None stands for a view in a terminal, else lines."""
    if not progress:
        return nowhere()
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and not sys.stdout.isatty():
        made = LineScreen(force_jupyter=False, force_terminal=False, highlight=False)
        made.soft_wrap = True
        return made
    return None
