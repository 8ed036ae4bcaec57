"""A process from which the jobs of one slot are forked, one after another (executor.py).

`python -m easgd_cli.sweeps.job_server PARENT FD CORES PROGRAM`: PROGRAM is the module whose main runs a job. This
process imports once what every job needs, since that takes longer than a short job. It does nothing else, so a forked
job is a process as clean as a new one. The processes of a local run are forked from one server of their own, too.

FD is a connection to the sweep, the process PARENT. A job comes on it as (arguments of PROGRAM, file for its output,
whether its run has processes of its own). The server sends back the job's process number, to which the sweep sends
signals, and at the job's end its exit status, below 0 where a signal has killed it.
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
    """Forks the jobs that come, one after another, until the sweep has ended."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # signals are for the job alone
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
                fork_server.begin_here()  # possible, since this process has computed nothing and run no user's code
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the job reacts to them
            this, pid = os.getpid(), os.fork()
            if pid == 0:
                interruption.end_with(this, signal.SIGKILL)
                _be(run, arguments, log)
            sweep.send(pid)
            sweep.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _be(program: ModuleType, arguments: Sequence[str], log: str) -> NoReturn:
    """Runs the job in this forked process, which ends with it, also on an error."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    status = 1
    try:
        with interruption.ending_the_process(), interruption.stacks_shown():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # a signal since the fork is handled now
            status = program.main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without the exit handlers of the server


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4])
