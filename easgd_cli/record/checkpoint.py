"""Checkpoints: everything that a run needs to go on, in one file. The file is written under another name and then
renamed, so a checkpoint is whole or is not there. It holds its own checksum, and those of the record at its moment.

The checkpoint of an asynchronous run holds the center at one instant and each worker at the end of its next step: no
consistent cut. With one worker the two coincide, and the run goes on bit for bit as if it had never stopped.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import torch
from torch import Tensor

from easgd_cli.record import reader
from easgd_cli.record.checksum import Held, Summing
from easgd_cli.settings import targets
from easgd_cli.training.meter import Tally
from easgd_cli.training.snapshot import Moment

_Kind = TypeVar("_Kind")


@dataclass
class WorkerState:
    """One worker at the end of its step `t - 1`: its lasting vectors and what it has counted."""

    t: int
    vectors: dict[str, Tensor]
    center_clock: int = 0
    served: int = 0
    exchanges: int = 0
    tally: dict[str, Any] | None = None
    spared: int = -1  # the step up to which the worker has had its faults (`faults`)


@dataclass
class OwnerState:
    """The owner of the vector that is evaluated (the master; in a method without exchange the worker), between two
    updates of that vector.

    `clock` counts the center's updates; `pace`: the next points at which a snapshot for evaluation is due, in steps and
    in seconds; `variables`: the clocks of other variables; `couriers`: couriers' clocks, by the variables beside which
    they lie; `masters`: where there are several, the clock of each and the exchanges that it has served.
    """

    moment: Moment
    clock: int
    vectors: dict[str, Tensor]
    cpu_seconds: float = 0.0
    pace: list[float] = field(default_factory=lambda: [0.0, 0.0])
    variables: dict[str, int] = field(default_factory=dict)
    couriers: dict[str, int] = field(default_factory=dict)
    masters: list[list[int]] = field(default_factory=list)


@dataclass
class Checkpoint:
    """A run at one moment. `pending`: snapshots that have been taken but not evaluated, each with its vectors by name;
    `simulated`: the state of a virtual cluster; `record`: size and checksum of metrics.jsonl and exchanges.bin when the
    checkpoint was written, by file name, empty in files of older versions; `name`: the checkpoint's file name.
    """

    owner: OwnerState
    workers: dict[int, WorkerState]
    pending: list[tuple[Moment, dict[str, Tensor]]] = field(default_factory=list)
    simulated: dict[str, Any] | None = None
    record: dict[str, Held] = field(default_factory=dict)
    name: str = ""


def write(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes the checkpoint, then removes all but the newest `keep`. Raises OSError, with none removed."""
    directory.mkdir(exist_ok=True)
    number = 1 + max(map(reader.checkpoint_number, reader.checkpoints(directory)), default=0)
    path = directory / f"{number:06d}_step_{int(checkpoint.owner.moment.step)}.pt"
    content = {
        "owner": vars(checkpoint.owner) | {"moment": asdict(checkpoint.owner.moment)},
        "workers": {i: vars(w) for i, w in checkpoint.workers.items()},
        "pending": [(asdict(moment), vectors) for moment, vectors in checkpoint.pending],
        "simulated": checkpoint.simulated,
        "record": {name: vars(held) for name, held in checkpoint.record.items()},
    }
    save(_on_host(content), path, sealed=True)
    for old in reader.checkpoints(directory)[:-keep]:
        with suppress(OSError):  # an old one that cannot be removed, such as a directory, stays
            old.unlink()
    return path


def _on_host(content: Any) -> Any:
    """Returns `content` with every tensor on the CPU, so that it can be read on a machine without the run's devices."""
    if isinstance(content, dict):
        return {key: _on_host(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_on_host(value) for value in content)
    return content.cpu() if isinstance(content, Tensor) else content


def save(content: Any, path: Path, sealed: bool = False) -> Held:
    """Writes `content` by torch.save under another name, then renames the file. `sealed`: adds its checksum. Returns
    size and checksum of the file, as before that addition. Raises OSError.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as f:
            summing = Summing(f)
            torch.save(content, cast(IO[bytes], summing))
            if sealed:
                summing.seal()
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
        return summing.held
    except (OSError, RuntimeError) as e:
        beside.unlink(missing_ok=True)
        if isinstance(e.__context__, OSError):  # a full disk, which torch's own error hides
            raise e.__context__ from None
        raise e if isinstance(e, OSError) else OSError(f"{path}: {e}") from e


def load(file: BinaryIO, name: str = "") -> Checkpoint:
    """Returns the checkpoint in `file`, whose name is `name`. Raises errors of any type for another content."""
    found = torch.load(file, map_location="cpu", weights_only=True)
    owner = found["owner"]
    return Checkpoint(
        _made(OwnerState, owner, {"moment": _moment(owner["moment"]), "vectors": _vectors(owner["vectors"])}),
        {
            _number(i): _made(WorkerState, w, {"vectors": _vectors(w["vectors"]), "tally": _tally(w.get("tally"))})
            for i, w in found["workers"].items()
        },
        [(_moment(moment), _vectors(vectors)) for moment, vectors in found["pending"]],
        _plain(found["simulated"]),
        {of: Held.read(held) for of, held in found.get("record", {}).items()},
        name,
    )


def _made(kind: type[_Kind], said: dict[str, Any], parts: Mapping[str, Any] | None = None) -> _Kind:
    """Returns a `kind` with the fields that the file `said`; `parts`: fields that have been checked already. Raises
    TypeError, ValueError or UsageError for a value of another type and for a negative count.
    """
    parts = parts or {}
    for name, hint in typing.get_type_hints(kind).items():
        if name in said and name not in parts:
            targets.convert(name, said[name], hint)
            if hint is int and said[name] < (-1 if name == "spared" else 0):
                raise ValueError(f"{name} is negative")
    return kind(**{**said, **parts})


def _moment(said: dict[str, Any]) -> Moment:
    """Returns the moment with these fields. Raises TypeError or ValueError where they make none."""
    moment = Moment(**said)
    numbers = (moment.seconds, moment.step, *moment.clocks.values())
    if not all(type(number) in (int, float) and 0 <= number < float("inf") for number in numbers):
        raise ValueError("is no moment")
    for number in (moment.exchanges, *moment.clocks):
        _number(number)
    return moment


def _number(said: Any) -> int:
    """Returns `said`. Raises ValueError unless it is a whole number of at least 0."""
    if type(said) is not int or said < 0:
        raise ValueError("is no number")
    return said


def _tally(said: Any) -> dict[str, Any] | None:
    return None if said is None else vars(_made(Tally, said))


def _vectors(said: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `said`. Raises TypeError unless it has only vectors [d] of floating-point numbers on the CPU, by name."""
    for name, v in said.items():
        usual = isinstance(v, Tensor) and v.dim() == 1 and v.is_floating_point()
        if not (isinstance(name, str) and usual and v.layout == torch.strided and v.device.type == "cpu"):
            raise TypeError("are no vectors")
    return said


def _plain(said: Any) -> Any:
    """Returns `said`. Raises TypeError for all but numbers, texts, vectors, and lists and dictionaries of these."""
    if isinstance(said, Tensor):
        return _vectors({"": said})
    if isinstance(said, dict):
        _plain(list(said))
    for inside in said.values() if isinstance(said, dict) else said if isinstance(said, list | tuple) else ():
        _plain(inside)
    if not isinstance(said, dict | list | tuple | str | int | float | None):
        raise TypeError("are no plain numbers")
    return said


def steps_taken(checkpoint: Checkpoint) -> int:
    """Returns the most local steps that any worker of the checkpoint has taken."""
    return max([*checkpoint.owner.moment.clocks.values(), *(w.t for w in checkpoint.workers.values())], default=0)
