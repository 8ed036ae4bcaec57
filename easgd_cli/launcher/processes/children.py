"""The processes of a run as its launcher has them: started, told, listened to, and ended."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from easgd_cli.launcher.journal.links import HostLink
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.processes import fork_server
from easgd_cli.launcher.processes.child import Child
from easgd_cli.launcher.processes.standstill import ProcessState, state_of
from easgd_cli.launcher.supervisor.parties import MASTER, ProcessName, title_in_files
from easgd_cli.system.channel import ChannelClosed
from easgd_cli.system.shared_memory import SharedTensors

Message = tuple[dict[str, Any], SharedTensors | None]

_CLOSING_SECONDS = 2.0  # for processes to end by themselves after a run that was not broken off
_ABORTING_SECONDS = 0.2  # the same after one that was


class Children(dict[ProcessName, Child]):
    """All processes that have been started, the latest of each name. `began`: the monotonic time of training second 0,
    once training has begun.
    """

    def __init__(self, logs: Path):
        super().__init__()
        self.began: float | None = None
        self._logs, self._selector = logs, selectors.DefaultSelector()
        self._due: dict[ProcessName, Callable[[], None]] = {}  # calls that start processes, made once one can be forked

    def start(self, party: ProcessName, maker: Any, start: Any) -> None:
        """Starts a process, in the place of one of that name that has ended. Raises RunError and OSError."""
        name = title_in_files(party)
        if (before := self.get(party)) is not None:
            before.kill()  # it may still wait for something
            self._leave(before)
        child = self[party] = Child(name, maker, start, self._logs / f"{name}.log")
        self._selector.register(child.channel, selectors.EVENT_READ, party)
        self._selector.register(child.process.sentinel, selectors.EVENT_READ, party)
        log.info("%s: process %d", name, child.process.pid)
        if self.began is not None:
            self.tell(party, {"kind": "start", "began": self.began})

    def start_when_possible(self, party: ProcessName, start: Callable[[], None]) -> None:
        """Calls `start` once a process can be forked at once, so as not to wait for a server that imports torch."""
        self._due[party] = start
        self.start_due()

    def start_due(self) -> None:
        """Starts the processes that are due, if they can be forked at once."""
        while self._due and fork_server.ready():
            # masters first: a worker that comes back has its sessions with them
            party = next((party for party in self._due if str(party).startswith(MASTER)), next(iter(self._due)))
            self._due.pop(party)()

    def is_due(self, party: ProcessName) -> bool:
        """Returns whether the process is still to be started."""
        return party in self._due

    def forget_start(self, party: ProcessName) -> None:
        """Cancels the start of a process that is due."""
        self._due.pop(party, None)

    def begin(self, second: float) -> None:
        """Tells all processes that training begins; `second`: the monotonic time of training second 0."""
        self.began = second
        for party in self:
            self.tell(party, {"kind": "start", "began": second})

    def tell(
        self, party: ProcessName, message: Mapping[str, Any], enclosed: SharedTensors | socket.socket | None = None
    ) -> None:
        """Posts a message, which is lost if the process has ended."""
        with suppress(ChannelClosed):  # the news of its end is on its way and says more
            self[party].channel.post(dict(message), enclosed)

    def wait(self, seconds: float) -> list[ProcessName]:
        """Returns the processes that have something to say or have ended; waits at most so long for the first."""
        return list(dict.fromkeys(key.data for key, _ in self._selector.select(seconds) if key.data is not None))

    def listen(self, party: ProcessName) -> Iterator[Message]:
        """Yields what a process says: as much as has arrived or, if the process has ended, all of it."""
        child = self[party]
        # asked before listening: what a child said last has all arrived then
        ended = child.process.ended
        try:
            while messages := child.channel.receive():
                yield from messages
                if not ended:
                    break  # it is the others' turn; a child that has ended is read to the end
            child.channel.flush()
        except ChannelClosed:
            self._forget(child.channel)
        if ended:
            self._forget(child.process.sentinel)
            self._forget(child.channel)
            child.gone = True

    def homeless(self) -> list[int]:
        """Returns the workers for which there is no host."""
        return []

    def state(self, party: ProcessName) -> ProcessState | None:
        """Returns what the system says of the process; None where it says nothing."""
        return state_of(self[party].process.pid)

    def far_host(self, party: ProcessName) -> str | None:
        """Returns the host of a process that is on another host, with its memory; None for one here, whose memory
        outlives it.
        """
        return None

    def links(self) -> list[HostLink]:
        """Returns the links to other hosts."""
        return []

    def facts(self) -> dict[str, Any]:
        """Returns what the summary says of the processes."""
        return {}

    def signal(self, number: int, parties: Iterable[ProcessName]) -> None:
        """Sends a signal to these processes."""
        for party in parties:
            self[party].process.send_signal(number)

    def end(self, broken_off: bool) -> None:
        """Ends all processes: kills those that do not end by themselves in time."""
        ends = time.monotonic() + (_ABORTING_SECONDS if broken_off else _CLOSING_SECONDS)
        for child in self.values():
            if not child.process.join(ends - time.monotonic()):
                child.kill()
            self._leave(child)
        self._selector.close()

    def _leave(self, child: Child) -> None:
        """Gives back what is held of a process that has ended, or is about to."""
        self._forget(child.channel)
        self._forget(child.process.sentinel)
        child.close()

    def _forget(self, what: Any) -> None:
        if what in self._selector.get_map():
            self._selector.unregister(what)
