"""Sweeps of runs on many machines: refuses those that cannot be run one after another, and has all jobs of a sweep
reached at one address.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from easgd_cli.errors import UsageError
from easgd_cli.launcher import kinds
from easgd_cli.launcher.distributed import LISTENER, Distributed, is_distributed, made_elsewhere
from easgd_cli.launcher.hosts.world import world as started_together
from easgd_cli.settings.schema import Settings
from easgd_cli.system import network
from easgd_cli.system.terminal import tell

_SLURM = "submitit_slurm"
_OTHERWISE = (
    "start the sweep with easgd train -m alone, and easgd join on each other host, or on SLURM add "
    f"hydra/launcher={_SLURM}"
)


@contextmanager
def checked_for(launcher: str) -> Iterator[None]:
    """While it lasts, settings are checked for runs that Hydra's `launcher` starts: the one for SLURM starts them on
    nodes, whose addresses are not those of this machine.
    """
    token = made_elsewhere.set(launcher == _SLURM)
    try:
        yield
    finally:
        made_elsewhere.reset(token)


def check_sweep(jobs: Sequence[Settings], at_once: str, plugins: tuple[str, str], tasks: int) -> None:
    """Raises UsageError where hosts could not stay from one of these jobs to the next, or could not join. `plugins`:
    Hydra's launcher and sweeper; `tasks`: how many tasks of SLURM's a job has.
    """
    if plugins[0] == _SLURM:
        _check_tasks(jobs, tasks)
        return
    places = [(s.launcher.get("address"), s.launcher.get("interface")) if is_distributed(s) else None for s in jobs]
    if not any(places):
        return
    refuse_several(jobs[0], "-m", _OTHERWISE)
    if plugins != ("basic", "basic"):
        raise UsageError(
            "launcher=distributed: hosts stay from job to job only where easgd runs the sweep itself; leave out "
            f"hydra/launcher= and hydra/sweeper=, or give hydra/launcher={_SLURM}, which starts them for each job."
        )
    if at_once != Settings.jobs:
        raise UsageError(
            f"launcher=distributed jobs={at_once}: a host takes part in one run at a time; leave out jobs=."
        )
    if len(set(places)) > 1:
        raise UsageError(
            "launcher=distributed: hosts wait for the next job of a sweep where they have joined, so all its jobs are "
            "on many machines and reached at one address; start the others as a sweep of their own."
        )


def _check_tasks(jobs: Sequence[Settings], tasks: int) -> None:
    """Raises UsageError where a job could not be a run of all of its tasks."""
    given = f"hydra/launcher={_SLURM}"
    for s in jobs:
        if not is_distributed(s) and tasks > 1:
            raise UsageError(
                f"{given}: with hydra.launcher.nodes= and tasks_per_node= a job has {tasks} tasks, and launcher="
                f"{s.launcher['name']} makes a run of one; leave them out, or use launcher=distributed."
            )
        if is_distributed(s) and tasks == 1:
            raise UsageError(
                f"{given} launcher=distributed: a job has one task, and no others would join it; give "
                "hydra.launcher.nodes=, or leave out launcher=."
            )
        if is_distributed(s) and s.workers != tasks:
            raise UsageError(
                f"workers={s.workers}: a job has {tasks} tasks of SLURM's, each the place of a worker; leave out "
                "workers=, or change hydra.launcher.nodes= or tasks_per_node=."
            )
        if is_distributed(s):
            network.secret(f"{given} launcher=distributed", None)


def refuse_several(s: Settings, asked: str, instead: str) -> None:
    """Raises UsageError where `asked` means several runs, and torchrun or SLURM starts the processes of one."""
    starter = "SLURM" if made_elsewhere.get() else (world := started_together()) and world.starter
    if is_distributed(s) and starter:
        raise UsageError(
            f"launcher=distributed {asked}: {starter} starts the processes of one run, and this is several; {instead}."
        )


@contextmanager
def listening(job: Settings) -> Iterator[list[int]]:
    """While it lasts, all jobs of the sweep of `job` are reached at one address. Yields the descriptors that the jobs'
    processes are to inherit: none where the jobs are not on many machines. Raises UsageError.
    """
    launcher = kinds.launcher(job) if is_distributed(job) else None
    if not isinstance(launcher, Distributed):
        yield []
        return
    listener, where = launcher.listen()
    tell(f"the jobs are reached at {where}; on another host: easgd join {where}")
    with listener:
        os.environ[LISTENER] = str(listener.fileno())
        try:
            yield [listener.fileno()]
        finally:
            del os.environ[LISTENER]
