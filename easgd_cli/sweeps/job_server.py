"""A process from which the jobs of one slot are forked, one after another (executor.py).

`python -m easgd_cli.sweeps.job_server PARENT FD CORES PROGRAM`: PROGRAM is the module whose main runs a job. What every
job needs is imported once, here, since that takes longer than a short job; nothing else happens, so each job is a
process as clean as one just started. A local run's own processes come from one server of theirs, too.

FD is a connection to the sweep, PARENT. A job comes on it as the arguments of PROGRAM, the file for what it prints, and
whether its run has processes. Its process number goes back, by which the sweep sends it signals, and when it has ended
its exit status, below 0 where a signal has killed it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import ModuleType
from typing import NoReturn

from easgd_cli.system import interruption

_SIGNALS = {*interruption.NUMBERS, signal.SIGQUIT}


def main(parent: int, descriptor: int, cores: list[int], program: str) -> None:
    """Forks what comes until the sweep has ended."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # they are for the job
    interruption.end_with(parent, signal.SIGKILL)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    from easgd_cli.launcher.processes import fork_server
    from easgd_cli.launcher.virtual import simulated  # noqa: F401

    run = importlib.import_module(program)
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as sweep, suppress(EOFError):
        while True:
            arguments, log, in_processes = sweep.recv()
            if in_processes and not ((server := fork_server.running()) and server.lives):
                fork_server.begin_here()  # this process has computed nothing and loaded nothing of a user's
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the job reacts to them
            this, pid = os.getpid(), os.fork()
            if pid == 0:
                interruption.end_with(this, signal.SIGKILL)
                _be(run, arguments, log)
            sweep.send(pid)
            sweep.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _be(program: ModuleType, arguments: Sequence[str], log: str) -> NoReturn:
    """The job, whatever becomes of it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    status = 1
    try:
        with interruption.ending_the_process(), interruption.stacks_shown():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # one that came since the fork comes now
            status = program.main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what the process it was forked from has to do at its end is not the job's affair


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4])
