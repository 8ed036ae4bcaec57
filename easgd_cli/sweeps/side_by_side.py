"""Jobs of a sweep side by side: each a process of its own, on cores and CUDA devices of its own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from easgd_cli.commands.plan import Member
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher.signals import Signals
from easgd_cli.settings.schema import Settings

T = TypeVar("T")
_LOOK_SECONDS = 0.05
_OWN_BYTES, _WORKER_BYTES = 350 * 2**20, 40 * 2**20  # of a job's processes, and of each worker, beside vectors and data (docs/design.md, Memory)


@dataclass(frozen=True)
class Command:
    """A job of the sweep in `root`: its settings and retry= as words after `easgd train`, and the file for what it prints."""

    root: Path
    name: str
    words: list[str]
    log: Path
    devices: Devices


class Devices(Enum):
    """Which CUDA devices a job computes on: none, any that it is shown, or some that it names by their numbers among all."""

    NONE, ANY, NAMED = range(3)

    @classmethod
    def of(cls, s: Settings) -> Devices:
        named = {name.strip() for name in (*s.device.split(","), *s.eval.device.split(","))}
        return cls.NAMED if any(":" in name for name in named) else cls.NONE if named == {"cpu"} else cls.ANY


@dataclass(frozen=True)
class Lane:
    """What a job has for itself: cores, and CUDA devices by the names that CUDA_VISIBLE_DEVICES takes."""

    cores: set[int]
    devices: list[str]

    def environment(self, wanted: Devices) -> dict[str, str]:
        """The environment of a job here. One that names devices counts them as this process does, so it is shown all of them."""
        if wanted is Devices.NAMED or not self.devices:
            return dict(os.environ)
        return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(self.devices) if wanted is Devices.ANY else ""}


def lanes(jobs: str, members: Sequence[Member]) -> list[Lane]:
    """One for each job that runs at a time: as many as `jobs` says, or with `auto` as the machine carries. Raises UsageError."""
    from easgd_cli.system.devices import visible_devices  # here, since it loads torch, for which a refusal does not wait

    cores, devices = _cores(), visible_devices()
    if jobs == "auto":
        count = max(1, min(len(members), *(_carried(m, len(cores), len(devices)) for m in members)))
    elif jobs.isdigit() and int(jobs) > 0:
        count = min(int(jobs), len(members))
    else:
        raise UsageError(f"jobs={jobs}: is how many jobs of a sweep run at a time, a whole number of at least 1, or auto for as many as the machine carries.")
    shares = [set(cores)] * count if count > len(cores) else [set(share) for share in dealt(cores, count)]
    return [Lane(own, shown) for own, shown in zip(shares, dealt(devices, count), strict=True)]


def dealt(things: Sequence[T], lanes: int) -> list[list[T]]:
    """A share of these for each lane: neighbours, none in two shares; where there are fewer than lanes, one each in turn."""
    if 0 < len(things) < lanes:
        return [[things[i % len(things)]] for i in range(lanes)]
    return [list(things[i * len(things) // lanes : (i + 1) * len(things) // lanes]) for i in range(lanes)]


def _carried(m: Member, cores: int, devices: int) -> int:
    """How many such jobs the machine carries at a time; 0 where it is small for one.

    A job needs a core for each thread of its workers, a device for each worker, and its memory. A simulated one computes one
    gradient at a time.
    """
    from easgd_cli.system.shared_memory import available_memory

    s, available = m.settings, available_memory()
    at_once, threads = (s.workers, s.workers * (s.threads or 1)) if build.launched_in_processes(s) else (1, s.threads or cores)
    counts = [cores // threads]
    if devices and (wanted := Devices.of(s)) is not Devices.NONE:
        counts.append(1 if wanted is Devices.NAMED else devices // at_once)
    if available is not None:
        counts.append(available // (m.memory + _OWN_BYTES + at_once * _WORKER_BYTES))
    return min(counts)


def run(
    jobs: Sequence[str],
    lanes: Sequence[Lane],
    begin: Callable[[str], Command | None],
    begun: Callable[[str, int], None],
    ended: Callable[[str, int, dict[str, Any] | None], None],
    look: Callable[[], None],
) -> int | None:
    """Runs `jobs`, known by their names, in turn, at most one in each lane, until all have ended or a signal has come.

    `begin` gives a job's command when its turn has come, or None where there is nothing to run. `begun` is called with its
    process number once it has one, `ended` with its exit status, which is below 0 where a signal killed it, and what it has said of
    how it ended, if it could; `look` many times a second in between. A signal is passed on to those that run, which end as a run
    alone does; the number of the first is returned, None where none came. A killed parent takes its jobs with it.
    """
    waiting, running, processes = list(jobs), dict[int, str](), dict[int, _Process]()
    came: int | None = None
    with Signals() as signals:
        try:
            while running or (waiting and came is None):
                while came is None and waiting and len(running) < len(lanes):
                    name = waiting.pop(0)
                    at = next(i for i in range(len(lanes)) if i not in running)
                    command = begin(name)
                    if command is not None:
                        processes[at] = _given(command, lanes[at], processes.get(at))
                        running[at] = name
                time.sleep(_LOOK_SECONDS)
                look()
                for signalled in signals.taken():
                    came = came or signalled
                    for at in running:
                        processes[at].send_signal(signalled)
                for at, name in list(running.items()):
                    number, status = processes[at].news()
                    if number is not None:
                        begun(name, number)
                    if status is not None:
                        del running[at]
                        ended(name, status, processes[at].said)
        finally:
            for process in processes.values():  # which wait for more, unless something has been raised
                process.kill()
    return came


class _Process:
    """A lane's process, from which one job after another is forked (lane.py). Killed, it takes its job with it, and the next has a new one."""

    def __init__(self, lane: Lane, first: Command):
        parent = os.getpid()
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: between fork and exec as little as possible happens

        def prepared() -> None:
            if libc is not None:
                os.sched_setaffinity(0, lane.cores)
                libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, by which its job ends with it, too
                if os.getppid() != parent:
                    os._exit(1)

        self.devices = first.devices
        self._socket, theirs = socket.socketpair()
        self._news: list[int] = []  # of the job that runs: the number of its process, and how that ended
        self.said: dict[str, Any] | None = None  # what it has said itself
        self._line = b""  # the beginning of what comes next
        self._told = False  # of the number
        self._due: list[int] = []  # signals that came before it was known
        first.log.parent.mkdir(exist_ok=True)
        with theirs, open(first.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "easgd_cli.sweeps.lane", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=lane.environment(first.devices),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C comes to the sweep alone, which passes it on once
                preexec_fn=prepared,
            )

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def give(self, command: Command) -> None:
        """Has a job forked."""
        self._news, self._told, self.said = [], False, None
        with suppress(OSError):  # it has just been killed, which `news` tells
            self._socket.sendall(json.dumps([str(command.root), command.name, command.words, str(command.log)]).encode() + b"\n")

    def news(self) -> tuple[int | None, int | None]:
        """The number of the job's process, once; and its exit status, or that of this process where it has ended, once there is one."""
        try:
            data = self._socket.recv(1024, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None, None
        except OSError:
            data = b""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in map(json.loads, lines):
            if isinstance(line, int):
                self._news.append(line)
            else:
                self.said = line
        number = None
        if self._news and not self._told:
            number, self._told = self._news[0], True
            for due in self._due:
                self.send_signal(due)
        if len(self._news) == 2:
            return number, self._news[1]
        return number, None if data else self._process.wait()

    def send_signal(self, number: int) -> None:
        """To the job; at its beginning, as soon as there is one."""
        if not self._told:
            self._due.append(number)
        elif len(self._news) == 1:
            with suppress(ProcessLookupError):
                os.kill(self._news[0], number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()


def _given(command: Command, lane: Lane, before: _Process | None) -> _Process:
    """The process that now runs the job: the lane's, or a new one where that has ended or is shown other devices."""
    if before is not None and (not before.lives or before.devices is not command.devices):
        before.kill()
        before = None
    process = before or _Process(lane, command)
    process.give(command)
    return process


def said_last(log: Path) -> str | None:
    """The last thing a job complained of, by what it printed: a sentence of easgd's after the last traceback, or the last line of that."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.strip() for line in text.rpartition("Traceback (most recent call last):")[2].splitlines() if line.strip()]
    sentences = [line.removeprefix("easgd: ") for line in lines if line.startswith("easgd: ")]
    return next(reversed(sentences or lines), None)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
