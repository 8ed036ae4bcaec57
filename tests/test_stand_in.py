"""What stands on the first host for a worker elsewhere, between a launcher and hosts that are threads here."""

from __future__ import annotations

import copy
import json
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from fuzzing import changed, changes, examples
from hypothesis import given
from hypothesis import strategies as st

from easgd_cli.launcher.hosts.stand_in import StandIn, StandInStart
from easgd_cli.launcher.hosts.words import Words
from easgd_cli.launcher.processes.local import Processes
from easgd_cli.launcher.processes.masters import Masters
from easgd_cli.launcher.processes.standstill import ProcessState
from easgd_cli.launcher.supervisor.parties import party_of
from easgd_cli.record.checkpoint import OwnerState, WorkerState
from easgd_cli.record.recorder import Recorder
from easgd_cli.system.channel import Channel
from easgd_cli.system.shared_memory import Layout, SharedTensors
from easgd_cli.training import messages
from easgd_cli.training.meter import Tally
from easgd_cli.training.snapshot import Moment
from easgd_cli.transport.base import SessionEnded
from easgd_cli.transport.connection import Connection, FrameKind, RulesBroken
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


VECTORS: Layout = {name: ((3,), torch.float32) for name in ("x", "v", "reply")}
WORKER, MASTER = Words(1, 2, VECTORS), Words("master_1", 2, {"x": VECTORS["x"], "average": VECTORS["x"]})
ALONE = Words(0, 1, {"x": VECTORS["x"], "average": VECTORS["x"]}, alone=True)
START = StandInStart(
    of_nothing, {"worker": 1, "returns": False}, {}, 100, 10.0, 20.0, "come in", turns(), WORKER, again=True
)


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
        """But for what its link has carried."""
        while (said := self.channel.wait()[0])["kind"] == "link":
            pass
        return said


def test_a_worker_whose_host_is_lost_before_training_begins_is_given_to_another_as_it_was() -> None:
    def does(launcher: Launcher) -> None:
        first, begin = launcher.houses("a")
        first.say({"kind": "cannot", "text": "there is no memory"})
        assert launcher.hears() == {"kind": "homeless", "why": "its host a is lost: there is no memory"}
        second, again = launcher.houses("b")
        assert again == begin
        second.say({"kind": "ready"})
        second.finish(10.0)  # ready, and gone before training begins
        if (said := launcher.hears()) == {"kind": "ready"}:  # unless it was gone before that was said
            said = launcher.hears()
        assert said["kind"] == "homeless" and said["why"].startswith("its host b is lost")
        third, again = launcher.houses("c")
        assert again == begin
        third.say({"kind": "ready"})
        assert launcher.hears() == {"kind": "ready"}
        launcher.channel.post({"kind": "start", "began": 5.0})

    launcher = Launcher(does)
    stand_in = StandIn(START, launcher.of_stand_in)
    launcher.of_stand_in.post({"kind": "ready"})  # as its process does
    assert stand_in.wait_for_start() == 5.0
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


# ---------------------------------------------------------------- what a host may say

ROW = {
    "party": "worker_01", "step": 4, "seconds": 0.5, "exchanges": 3, "train_loss": float("nan"), "eta": 0.1,
    "samples_per_second": 9.0, "seconds_compute": 0.1, "seconds_data": 0.1, "seconds_communication": 0.1,
    "seconds_other": 0.2, "distance_to_center": 1.5, "staleness": 0.5,
}  # fmt: skip
COUNTED = {"t": 4, "center_clock": 2, "served": 3, "exchanges": 2, "tally": asdict(Tally()), "spared": -1}
SNAPSHOT = {
    "kind": "snapshot", "moment": {"seconds": 0.5, "step": 3.5, "exchanges": 3, "clocks": {"0": 3, "1": 4}},
    "pace": [20, 0.0],
}  # fmt: skip
KEPT = {**SNAPSHOT, "clock": 3, "cpu": 0.25, "variables": {}, "couriers": {}, "mark": 4}
OWN = {**SNAPSHOT, "moment": {"seconds": 0.5, "step": 4, "exchanges": 0, "clocks": {"0": 4}}}
OF_ALL: list[tuple[Said, tuple[str, ...]]] = [
    ({"kind": "ready"}, ()),
    ({"kind": "done"}, ()),
    ({"kind": "error", "text": "KeyError: 3", "refused": False}, ()),
    ({"kind": "process", "letter": "R", "ticks": 12, "rate": None}, ()),
    ({"kind": "carried", "links": [[1, 100, 200, 3.5e9], [0, 1, 2, None]]}, ()),
    ({"kind": "log", "text": "here\n"}, ()),
    ({"kind": "ended", "done": False, "signal": 9, "how": "killed by SIGKILL"}, ()),
    ({"kind": "cannot", "text": "there is no memory"}, ()),
]
OF_WORKER: list[tuple[Said, tuple[str, ...]]] = [
    ({"kind": "news", "t": 4, "rows": [ROW]}, ()),
    ({"kind": "state", "purpose": "final", "state": COUNTED}, ("x", "v", "reply")),
    ({"kind": "joined", "t": 4}, ()),
    ({"kind": "rejoins", "t": 4, "why": "its loss is nan"}, ()),
    ({"kind": "fault", "what": "stop", "seconds": 0.5}, ()),
]
OF_MASTER: list[tuple[Said, tuple[str, ...]]] = [
    (
        {
            "kind": "served", "workers": [0, 1, 0], "seconds": 0.5, "step": 3.5, "exchanges": 3, "cpu": 0.1,
            "waiting": [1], "vectors": 2.0,
        },
        (),
    ),
    ({"kind": "lost", "worker": 1}, ()),
    ({"kind": "returned", "worker": 1, "t": 4, "lost": 1, "missed": 0}, ()),
    ({**SNAPSHOT, "purpose": "evaluate", "number": 1}, ("x", "average")),
    ({**KEPT, "purpose": "last"}, ("x", "average")),
]  # fmt: skip
OF_ALONE: list[tuple[Said, tuple[str, ...]]] = [
    ({**OWN, "purpose": "evaluate"}, ("x", "average")),
    ({**OWN, "purpose": "final", "clock": 4, "cpu": 0.0}, ("x", "average")),
]
MAY_SAY = (
    [(WORKER, *one) for one in (*OF_ALL, *OF_WORKER)] + [(MASTER, *one) for one in (*OF_ALL, *OF_MASTER)]
    + [(ALONE, *one) for one in OF_ALONE]
)  # fmt: skip


def check(words: Words, message: Any, names: tuple[str, ...] = (), size: int = 3) -> None:
    layout: Layout = {name: ((size,), torch.float32) for name in names}
    words.check(message, SharedTensors.allocate(layout) if names else None)


@pytest.mark.parametrize(("words", "message", "names"), MAY_SAY)
def test_what_may_be_said_is_each_key_of_it_and_no_other_with_these_vectors(
    words: Words, message: Said, names: tuple[str, ...]
) -> None:
    check(words, message, names)
    wrong = [(message | {"more": 1}, names, 3), (message, (*names, "y"), 3)]
    if names:
        wrong += [(message, names, 4), (message, (), 3)]
    optional = ("spread", "number", "variables", "couriers", "mark")
    wrong += [({k: v for k, v in message.items() if k != key}, names, 3) for key in message if key not in optional]
    for of, vectors, size in wrong:
        with pytest.raises(RulesBroken):
            check(words, of, vectors, size)


def test_nobody_says_what_is_said_by_another_sort_of_party() -> None:
    """A worker with a master owns nothing that is evaluated; what stand-ins say is theirs."""
    evaluated: tuple[Said, tuple[str, ...]] = ({**SNAPSHOT, "purpose": "evaluate"}, ("x",))
    of_stand_ins = ("homeless", "unfit", "link", "order", "session", "connection", "start", "stop", "evaluated", "")
    for words, said in ((WORKER, [*OF_MASTER, *OF_ALONE, evaluated]), (MASTER, OF_WORKER), (ALONE, OF_MASTER)):
        for message, names in [*said, *(({"kind": kind, "why": "so"}, ()) for kind in of_stand_ins)]:
            with pytest.raises(RulesBroken):
                check(words, message, names)


WRONG: list[tuple[Words, Said]] = [
    (WORKER, {"kind": "joined", "t": True}),
    (WORKER, {"kind": "joined", "t": 4.0}),
    (WORKER, {"kind": "joined", "t": -1}),
    (WORKER, {"kind": "joined", "t": 10**400}),
    (WORKER, {"kind": "news", "t": 4, "rows": [ROW | {"party": "worker_00"}]}),
    (WORKER, {"kind": "news", "t": 4, "rows": [ROW | {"seconds": float("inf")}]}),
    (WORKER, {"kind": "news", "t": 4, "rows": [ROW | {"eta": 10**400}]}),
    (WORKER, {"kind": "rejoins", "t": 4, "why": "\ud800"}),
    (WORKER, {"kind": "fault", "what": "link", "seconds": 0.5}),
    (WORKER, {"kind": "ended", "done": False, "signal": int(signal.SIGSTOP), "how": "stopped"}),
    (WORKER, {"kind": "ended", "done": False, "signal": 1000, "how": "so"}),
    (WORKER, {"kind": "carried", "links": [[1, 2, 3]]}),
    (MASTER, {"kind": "lost", "worker": 2}),
    (MASTER, OF_MASTER[0][0] | {"workers": [70000]}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_values_that_nobody_can_have_are_refused(words: Words, message: Said) -> None:
    with pytest.raises(RulesBroken):
        check(words, message)


def test_the_table_of_words_has_the_keys_of_what_is_told() -> None:
    told = {messages.TallyState: Tally, messages.MomentOf: Moment}
    for form, of in told.items():
        assert get_type_hints(form).keys() == of.__dataclass_fields__.keys()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", [FrameKind.MESSAGE, FrameKind.REPLY])
def test_a_host_that_says_what_nobody_says_loses_its_connection_and_this_worker(begun: bool, kind: FrameKind) -> None:
    how = "its host a is lost: it said what nobody says who keeps to the rules"

    def does(launcher: Launcher) -> None:
        host, _ = launcher.houses("a")
        if begun:
            host.say({"kind": "ready"})
            assert launcher.hears() == {"kind": "ready"}
            launcher.channel.post({"kind": "start", "began": 5.0})
        host.post(kind, b'{"kind": "homeless", "why": "so"}')
        assert launcher.hears() == {"kind": "unfit", "why": how}
        assert launcher.hears() == {"kind": "error", "text": how, "refused": False}

    launcher = Launcher(does)
    with pytest.raises(SessionEnded, match="keeps to the rules"):
        stand_in = StandIn(replace(START, again=False), launcher.of_stand_in)
        launcher.of_stand_in.post({"kind": "ready"})
        stand_in.run(stand_in.wait_for_start())
    launcher.join()


class Told:
    """In place of a supervisor: what is told reaches a record, as it would; the rest of it asks for nothing."""

    def __init__(self, directory: Path):
        self.recorder = Recorder(directory, 2, {}, {}, {"workers": 2, "variables": ["0", "1"]})
        self.row, self.served = self.recorder.row, self.recorder.order

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def system(self, moment: Moment, **figures: float) -> None:
        at = {"seconds": moment.seconds, "step": int(moment.step), "exchanges": moment.exchanges, "party": "system"}
        self.recorder.row(at | figures)

    measured = system

    def worker_state(self, worker: int, state: WorkerState, final: bool) -> None:
        self.recorder.spent(worker, Tally(**(state.tally or {})).seconds)

    def owner_state(self, state: OwnerState, final: bool) -> None:
        self.system(state.moment, cpu=state.cpu_seconds)
        assert list(state.vectors) == ["x", "average"] and len(state.pace) == 2


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The part of one that hears what is said."""
    local: Any = Processes.__new__(Processes)
    local.supervisor = Told(tmp_path_factory.mktemp("record"))
    local._recovery = local._watch = local._runner = SimpleNamespace(
        row=lambda worker, row: Tally.of(row), served=lambda exchanges: None, tell_masters=lambda message: None,
        said=lambda party, what, seconds: float(seconds),
    )  # fmt: skip
    return local


@given(st.integers(0, len(MAY_SAY) - 1), changes)
@examples(1500)
def test_whatever_a_host_says_is_refused_or_is_nothing_that_its_launcher_cannot_take(
    launcher: Any, number: int, changes: Any
) -> None:
    words, message, names = MAY_SAY[number]
    try:
        said = json.loads(json.dumps(changed(copy.deepcopy(message), changes)))
    except (TypeError, ValueError, RecursionError):
        return  # no message
    if not isinstance(said, dict) or not isinstance(said.get("kind"), str):
        return  # which the connection refuses
    enclosed = SharedTensors.allocate({name: VECTORS["x"] for name in names}) if names else None
    try:
        words.check(said, enclosed)
    except RulesBroken:
        return
    kind = said["kind"]
    if kind in ("ready", "done", "error", "log", "ended", "cannot"):
        json.dumps(said).encode()
        str(said.get("text", said.get("how", ""))).encode()
    elif kind == "process":
        ProcessState(said["letter"], said["ticks"])
    elif kind == "carried":
        for _, sent, came, rate in said["links"]:
            assert sum((sent, came)) >= 0 and (rate is None or isinstance(rate * 1.0, float))
    elif isinstance(words.party, int):
        launcher._handle(party_of(words.party), said, enclosed)
    else:
        launcher._masters = masters = Masters([0, 0])
        launcher._pass_on(masters.hear(0, copy.deepcopy(MAY_SAY[number][1]), enclosed and enclosed.again()))
        launcher._pass_on(masters.hear(1, said, enclosed))
