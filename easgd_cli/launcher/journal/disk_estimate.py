"""The most that a run leaves on its disk, counted before it starts. The user is told of too little room, but the run is
not refused: other programs take and free room, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.training.meter import most_rows

if TYPE_CHECKING:
    from easgd_cli.experiment.build import Experiment

_ROW = 900  # bytes of a row in metrics.jsonl and in TensorBoard's file together, as measured, rounded up
_EVALUATIONS = 200  # rows of evaluations that are counted for every run
_BESIDE = 1 << 16  # configuration, logs, summary, and what files take beside their vectors


def center_bytes(experiment: Experiment) -> int:
    """Returns the bytes of center.pt, of average.pt where an average is kept, and of summary.json."""
    return experiment.size * experiment.dtype.itemsize * (1 + (experiment.average is not None)) + _BESIDE


def needed_bytes(experiment: Experiment) -> int:
    """Returns the bytes of the checkpoints that are kept and of one more that is being written, of what is saved at the
    end, and of the record.
    """
    s, rules = experiment.settings, experiment.method
    average = experiment.average is not None
    owner = len(rules.state) if rules.alone else sum(len(of.state) for of in rules.variables.values())
    owner += average
    worker = len(rules.state) + (average if rules.alone else 1)  # its last reply, or its average
    checkpoint = (owner + s.workers * worker) * experiment.size * experiment.dtype.itemsize + _BESIDE
    steps = experiment.steps
    rows = s.workers * most_rows(s.workers, steps) + _EVALUATIONS
    exchanges = 0 if rules.alone or steps is None else s.workers * (steps // s.tau + 1)
    return (s.checkpoint.keep + 1) * checkpoint + center_bytes(experiment) + rows * _ROW + 2 * exchanges


def too_little(run_dir: Path, experiment: Experiment) -> str | None:
    """Returns a sentence where less room is free than needed; None where it is enough, or the system does not say."""
    try:
        free = shutil.disk_usage(run_dir).free
    except OSError:
        return None
    needed = needed_bytes(experiment)
    if needed <= free:
        return None
    return (
        f"this run needs up to {_shown(needed)} on its disk (checkpoint.keep={experiment.settings.checkpoint.keep}), "
        f"and {_shown(free)} are free; what does not fit is left out, the center at last"
    )


def _shown(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
