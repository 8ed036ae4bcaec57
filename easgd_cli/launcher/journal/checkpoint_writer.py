"""Writes checkpoints in a thread beside the launcher's loop, so that nobody waits for the disk; one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from easgd_cli.record import checkpoint as checkpoints
from easgd_cli.record.checkpoint import Checkpoint
from easgd_cli.record.recorder import Recorder


class CheckpointWriter:
    """Writes checkpoints of the run in `run_dir` and keeps the newest `keep`. `told` is called in the caller's thread,
    with each checkpoint and its path, or the OSError for which it could not be written.
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
        """True while a checkpoint is being written."""
        return self._thread is not None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Begins to write the checkpoint, whose tensors must not change meanwhile; the record has been flushed."""
        self.wait()
        self._checkpoint = replace(checkpoint, record=self._recorder.held)
        self._thread = threading.Thread(target=self._write, args=(self._checkpoint,), name="checkpoint")
        self._thread.start()

    def write(self, checkpoint: Checkpoint) -> bool:
        """Writes the checkpoint before it returns, so its tensors may be in use. Returns whether that succeeded."""
        self.wait()
        self._checkpoint = replace(checkpoint, record=self._recorder.held)
        self._write(self._checkpoint)
        return self._tell()

    def poll(self) -> None:
        """Tells of a checkpoint that has been written meanwhile. To be called often."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until no checkpoint is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._tell()

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._recorder.sync()  # the record to which the checkpoint refers is on the disk before it
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
