"""Who runs a sweep's jobs: the interface, and easgd's executor, each job a process in a slot of this machine."""

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

    `begin` is asked when a job's turn has come whether it is to run, `on_change` is told of a job that runs and of one
    that has ended, and `look` is called often in between. A signal ends the jobs as it ends a run alone. Returns 128 +
    the number of the signal that came first, 1 where the executor itself has failed, else 0.
    """

    def run(self, jobs: Sequence[SweepJob], begin: Begin, on_change: Tell, look: Callable[[], None]) -> int: ...


class SlotExecutor:
    """At most one job in each of `slots`, of the sweep in `root`. With one slot the jobs run in turn.

    A job is `program`, a module, whose main is called with root, name and `words` of the job in a process of its own.
    Killed, this process takes the jobs with it. They inherit the descriptors `shared`.
    """

    def __init__(
        self, root: Path, slots: Sequence[Slot], program: str, words: Callable[[SweepJob], list[str]],
        shared: Sequence[int] = (),
    ):  # fmt: skip
        self._root, self._slots, self._program, self._words, self._shared = root, slots, program, words, shared
        self._servers: dict[int, JobServer] = {}
        self._running: dict[int, SweepJob] = {}

    def run(self, jobs: Sequence[SweepJob], begin: Begin, on_change: Tell, look: Callable[[], None]) -> int:
        """As the interface says. Raises RunError where a job has nowhere to say how it stands."""
        waiting, told, came = deque(jobs), set[str](), 0
        with Signals() as signals, interruption.stacks_shown(self._show_stacks), ExitStack() as ending:
            ending.callback(self._kill)  # servers wait for more jobs; unless something has been raised none runs
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
        """Of the jobs that run: each writes its own into the logs of its run."""
        for at in list(self._running):
            self._servers[at].send_signal(signal.SIGQUIT)

    def _kill(self) -> None:
        for server in self._servers.values():
            server.kill()


class JobServer:
    """A slot's process, from which one job after another is forked (job_server.py). Its death is its job's."""

    def __init__(self, slot: Slot, devices: Devices, program: str, log: Path, shared: Sequence[int] = ()):
        self.devices = devices
        self._pid: int | None = None  # of its job
        self._due: list[int] = []  # signals for that
        self._connection, theirs = Pipe()
        words = [str(os.getpid()), str(theirs.fileno()), json.dumps(sorted(slot.cores)), program]
        # It inherits this, and no signal to all ends it.
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
                    start_new_session=True,  # a terminal's Ctrl-C comes to the sweep alone, which passes it on once
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def give(self, arguments: list[str], log: Path, in_processes: bool) -> None:
        """Has a job forked. `in_processes`: its run has processes of its own."""
        self._pid, self._due = None, []
        with suppress(OSError):  # the server has just been killed, which `ended` tells
            self._connection.send((arguments, str(log), in_processes))

    def send_signal(self, number: int) -> None:
        """To the job, at the next look whether it has ended, or once there is one."""
        self._due.append(number)

    def ended(self) -> tuple[int | None, int] | None:
        """The number of the job's process and its exit status once it has ended, or the server's own where that has."""
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
