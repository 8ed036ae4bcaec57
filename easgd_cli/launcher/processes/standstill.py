"""Finds processes that stand still, by what they say and by what the system says of them, at no cost to them.

A worker says where it is a few times a second, but only between two steps, and a step may take minutes; a master says
it always. So silence alone means little. Once a second the system is asked (/proc/PID/stat, 20 microseconds a process).
A process that is stopped stands still, whatever it was doing. Another process stands still when it has something to do,
but has neither said anything nor used or asked for the processor, for longer than any of its steps has taken: a step
may sleep, or wait for a device. Where there is no /proc, no process is found to stand still.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from easgd_cli.launcher.supervisor.parties import MASTER, ProcessName

_LOOK_SECONDS = 1.0
_STOPPED_SECONDS = 2.0  # of silence before a stopped process is told of; a debugger stops one for less
_IDLE_SECONDS = 10.0  # the same for a process that is not stopped
_STEPS = 3  # a silence is longer than so many times the longest step so far


class ProcessState(NamedTuple):
    """The state of a process: the letter that ps shows, and the processor time that it has used, in ticks."""

    letter: str
    ticks: int


class Silent(NamedTuple):
    """How many `seconds` a process has stood still; `stopped`: by a signal."""

    seconds: float
    stopped: bool


@dataclass
class _Seen:
    moved: float  # when the process last did anything
    heard: float
    longest: float | None = None  # the most seconds so far between two of its messages
    ticks: int = -1


class Standstill:
    """What has been heard and seen of each process. All times are in seconds of one clock."""

    def __init__(self) -> None:
        self._seen: dict[ProcessName, _Seen] = {}
        self._looked: float | None = None

    def heard(self, party: ProcessName, now: float) -> None:
        """Notes that the process has said something."""
        seen = self._seen.get(party)
        if seen is None:
            self._seen[party] = _Seen(now, now)
            return
        seen.longest = max(seen.longest or 0.0, now - seen.heard)
        seen.moved = seen.heard = now

    def due(self, now: float) -> bool:
        """Returns whether to look now. After a standstill of the launcher itself, all processes count as just heard."""
        if self._looked is not None and now - self._looked < _LOOK_SECONDS:
            return False
        if self._looked is not None and now - self._looked > 3 * _LOOK_SECONDS:
            for seen in self._seen.values():
                seen.moved = seen.heard = now
        self._looked = now
        return True

    def look(
        self, states: Mapping[ProcessName, ProcessState | None], waiting: Collection[ProcessName], now: float
    ) -> dict[ProcessName, Silent]:
        """Returns those of these processes that stand still. The state of a process of which nothing is known is None.

        A process that is `waiting` for another is not to blame; when the master stands still, all others are waiting.
        """
        found: dict[ProcessName, Silent] = {}
        masters = {party for party in states if str(party).startswith(MASTER)}
        for party in sorted(states, key=lambda party: party not in masters):
            waits = bool(masters & found.keys()) or party in waiting
            if (silent := self._silent(party, states[party], waits, now)) is not None:
                found[party] = silent
        return found

    def _silent(self, party: ProcessName, state: ProcessState | None, waits: bool, now: float) -> Silent | None:
        seen = self._seen.setdefault(party, _Seen(now, now))
        stopped = state is not None and state.letter in "Tt"
        idle = state is not None and state.letter in "SD" and state.ticks == seen.ticks and not waits
        if state is None or not (stopped or idle):
            seen.moved = now
        seen.ticks = -1 if state is None else state.ticks
        patience = _STOPPED_SECONDS
        if not stopped:
            if seen.longest is None:  # it may be in its first step
                return None
            patience = max(_IDLE_SECONDS, _STEPS * seen.longest)
        still = now - seen.moved
        return Silent(still, stopped) if still >= patience else None


def state_of(pid: int) -> ProcessState | None:
    """Returns what the system says of that process; None where it says nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return ProcessState(fields[0].decode(), int(fields[11]) + int(fields[12]))
