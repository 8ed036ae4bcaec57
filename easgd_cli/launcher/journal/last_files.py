"""What a run leaves when it is over: its center, and its record up to the moment at which it reached its level."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from easgd_cli.errors import why
from easgd_cli.launcher.journal.checkpoint_keeper import CheckpointKeeper
from easgd_cli.problems.base import Problem
from easgd_cli.record import checkpoint as checkpoints
from easgd_cli.record.checksum import Held
from easgd_cli.record.recorder import Recorder
from easgd_cli.record.resumption import RECORD
from easgd_cli.system.files import put
from easgd_cli.training.snapshot import EVALUATED, Moment


class LastFiles:
    """Writes the last files in `run_dir`. `fail` is told what could not be written."""

    def __init__(
        self, run_dir: Path, problem: Problem, recorder: Recorder, keeper: CheckpointKeeper, fail: Callable[[str], None]
    ):
        self._dir, self._problem, self._recorder = run_dir, problem, recorder
        self._keeper, self._fail = keeper, fail

    def save(self, vectors: Mapping[str, Tensor]) -> dict[str, Held]:
        """Writes center.pt, and average.pt where an average is kept. Returns what the files hold, by their names."""
        held: dict[str, Held] = {}
        for name, vector in vectors.items():
            if name not in EVALUATED:
                continue
            path = self._dir / f"{EVALUATED[name]}.pt"
            try:
                held[path.name] = checkpoints.save(self._problem.state_dict(vector), path)
            except OSError as e:
                self._fail(f"{path} could not be written: {why(e)}; {self._keeper.what_there_is()}")
        return held

    def end_record(self, whole: bool, there: Mapping[str, Held], at: Moment | None) -> None:
        """Writes the rest of the record, if it was not `whole` before, and cuts it off `at` this moment; None: not at
        all. `there`: the files that have been saved.
        """
        if not whole and not self._recorder.flush():
            assert self._recorder.paused is not None
            path, e = self._recorder.paused
            self._fail(f"{path} could not be written to its end: {why(e)}; {', '.join(there) or 'no center'} is there.")
        elif at is not None:
            self._cut(at)

    def _cut(self, moment: Moment) -> None:
        """Cuts off the record of a run that has reached its level, at that moment. The whole record is first copied to
        the checkpoints, for a resumed run.
        """
        try:
            for name in RECORD if (self._dir / "checkpoint").exists() else ():
                copied = partial(shutil.copyfile, self._dir / name)
                put(self._dir / "checkpoint" / name, copied)
        except OSError as e:
            self._fail(f"{self._dir / 'checkpoint'} could not be written: {why(e)}; the record goes beyond the end.")
            return
        self._recorder.cut(lambda row: row["seconds"] <= moment.seconds, moment.exchanges)
