"""What stands on the first host for a worker elsewhere, between a launcher and hosts that are threads here."""

from __future__ import annotations

import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from easgd_cli.launcher.hosts.stand_in import StandIn, StandInStart
from easgd_cli.system.channel import Channel
from easgd_cli.transport.base import SessionEnded
from easgd_cli.transport.connection import Connection
from easgd_cli.transport.turn import turns

Said = dict[str, Any]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """It has its own in its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGCONT, signal.SIGQUIT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def of_nothing(lost: Callable[[str], None]) -> Any:
    """A party without sessions."""
    return SimpleNamespace(begin=lambda connection, where: None, carried=lambda: (0, 0), join=lambda seconds: None)


START = StandInStart(of_nothing, {"worker": 1, "returns": False}, {}, 100, 10.0, 20.0, "come in", turns(), again=True)


class Launcher:
    """The other side of its channel; `does` is called with it in a thread, and what it raises is raised at the end."""

    def __init__(self, does: Callable[[Launcher], None]):
        ours, theirs = socket.socketpair()
        self.channel, self.of_stand_in = Channel(ours), Channel(theirs)
        self._does, self._raised = does, queue.SimpleQueue[BaseException | None]()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._does(self)
        except BaseException as e:
            self._raised.put(e)
        else:
            self._raised.put(None)

    def join(self) -> None:
        if (raised := self._raised.get(timeout=20)) is not None:
            raise raised

    def houses(self, name: str) -> tuple[Connection, Said]:
        """A host has a place; its connection, and with what its party is to begin."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            there = socket.create_connection(listener.getsockname())
            here, _ = listener.accept()
        self.channel.post({"kind": "connection", "host": name, "masters": []}, here)
        host = Connection(there, 20.0, 100)
        return host, host.message(host.next()[1])[0]

    def hears(self) -> Said:
        return self.channel.wait()[0]


def test_a_worker_whose_host_is_lost_before_training_begins_is_given_to_another_as_it_was() -> None:
    def does(launcher: Launcher) -> None:
        first, begin = launcher.houses("a")
        first.say({"kind": "cannot", "text": "there is no memory"})
        assert launcher.hears() == {"kind": "homeless", "why": "its host a is lost: there is no memory"}
        second, again = launcher.houses("b")
        assert again == begin
        second.say({"kind": "ready"})
        second.finish(10.0)  # ready, and gone before training begins
        said = launcher.hears()
        assert said["kind"] == "homeless" and said["why"].startswith("its host b is lost")
        third, again = launcher.houses("c")
        assert again == begin
        third.say({"kind": "ready"})
        assert launcher.hears() == {"kind": "ready"}
        launcher.channel.post({"kind": "start", "began": 5.0})

    launcher = Launcher(does)
    assert StandIn(START, launcher.of_stand_in).wait_for_start() == 5.0
    launcher.join()


def test_one_that_cannot_be_given_to_another_ends_with_its_host_before_training_begins() -> None:
    def does(launcher: Launcher) -> None:
        host, _ = launcher.houses("a")
        host.say({"kind": "ready"})
        host.finish(0.2)
        said = launcher.hears()
        assert said["kind"] == "error" and said["text"].startswith("its host a is lost: ")

    launcher = Launcher(does)
    with pytest.raises(SessionEnded, match="its host a is lost"):
        StandIn(replace(START, again=False), launcher.of_stand_in).wait_for_start()
    launcher.join()


def test_one_that_has_lost_its_host_when_training_begins_is_lost_too_since_the_others_do_not_wait() -> None:
    def does(launcher: Launcher) -> None:
        host, _ = launcher.houses("a")
        host.say({"kind": "cannot", "text": "no"})
        assert launcher.hears()["kind"] == "homeless"
        launcher.channel.post({"kind": "start", "began": 5.0})
        assert launcher.hears()["text"] == "its host a is lost: no"

    launcher = Launcher(does)
    with pytest.raises(SessionEnded, match="its host a is lost: no"):
        StandIn(START, launcher.of_stand_in)
    launcher.join()
