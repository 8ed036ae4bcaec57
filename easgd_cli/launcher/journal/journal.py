"""What every launcher keeps of a run: its record, its view on the terminal, its checkpoints, and how it ends.

A launcher says what happens; the journal writes it down, shows it, and knows from it whether the run has its result.
The journal is the only writer of the record and of checkpoints.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from easgd_cli.errors import RunError, why
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal import disk_estimate
from easgd_cli.launcher.journal.checkpoint_keeper import CheckpointKeeper, how_to_go_on
from easgd_cli.launcher.journal.last_files import LastFiles
from easgd_cli.launcher.journal.levels import Levels
from easgd_cli.launcher.journal.run_log import RunLog, log
from easgd_cli.problems.classification import metrics_of
from easgd_cli.record.checkpoint import Checkpoint, OwnerState
from easgd_cli.record.initial_record import open_record
from easgd_cli.record.metrics import worker_name
from easgd_cli.record.reader import Entries, newest_checkpoint
from easgd_cli.record.recorder import Recorder
from easgd_cli.record.reserve import Reserve
from easgd_cli.record.resumption import go_back
from easgd_cli.record.run_view import RunView
from easgd_cli.settings.schema import levels
from easgd_cli.training.snapshot import Moment


class Journal:
    """Keeps one run. `status`: completed, diverged, interrupted or failed, as far as is known by now."""

    def __init__(self, job: Job, experiment: Experiment):
        """Opens the launcher's log; with `job.resume` reads the checkpoint to go on from. Raises UsageError."""
        self._job, self._experiment = job, experiment
        self._dir = job.run_dir
        # the command has told of damaged checkpoints already
        self.resumed: Checkpoint | None = newest_checkpoint(job.run_dir, []) if job.resume else None
        self.status = "completed"
        self.reason: str | None = None
        self.signal: int | None = None
        s, metrics = experiment.settings, metrics_of(experiment.problem)
        self._levels = Levels(levels(s), metrics)
        self._diverges = s.on_nan == "diverge" or experiment.method.alone
        self.progress = RunView(experiment.steps, s.minutes, s.workers, metrics, job.screen)
        self._hit: tuple[Moment, dict[str, Tensor]] | None = None  # the first evaluation that reached a level of until
        self._keeper: CheckpointKeeper | None = None
        self._record: Recorder | None = None
        self._reserve: Reserve | None = None
        self._paused: bool | None = None  # whether the record waits in memory; None: it never had to
        self._log = RunLog(job.run_dir, job.command)

    def open(self) -> None:
        """Begins the record, or takes it back to the checkpoint. Raises RunError."""
        s = self._experiment.settings
        if self.resumed is not None:
            entries = Entries.of(self._experiment.method, s.workers, len(self._experiment.slices))
            for text in go_back(self._dir, self.resumed, s.workers, s.new_record, entries):
                self.note(text)
        if self._experiment.data is not None and self._experiment.data.about is not None:
            self.note(self._experiment.data.about)
        for text in self._experiment.doubts:
            self.note(text)
        if (said := disk_estimate.too_little(self._dir, self._experiment)) is not None:
            self.note(said)
        self._reserve = Reserve(self._dir, disk_estimate.center_bytes(self._experiment))
        self._record = open_record(self._job, self._experiment, self.resumed)
        self._keeper = CheckpointKeeper(
            self._dir, s.checkpoint.keep, self._record, self._record_is_whole, self.note, self.resumed is not None
        )

    # ---------------------------------------------------------------- what happens

    @property
    def decided(self) -> bool:
        """True if the run has its result before its full length: it has diverged or reached its level."""
        return self.status == "diverged" or self._hit is not None

    @property
    def reached(self) -> bool:
        """True if a level that was asked for has been reached."""
        return self._hit is not None

    @property
    def evaluated(self) -> tuple[float, int] | None:
        """Step and exchanges of the last evaluation."""
        return self._recorder.evaluated

    def worker(self, row: dict[str, Any]) -> None:
        """Records a worker's row, and may find in it that the run has diverged."""
        self._recorder.row(row)
        self.progress.worker(row)
        # With on_nan=rejoin a worker goes back to the center before it has such a row. In a replay it may have one: it
        # goes back only where the recorded worker did.
        if not math.isfinite(row["train_loss"]) and self._diverges:
            self.diverge(f"{row['party']}'s training loss is {row['train_loss']} at step {row['step']}")

    def ended(self, worker: int, seconds: Mapping[str, float]) -> None:
        """Records, after a worker's last step, where the seconds of its loop have gone; its last row may lack some."""
        self._recorder.spent(worker, seconds)

    def system(self, moment: Moment, **metrics: Any) -> None:
        """Records figures of the run as a whole."""
        self._recorder.row(_row(moment, "system", metrics))

    def served(self, entries: list[int]) -> None:
        """Records exchanges that have been served, in this order."""
        self._recorder.order(entries)

    def evaluation(
        self, moment: Moment, vectors: Callable[[], Mapping[str, Tensor]], metrics: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Records what was measured of a snapshot: the metrics of the center and, where one is kept, of its average.
        `vectors` returns the snapshot's vectors.
        """
        for party, figures in metrics.items():
            self.progress.center(self._recorder.row(_row(moment, party, figures)))
            log.info("%s at step %g: %s", party, moment.step, dict(figures))
        center = metrics["center"]
        last = metrics.get("average", center)
        reached = self._levels.reached(last)
        if not all(math.isfinite(value) for name, value in center.items() if name.endswith("_loss")):
            self.diverge(f"the center's loss is not finite at step {moment.step:g}")
        elif reached is not None and self._hit is None:
            self._hit = (moment, {name: v.clone() for name, v in vectors().items()})
            self.status, self.reason = "completed", None  # whatever has happened since the snapshot
            self.note(f"{reached} at step {moment.step:g}")

    def note(self, text: str) -> None:
        """Tells the user something, and logs it."""
        log.warning(text)
        self.progress.note(text)

    def tick(self) -> None:
        """Writes what has been recorded to the files. To be called often."""
        if self._record is not None:
            self._record.tick()
            self._tell_of_pauses()
            self._kept.poll()

    def _tell_of_pauses(self) -> None:
        paused = self._recorder.paused
        if paused is not None and self._paused is None:
            path, e = paused
            self.note(f"{path} could not be written ({why(e)}); it is tried again, and the run goes on")
        if (paused is not None) != bool(self._paused):
            log.info("the record is written again" if paused is None else "the record waits in memory")
            self._paused = paused is not None

    @property
    def writing(self) -> bool:
        """True while a checkpoint is being written."""
        return self._kept.busy

    def begin_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint, whose tensors must not change meanwhile. A full disk only makes a note."""
        self._kept.begin(checkpoint)

    def checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Writes a checkpoint before it returns, so its tensors may be in use. Returns whether it has been written."""
        return self._kept.write(checkpoint)

    def _record_is_whole(self) -> bool:
        whole = self._recorder.flush()
        self._tell_of_pauses()
        return whole

    # ---------------------------------------------------------------- how it ends

    def interrupted(self, number: int) -> None:
        """Notes a signal that ends the run; a run that has its result keeps it."""
        self.signal = number
        if self.status == "completed" and self._hit is None:
            self.status, self.reason = "interrupted", f"{signal.Signals(number).name} received"

    def without_master(self) -> None:
        """Notes that the master did not answer at the end and was killed, so that the center of this moment is lost."""
        if self.status == "interrupted":
            self.reason = f"{self.reason}; the master did not answer, so nothing of this moment is kept"
        elif self._hit is None:
            self.fail(f"the master did not answer when the run ended; {self.how_to_go_on()}")

    def diverge(self, reason: str) -> None:
        """Notes that the run has diverged; a run that has its result keeps it."""
        if self.status == "completed" and self._hit is None:
            self.status, self.reason = "diverged", reason
            self.note(f"diverged: {reason}")

    def fail(self, reason: str) -> None:
        """Notes that the run has failed; the first reason stands."""
        if self.status != "failed":
            self.status, self.reason = "failed", reason
            log.error(reason)

    def how_to_go_on(self) -> str:
        """Returns a sentence on what can be done after a failure."""
        if self._keeper is None:
            return how_to_go_on(self._dir, self.resumed is not None)
        return self._keeper.how_to_go_on()

    def close(
        self, final: OwnerState | None, keep: Checkpoint | None, steps: Mapping[int, int], exchanges: int,
        seconds: float, facts: Mapping[str, Any],
    ) -> Outcome:  # fmt: skip
        """Writes what remains of the run directory and says how the run ended.

        `final`: what is evaluated and saved, None where the end was not reached; `keep`: the checkpoint to go on from,
        None where it has been written already; `steps`: those of each worker; `facts`: what else the summary says.
        Raises RunError.
        """
        if self._record is None:
            raise RunError(self.reason or "the run could not be started")
        self._kept.wait()
        if self._reserve is not None:
            self._reserve.release()
        if final is not None:
            exchanges = final.moment.exchanges
        last, files = LastFiles(self._dir, self._experiment.problem, self._record, self._kept, self.fail), {}
        if self._hit is not None:  # the center first: it is what the run is for
            files = last.save(self._hit[1])
        elif final is not None:
            files = last.save(final.vectors)
        elif self.status == "interrupted":
            self.reason = f"{self.reason}; {self.how_to_go_on()}"
        whole = self._recorder.flush()
        if keep is not None:
            self._kept.at_the_end(keep)
        last.end_record(whole, files, self._hit[0] if self._hit is not None else None)
        if self._hit is not None:  # the run is over where it reached its level
            moment, rows = self._hit[0], self._recorder.reached
            seconds, exchanges = moment.seconds, moment.exchanges
            steps = {worker: max(moment.clocks[worker], rows.get(worker_name(worker), 0)) for worker in steps}
        summary = self._record.close(
            {
                "status": self.status, "reason": self.reason, "steps": {f"worker_{i:02d}": t for i, t in steps.items()},
                "exchanges": exchanges,
                "wall_seconds": seconds, "vector_bytes": self._experiment.vector_bytes,
                **facts,
            },
            files,
        )  # fmt: skip
        if summary:
            self.progress.end(summary)
        code = {"completed": 0, "diverged": 0, "failed": 1, "interrupted": 128 + (self.signal or 0)}[self.status]
        return Outcome(self.status, code, summary, self.reason)

    def show_stacks(self) -> None:
        """Writes the stacks of this process into its log."""
        self._log.show_stacks()

    def release(self) -> None:
        """Gives back the terminal, the log file and, in a run that could not begin, the reserved room on the disk."""
        self.progress.close()
        if self._reserve is not None:
            self._reserve.release()
        self._log.close()

    @property
    def _kept(self) -> CheckpointKeeper:
        assert self._keeper is not None, "the record has not been opened"
        return self._keeper

    @property
    def _recorder(self) -> Recorder:
        assert self._record is not None, "the record has not been opened"
        return self._record


def _row(moment: Moment, party: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the record."""
    at = {"seconds": moment.seconds, "step": moment.step, "exchanges": moment.exchanges, "party": party}
    return {**at, **figures}
