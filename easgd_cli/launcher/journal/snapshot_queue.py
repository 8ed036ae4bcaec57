"""Snapshots on their way to the evaluator: a few in memory, the others on disk, measured in the order they
were taken.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from easgd_cli.errors import RunError, why
from easgd_cli.experiment.memory_estimate import SNAPSHOTS_IN_MEMORY
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.record import checkpoint as checkpoints
from easgd_cli.record import checksum, reader
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.snapshot import Moment


class Vectors(Protocol):
    """The vectors of a snapshot, in memory."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The vectors by name."""

    def close(self) -> None:
        """Gives the memory back."""


class InPlace:
    """The owner's own vectors instead of copies; the owner waits until they have been measured."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors

    def close(self) -> None:
        """Does nothing: the memory is the owner's."""


@dataclass
class Snapshot:
    """A snapshot: its vectors are in memory (`tensors`) or in the file at `path`."""

    number: int
    moment: Moment
    tensors: Vectors | None
    path: Path | None = None

    def vectors(self) -> dict[str, Tensor]:
        """Returns the vectors by name, from memory or from the file. Raises RunError for a damaged file."""
        if self.tensors is not None:
            return dict(self.tensors.tensors)
        assert self.path is not None
        with reader.open_file(self.path) as f:
            if wrong := checksum.wrong_archive(f):
                raise RunError(f"{self.path}: {wrong}, so its snapshot cannot be measured.")
            vectors: dict[str, Tensor] = torch.load(f, weights_only=True)
            return vectors

    def shared(self) -> SharedTensors:
        """Returns the vectors in anonymous memory, to be given to another process."""
        return self.tensors.again() if isinstance(self.tensors, SharedTensors) else SharedTensors.of(self.vectors())

    def drop(self) -> None:
        """Frees the memory, or removes the file."""
        if self.tensors is not None:
            self.tensors.close()
        elif self.path is not None:
            self.path.unlink(missing_ok=True)


class SnapshotQueue:
    """The snapshots that wait, and the one that is being measured. `directory`: made when snapshots go to disk."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._queue: deque[Snapshot] = deque()
        self._measured: Snapshot | None = None  # the snapshot that the evaluator has
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._queue) + (self._measured is not None)

    @property
    def busy(self) -> bool:
        """True while the evaluator has a snapshot."""
        return self._measured is not None

    def add(self, moment: Moment, tensors: Vectors) -> None:
        """Takes a snapshot, whose memory is the queue's from now on."""
        self._numbers += 1
        snapshot = Snapshot(self._numbers, moment, tensors)
        if sum(s.tensors is not None for s in self._queue) >= SNAPSHOTS_IN_MEMORY:
            self._spill(snapshot)
        self._queue.append(snapshot)

    def add_copies(self, moment: Moment, vectors: Mapping[str, Tensor]) -> None:
        """Takes a snapshot that consists of copies of these vectors."""
        self.add(moment, SharedTensors.of(vectors))

    def next(self) -> Snapshot | None:
        """Returns the snapshot to be measured now; None where no snapshot waits, or another is being measured."""
        if self._measured is None and self._queue:
            self._measured = self._queue.popleft()
            return self._measured
        return None

    def done(self, number: int) -> Snapshot | None:
        """Returns the snapshot of this number, which has been measured, for the caller to drop; None where the
        evaluator had another one.
        """
        done = self._measured
        if done is None or done.number != number:
            return None
        self._measured = None
        return done

    def keep(self, done: Snapshot) -> None:
        """Takes a measured snapshot back, as the first one that a resumed run measures."""
        if isinstance(done.tensors, InPlace):  # their owner waits no longer
            done.tensors = SharedTensors.of(done.tensors.tensors)
        self._queue.appendleft(done)

    def give_back(self) -> None:
        """Takes the snapshot of a dead evaluator back, to be measured by the next one."""
        if self._measured is not None:
            self._queue.appendleft(self._measured)
            self._measured = None

    @property
    def newest(self) -> Moment | None:
        """When the newest snapshot in the queue was taken; None where it is empty."""
        return self._queue[-1].moment if self._queue else self._measured.moment if self._measured else None

    def until(self, moment: Moment | None = None) -> list[tuple[Moment, dict[str, Tensor]]]:
        """Returns the snapshots taken up to `moment` and not measured yet, in order; None: all of these."""
        found = ([self._measured] if self._measured else []) + list(self._queue)
        return [
            (s.moment, s.vectors())
            for s in found
            if moment is None or (s.moment.exchanges <= moment.exchanges and s.moment.seconds <= moment.seconds)
        ]

    def restore(self, pending: Sequence[tuple[Moment, Mapping[str, Tensor]]]) -> None:
        """Takes the pending snapshots of a checkpoint."""
        for moment, vectors in pending:
            self.add_copies(moment, vectors)

    def clear(self) -> None:
        """Leaves nothing on disk."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _spill(self, snapshot: Snapshot) -> None:
        """Moves a snapshot from memory to disk; where that fails, it stays in memory."""
        assert snapshot.tensors is not None
        path = self._directory / f"{snapshot.number:06d}.pt"
        try:
            self._directory.mkdir(exist_ok=True)
            checkpoints.save({name: v.clone() for name, v in snapshot.tensors.tensors.items()}, path, sealed=True)
        except OSError as e:
            log.warning("%s could not be written (%s); the snapshot stays in memory", path, why(e))
            return
        snapshot.tensors.close()
        snapshot.tensors, snapshot.path = None, path
