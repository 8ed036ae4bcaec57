"""Slots: the share of this machine's cores and CUDA devices for each of the jobs that run side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps.plan import SweepJob

T = TypeVar("T")
# Memory of a job's own processes, and of each worker's, beside vectors and data (docs/design.md, Memory).
_OWN_BYTES, _WORKER_BYTES = 350 * 2**20, 40 * 2**20


class Devices(Enum):
    """The CUDA devices of a job: none, any that are visible to it, or some that its settings name by number."""

    NONE, ANY, NAMED = range(3)

    @classmethod
    def of(cls, s: Settings) -> Devices:
        named = {name.strip() for name in (*s.device.split(","), *s.eval.device.split(","))}
        return cls.NAMED if any(":" in name for name in named) else cls.NONE if named == {"cpu"} else cls.ANY


@dataclass(frozen=True)
class Slot:
    """The cores and CUDA devices of one job at a time; devices by the names that CUDA_VISIBLE_DEVICES takes."""

    cores: set[int]
    devices: list[str]

    def environment(self, wanted: Devices) -> dict[str, str]:
        """Returns the environment of a job here. A job that names devices numbers them among all, so it sees all."""
        if wanted is Devices.NAMED or not self.devices:
            return dict(os.environ)
        return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(self.devices) if wanted is Devices.ANY else ""}


def slots(at_once: str, jobs: Sequence[SweepJob]) -> list[Slot]:
    """Returns a slot for each of `at_once` jobs; for `auto`, as many as the machine carries. Raises UsageError."""
    from easgd_cli.system.devices import visible_devices  # here: it loads torch; a refusal is to come without that

    cores, devices = _cores(), visible_devices()
    if at_once == "auto":
        count = max(1, min(len(jobs), *(_carried(job, len(cores), len(devices)) for job in jobs)))
    elif at_once.isdigit() and int(at_once) > 0:
        count = min(int(at_once), len(jobs))
    else:
        raise UsageError(
            f"jobs={at_once}: is how many jobs of a sweep run at a time, a whole number of at least 1, or "
            "auto for as many as the machine carries."
        )
    shares = [set(cores)] * count if count > len(cores) else [set(share) for share in dealt(cores, count)]
    return [Slot(own, shown) for own, shown in zip(shares, dealt(devices, count), strict=True)]


def dealt(things: Sequence[T], slots: int) -> list[list[T]]:
    """Returns disjoint shares of neighbouring `things`, one for each slot; of too few things, one each in turn."""
    if 0 < len(things) < slots:
        return [[things[i % len(things)]] for i in range(slots)]
    return [list(things[i * len(things) // slots : (i + 1) * len(things) // slots]) for i in range(slots)]


def _carried(job: SweepJob, cores: int, devices: int) -> int:
    """Returns how many such jobs the machine carries at a time; 0 if it is too small for one.

    A job needs a core for each thread of its workers, a device for each worker, and its memory. A simulated job
    computes one gradient at a time.
    """
    from easgd_cli.system.shared_memory import available_memory

    s, available = job.settings, available_memory()
    in_processes = build.launched_in_processes(s)
    at_once, threads = (s.workers, s.workers * (s.threads or 1)) if in_processes else (1, s.threads or cores)
    counts = [cores // threads]
    if devices and (wanted := Devices.of(s)) is not Devices.NONE:
        counts.append(1 if wanted is Devices.NAMED else devices // at_once)
    if available is not None:
        counts.append(available // (job.memory + _OWN_BYTES + at_once * _WORKER_BYTES))
    return min(counts)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
