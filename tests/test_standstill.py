"""Who stands still, by lists of what was heard and seen of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from easgd_cli.launcher.processes.standstill import ProcessState, Silent, Standstill, state_of
from easgd_cli.launcher.supervisor.parties import EVALUATOR, MASTER, Party


def looks(
    watched: Standstill, seconds: range, states: dict[Party, ProcessState | None], waiting: tuple[Party, ...] = ()
) -> dict[int, dict[Party, Silent]]:
    """What is found at each of these seconds at which somebody stands still."""
    found = {}
    for second in seconds:
        assert watched.due(float(second)) and not watched.due(second + 0.5), "once a second"
        if silent := watched.look(states, waiting, float(second)):
            found[second] = silent
    return found


def heard_every(watched: Standstill, seconds: float, *parties: Party) -> None:
    for party in parties:
        for times in range(2):
            watched.heard(party, times * seconds - seconds)


def test_a_stopped_process_is_found_within_seconds_whatever_it_did_and_until_it_runs() -> None:
    for party in (0, MASTER, EVALUATOR):
        watched = Standstill()
        running, stopped = ProcessState("R", 5), ProcessState("T", 9)
        assert looks(watched, range(3), {party: running}) == {}
        found = looks(watched, range(3, 8), {party: stopped}, waiting=(party,))
        assert found == {s: {party: Silent(s - 2.0, True)} for s in range(4, 8)}
        assert looks(watched, range(8, 20), {party: ProcessState("R", 9)}) == {}


def test_a_step_of_minutes_is_no_silence_while_it_computes_or_is_like_those_before() -> None:
    watched = Standstill()
    computing: dict[Party, ProcessState | None] = {}
    for second in range(100):
        # one of them never gets the processor it asks for
        computing = {0: ProcessState("S", second), 1: ProcessState("R", 7)}
        assert looks(watched, range(second, second + 1), computing) == {}
    sleeping: dict[Party, ProcessState | None] = {0: ProcessState("S", 7)}
    watched = Standstill()
    assert looks(watched, range(100), sleeping) == {}, "nobody knows how long a first step takes"
    watched = Standstill()
    heard_every(watched, 40.0, 0)
    assert set(looks(watched, range(140), sleeping)) == set(range(120, 140)), "three of its longest steps"


def test_who_neither_speaks_nor_computes_stands_still_but_not_who_waits_for_it() -> None:
    watched = Standstill()
    heard_every(watched, 0.2, 0, 1, MASTER, EVALUATOR)
    states: dict[Party, ProcessState | None] = {
        0: ProcessState("S", 1),
        1: ProcessState("D", 1),
        MASTER: ProcessState("S", 4),
        EVALUATOR: ProcessState("S", 2),
    }
    found = looks(watched, range(13), {**states, MASTER: ProcessState("R", 0)}, waiting=(0, EVALUATOR))
    assert {second: set(silent) for second, silent in found.items()} == {10: {1}, 11: {1}, 12: {1}}
    found = looks(watched, range(13, 30), states, waiting=(0, EVALUATOR))
    assert {frozenset(silent) for silent in found.values()} == {frozenset([1]), frozenset([MASTER])}
    assert set(found[29]) == {MASTER}, "workers wait for a master that stands still"


def test_a_launcher_that_has_itself_stood_still_blames_nobody() -> None:
    watched = Standstill()
    heard_every(watched, 0.2, 0)
    states: dict[Party, ProcessState | None] = {0: ProcessState("S", 3)}
    assert looks(watched, range(3), states) == {}
    assert looks(watched, range(500, 510), states) == {}


def test_where_the_system_says_nothing_nobody_stands_still() -> None:
    watched = Standstill()
    heard_every(watched, 0.2, 0)
    assert looks(watched, range(100), {0: None}) == {}
    assert state_of(2**22 + 1) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="there is no /proc")
def test_the_system_tells_of_a_stopped_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        stopped = state_of(process.pid)
        process.send_signal(signal.SIGCONT)
        process.kill()
    assert stopped is not None and stopped.letter == "T"
