"""The thread of a worker or master on a host that has joined: between its process and its stand-in."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from easgd_cli.errors import RunError
from easgd_cli.launcher.hosts.door import CONNECT_SECONDS, connect_patiently
from easgd_cli.launcher.hosts.hosted_master import HostedMaster
from easgd_cli.launcher.hosts.hosted_worker import HostedWorker
from easgd_cli.launcher.hosts.workplace import Workplace
from easgd_cli.launcher.processes.child import Child
from easgd_cli.launcher.processes.standstill import state_of
from easgd_cli.launcher.supervisor.parties import title_on_hosts
from easgd_cli.system.channel import ChannelClosed
from easgd_cli.system.shared_memory import AnonymousFile
from easgd_cli.system.terminal import tell
from easgd_cli.training import messages
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind, Refused

_LOOK_UP_SECONDS = 0.5
_STATE_SECONDS = 1.0  # between two reports on the state of its process


class PartyThread(threading.Thread):
    """A worker or master on this host, from the first host's request for it to its end, in a thread of its own."""

    def __init__(self, host: Workplace, of: HostedWorker | HostedMaster, ticket: int):
        super().__init__(daemon=True)
        self._host, self.of, self._ticket, self._title = host, of, ticket, title_on_hosts(of.party)
        self._leaves = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._posting = threading.Lock()
        self._child: Child | None = None
        self.start()

    def leave(self) -> None:
        """Ends process and thread at once; the first host hears nothing more of them."""
        self._leaves.set()
        with suppress(OSError):
            self._wake.send(b"x")

    def run(self) -> None:
        host = self._host
        try:
            log, most = AnonymousFile(), self.of.prepare()
            sock = connect_patiently(
                host.address, host.secret, CONNECT_SECONDS, host.silence, self._leaves, *self.of.role, self._ticket
            )
        except (Refused, OSError, MemoryError) as e:
            if not self._leaves.is_set():
                tell(f"{self._title} cannot begin here: {e}")
                host.cannot(self._ticket, str(e))
            self.of.close()
        else:
            self.connection = Connection(sock, host.silence, most)
            try:
                self._work(log)
            except (ConnectionEnded, Refused, RunError, OSError, MemoryError) as e:
                if not self._leaves.is_set():
                    tell(f"{self._title}: {e}")
                    if self._child is None:  # it has not begun: the first host gives it to another host
                        self.connection.say(messages.Cannot(kind="cannot", text=str(e)))
                        self.connection.finish(host.silence)
            finally:
                self._leaves.set()
                self.of.close()
                self.connection.close()
                log.close()
        for end in (self._wake, self._woken):
            end.close()

    def _work(self, log: AnonymousFile) -> None:
        """Runs the process to its end. `log`: the process's, in memory, since the first host keeps it."""
        connection = self.connection
        _, text, _ = connection.next()
        begin, vectors = connection.message(text)
        maker, start = self.of.begin(self, begin, vectors)
        child = self._child = self._host.start(self.of.party, maker, start, Path(f"/proc/{os.getpid()}/fd/{log.fd}"))
        self.of.begun()
        tell(f"{self._title} runs here, process {child.process.pid}")
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()
        try:
            done = self._pass_on(child, log)
            if not self._leaves.is_set():
                self.of.ended()  # its last requests are to arrive before the news of its end
                number = child.process.killed_by
                connection.say(messages.Ended(kind="ended", done=done, signal=number, how=child.process.how))
                connection.finish(self._host.silence)
        finally:
            with self._posting:
                self._leaves.set()
                child.kill()
                child.close()

    def _pass_on(self, child: Child, log: AnonymousFile) -> bool:
        """Sends the process's messages and log to the stand-in until the process ends. Returns whether it was done."""
        connection, done, read, looked = self.connection, False, 0, 0.0
        while not self._leaves.is_set():
            ended = child.process.ended
            try:
                while heard := child.channel.receive():
                    for message, enclosed in heard:
                        done = done or message["kind"] == "done"
                        if message["kind"] in ("state", "snapshot"):  # after it the launcher may listen no more
                            self._say_carried()
                        connection.say(message, enclosed)
            except ChannelClosed:
                pass
            read = _say_log(connection, log, read)
            if ended:
                break
            if time.monotonic() - looked >= _STATE_SECONDS and (state := state_of(child.process.pid)) is not None:
                looked = time.monotonic()
                connection.say(
                    messages.Process(kind="process", rate=connection.rate(), letter=state.letter, ticks=state.ticks)
                )
                self._say_carried()
            with suppress(ChannelClosed):
                child.channel.flush()
            watched: list[Any] = [child.process.sentinel, self._woken, *([] if done else [child.channel])]
            wait(watched, _LOOK_UP_SECONDS)
        return done

    def _say_carried(self) -> None:
        """Tells the stand-in what those sessions have carried that have connections of their own."""
        if carried := self.of.carried():
            self.connection.say(messages.Carried(kind="carried", links=carried))

    def _listen(self, child: Child) -> None:
        """Does what the stand-in sends: passes it on to the process, or acts on it."""
        try:
            while True:
                kind, text, count = self.connection.next()
                if kind is FrameKind.REPLY:
                    self.of.reply(text, count)
                    continue
                message, _ = self.connection.message(text)
                if not self.of.told(message):
                    continue
                if message["kind"] == "signal":
                    child.process.send_signal(int(message["number"]))
                    continue
                if message["kind"] == "start":
                    message = {"kind": "start", "began": time.monotonic() - float(message["elapsed"])}
                self.post(message)
        except (ConnectionEnded, KeyError, ValueError, TypeError):
            self.leave()

    def post(self, message: dict[str, Any], enclosed: socket.socket | None = None) -> None:
        """Posts a message to the process; it is lost if the process has ended."""
        with self._posting, suppress(ChannelClosed):
            if self._child is not None and not self._leaves.is_set():
                self._child.channel.post(message, enclosed)

    def session_lost(self, how: str) -> None:
        """Ends the worker, one of whose sessions is lost: it is to come back, in new sessions with all masters."""
        if self._child is None:
            self.leave()
        elif not self._leaves.is_set():
            text = f"its session with a master on another host is lost: {how}"
            self.connection.say(messages.Error(kind="error", text=text, refused=False))
            self._child.kill()


def _say_log(connection: Connection, log: AnonymousFile, read: int) -> int:
    """Sends a part of the log that begins at byte `read`. Returns the byte up to which the log has been sent."""
    if data := os.pread(log.fd, 1 << 20, read):
        connection.say(messages.Log(kind="log", text=data.decode("utf-8", "replace")))
    return read + len(data)
