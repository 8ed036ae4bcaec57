"""What every launcher keeps of a run: its record, what is shown of it, its checkpoints, and how it ends.

A launcher says what happens; the journal writes it down, shows it, and knows from it whether the run has its result. It
is the only writer of the run directory.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from easgd_cli.errors import RunError, why
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher import disk_estimate
from easgd_cli.launcher.checkpoint_writer import CheckpointWriter
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.problems.classification import metrics_of
from easgd_cli.record import checkpoint as checkpoints
from easgd_cli.record.checkpoint import Checkpoint, OwnerState
from easgd_cli.record.checksum import Held
from easgd_cli.record.initial_record import open_record
from easgd_cli.record.metrics import worker_name
from easgd_cli.record.reader import Entries, newest_checkpoint
from easgd_cli.record.recorder import Recorder
from easgd_cli.record.reserve import Reserve
from easgd_cli.record.resumption import RECORD, sources, take_back
from easgd_cli.record.run_directory import remove_unfinished
from easgd_cli.record.run_view import RunView
from easgd_cli.settings.schema import levels
from easgd_cli.system import interruption, streams
from easgd_cli.system.files import put
from easgd_cli.training.snapshot import EVALUATED, Moment

log = logging.getLogger("easgd.launcher")


class Journal:
    """One run from its start to its summary. `status` is completed, diverged, interrupted or failed, as far as is
    known.
    """

    def __init__(self, job: Job, experiment: Experiment):
        """Opens the launcher's log; with `job.resume` reads the checkpoint to go on from. Raises UsageError."""
        self._job, self._experiment = job, experiment
        self._dir = job.run_dir
        # what is damaged the command has told
        self.resumed: Checkpoint | None = newest_checkpoint(job.run_dir, []) if job.resume else None
        self.status = "completed"
        self.reason: str | None = None
        self.signal: int | None = None
        self._metrics = metrics_of(experiment.problem)
        s = experiment.settings
        self._diverges = s.on_nan == "diverge" or experiment.method.alone
        self.progress = RunView(experiment.steps, s.minutes, s.workers, self._metrics, job.screen)
        self._hit: tuple[Moment, dict[str, Tensor]] | None = None  # the first evaluation that reached a level of until
        self._last_checkpoint = False
        self._record: Recorder | None = None
        self._reserve: Reserve | None = None
        self._paused: bool | None = None  # whether the record is, and None where it has never been
        self._lacking = False  # whether the last checkpoint could not be written
        self._refused = ""  # and why
        self._handler = logging.StreamHandler(self._open_log())
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        log.info("run %s, process %d: %s", self._dir, os.getpid(), job.command)

    def _open_log(self) -> TextIO:
        logs = self._dir / "logs"
        try:
            logs.mkdir(exist_ok=True)
            return streams.log_to(logs / "launcher.log")
        except OSError as e:
            raise RunError(f"{logs}: the run's log cannot be written there: {why(e)}.") from e

    def open(self) -> None:
        """Begins the record, or takes it back to the checkpoint. Raises RunError."""
        s = self._experiment.settings
        if self.resumed is not None:
            try:
                remove_unfinished(self._dir)
            except OSError as e:
                raise RunError(f"{self._dir} cannot be written to: {why(e)}.") from e
            entries = Entries.of(self._experiment.method, s.workers)
            found = sources(self._dir, self.resumed, s.workers, s.new_record, entries)
            for text in take_back(self._dir, self.resumed, found, entries):
                self.note(text)
        if self._experiment.data is not None and self._experiment.data.about is not None:
            self.note(self._experiment.data.about)
        for text in self._experiment.doubts:
            self.note(text)
        if (said := disk_estimate.too_little(self._dir, self._experiment)) is not None:
            self.note(said)
        self._reserve = Reserve(self._dir, disk_estimate.center_bytes(self._experiment))
        self._record = open_record(self._job, self._experiment, self.resumed)
        self._writer = CheckpointWriter(self._dir, s.checkpoint.keep, self._record, self._checkpoint_told)

    # ---------------------------------------------------------------- what happens

    @property
    def decided(self) -> bool:
        """Whether the run has its result before its length: it has diverged or reached its level."""
        return self.status == "diverged" or self._hit is not None

    @property
    def reached(self) -> bool:
        """Whether the level asked for has been reached."""
        return self._hit is not None

    @property
    def evaluated(self) -> tuple[float, int] | None:
        """Step and exchanges of the last evaluation."""
        return self._recorder.evaluated

    def worker(self, row: dict[str, Any]) -> None:
        """A worker's row."""
        self._recorder.row(row)
        self.progress.worker(row)
        # a worker that goes back has no such row; one that is replayed may, until it goes back where that one did
        if not math.isfinite(row["train_loss"]) and self._diverges:
            self.diverge(f"{row['party']}'s training loss is {row['train_loss']} at step {row['step']}")

    def ended(self, worker: int, seconds: Mapping[str, float]) -> None:
        """A worker has taken its last step; where the seconds of its loop have gone, of which its last row may know but
        a part.
        """
        self._recorder.spent(worker, seconds)

    def system(self, moment: Moment, **metrics: Any) -> None:
        """Figures of the run as a whole."""
        self._recorder.row(
            {
                "seconds": moment.seconds,
                "step": moment.step,
                "exchanges": moment.exchanges,
                "party": "system",
                **metrics,
            }
        )

    def served(self, entries: list[int]) -> None:
        """What exchanges have been served, in this order."""
        self._recorder.order(entries)

    def evaluation(
        self, moment: Moment, vectors: Callable[[], Mapping[str, Tensor]], metrics: Mapping[str, Mapping[str, float]]
    ) -> None:
        """A snapshot has been measured: the metrics of the center and, where one is kept, of its average; `vectors`
        gives what it holds.
        """
        for party, figures in metrics.items():
            row = {
                "seconds": moment.seconds,
                "step": moment.step,
                "exchanges": moment.exchanges,
                "party": party,
                **figures,
            }
            row = self._recorder.row(row)
            self.progress.center(row)
            log.info("%s at step %g: %s", party, moment.step, dict(figures))
        center = metrics["center"]
        last = metrics.get("average", center)
        reached = [
            (name, level)
            for name, level in (
                (self._metrics.named(name), level) for name, level in levels(self._experiment.settings).items()
            )
            if self._metrics[name].reached(last.get(name), level)
        ]
        if not all(math.isfinite(value) for name, value in center.items() if name.endswith("_loss")):
            self.diverge(f"the center's loss is not finite at step {moment.step:g}")
        elif reached and self._hit is None:
            self._hit = (moment, {name: v.clone() for name, v in vectors().items()})
            self.status, self.reason = "completed", None  # whatever came later
            name, level = reached[0]
            metric = self._metrics[name]
            self.note(
                f"{metric.title} {metric.shown(last[name])} reached the level {metric.with_unit(f'{level:g}')} at "
                f"step {moment.step:g}"
            )

    def note(self, text: str) -> None:
        """Something the user should know."""
        log.warning(text)
        self.progress.note(text)

    def tick(self) -> None:
        """To be called often: what has been recorded reaches the files."""
        if self._record is not None:
            self._record.tick()
            self._tell_of_pauses()
            self._writer.poll()

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
        """Whether a checkpoint is being written."""
        return self._writer.busy

    def begin_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint with the record up to it, meanwhile: its tensors must not change. A full disk is noted,
        no more.
        """
        if self._record_is_whole():
            self._writer.begin(checkpoint)

    def checkpoint(self, checkpoint: Checkpoint) -> bool:
        """The same at once: its tensors may be the run's own. Returns whether it has been written."""
        return self._record_is_whole() and self._writer.write(checkpoint)

    def _record_is_whole(self) -> bool:
        """Without its record nobody could go on from a checkpoint."""
        whole = self._recorder.flush()
        self._tell_of_pauses()
        return whole

    def _checkpoint_told(self, checkpoint: Checkpoint, result: Path | OSError) -> None:
        """A checkpoint has been written, or could not be."""
        if isinstance(result, Path):
            self._last_checkpoint = True
            self._lacking = False
            self._recorder.checkpointed()
            log.info("checkpoint %s", result.name)
        else:
            self._refused = why(result)
            said = f"the checkpoint at step {checkpoint.owner.moment.step:g} could not be written ({self._refused})"
            if self._lacking:
                log.warning(said)
            else:
                self.note(f"{said}; the next is tried again")
            self._lacking = True

    # ---------------------------------------------------------------- how it ends

    def interrupted(self, number: int) -> None:
        """A signal has come that ends the run. One that has its result keeps it."""
        self.signal = number
        if self.status == "completed" and self._hit is None:
            self.status, self.reason = "interrupted", f"{signal.Signals(number).name} received"

    def without_master(self) -> None:
        """The master did not answer at the end and was killed, and the center of this moment with it."""
        if self.status == "interrupted":
            self.reason = f"{self.reason}; the master did not answer, so nothing of this moment is kept"
        elif self._hit is None:
            self.fail(f"the master did not answer when the run ended; {self.how_to_go_on()}")

    def diverge(self, reason: str) -> None:
        """The run has diverged; one that has its result keeps it."""
        if self.status == "completed" and self._hit is None:
            self.status, self.reason = "diverged", reason
            self.note(f"diverged: {reason}")

    def fail(self, reason: str) -> None:
        """The run has failed; the first reason stands."""
        if self.status != "failed":
            self.status, self.reason = "failed", reason
            log.error(reason)

    def cannot_go_on(self, e: Exception) -> str:
        """What a run that goes on says of a defect: its checkpoint may be what is wrong. Where it was is in the log."""
        assert self.resumed is not None
        log.error("going on from %s", self.resumed.name, exc_info=e)
        path, wrong = self._dir / "checkpoint" / self.resumed.name, f"{type(e).__name__}: {e}"
        return (
            f"{path}: nobody can go on from it ({wrong}); where that was is in logs/launcher.log. "
            "Remove it to go on from an older checkpoint, if there is one."
        )

    def how_to_go_on(self) -> str:
        """A sentence on what can be done after a failure."""
        if self._record is not None:
            self._writer.wait()  # one that is being written is one to go on from
        if not self._last_checkpoint and self.resumed is None:
            return "there is no checkpoint to go on from; checkpoint.every='30 s' writes them."
        return f"go on from the last checkpoint with: easgd train resume={self._dir}"

    def _what_there_is(self) -> str:
        """The same where the run has ended, but not found room for what it leaves."""
        without = not self._last_checkpoint and self.resumed is None
        return "nor is there an older checkpoint." if without else self.how_to_go_on()

    def close(
        self,
        final: OwnerState | None,
        keep: Checkpoint | None,
        steps: Mapping[int, int],
        exchanges: int,
        seconds: float,
        facts: Mapping[str, Any],
    ) -> Outcome:
        """Writes what remains of the run directory and says how the run ended.

        `final`: what is evaluated and saved, None where the end was not reached; `keep`: the checkpoint to go on from,
        None where the last one written is that; `steps`: of each worker; `facts`: what else the summary says. Raises
        RunError.
        """
        if self._record is None:
            raise RunError(self.reason or "the run could not be started")
        self._writer.wait()
        if self._reserve is not None:
            self._reserve.release()
        if final is not None:
            exchanges = final.moment.exchanges
        files: dict[str, Held] = {}
        if self._hit is not None:  # the center first: it is what the run is for
            files = self._save(self._hit[1])
        elif final is not None:
            files = self._save({name: v for name, v in final.vectors.items() if name in EVALUATED})
        elif self.status == "interrupted":
            self.reason = f"{self.reason}; {self.how_to_go_on()}"
        whole = self._recorder.flush()
        if keep is not None:
            self._keep_at_the_end(keep)
        if not whole and not self._recorder.flush():
            assert self._recorder.paused is not None
            path, e = self._recorder.paused
            self.fail(f"{path} could not be written to its end: {why(e)}; {', '.join(files) or 'no center'} is there.")
        elif self._hit is not None:
            self._end_record_at(self._hit[0])
        if self._hit is not None:  # the run is over where it reached its level
            moment, rows = self._hit[0], self._recorder.reached
            seconds, exchanges = moment.seconds, moment.exchanges
            steps = {worker: max(moment.clocks[worker], rows.get(worker_name(worker), 0)) for worker in steps}
        summary = self._record.close(
            {
                "status": self.status, "reason": self.reason, "steps": {f"worker_{i:02d}": t for i, t in steps.items()},
                "exchanges": exchanges,
                "wall_seconds": seconds, "vector_bytes": self._experiment.size * self._experiment.dtype.itemsize,
                **facts,
            },
            files,
        )  # fmt: skip
        if summary:
            self.progress.end(summary)
        code = {"completed": 0, "diverged": 0, "failed": 1, "interrupted": 128 + (self.signal or 0)}[self.status]
        return Outcome(self.status, code, summary, self.reason)

    def _keep_at_the_end(self, keep: Checkpoint) -> None:
        """The last checkpoint in the largest form that the disk takes."""
        self._lacking = True  # in which form is said below, once
        if self._writer.write(keep):
            return
        said = f"the checkpoint of the end, at step {keep.owner.moment.step:g}, could not be written"
        bare = replace(keep, workers={}, pending=[])
        if keep.simulated is None and self._writer.write(bare):
            self.note(f"{said} whole ({self._refused}); it is without its workers: resumed, they begin at the center")
        else:
            self.note(f"{said} ({self._refused}); {self._what_there_is()}")

    def show_stacks(self) -> None:
        """Where this process is goes into its log."""
        log.warning("SIGQUIT: the stacks of all processes are in the logs; the run goes on")
        interruption.show_stacks(self._handler.stream)

    def release(self) -> None:
        """Gives back the terminal and the log file."""
        self.progress.close()
        if self._reserve is not None:  # of a run that could not begin
            self._reserve.release()
        log.removeHandler(self._handler)
        self._handler.close()
        self._handler.stream.close()

    @property
    def _recorder(self) -> Recorder:
        assert self._record is not None, "the record has not been opened"
        return self._record

    def _save(self, vectors: Mapping[str, Tensor]) -> dict[str, Held]:
        """center.pt, and average.pt where an average is kept; returns what they hold, by their names."""
        held: dict[str, Held] = {}
        for name, vector in vectors.items():
            path = self._dir / f"{EVALUATED[name]}.pt"
            try:
                held[path.name] = checkpoints.save(self._experiment.problem.state_dict(vector), path)
            except OSError as e:
                self.fail(f"{path} could not be written: {why(e)}; {self._what_there_is()}")
        return held

    def _end_record_at(self, moment: Moment) -> None:
        """The record of a run that reached its error ends there; what came after is kept for a run that goes on from
        its checkpoint.
        """
        try:
            for name in RECORD if (self._dir / "checkpoint").exists() else ():
                copied = partial(shutil.copyfile, self._dir / name)
                put(self._dir / "checkpoint" / name, copied)
        except OSError as e:
            self.fail(f"{self._dir / 'checkpoint'} could not be written: {why(e)}; the record goes beyond the end.")
            return
        self._recorder.cut(lambda row: row["seconds"] <= moment.seconds, moment.exchanges)
