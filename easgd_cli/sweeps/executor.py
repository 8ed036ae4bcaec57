"""Runs a sweep's jobs: the interface of executors, and easgd's own, with each job a process in a slot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Protocol

from easgd_cli.experiment import build
from easgd_cli.launcher.signals import Signals
from easgd_cli.sweeps import job_status
from easgd_cli.sweeps.job_status import RUNNING, JobStatus
from easgd_cli.sweeps.plan import SweepJob
from easgd_cli.sweeps.slots import Devices, Slot
from easgd_cli.system import interruption

_LOOK_SECONDS = 0.05

Begin = Callable[[SweepJob], bool]
Tell = Callable[[str, JobStatus], None]


class Executor(Protocol):
    """Runs jobs.

    `begin` is called when a job's turn has come and returns whether to run the job; `on_change` is called when a job
    runs and when it has ended; `look` is called often in between. A signal ends the jobs as it ends a single run.
    `run` returns 128 + the number of the first signal, 1 if the executor itself failed, else 0.
    """

    def run(self, jobs: Sequence[SweepJob], begin: Begin, on_change: Tell, look: Callable[[], None]) -> int: ...


class SlotExecutor:
    """Runs the jobs of the sweep in `root`, at most one at a time in each of `slots`.

    A job is a process that calls `main` of the module `program` with root, the job's name and the job's `words`. The
    jobs die with this process. They inherit the descriptors `shared`.
    """

    def __init__(
        self, root: Path, slots: Sequence[Slot], program: str, words: Callable[[SweepJob], list[str]],
        shared: Sequence[int] = (),
    ):  # fmt: skip
        self._root, self._slots, self._program, self._words, self._shared = root, slots, program, words, shared
        self._servers: dict[int, JobServer] = {}
        self._running: dict[int, SweepJob] = {}

    def run(self, jobs: Sequence[SweepJob], begin: Begin, on_change: Tell, look: Callable[[], None]) -> int:
        """Runs the jobs as the interface says. Raises RunError where the file for a job's status cannot be written."""
        waiting, told, came = deque(jobs), set[str](), 0
        with Signals() as signals, interruption.stacks_shown(self._show_stacks), ExitStack() as ending:
            ending.callback(self._kill)  # idle servers; jobs still run only after an error
            while self._running or (waiting and not came):
                while waiting and not came and len(self._running) < len(self._slots):
                    if begin(job := waiting.popleft()):
                        self._start(job)
                time.sleep(_LOOK_SECONDS)
                for number in signals.take():
                    came = came or number
                    for at in self._running:
                        self._servers[at].send_signal(number)
                for at, job in list(self._running.items()):
                    if job.name not in told and (said := job_status.read(self._root, job.name)).status == RUNNING:
                        told.add(job.name)
                        on_change(job.name, said)
                    if (ended := self._servers[at].ended()) is not None:
                        del self._running[at]
                        on_change(job.name, job_status.settle(self._root, job.name, *ended))
                look()
        return 128 + came if came else 0

    def _start(self, job: SweepJob) -> None:
        at = next(i for i in range(len(self._slots)) if i not in self._running)
        devices, log = Devices.of(job.settings), job_status.begin(self._root, job.name)
        server = self._servers.get(at)
        if server is not None and (not server.lives or server.devices is not devices):
            self._servers.pop(at).kill()
        if at not in self._servers:
            self._servers[at] = JobServer(self._slots[at], devices, self._program, log, self._shared)
        arguments = [str(self._root), job.name, *self._words(job)]
        self._servers[at].give(arguments, log, build.launched_in_processes(job.settings))
        self._running[at] = job

    def _show_stacks(self) -> None:
        """Makes each running job write the stacks of its processes into the logs of its run."""
        for at in list(self._running):
            self._servers[at].send_signal(signal.SIGQUIT)

    def _kill(self) -> None:
        for server in self._servers.values():
            server.kill()


class JobServer:
    """A slot's process, from which one job after another is forked (job_server.py). Its job dies with it."""

    def __init__(self, slot: Slot, devices: Devices, program: str, log: Path, shared: Sequence[int] = ()):
        self.devices = devices
        self._pid: int | None = None  # of the job's process, once known
        self._due: list[int] = []  # signals to be sent to the job
        self._connection, theirs = Pipe()
        words = [str(os.getpid()), str(theirs.fileno()), json.dumps(sorted(slot.cores)), program]
        # The server starts with these signals blocked, so that a signal sent to all processes does not end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*interruption.NUMBERS, signal.SIGQUIT})
        try:
            with theirs, open(log, "wb") as out:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "easgd_cli.sweeps.job_server", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=slot.environment(devices),
                    pass_fds=[theirs.fileno(), *shared],
                    start_new_session=True,  # a terminal's Ctrl-C reaches the sweep alone, which sends it on once
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def give(self, arguments: list[str], log: Path, in_processes: bool) -> None:
        """Has the server fork a job that prints into `log`. `in_processes`: the job's run has processes of its own."""
        self._pid, self._due = None, []
        with suppress(OSError):  # the server has just been killed; `ended` reports it
            self._connection.send((arguments, str(log), in_processes))

    def send_signal(self, number: int) -> None:
        """Has the signal sent to the job, by a later call of `ended`, once the job's process is known."""
        self._due.append(number)

    def ended(self) -> tuple[int | None, int] | None:
        """Returns (process number, exit status) of the job once it has ended, or (None, the server's exit status) if
        the server has ended. While the job runs, sends it the signals that are due and returns None.
        """
        try:
            if self._pid is None and self._connection.poll():
                self._pid = self._connection.recv()
            if self._pid is not None and self._connection.poll():
                return self._pid, self._connection.recv()
        except (EOFError, OSError):
            return None, self._process.wait()
        while self._pid is not None and self._due:
            with suppress(ProcessLookupError):
                os.kill(self._pid, self._due.pop(0))
        return None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
