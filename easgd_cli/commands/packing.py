"""Jobs of a sweep side by side: each in a process of its own, on cores of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from easgd_cli import build
from easgd_cli.config import Settings
from easgd_cli.errors import UsageError
from easgd_cli.launcher.stopping import Signals

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Command:
    """A job as the words after `easgd train`, and the file for what it prints."""

    words: list[str]
    log: Path


def lanes(jobs: str, settings: Sequence[Settings]) -> list[set[int]]:
    """The cores of each job that runs at a time: as many as `jobs` says, or with `auto` as the machine carries. Raises UsageError.

    A job needs a core for each thread of its workers; a simulated one computes one gradient at a time.
    """
    own = _cores()
    if jobs == "auto":
        count = max(1, min(len(own) // max(1, max(_needed(s, len(own)) for s in settings)), len(settings)))
    elif jobs.isdigit() and int(jobs) > 0:
        count = min(int(jobs), len(settings))
    else:
        raise UsageError(f"jobs={jobs}: is how many jobs of a sweep run at a time, a whole number of at least 1, or auto for as many as there are cores for.")
    if count > len(own):
        return [set(own)] * count
    return [set(own[i * len(own) // count : (i + 1) * len(own) // count]) for i in range(count)]


def _needed(s: Settings, cores: int) -> int:
    return (s.threads or cores) if not build.launched_in_processes(s) else s.workers * (s.threads or 1)


def run(
    jobs: Sequence[str],
    lanes: Sequence[set[int]],
    begin: Callable[[str], Command | None],
    begun: Callable[[str, int], None],
    ended: Callable[[str, int], None],
) -> int | None:
    """Runs `jobs`, known by their names, in turn, at most one in each lane, until all have ended or a signal has come.

    `begin` gives a job's command when its turn has come, or None where there is nothing to run. `begun` is called with its
    process number, `ended` with its exit status, which is below 0 where a signal killed it. A signal is passed on to those that
    run, which end as a run alone does; the number of the first is returned, None where none came. A killed parent takes its
    jobs with it.
    """
    waiting, running = list(jobs), dict[int, tuple[str, subprocess.Popen[bytes]]]()
    came: int | None = None
    with Signals() as signals:
        try:
            while running or (waiting and came is None):
                while came is None and waiting and len(running) < len(lanes):
                    name = waiting.pop(0)
                    lane = next(i for i in range(len(lanes)) if i not in running)
                    command = begin(name)
                    if command is not None:
                        process = _started(command, lanes[lane])
                        running[lane] = name, process
                        begun(name, process.pid)
                time.sleep(_LOOK_SECONDS)
                for number in signals.taken():
                    came = came or number
                    for _, process in running.values():
                        process.send_signal(number)
                for lane, (name, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[lane]
                        ended(name, process.returncode)
        finally:
            for _, process in running.values():  # none, unless something has been raised
                process.kill()
                process.wait()
    return came


def _started(command: Command, cores: set[int]) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: between fork and exec as little as possible happens

    def prepared() -> None:
        if libc is not None:
            os.sched_setaffinity(0, cores)
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a job does not outlive the sweep, and goes on from its checkpoint with it
            if os.getppid() != parent:
                os._exit(1)

    command.log.parent.mkdir(exist_ok=True)
    with open(command.log, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "easgd_cli", "train", *command.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C comes to the sweep alone, which passes it on once
            preexec_fn=prepared,
        )


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
