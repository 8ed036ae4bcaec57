"""The processes that have been started together to make one run: by torchrun, or as the tasks of a step of SLURM's
(srun). What each of them is told of the others, and how the first tells them where the run is reached.

Neither torchrun's store nor a file checks who writes into it, so an address found there is believed only once the other
side has shown that it knows the run's secret.
"""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.system import interruption, network
from easgd_cli.system.files import put
from easgd_cli.system.terminal import tell

_OF_TORCHRUN = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"
)  # fmt: skip
# Variables of a step. A script of sbatch's or a shell of salloc's is no step: it has SLURM_PROCID and SLURM_NTASKS, but
# would wait for tasks that nobody has started.
_OF_SLURM = (
    "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_LAUNCH_NODE_IPADDR",
)  # fmt: skip
_AGAIN_SECONDS = 0.2  # between two looks at a file


@dataclass(frozen=True)
class World(ABC):
    """This process's place among those started together: `rank` of `size`, here `local_rank` of `local_size`."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    starter: ClassVar[str]

    @abstractmethod
    def address(self) -> tuple[str, str]:
        """Returns where the first host listens unless the user says where: the source of the address as `NAME=VALUE`,
        for messages, and the address. Raises UsageError.
        """

    @abstractmethod
    def announce(self, where: str) -> AbstractContextManager[None]:
        """While it lasts, the other processes find the run's address `where` by `find`. Raises RunError."""

    @abstractmethod
    def find(self) -> str:
        """Waits for the run's address and returns it. Raises RunError where nobody announces it."""


@dataclass(frozen=True)
class Torchrun(World):
    """The processes of torchrun. Torchrun's store has the address of the run, and is used for nothing else."""

    host: str
    port: int
    run: str
    starter: ClassVar[str] = "torchrun"

    def address(self) -> tuple[str, str]:
        return f"MASTER_ADDR={self.host}", self.host

    def _store(self, wait: float) -> Any:
        """Returns the store of these processes, which rank 0 opens where torchrun has not. Raises RunError."""
        import torch.distributed as dist

        hosts = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            return dist.TCPStore(self.host, self.port, None, hosts, timedelta(seconds=wait), wait_for_workers=False)
        except (RuntimeError, ValueError) as e:
            line = (str(e).splitlines() or [""])[0]
            raise RunError(
                f"MASTER_ADDR={self.host} MASTER_PORT={self.port}: no store is reached there ({line})."
            ) from e

    @property
    def _key(self) -> str:
        """The store's key for the address of the run; another one when torchrun starts the run again."""
        return f"easgd/{self.run}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    @contextmanager
    def announce(self, where: str) -> Iterator[None]:
        store = self._store(60.0)  # keeps the store open while others may ask
        store.set(self._key, where)
        yield
        del store

    def find(self) -> str:
        try:
            return str(self._store(300.0).get(self._key).decode())
        except RuntimeError as e:  # DistStoreError or DistNetworkError
            raise RunError(
                f"rank 0 of torchrun has not said where the run is reached; its own output says why ({e})."
            ) from e


@dataclass(frozen=True)
class SlurmStep(World):
    """The tasks of a step of SLURM's. A file in the working directory, which they share, has the address of the run.

    `srun`: the address at which the nodes reach srun. `name`: made of job, step, and how often SLURM has started the
    job again.
    """

    srun: str
    name: str
    starter: ClassVar[str] = "SLURM"
    seconds: ClassVar[float] = 60.0  # for the first task to compose and check its settings and announce the address

    def address(self) -> tuple[str, str]:
        """Returns this host's address on SLURM's own network; a node's name may be a loopback address."""
        if self.size == self.local_size:
            return "launcher.address=127.0.0.1", "127.0.0.1"
        asked = f"SLURM_LAUNCH_NODE_IPADDR={self.srun}"
        return asked, network.towards(asked, self.srun)

    @property
    def _file(self) -> Path:
        return Path(f".easgd-slurm-{self.name}").absolute()

    @contextmanager
    def announce(self, where: str) -> Iterator[None]:
        file = self._file
        self._tell_of_cores()
        try:
            put(file, lambda beside: beside.write_text(where, encoding="utf-8"))
        except OSError as e:
            raise RunError(
                f"{file}: the other tasks look there for the run's address, and it cannot be written ({why(e)}); start "
                "srun in a directory that all nodes share and you may write to."
            ) from e
        with interruption.undone_by(lambda: file.unlink(missing_ok=True)):
            try:
                yield
            finally:
                file.unlink(missing_ok=True)

    def _tell_of_cores(self) -> None:
        """Warns if SLURM has bound this task, which does the work of all its node's tasks, to a share of the cores."""
        from easgd_cli.system.devices import cores  # here, since it loads torch

        mine, all_tasks = cores(), os.environ.get("SLURM_CPUS_ON_NODE", "")
        if self.local_size > 1 and all_tasks.isdecimal() and mine < int(all_tasks):
            tell(
                f"this task is bound to {mine} of the {all_tasks} cores that its node's {self.local_size} tasks have, "
                "and it does their work; give srun --cpu-bind=none, or set SLURM_CPU_BIND=none."
            )

    def find(self) -> str:
        self._tell_of_cores()
        ends = time.monotonic() + self.seconds
        while True:
            with suppress(OSError, UnicodeDecodeError):
                os.listdir(self._file.parent)  # makes NFS look for new files
                return self._file.read_text(encoding="utf-8")
            if time.monotonic() > ends:
                raise RunError(
                    f"{self._file}: the first task of SLURM's step has not said there in {self.seconds:g} s where the "
                    "run is reached. Either it has ended, and its own output says why, or the nodes do not share this "
                    "directory; start srun in one that they do."
                )
            time.sleep(_AGAIN_SECONDS)


def world() -> World | None:
    """Returns this process's place among those started with it, None if it was started alone. Raises UsageError."""
    if all(name in os.environ for name in _OF_TORCHRUN):  # first, since srun may have started torchrun
        return _of_torchrun(*(os.environ[name] for name in _OF_TORCHRUN))
    if all(name in os.environ for name in _OF_SLURM):
        return _of_slurm(*(os.environ[name] for name in _OF_SLURM))
    return None


def _of_torchrun(rank: str, size: str, local_rank: str, local_size: str, host: str, port: str, run: str) -> World:
    try:
        return Torchrun(int(rank), int(size), int(local_rank), int(local_size), host, int(port), run)
    except ValueError as e:
        raise UsageError(
            f"RANK={rank} WORLD_SIZE={size} MASTER_PORT={port}: are numbers, as torchrun gives them."
        ) from e


def _of_slurm(
    rank: str, size: str, local_rank: str, node: str, tasks: str, job: str, step: str, srun: str
) -> World | None:
    """Returns None for a step of one task, such as a shell that srun starts."""
    try:
        if int(size) == 1:
            return None
        local_size = _repeated(tasks)[int(node)]
        name = f"{job}.{step}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        return SlurmStep(int(rank), int(size), int(local_rank), local_size, srun, name)
    except (ValueError, IndexError) as e:
        raise UsageError(
            f"SLURM_PROCID={rank} SLURM_STEP_NUM_TASKS={size} SLURM_NODEID={node} SLURM_STEP_TASKS_PER_NODE={tasks}: "
            "are not as srun gives them; unset them where srun has not started this."
        ) from e


def _repeated(text: str) -> list[int]:
    """Returns the number of tasks of each node. SLURM writes equal neighbours once: 2(x3),1. Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        if (read := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)) is None:
            raise ValueError(text)
        found += [int(read[1])] * int(read[2] or 1)
    return found
