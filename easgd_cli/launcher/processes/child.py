"""A run's processes: each is forked from one clean server that has imported torch once, and ends with its launcher.

The system kills every child when its launcher is gone, whatever the child is doing (`server_process.py`). A child has
one socket to the launcher and watches it, too: where the system does not kill the child, it ends when the socket does.
Children ignore Ctrl-C, SIGTERM and the like, which a terminal or a scheduler sends to all of them: the launcher
decides. SIGQUIT writes a child's stacks into its log, and the child goes on.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from easgd_cli.errors import UsageError
from easgd_cli.launcher.processes import fork_server, server_process
from easgd_cli.system import interruption, streams
from easgd_cli.system.channel import Channel, ChannelClosed
from easgd_cli.system.shared_memory import keep_freed_memory
from easgd_cli.training.messages import Done, Error, Ready
from easgd_cli.transport.base import SessionEnded


class Program(Protocol):
    """What a child runs: made from its start and its channel, then run from training second 0 on."""

    def run(self, began: float) -> None: ...


@runtime_checkable
class WaitsForStart(Protocol):
    """A program that waits for the start of training itself, since something may happen to it before."""

    def wait_for_start(self) -> float: ...


class ProgramMaker(Protocol):
    def __call__(self, start: Any, channel: Channel) -> Program: ...


class Child:
    """A process as its launcher holds it."""

    def __init__(self, name: str, maker: ProgramMaker, start: Any, log: Path):
        ours, theirs = socket.socketpair()
        self.name, self.log = name, log
        self.channel = Channel(ours)
        self.done = False  # True once it has said everything and ends by itself
        self.gone = False  # True once it has ended and all it said has been heard
        self.error: str | None = None  # what it raised, if it could still say
        self.refused = False  # the data are at fault, so the next process would end in the same way
        with theirs:
            self.process = fork_server.Process(f"easgd-{name}", _child, (name, maker, start, theirs, str(log)))

    @property
    def how(self) -> str:
        """How the process has ended, for a sentence."""
        return self.error if self.error is not None else self.process.how

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Waits for the process to end and gives back what is held of it."""
        self.process.join()
        self.process.close()
        self.channel.close()


def _child(name: str, maker: ProgramMaker, start: Any, sock: socket.socket, log: str) -> None:
    for number in interruption.NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    # read when CUDA starts: without it deterministic=true is refused there
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fork_server.leave_removed_directory()
    server_process.name_process(f"easgd-{name}")
    _log_to(log)
    faulthandler.register(signal.SIGQUIT, 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGQUIT})
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {name}: process {os.getpid()}", flush=True)
    channel = Channel(sock)
    status = 0
    try:
        program = maker(start, channel)
        # from here on: the net's own parameters, replaced while the program was made, have gone back to the system
        keep_freed_memory()
        channel.post(Ready(kind="ready"))
        program.run(program.wait_for_start() if isinstance(program, WaitsForStart) else _wait_for_start(channel))
        channel.post(Done(kind="done"))
    except ChannelClosed:
        print("the launcher has ended", flush=True)
        status = 1
    except SessionEnded as e:
        print(e, flush=True)
        status = 1
    except UsageError as e:  # an image that cannot be decoded
        print(e, flush=True)
        status = 1
        with suppress(ChannelClosed):
            channel.post(Error(kind="error", text=str(e), refused=True))
    except BaseException as e:
        traceback.print_exc()
        status = 1
        with suppress(ChannelClosed):
            channel.post(Error(kind="error", text=f"{type(e).__name__}: {e}", refused=False))
    with suppress(ChannelClosed):
        while not channel.flush():
            select.select([], [channel], [])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing of the interpreter's own ending is wanted: libraries' threads may hang in it


def _wait_for_start(channel: Channel) -> float:
    message, _ = channel.wait()
    if message["kind"] != "start":
        raise ChannelClosed  # told to stop before training began
    return float(message["began"])


def _log_to(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout, sys.stderr = streams.log_to(1), streams.log_to(2)
