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
from easgd_cli.training.snapshot import Moment

_NAME = re.compile(r"(\d+)_step_\d+\.pt")  # counted as they are written: which is the newest does not hang on what is in them


@dataclass
class WorkerState:
    """One worker at the end of its step `t - 1`: its lasting vectors and what it has counted."""

    t: int
    vectors: dict[str, Tensor]
    center_clock: int = 0
    served: int = 0
    exchanges: int = 0
    tally: dict[str, Any] | None = None


@dataclass
class OwnerState:
    """The owner of what is evaluated (the master; the worker of a method without exchange) between two changes of it.

    `clock` counts the center's updates; `pace`: the next points at which a snapshot for evaluation is due, in steps and in
    seconds.
    """

    moment: Moment
    clock: int
    vectors: dict[str, Tensor]
    cpu_seconds: float = 0.0
    pace: list[float] = field(default_factory=lambda: [0.0, 0.0])


@dataclass
class Checkpoint:
    """A run at one moment. `pending`: snapshots that have been taken but not evaluated, each with its vectors by name;
    `simulated`: where a virtual cluster stands.
    """

    owner: OwnerState
    workers: dict[int, WorkerState]
    pending: list[tuple[Moment, dict[str, Tensor]]] = field(default_factory=list)
    simulated: dict[str, Any] | None = None


def write(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes the checkpoint and removes all but the newest `keep`. Raises OSError, leaving the older ones as they were."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{1 + max(map(_number, find(directory)), default=0):06d}_step_{int(checkpoint.owner.moment.step)}.pt"
    content = {
        "owner": vars(checkpoint.owner) | {"moment": asdict(checkpoint.owner.moment)},
        "workers": {i: vars(w) for i, w in checkpoint.workers.items()},
        "pending": [(asdict(moment), vectors) for moment, vectors in checkpoint.pending],
        "simulated": checkpoint.simulated,
    }
    save(_on_host(content), path)
    for old in find(directory)[:-keep]:
        old.unlink()
    return path


def _on_host(content: Any) -> Any:
    """The same with every tensor on the CPU, so that it can be read where no such device is."""
    if isinstance(content, dict):
        return {key: _on_host(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_on_host(value) for value in content)
    return content.cpu() if isinstance(content, Tensor) else content


def save(content: Any, path: Path) -> None:
    """torch.save, beside and renamed. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:
        beside.unlink(missing_ok=True)
        if isinstance(e.__context__, OSError):  # a full disk: torch says that its file does not end where it should
            raise e.__context__ from None
        raise e if isinstance(e, OSError) else OSError(f"{path}: {e}") from e


def find(directory: Path) -> list[Path]:
    """The checkpoints there, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.partition("_")[0])


def newest(run_dir: Path, steps: int | None = None) -> Checkpoint:
    """The last checkpoint of a run, whose workers are to take `steps` local steps in all (None: any number).

    Raises UsageError when there is none, it cannot be read, or a worker has taken more.
    """
    found = find(run_dir / "checkpoint")
    if not found:
        raise UsageError(
            f"resume={run_dir}: holds no checkpoint; one is written at the end, on interruption and at every checkpoint.every. Start the run again instead."
        )
    path = found[-1]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        owner = content["owner"]
        checkpoint = Checkpoint(
            OwnerState(**owner | {"moment": Moment(**owner["moment"])}),
            {i: WorkerState(**w) for i, w in content["workers"].items()},
            [(Moment(**moment), vectors) for moment, vectors in content["pending"]],
            content["simulated"],
        )
    except Exception as e:
        raise UsageError(f"resume={run_dir}: {path} cannot be read ({type(e).__name__}); remove it to go on from an older checkpoint, if there is one.") from e
    taken = max([*checkpoint.owner.moment.clocks.values(), *(w.t for w in checkpoint.workers.values())], default=0)
    if steps is not None and steps < taken:
        raise UsageError(f"resume={run_dir}: its workers have taken up to {taken} steps and would have to end after {steps}; give a greater length.")
    return checkpoint
