"""The device and the number of CPU threads that each worker gets."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from easgd_cli.errors import UsageError
from easgd_cli.settings.schema import Settings


def deal_devices(device: str, workers: int, key: str = "device") -> list[str]:
    """Returns a device for every worker; several may share one. `auto`: the CUDA devices dealt round robin, or the CPU.

    Raises UsageError for a device that is not there.
    """
    if device == "auto":
        count = torch.cuda.device_count()
        known = [f"cuda:{i}" for i in range(count)] or ["cpu"]
    elif device == "cuda":
        known = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if not known:
            raise UsageError(f"{key}=cuda: this machine shows no CUDA device; use {key}=cpu.")
    else:
        known = [_checked(key, device, d.strip()) for d in device.split(",")]
    return [known[i % len(known)] for i in range(workers)]


def _checked(key: str, given: str, device: str) -> str:
    """Returns `device`, one of those `given`, with its number: cuda is cuda:0. Raises UsageError if it is not there."""
    try:
        d = torch.device(device)
        there = torch.get_device_module(d)
    except RuntimeError:
        there = None
    if there is None or not all(hasattr(there, needed) for needed in ("device_count", "set_device", "Stream", "Event")):
        raise UsageError(f"{key}={given}: is auto, cpu, cuda, or a list of devices such as cuda:0,cuda:1.")
    if d.type == "cpu":
        return "cpu"
    count = there.device_count()
    if (d.index or 0) >= count:
        raise UsageError(f"{key}={given}: this machine shows {count} {d.type.upper()} devices; use {key}=cpu.")
    return f"{d.type}:{d.index or 0}"


def visible_devices() -> list[str]:
    """Returns the CUDA devices that this process shows, by their names for CUDA_VISIBLE_DEVICES. CUDA is asked, but not
    started.
    """
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if given is None else [name.strip() for name in given.split(",")]
    return names[:count]


def worker_threads(s: Settings) -> int:
    """Returns the CPU threads of each worker: as given, or the cores divided, at least one."""
    return s.threads if s.threads is not None else max(1, cores() // s.workers)


def check_threads(s: Settings) -> None:
    """Refuses more threads than help or can be had. Raises UsageError.

    Threads beyond the cores wait for each other, and by the thousand cannot be started: the process dies in the
    attempt. Up to 64 are let through on any machine, since sums round differently with another number: a run of a
    larger machine can be repeated on a smaller one.
    """
    most = max(64, 4 * cores())
    if s.threads is not None and s.threads > most:
        raise UsageError(
            f"threads={s.threads}: must be at most {most}, since this machine has {cores()} cores and more "
            "threads only wait for each other."
        )


def check_compiler() -> None:
    """Refuses to compile for a CPU where torch.compile would not find what it calls. Raises UsageError."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UsageError(
            f"compile=true: on a CPU torch.compile calls a C++ compiler, and there is no {compiler}; install one, name "
            "another by the environment variable CXX, or leave compile out."
        )


def evaluator_threads(s: Settings) -> int:
    """Returns the CPU threads of the evaluator: as many as one more worker would get. Two threads that wait for each
    other on a busy core crawl.
    """
    return max(1, cores() // (s.workers + 1))


def cores() -> int:
    """Returns how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
