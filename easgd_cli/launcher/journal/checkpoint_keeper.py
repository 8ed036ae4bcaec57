"""The checkpoints of a run on its disk: when one may be written, what the user is told, and how to go on from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from easgd_cli.errors import why
from easgd_cli.launcher.journal.checkpoint_writer import CheckpointWriter
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.record.checkpoint import Checkpoint
from easgd_cli.record.recorder import Recorder


class CheckpointKeeper:
    """Writes the checkpoints of the run in `run_dir`. `flushed`: writes the record and returns whether all of it is on
    the disk; `note`: tells the user; `resumed`: whether the run goes on from a checkpoint that is there.
    """

    def __init__(
        self, run_dir: Path, keep: int, recorder: Recorder, flushed: Callable[[], bool], note: Callable[[str], None],
        resumed: bool,
    ):  # fmt: skip
        self._dir, self._recorder, self._flushed, self._note = run_dir, recorder, flushed, note
        self._writer = CheckpointWriter(run_dir, keep, recorder, self._told)
        self._there = resumed  # whether there is a checkpoint to go on from
        self._lacking = False  # whether the last one could not be written
        self._refused = ""  # why it could not

    @property
    def busy(self) -> bool:
        """True while a checkpoint is being written."""
        return self._writer.busy

    def begin(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint, whose tensors must not change meanwhile. Writes none where the record cannot be
        written, since nobody could go on from a checkpoint without its record.
        """
        if self._flushed():
            self._writer.begin(checkpoint)

    def write(self, checkpoint: Checkpoint) -> bool:
        """Writes a checkpoint before it returns, so its tensors may be in use. Returns whether it has been written."""
        return self._flushed() and self._writer.write(checkpoint)

    def poll(self) -> None:
        """Tells of a checkpoint that has been written meanwhile. To be called often."""
        self._writer.poll()

    def wait(self) -> None:
        """Waits until no checkpoint is being written."""
        self._writer.wait()

    def at_the_end(self, keep: Checkpoint) -> None:
        """Writes the last checkpoint: whole, or without its workers where the disk has no more room."""
        self._lacking = True  # so that `_told` only logs a failure: the user is told once, below
        if self._writer.write(keep):
            return
        said = f"the checkpoint of the end, at step {keep.owner.moment.step:g}, could not be written"
        bare = replace(keep, workers={}, pending=[])
        if keep.simulated is None and self._writer.write(bare):
            self._note(f"{said} whole ({self._refused}); it is without its workers: resumed, they begin at the center")
        else:
            self._note(f"{said} ({self._refused}); {self.what_there_is()}")

    def how_to_go_on(self) -> str:
        """Returns a sentence on what can be done after a failure."""
        self._writer.wait()  # a checkpoint that is being written counts, too
        return how_to_go_on(self._dir, self._there)

    def what_there_is(self) -> str:
        """Returns such a sentence for a run that has ended, but could not write all that it leaves."""
        return self.how_to_go_on() if self._there else "nor is there an older checkpoint."

    def _told(self, checkpoint: Checkpoint, result: Path | OSError) -> None:
        """Notes that a checkpoint has been written, or could not be."""
        if isinstance(result, Path):
            self._there, self._lacking = True, False
            self._recorder.checkpointed()
            log.info("checkpoint %s", result.name)
            return
        self._refused = why(result)
        said = f"the checkpoint at step {checkpoint.owner.moment.step:g} could not be written ({self._refused})"
        if self._lacking:
            log.warning(said)
        else:
            self._note(f"{said}; the next is tried again")
        self._lacking = True


def how_to_go_on(run_dir: Path, there: bool) -> str:
    """Returns a sentence on how to go on with a run; `there`: whether it has a checkpoint."""
    if not there:
        return "there is no checkpoint to go on from; checkpoint.every='30 s' writes them."
    return f"go on from the last checkpoint with: easgd train resume={run_dir}"
