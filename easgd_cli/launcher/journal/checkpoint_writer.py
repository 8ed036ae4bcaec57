"""Writes checkpoints where nobody waits for the disk: in a thread beside the launcher's loop, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from easgd_cli.record import checkpoint as checkpoints
from easgd_cli.record.checkpoint import Checkpoint
from easgd_cli.record.recorder import Recorder


class CheckpointWriter:
    """Of the run in `run_dir`, of which it keeps so many. `told` hears, in the caller's thread, of each checkpoint that
    has been written, and of the OSError of one that could not be.
    """

    def __init__(
        self, run_dir: Path, keep: int, recorder: Recorder, told: Callable[[Checkpoint, Path | OSError], None]
    ):
        self._directory, self._keep, self._recorder, self._told = run_dir / "checkpoint", keep, recorder, told
        self._thread: threading.Thread | None = None
        self._checkpoint: Checkpoint | None = None
        self._result: Path | BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Writes it meanwhile; its tensors must not change. The record up to it has been flushed."""
        self.wait()
        self._checkpoint = replace(checkpoint, record=self._recorder.held)
        self._thread = threading.Thread(target=self._write, args=(self._checkpoint,), name="checkpoint")
        self._thread.start()

    def write(self, checkpoint: Checkpoint) -> bool:
        """Writes it now, whose tensors may be the run's own; returns whether it could."""
        self.wait()
        self._checkpoint = replace(checkpoint, record=self._recorder.held)
        self._write(self._checkpoint)
        return self._tell()

    def poll(self) -> None:
        """To be called often: tells of the one that has been written meanwhile."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when none is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._tell()

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._recorder.sync()  # what it says of the record is on the disk before it is
            self._result = checkpoints.write(self._directory, checkpoint, self._keep)
        except BaseException as e:
            self._result = e

    def _tell(self) -> bool:
        checkpoint, result = self._checkpoint, self._result
        self._checkpoint = self._result = None
        assert checkpoint is not None and result is not None
        if not isinstance(result, Path | OSError):
            raise result
        self._told(checkpoint, result)
        return isinstance(result, Path)
