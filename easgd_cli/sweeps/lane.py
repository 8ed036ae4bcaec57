"""A process from which jobs of a sweep are forked (packing.py), one after another: `python -m easgd_cli.sweeps.lane FD`.

What every job needs is imported once, here, since that takes longer than a short job. Nothing else happens here, so each job
is a process as clean as one just started. FD is a socket: a job comes on it as a line of JSON, [root of the sweep, name of the job,
words after `easgd train`, file for what it prints]. What goes back are lines, too: the number of its process, what the job says of
how it ended, and its exit status.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from easgd_cli.errors import RunError, UsageError
from easgd_cli.system import interruption

_SIGNALS = {signal.SIGINT, signal.SIGTERM}  # which are for the jobs


def main(descriptor: int) -> None:
    """Forks what comes until the sweep has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    import easgd_cli.launcher.local
    import easgd_cli.launcher.simulated  # noqa: F401

    with socket.socket(fileno=descriptor) as sock, sock.makefile("rw", encoding="utf-8") as sweep:
        sock.set_inheritable(False)
        for line in sweep:
            root, name, words, log = json.loads(line)
            parent = os.getpid()
            job = os.fork()
            if job == 0:
                _end_with(parent)
                _be(Path(root), name, words, log, descriptor)
            print(job, file=sweep, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), file=sweep, flush=True)


def _be(root: Path, name: str, words: Sequence[str], log: str, descriptor: int) -> NoReturn:
    """The job, whatever becomes of it."""
    _print_to(log)
    with interruption.ending_the_process():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # one that came since the fork comes now
        status = _run(root, name, words, descriptor)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what the process it was forked from has to do at its end is not the job's affair


def _run(root: Path, name: str, words: Sequence[str], descriptor: int) -> int:
    from easgd_cli.sweeps import sweep

    try:
        row, status = sweep.run_job(root, name, words)
        os.write(descriptor, json.dumps(row.tell()).encode() + b"\n")
        return status
    except (UsageError, RunError) as e:
        print(f"easgd: {e}", file=sys.stderr)
        return 2 if isinstance(e, UsageError) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _end_with(parent: int) -> None:
    """A job does not outlive the sweep, whatever ends that, and goes on from its checkpoint with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _print_to(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]))
