"""Everything a run needs to go on, in one file written beside and renamed: a checkpoint is whole or is not there.

Of an asynchronous run it holds the center at one instant and each worker at the end of its next step: no consistent cut.
With one worker the two fall together, and the run goes on bit for bit as if it had never stopped.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easgd_cli.errors import UsageError
from easgd_cli.snapshot import Moment

_NAME = re.compile(r"step_(\d+)\.pt")


@dataclass
class WorkerState:
    """One worker at the end of its step `t - 1`: its lasting vectors and what it has counted."""

    t: int
    vectors: dict[str, Tensor]
    center_clock: int = 0
    exchanges: int = 0
    tally: dict[str, Any] | None = None


@dataclass
class Checkpoint:
    """A run at one moment. `vectors`: the center's, or the single worker's; `pending`: snapshots not yet evaluated."""

    moment: Moment
    vectors: dict[str, Tensor]
    clocks: dict[int, int]
    workers: dict[int, WorkerState]
    pending: list[tuple[Moment, Tensor]] = field(default_factory=list)
    master_cpu_seconds: float = 0.0
    pace: list[float] | None = None  # the next points at which a snapshot for evaluation is due: step, seconds


def write(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes the checkpoint and removes all but the newest `keep`. Raises OSError, leaving the older ones as they were."""
    directory.mkdir(exist_ok=True)
    path = directory / f"step_{int(checkpoint.moment.step):012d}.pt"
    content = {
        "moment": asdict(checkpoint.moment),
        "vectors": checkpoint.vectors,
        "clocks": checkpoint.clocks,
        "workers": {i: vars(w) for i, w in checkpoint.workers.items()},
        "pending": [(asdict(moment), x) for moment, x in checkpoint.pending],
        "master_cpu_seconds": checkpoint.master_cpu_seconds,
        "pace": checkpoint.pace,
    }
    save(content, path)
    for old in find(directory)[:-keep]:
        old.unlink()
    return path


def save(content: Any, path: Path) -> None:
    """torch.save, beside and renamed. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as RuntimeError
        beside.unlink(missing_ok=True)
        raise e if isinstance(e, OSError) else OSError(f"{path}: {e}") from e


def find(directory: Path) -> list[Path]:
    """The checkpoints there, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if _NAME.fullmatch(p.name))


def newest(run_dir: Path) -> Checkpoint:
    """The last checkpoint of a run. Raises UsageError when there is none or it cannot be read."""
    found = find(run_dir / "checkpoint")
    if not found:
        raise UsageError(
            f"resume={run_dir}: holds no checkpoint; one is written at the end, on interruption and at every checkpoint.every. Start the run again instead."
        )
    path = found[-1]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(
            Moment(**content["moment"]),
            content["vectors"],
            content["clocks"],
            {i: WorkerState(**w) for i, w in content["workers"].items()},
            [(Moment(**moment), x) for moment, x in content["pending"]],
            content["master_cpu_seconds"],
            content["pace"],
        )
    except Exception as e:
        raise UsageError(f"resume={run_dir}: {path} cannot be read ({type(e).__name__}); remove it to go on from an older checkpoint, if there is one.") from e
