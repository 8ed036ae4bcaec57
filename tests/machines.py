"""Several machines on one: network namespaces, joined by a bridge in one of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Machine:
    """A network namespace with an address of its own. It lasts as long as the process that holds it."""

    def __init__(self, enter: Sequence[str], address: str):
        own = ["-n"] if enter or os.geteuid() == 0 else ["-rn"]  # who is not root becomes root of a namespace first
        self._holder = subprocess.Popen([*enter, "unshare", *own, "cat"], stdin=subprocess.PIPE)
        self.address, self.started = address, list[subprocess.Popen[Any]]()
        ends, mine = time.monotonic() + 10, os.readlink("/proc/self/ns/net")
        outer = self._namespace(enter) or mine
        while self._inner() in (None, mine, outer):
            if self._holder.poll() is not None or time.monotonic() > ends:
                raise PermissionError("this machine permits no network namespaces")
            time.sleep(0.01)
        user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        self.enter = ["nsenter", "-t", str(self._holder.pid), *user, "-n"]
        self.run("ip", "link", "set", "lo", "up")

    @staticmethod
    def _namespace(enter: Sequence[str]) -> str | None:
        return os.readlink(f"/proc/{enter[2]}/ns/net") if enter else None

    def _inner(self) -> str | None:
        try:
            return os.readlink(f"/proc/{self._holder.pid}/ns/net")
        except OSError:
            return None

    @property
    def pid(self) -> int:
        return self._holder.pid

    def run(self, *words: str) -> None:
        """Does something there. Raises PermissionError where it may not be done."""
        done = subprocess.run([*self.enter, *words], capture_output=True, text=True, timeout=20)
        if done.returncode:
            raise PermissionError(f"{' '.join(words)}: {done.stderr.strip()}")

    def start(self, words: Sequence[str], log: Path, **kwargs: Any) -> subprocess.Popen[Any]:
        """Starts a program there, in a process group of its own; what it says goes into the log."""
        with open(log, "w") as out:
            process = subprocess.Popen(
                [*self.enter, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, **kwargs,
            )  # fmt: skip
        self.started.append(process)
        return process

    def kill(self) -> None:
        """Everything that has been started there ends at once, as if the power had gone."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def close(self) -> None:
        self.kill()
        self._holder.kill()
        self._holder.wait()


class Machines:
    """So many, each reached by the others: 10.9.0.1 and on. Raises PermissionError where that may not be."""

    def __init__(self, count: int):
        self._all: list[Machine] = []
        try:
            self._switch = self._made([], "")
            self._switch.run("ip", "link", "add", "br0", "type", "bridge")
            self._switch.run("ip", "link", "set", "br0", "up")
            self.hosts = [self._joined(i) for i in range(count)]
        except (OSError, subprocess.SubprocessError) as e:
            self.close()
            raise PermissionError(str(e)) from e

    def _made(self, enter: Sequence[str], address: str) -> Machine:
        machine = Machine(enter, address)
        self._all.append(machine)
        return machine

    def _joined(self, i: int) -> Machine:
        user = [] if os.geteuid() == 0 else self._switch.enter
        host = self._made(user, f"10.9.0.{i + 1}")
        self._switch.run("ip", "link", "add", f"h{i}", "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._switch.run("ip", "link", "set", f"h{i}", "master", "br0", "up")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        return host

    def cut(self, i: int) -> None:
        """Nothing reaches that host any more, nor comes from it."""
        self._switch.run("ip", "link", "set", f"h{i}", "down")

    def join(self, i: int) -> None:
        """Its cable is back."""
        self._switch.run("ip", "link", "set", f"h{i}", "up")

    def limit(self, rate: str, burst: str = "256k") -> None:
        """So much a second on each cable, in either direction, such as 1gbit; after a rest, so many bytes at once."""
        bucket = ("tbf", "rate", rate, "burst", burst, "latency", "50ms")
        for i, host in enumerate(self.hosts):
            self._switch.run("tc", "qdisc", "add", "dev", f"h{i}", "root", *bucket)
            host.run("tc", "qdisc", "add", "dev", "eth0", "root", *bucket)

    def close(self) -> None:
        for machine in reversed(self._all):
            machine.close()
