"""`python -m easgd_cli.sweeps.job_process PARENT ROOT NAME WORDS`: one job of the sweep in ROOT, in a process of its own that process PARENT has started.

It says how it stands in logs/NAME.json (job_status.py) and ends with the exit status of the run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from easgd_cli.errors import RunError, UsageError
from easgd_cli.sweeps import job_status as standing
from easgd_cli.sweeps import sweep
from easgd_cli.system import interruption


def main(argv: Sequence[str]) -> int:
    """Runs the job, goes on with it, or finds that it has ended; returns the exit status."""
    parent, root, name, words = int(argv[0]), Path(argv[1]), argv[2], argv[3:]

    def interrupted() -> None:
        with suppress(RunError):
            standing.write(root, name, "interrupted")

    try:
        with interruption.ending_the_process(), interruption.undone_by(interrupted):
            _live_with(parent)
            standing.write(root, name, "running", pid=os.getpid())
            row, code = sweep.run_job(root, name, words)
    except (UsageError, RunError) as e:
        print(f"easgd: {e}", file=sys.stderr)
        with suppress(RunError):  # which it may be
            standing.write(root, name, "failed", reason=str(e))
        return 2 if isinstance(e, UsageError) else 1
    standing.write(root, name, **row.tell())
    return code


def _live_with(parent: int) -> None:
    """Ends this job, with a checkpoint, when what has started it is killed; and ignores what only that is to be told.

    SLURM sends a job's time running out, or its preemption, as SIGUSR2 to every process of it. submitit, which has started
    this one, reacts; unheeded, the signal would kill the workers.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it was killed before
            signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
