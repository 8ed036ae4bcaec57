"""Addresses of this machine, the port it listens at, and the secret that the machines of a run share."""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from easgd_cli.errors import UsageError, why

_SECRET, _SECRET_FILE = "EASGD_SECRET", "EASGD_SECRET_FILE"
_SIOCGIFADDR = 0x8915  # of linux/sockios.h


def interfaces() -> dict[str, str]:
    """The IPv4 address of each of this machine's interfaces that has one."""
    import fcntl  # here: it is not everywhere

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            try:
                said = fcntl.ioctl(s, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            found[name] = socket.inet_ntoa(said[20:24])
    return found


def split(asked: str, text: str, port: int | None = None) -> tuple[str, int]:
    """HOST:PORT, or HOST where there is a usual port. `asked`: the setting, for the sentence. Raises UsageError."""
    host, colon, number = text.rpartition(":")
    if not colon and port is not None:
        return text, port
    if not host or not number.isdecimal() or int(number) >= 1 << 16:
        raise UsageError(f"{asked}{text}: is HOST:PORT, such as 10.0.0.1:2950; a port is a number below 65536.")
    return host, int(number)


def of_interface(name: str) -> str:
    """Its address. Raises UsageError where this machine has none of that name."""
    there = interfaces()
    if name not in there:
        raise UsageError(f"launcher.interface={name}: this machine has no such interface; it has {_said(there)}.")
    return there[name]


def resolved(asked: str, host: str) -> str:
    """The IPv4 address of a host's name. Raises UsageError."""
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError) as e:
        raise UsageError(f"{asked}: nobody knows the host {host} ({e}); write its address instead.") from e


def towards(asked: str, other: str) -> str:
    """This machine's IPv4 address as the address `other` reaches it. Nothing is sent. Raises UsageError."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((other, 9))
            return str(s.getsockname()[0])
    except OSError as e:
        raise UsageError(
            f"{asked}: no way leads there ({why(e)}); write launcher.interface=NAME, one of {', '.join(interfaces())}."
        ) from e


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine reaches it."""
    return ipaddress.ip_address(address).is_loopback


def listener(asked: str, address: str, port: int) -> socket.socket:
    """Who listens there; port 0: any that is free. Raises UsageError."""
    try:
        return socket.create_server((address, port), backlog=128)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{asked}: something listens at that port already; give another, or 0 for a free one."
            ) from e
        raise UsageError(f"{asked}: nobody can listen there ({why(e)}); give another address.") from e


class Lent(socket.socket):
    """A listener for one run of several: after `shutdown` it listens no more, and the next hears who calls then."""

    def __init__(self, listener: socket.socket):
        super().__init__(fileno=os.dup(listener.fileno()))
        self.setblocking(False)  # who called may have gone before it is accepted
        self._wake, self._woken = socket.socketpair()
        self._poll = select.poll()
        for watched in (self, self._woken):
            self._poll.register(watched, select.POLLIN)

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises OSError after `shutdown`."""
        while self._woken.fileno() not in dict(self._poll.poll()):
            with suppress(BlockingIOError):
                return super().accept()
        raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))

    def shutdown(self, how: int) -> None:
        """Ends `accept` alone, whatever `how`: others have a descriptor of this socket too."""
        self._wake.send(b"x")


def check_own(asked: str, address: str) -> None:
    """Raises UsageError for an address that this machine has not."""
    if not is_loopback(address) and address not in (there := interfaces()).values():
        raise UsageError(f"{asked}: is no address of this machine, which has {_said(there)}.")


def _said(there: dict[str, str]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in there.items()) or "none"


def secret(asked: str, address: str | None) -> bytes:
    """What all machines of a run know; not needed at a loopback `address`; None: not known yet. Raises UsageError."""
    found = os.environ.get(_SECRET, "").strip()
    if not found and (path := os.environ.get(_SECRET_FILE)):
        try:
            found = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"{_SECRET_FILE}={path}: cannot be read ({e}).") from e
    if not found and (address is None or not is_loopback(address)):
        raise UsageError(
            f"{asked}: other machines reach {address or 'the run'}, so a secret is needed that all machines of the run "
            f"know; set {_SECRET}, or {_SECRET_FILE} to a file that has it, on each (openssl rand -hex 16 makes one)."
        )
    return found.encode()
