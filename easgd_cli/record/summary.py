"""summary.json: how a run stands or ended, in one object, with all that is needed to judge and repeat the run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from easgd_cli.record import checksum
from easgd_cli.system.devices import cores

_PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "tensorboard")

# The order of summary.json: what readers look for first comes first.
_ORDER = (
    "status", "reason", "algo", "problem", "dataset", "task", "model", "workers", "tau", "steps", "exchanges",
    "wall_seconds", "samples_per_second",
    "center", "average", "evaluated", "seconds", "bytes_exchanged", "links", "lost", "lost_before", "restarts",
    "rejoins", "goodput",
)  # fmt: skip


def summarize(facts: Mapping[str, Any], recorder_stats: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of summary.json.

    `facts`: what is known of the run. After the run's end they have `steps` of each worker, `exchanges`,
    `wall_seconds`, `vector_bytes` (of one message) and `vectors_per_exchange` (2 unless given: a message up, a reply
    down), from which speed and traffic follow. `recorder_stats`: `BestValues.stats`.
    """
    facts = dict(facts)
    vector_bytes, vectors = facts.pop("vector_bytes", None), facts.pop("vectors_per_exchange", 2.0)
    if facts.get("wall_seconds"):
        facts["samples_per_second"] = sum(facts["steps"].values()) * facts["batch_size"] / facts["wall_seconds"]
    if vector_bytes is not None:
        facts["bytes_exchanged"] = round(vectors * facts["exchanges"] * vector_bytes)
    told = {**facts, **recorder_stats}
    if facts.get("wall_seconds") and "goodput" in told:
        told["goodput"] = _goodput(told["goodput"], facts["steps"], facts["wall_seconds"])
    return {key: told[key] for key in _ORDER if key in told} | told


def _goodput(gone: Mapping[str, float], steps: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Returns the useful steps a second: the steps on all clocks without those that were lost, or left out, when
    workers came back. `without_faults`: the rate if no worker had been away, at the workers' speed while present.
    """
    taken = sum(steps.values()) - gone["steps_missed"]
    there = len(steps) * seconds - gone["seconds_away"]
    return {
        "steps_per_second": (taken - gone["steps_lost"]) / seconds,
        "without_faults": len(steps) * taken / there if there > 0 else 0.0,
        **gone,
    }


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json under another name and renames it. Where the disk is too full for a second file, overwrites
    the old one, without the last entries if the text does not fit its blocks. Raises OSError.
    """
    path = run_dir / "summary.json"
    text = _text(summary)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(text)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        if not path.exists():
            raise
        # the old file's blocks are free to use, and its text would say that the run still goes on
        with open(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b", buffering=0) as f:
            there = os.fstat(f.fileno())
            room, shorter = max(there.st_size, 512 * there.st_blocks), dict(summary)
            while len(text) > room and len(shorter) > 2:
                shorter.popitem()
                text = _text(shorter)
            f.write(text)
            f.truncate()


def _text(summary: Mapping[str, Any]) -> bytes:
    return checksum.with_entry(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def surroundings() -> dict[str, Any]:
    """Returns what a run depends on beside its settings: versions, hardware and the commit of this program. Versions
    and commit are looked up once, since this process keeps the code that it has imported.
    """
    return {"versions": dict(_versions()), "hardware": _hardware(), "git_commit": _commit()}


@cache
def _versions() -> dict[str, str]:
    import torch

    found = {"python": platform.python_version()}
    for package in ("easgd", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    # torch's own version names its build, +cpu or +cu130; not every wheel's metadata does
    return found | {"torch": str(torch.__version__)}


def _hardware() -> dict[str, Any]:
    import torch

    # cpu_capability, since sums round differently with another instruction set. nvidia-smi names the devices without
    # starting CUDA in this process.
    gpus = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") if torch.cuda.device_count() else None
    return {
        "host": platform.node(), "system": platform.platform(), "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(), "memory_bytes": _memory(), "gpus": gpus.splitlines() if gpus else [],
        "cuda": torch.version.cuda,
    }  # fmt: skip


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


@cache
def _commit() -> str | None:
    """Returns the commit of this program's checkout, marked if files differ from it; None when installed."""
    here = Path(__file__).parent
    if _said("git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # the file may lie inside a repository of the user's without being part of it
    return _said("git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _said(*command: str) -> str | None:
    # inside a git hook, GIT_* variables would name the hook's repository
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
