"""What comes from a network: strangers harm nobody but their own connection, and wrong addresses have a sentence."""

from __future__ import annotations

import errno
import math
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Said

from easgd_cli import __version__
from easgd_cli.algorithms.slices import slices
from easgd_cli.bench.network import Costs, proposed
from easgd_cli.errors import UsageError
from easgd_cli.launcher.distributed import Distributed, _check_slices
from easgd_cli.launcher.hosts import probe
from easgd_cli.launcher.hosts.agent import Agent
from easgd_cli.launcher.hosts.door import CALLER, Door, Role, connect
from easgd_cli.launcher.hosts.far_children import FarChildren, Timeouts
from easgd_cli.launcher.hosts.first_host import FirstHost
from easgd_cli.launcher.hosts.gate import Arrival, Gate
from easgd_cli.launcher.supervisor.parties import ProcessName
from easgd_cli.settings import schema as settings
from easgd_cli.system import network
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind, Refused, answer, call
from easgd_cli.transport.turn import SendTurn, turns

SECRET = b"between us"


@dataclass
class Pair:
    """Both ends of a connection, of which one may also be had raw."""

    called: socket.socket
    caller: socket.socket
    raised: list[Exception] = field(default_factory=list)


def pair(theirs: bytes = SECRET) -> Pair:
    called: list[socket.socket] = []
    raised: list[Exception] = []

    def take() -> None:
        sock, _ = listener.accept()
        called.append(sock)
        try:
            answer(sock, SECRET, 10)
        except (Refused, OSError) as e:
            raised.append(e)
            sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=take)
        thread.start()
        try:
            caller = call(listener.getsockname(), theirs, 10)
        finally:
            thread.join()
    return Pair(called[0], caller, raised)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate(socket.create_server(("127.0.0.1", 0)), SECRET, {"tau": 3}, (5, "float32"), silence=20.0)
    yield made
    made.close({"status": "completed", "exit_code": 0})


def address(gate: Gate) -> tuple[str, int]:
    found: tuple[str, int] = gate._door._listener.getsockname()
    return found


def offered(
    gate: Gate, places: int = 1, size: int = 5, port: int | None = None
) -> tuple[Connection, dict[str, object]]:
    """A host that joins, and what it is told of the run."""
    sock = call(address(gate), SECRET, 10)
    sock.sendall(CALLER.pack(Role.AGENT, 0, 0))
    host = Connection(sock, 20, probe.MOST)
    host.say({"kind": "host", "name": "h", "places": places, "masters": 1, "version": __version__})
    said, _ = host.message(host.next()[1])
    host.say({"kind": "ready", "size": size, "dtype": "float32", "port": port})
    if size == 5:  # else it is sent away
        threading.Thread(target=_measured, args=(host,), daemon=True).start()
    return host, said


def _measured(host: Connection) -> None:
    """Takes part in the measuring of its link, for as long as it is there."""
    with suppress(ConnectionEnded, OSError):
        while True:
            kind, text, count = host.next()
            if kind is FrameKind.PROBE:
                probe.respond(host, text, count)


def ticket(gate: Gate, party: ProcessName) -> int:
    """By which it has been given to a host, once there is one."""
    while (found := gate.assign(party)) is None:
        time.sleep(0.001)
    return found


def test_both_sides_of_a_hello_show_that_they_know_the_secret() -> None:
    both = pair()
    left, right = Connection(both.called, 10, 100), Connection(both.caller, 10, 100)
    x = torch.arange(5.0)
    left.say({"kind": "state", "t": 3}, SharedTensors.of({"x": x, "n": torch.tensor([2.0], dtype=torch.float64)}))
    message, enclosed = right.message(right.next()[1])
    assert message == {"kind": "state", "t": 3} and enclosed is not None
    assert torch.equal(enclosed["x"], x) and enclosed["n"].dtype == torch.float64
    for end in (left, right):
        end.close()


def test_who_has_another_secret_is_refused_and_so_is_who_only_listens_there() -> None:
    with pytest.raises(Refused, match="secret is another"):
        pair(b"something else")

    def impostor() -> None:
        sock, _ = listener.accept()
        sock.sendall(b"easgd-1\n" + bytes(32))
        sock.recv(1000)
        sock.sendall(bytes(32))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=impostor)
        thread.start()
        with pytest.raises(Refused, match="secret is another"):
            call(listener.getsockname(), SECRET, 10)
        thread.join()


def test_a_hello_that_is_heard_is_of_no_use_another_time() -> None:
    heard: list[bytes] = []

    def relay() -> None:
        caller, _ = listener.accept()
        with socket.create_connection(real.getsockname()) as called:
            caller.sendall(called.recv(1000))
            heard.append(caller.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as real:
        threads = [threading.Thread(target=relay), threading.Thread(target=lambda: _answered(real))]
        for thread in threads:
            thread.start()
        with pytest.raises((Refused, OSError)):
            call(listener.getsockname(), SECRET, 2)
        for thread in threads:
            thread.join()
        again = threading.Thread(target=lambda: refused.append(_answered(real)))
        refused: list[Exception | None] = []
        again.start()
        with socket.create_connection(real.getsockname()) as sock:
            sock.sendall(heard[0])
            again.join()
    assert isinstance(refused[0], Refused)


def _answered(listener: socket.socket) -> Exception | None:
    sock, _ = listener.accept()
    with sock:
        try:
            answer(sock, SECRET, 2)
        except (Refused, OSError) as e:
            return e
    return None


def test_strangers_bytes_of_any_kind_leave_the_gate_open_to_a_host(gate: Gate) -> None:
    draw = random.Random(3)
    strangers = []
    for i in range(200):  # more than are listened to at a time
        sock = socket.create_connection(address(gate))
        sock.sendall([b"", b"GET / HTTP/1.1\r\n\r\n", b"easgd-1\n", draw.randbytes(72), draw.randbytes(5000)][i % 5])
        strangers.append(sock)
        if i % 7:
            sock.close()
    for sock in strangers:
        sock.close()
    host, said = _joined_in_time(gate)
    assert said["settings"] == {"tau": 3}
    host.close()


def _joined_in_time(gate: Gate) -> tuple[Connection, dict[str, object]]:
    """As an agent does: again and again, until the strangers' time is over."""
    for _ in range(1000):
        try:
            return offered(gate)
        except (Refused, OSError):
            time.sleep(0.01)
    raise AssertionError("nobody is let in")


def test_a_host_that_says_nonsense_once_it_is_in_is_gone_and_the_others_stay(gate: Gate) -> None:
    host, _ = offered(gate)
    draw = random.Random(5)
    for _ in range(30):
        sock = call(address(gate), SECRET, 10)
        sock.sendall(CALLER.pack(Role.AGENT, 0, 0))
        text = draw.choice([b"[1]", b"{}", b'{"kind": 3}', b'{"kind": "host"}', b"[" * 100_000, draw.randbytes(50)])
        head = struct.pack("<BxxxIQ", draw.choice([0, 1, 1, 1, 2, 9]), len(text), draw.choice([0, 0, 1 << 40]))
        sock.sendall(head + text)
        sock.close()
    assert ticket(gate, 0) and gate.assign(1) is None
    host.close()


def test_a_worker_comes_in_by_its_ticket_only(gate: Gate) -> None:
    host, _ = offered(gate)
    known = ticket(gate, 0)
    for number in (known ^ 1, known):
        sock = call(address(gate), SECRET, 10)
        sock.sendall(CALLER.pack(Role.WORKER, 0, number))
        if number != known:
            sock.settimeout(10)
            assert sock.recv(1) == b""  # it is closed
    arrived = gate.arrived.get(timeout=10)
    assert (arrived.party, arrived.ticket) == (0, known) and gate.arrived.empty()
    arrived.socket.close()
    host.close()


def test_a_master_goes_to_a_host_that_listens_by_its_ticket_only_and_a_session_to_none_here(gate: Gate) -> None:
    hosts = [offered(gate)[0]]
    ticket(gate, 0)
    assert gate.assign("master_1") is None  # it cannot be reached there
    hosts.append(offered(gate, port=7)[0])
    known = ticket(gate, "master_1")
    assert gate.assign("master_2") is None  # one for each host
    for role, number in ((Role.SESSION, known), (Role.MASTER, known ^ 1), (Role.WORKER, known), (Role.MASTER, known)):
        sock = call(address(gate), SECRET, 10)
        sock.sendall(CALLER.pack(role, 1, number))
        if (role, number) != (Role.MASTER, known):
            sock.settimeout(10)
            assert sock.recv(1) == b""  # it is closed
    arrived = gate.arrived.get(timeout=10)
    assert (arrived.party, arrived.address) == ("master_1", ("127.0.0.1", 7)) and gate.arrived.empty()
    arrived.socket.close()
    for host in hosts:
        host.close()


def test_one_that_cannot_begin_on_a_host_goes_to_another_and_not_there_again(gate: Gate) -> None:
    host, _ = offered(gate)
    known = ticket(gate, 0)
    other, _ = offered(gate)
    host.say({"kind": "cannot", "ticket": known, "text": "there is no memory"})
    while gate.expects(0, known):
        time.sleep(0.001)
    assert gate.expects(0, ticket(gate, 0))
    gate.release(0)
    other.close()
    while len(gate.silent()) > 1:
        time.sleep(0.001)
    assert gate.assign(0) is None and gate.assign(1) is not None  # what there is not for one may be there for another
    host.close()


def test_one_that_was_lost_before_it_began_is_not_given_to_that_host_again(gate: Gate) -> None:
    host, _ = offered(gate)
    ticket(gate, 0)
    gate.lost(0)
    assert gate.assign(0) is None and gate.assign(1) is not None
    host.close()


def test_one_that_is_started_again_comes_back_to_its_host_while_another_is_idle(gate: Gate) -> None:
    hosts = [offered(gate)[0]]
    ticket(gate, 0)
    hosts.append(offered(gate)[0])
    ticket(gate, 1)  # the other is there
    first, second = gate._hosts
    for party in (0, 1):
        gate.release(party)
    for _ in range(3):
        ticket(gate, 1)
        assert 1 in second.running and not first.running
        gate.release(1)
    for host in hosts:
        host.close()


def test_two_hosts_of_one_machine_have_a_name_each(gate: Gate) -> None:
    hosts = [offered(gate)[0] for _ in range(3)]
    while len(gate._hosts) < 3:
        time.sleep(0.001)
    names = list(gate.silent())
    assert len(names) == 3 and [name.removeprefix(names[0]) for name in names] == ["", ", 2", ", 3"]
    for host in hosts:
        host.close()


def test_a_host_that_is_not_ready_yet_hears_how_the_run_has_ended(gate: Gate) -> None:
    sock = call(address(gate), SECRET, 10)
    sock.sendall(CALLER.pack(Role.AGENT, 0, 0))
    host = Connection(sock, 20.0)
    host.say({"kind": "host", "name": "late", "places": 1, "masters": 1, "version": __version__})
    assert host.message(host.next()[1])[0]["kind"] == "run"
    closing = threading.Thread(target=gate.close, args=({"status": "completed", "exit_code": 0},))
    closing.start()
    assert host.message(host.next()[1])[0] == {"kind": "end", "status": "completed", "exit_code": 0}
    host.close()
    closing.join()


@pytest.mark.parametrize("places", ["Infinity", "{}", '"many"'])
def test_a_host_that_offers_what_is_no_number_is_sent_away(gate: Gate, places: str) -> None:
    sock = call(address(gate), SECRET, 10)
    sock.sendall(CALLER.pack(Role.AGENT, 0, 0))
    text = f'{{"kind": "host", "name": "odd", "places": {places}, "masters": 1, "version": "{__version__}"}}'.encode()
    sock.sendall(struct.pack("<BxxxIQ", 1, len(text), 0) + text)
    sock.settimeout(10)
    with suppress(ConnectionResetError):
        while sock.recv(1000):
            pass
    sock.close()


def test_whoever_cannot_be_let_in_for_a_moment_keeps_nobody_else_out(caplog: pytest.LogCaptureFixture) -> None:
    """No descriptor is left, say."""

    class Failing(socket.socket):
        fails = 2

        def accept(self) -> Any:
            if self.fails:
                self.fails -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    listener = Failing(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    came = SimpleQueue[int]()
    door = Door(listener, SECRET, lambda sock, address, role, number, ticket: (sock.close(), came.put(number))[1])
    connect((str(listener.getsockname()[0]), listener.getsockname()[1]), SECRET, 10, Role.AGENT, 7).close()
    assert came.get(timeout=10) == 7
    door.close()
    told = [record.message for record in caplog.records]
    assert told == ["a connection could not be taken: Too many open files"], "once, and not for each"


def test_a_worker_that_is_started_again_has_its_slot_while_the_one_before_still_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def thread(host: Any, of: Any, ticket: int) -> Any:
        return SimpleNamespace(of=of, is_alive=lambda: True, leave=lambda: None)

    monkeypatch.setattr("easgd_cli.launcher.hosts.agent.PartyThread", thread)
    agent: Any = Agent.__new__(Agent)
    agent._places, agent._filled = 2, {}
    for worker in (1, 2, 2, 1):
        agent._fill(None, {"worker": worker, "ticket": 1})
        assert agent._filled[worker].of.slot == worker - 1


def test_a_host_of_another_net_is_told_so_and_gets_no_worker(gate: Gate) -> None:
    host, _ = offered(gate, size=6)
    said, _ = host.message(host.next()[1])
    assert said["kind"] == "refused" and "6 numbers" in said["why"]
    assert gate.assign(0) is None
    host.close()


@pytest.mark.parametrize(
    ("kind", "text", "body"),
    [
        (7, b"", 0),
        (1, b"not json", 0),
        (1, b'{"kind": "state", "layout": {"x": [3, "float32"]}}', 8),
        (1, b'{"kind": "state", "layout": {"x": [-1, "float32"]}}', 4),
        (1, b'{"kind": "state", "layout": {"x": [2, "system"]}}', 8),
        (1, b'{"kind": "state", "layout": {"x": 4}}', 4),
        (1, b'{"kind": "state", "layout": {"x": [4611686018427387904, 4, "float32"]}}', 0),
    ],
)
def test_a_frame_that_does_not_keep_to_the_rules_ends_its_connection(kind: int, text: bytes, body: int) -> None:
    both = pair()
    end = Connection(both.called, 10, 100)
    both.caller.sendall(struct.pack("<BxxxIQ", kind, len(text), body) + text + bytes(body))
    with pytest.raises(ConnectionEnded):
        end.message(end.next()[1])
    end.close()
    both.caller.close()


def test_more_vectors_than_there_is_room_for_are_not_read() -> None:
    both = pair()
    end = Connection(both.called, 10, 100)
    both.caller.sendall(struct.pack("<BxxxIQ", 2, 0, 101))
    with pytest.raises(ConnectionEnded, match="keeps to the rules"):
        end.next()
    end.close()
    both.caller.close()


def test_last_words_are_heard_by_who_was_speaking_himself() -> None:
    """The other side is slow, and says something all the while that is not read any more."""
    both = pair()
    end, slow = Connection(both.called, 10), Connection(both.caller, 1.0, 1 << 20)
    x = torch.arange(1 << 18, dtype=torch.float32)
    slow.say({"kind": "not read"})
    end.say({"kind": "ended"}, SharedTensors.of({"x": x}))
    leaves = threading.Thread(target=end.finish, args=(30.0,))
    leaves.start()
    time.sleep(1.0)
    slow.say({"kind": "not read either"})
    time.sleep(0.5)
    message, enclosed = slow.message(slow.next()[1])
    assert message == {"kind": "ended"} and enclosed is not None and torch.equal(enclosed["x"], x)
    with pytest.raises(ConnectionEnded, match=r"^the connection has ended$"):
        slow.next()
    assert leaves.is_alive()  # until this side has ended it
    slow.close()
    leaves.join(20)
    assert not leaves.is_alive()


def test_who_says_nothing_is_gone_and_who_only_breathes_is_not() -> None:
    both = pair()
    end, breathing = Connection(both.called, 1.0), Connection(both.caller, 1.0)
    with pytest.raises(ConnectionEnded, match="has ended"):  # only when the other side leaves, three silences later
        threading.Timer(3.0, breathing.close).start()
        end.next()
    end.close()
    both = pair()
    end = Connection(both.called, 0.3)
    with pytest.raises(ConnectionEnded, match=r"nothing has been heard of it for 0\.3 s"):
        end.next()
    end.close()
    both.caller.close()


def test_a_link_is_measured_by_as_much_as_takes_long_enough_to_tell() -> None:
    """The far end counts what has come, and what was asked of it, in each message."""
    both = pair()
    end, far = Connection(both.called, 10, probe.MOST), Connection(both.caller, 10, probe.MOST)
    seen: list[tuple[int, int]] = []

    def answers() -> None:
        with suppress(ConnectionEnded):
            while True:
                kind, text, count = far.next()
                assert kind is FrameKind.PROBE
                seen.append((int(text), count))
                probe.respond(far, text, count)

    thread = threading.Thread(target=answers)
    thread.start()
    carries = probe.measure(end)
    end.close()
    thread.join()
    far.close()
    assert carries.up > 0 and carries.down > 0
    assert seen[:3] == [(0, 0)] * 3
    for way in (0, 1):  # twice as much each time, and never more than there is room for
        sizes = [pair[way] for pair in seen if pair[way]]
        assert sizes == [sizes[0] * 2**i for i in range(len(sizes))] and sizes[-1] <= probe.MOST


def test_who_answers_a_probe_with_something_else_is_gone() -> None:
    for text, count in ((b"-1", 0), (b"x", 0), (str(2 * probe.MOST).encode(), 0), (b"0", 7)):
        both = pair()
        end = Connection(both.called, 10, probe.MOST)
        both.caller.sendall(struct.pack("<BxxxIQ", FrameKind.PROBE, len(text), count) + text + bytes(count))
        with pytest.raises(ConnectionEnded):
            probe.respond(end, *end.next()[1:])
        end.close()
        both.caller.close()


def test_turns_are_taken_one_after_another_and_nobody_waits_for_long() -> None:
    common = turns()
    one, other = SendTurn(common), SendTurn(common)
    waited = []
    with one.taken(lambda: None), other.taken(lambda: waited.append(1)):
        assert waited  # it has asked, and gone ahead
    with other.taken(lambda: pytest.fail("it is free")):
        pass
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"interface": "nowhere0"}, "launcher.interface=nowhere0: this machine has no such interface; it has"),
        ({"address": "203.0.113.7:0"}, "launcher.address=203.0.113.7:0: is no address of this machine, which has"),
        ({"address": "127.0.0.1:99999"}, "is HOST:PORT"),
        ({"address": "127.0.0.1:x"}, "is HOST:PORT"),
        ({"address": "nobody.invalid:1"}, "nobody knows the host nobody.invalid"),
        ({"here": 5}, "launcher.here=5: is a number of workers from 0 to workers=4"),
        ({"masters": 2, "masters_here": 0}, "launcher.masters_here=0: is a number of masters from 1 to masters=2"),
        ({"masters": 2, "masters_here": 3}, "launcher.masters_here=3: is a number of masters from 1 to masters=2"),
        ({"silence": 0.1}, "launcher.silence=0.1"),
        ({"silence": math.inf}, "launcher.silence=inf"),
        ({"address": "127.0.0.1", "interface": "lo"}, "give one of the two"),
    ],
)
def test_a_wrong_address_has_its_sentence(given: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EASGD_SECRET", "x")
    with pytest.raises((UsageError, ValueError), match=said.replace(".", r"\.").split(";")[0]):
        Distributed(4, **given).listen()  # type: ignore[arg-type]


def test_slices_that_are_too_short_for_int8_have_their_sentence() -> None:
    run = settings.Settings(masters=2, wire="int8", launcher={"masters_here": 1})
    for size, fits in ((1800, False), (5000, True)):
        of = SimpleNamespace(settings=run, size=size, slices=slices(size, 2))
        with nullcontext() if fits else pytest.raises(UsageError, match=r"wire=int8: 1024 numbers share"):
            _check_slices(of)  # type: ignore[arg-type]


def test_a_port_that_is_taken_has_its_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="something listens at that port already"):
            Distributed(4, address=f"127.0.0.1:{port}").listen()


def test_beyond_this_machine_a_secret_is_needed_and_may_be_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EASGD_SECRET", raising=False)
    monkeypatch.delenv("EASGD_SECRET_FILE", raising=False)
    assert network.secret("launcher.address=127.0.0.1", "127.0.0.1") == b""
    with pytest.raises(UsageError, match="a secret is needed"):
        network.secret("launcher.address=10.0.0.1", "10.0.0.1")
    (tmp_path / "secret").write_text("of all\n")
    monkeypatch.setenv("EASGD_SECRET_FILE", str(tmp_path / "secret"))
    assert network.secret("launcher.address=10.0.0.1", "10.0.0.1") == b"of all"
    monkeypatch.setenv("EASGD_SECRET_FILE", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read"):
        network.secret("launcher.address=10.0.0.1", "10.0.0.1")


def test_the_tau_proposed_is_the_least_with_which_exchanges_take_that_share() -> None:
    costs = Costs("h", 1000, 0.001, 0.2, 0.1, 0.33, 0.5, ((1, 1, 1), (1, 1, 1)), 1)
    said = proposed(costs, step=0.05, share=0.05, workers=8)
    tau = int(said.partition("tau=")[2].partition(":")[0])
    assert 0.33 / (tau * 0.05 + 0.33) <= 0.05 < 0.33 / ((tau - 1) * 0.05 + 0.33)
    assert "below tau=32" in said  # eight messages of 0.2 s in tau steps of 0.05 s


def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")


def test_a_process_of_torchrun_whose_workers_are_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    under_torchrun(monkeypatch)
    with pytest.raises(ValueError, match="workers=3: torchrun has started 4 processes"):
        Distributed(3)
    with pytest.raises(UsageError, match="which other hosts do not reach"):
        Distributed(4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Distributed(4).places_here == 4


class Hosts:
    """Stands in for the gate: one host, which leaves, and then another."""

    def __init__(self) -> None:
        self.arrived: SimpleQueue[Any] = SimpleQueue()
        self.given: list[ProcessName] = []
        self.there = 1

    def assign(self, party: ProcessName) -> int | None:
        self.given.append(party)
        return len(self.given)

    def expects(self, party: ProcessName, ticket: int) -> bool:
        return ticket >= self.there

    def release(self, party: ProcessName) -> None:
        """Nothing to release."""


def children(hosts: Any, directory: Path, here: FirstHost, *homeless: ProcessName) -> FarChildren:
    """With stand-ins that wait for a host."""
    found = FarChildren(directory, hosts, here, SECRET, Timeouts(300.0, 10.0, "10.0.0.1:1"))
    for party in homeless:
        said: list[Any] = []
        channel = SimpleNamespace(post=lambda message, _, said=said: said.append(message))
        waiting: Any = SimpleNamespace(gone=False, channel=channel, said=said)
        found[party] = waiting
        found._homeless.append(party)
    return found


def test_a_worker_whose_host_leaves_before_it_has_come_is_given_to_another(tmp_path: Path) -> None:
    hosts = Hosts()
    found = children(hosts, tmp_path, FirstHost(0), 3)
    found._house()
    found._house()
    assert hosts.given == [3]  # once, while its host is there
    hosts.there = 2
    for _ in range(3):
        found._house()
    assert hosts.given == [3, 3]


def test_one_for_whom_there_is_no_host_keeps_no_other_from_one(tmp_path: Path) -> None:
    """It is unfit for the only one that is free."""
    hosts = Hosts()
    hosts.assign = lambda party: None if party == 3 else Hosts.assign(hosts, party)  # type: ignore[method-assign]
    found = children(hosts, tmp_path, FirstHost(0), 3, 4)
    found._house()
    assert hosts.given == [4] and found.homeless() == [3]


def test_a_host_that_has_said_what_nobody_says_is_not_given_that_worker_again(tmp_path: Path) -> None:
    lost: list[ProcessName] = []
    found = children(SimpleNamespace(lost=lost.append), tmp_path, FirstHost(0), 3)
    heard = [[({"kind": "unfit", "why": "so"}, None)]]
    found._homeless.clear()
    found[3] = SimpleNamespace(  # type: ignore[assignment]
        name="worker_03", process=SimpleNamespace(ended=False),
        channel=SimpleNamespace(receive=lambda: heard.pop() if heard else [], flush=lambda: True),
    )  # fmt: skip
    assert list(found.listen(3)) == [] and lost == [3] and not found.homeless()


def test_what_is_said_of_a_session_with_a_master_that_is_nowhere_is_not_noted(tmp_path: Path) -> None:
    found = children(Hosts(), tmp_path, FirstHost(0, 1, slice(0, 5), 1), 3)
    found._rooms |= {3: "a", "master_1": "b"}
    found._note(3, [(7, 1, 2, None), (1, 3, 4, None)])
    assert [between["ends"] for between in found._between.values()] == [("a", "b")]


@pytest.mark.parametrize("words", ["-m seed=0,1", "tau=auto"])
def test_torchrun_starts_the_processes_of_one_run(
    words: str, easgd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    under_torchrun(monkeypatch)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    said = easgd("train", *words.split(), "launcher=distributed", "problem=quadratic", "threads=1")
    asked = words.partition(" ")[0]
    assert said.status == 2 and said.err.startswith(f"easgd: launcher=distributed {asked}: torchrun starts the")
    assert said.err.count("\n") == 1


def test_whoever_calls_between_two_runs_is_heard_by_the_next() -> None:
    with network.listener("", "127.0.0.1", 0) as kept:
        at = kept.getsockname()
        first, heard = network.Lent(kept), SimpleQueue[bytes]()

        def listen(lent: network.Lent) -> None:
            with suppress(OSError):
                while True:
                    sock, _ = lent.accept()
                    with sock:
                        heard.put(sock.recv(1))

        listens = threading.Thread(target=listen, args=(first,))
        listens.start()
        with socket.create_connection(at, 10) as one:
            one.sendall(b"1")
            assert heard.get(timeout=10) == b"1"
        first.shutdown(socket.SHUT_RDWR)
        listens.join(10)
        assert not listens.is_alive()
        first.close()
        with socket.create_connection(at, 10) as two:
            two.sendall(b"2")
            second = network.Lent(kept)
            listens = threading.Thread(target=listen, args=(second,))
            listens.start()
            assert heard.get(timeout=10) == b"2"
        second.shutdown(socket.SHUT_RDWR)
        listens.join(10)
        second.close()
    with pytest.raises(ConnectionRefusedError):  # by which a host knows that no further run follows
        socket.create_connection(at, 10)


def test_workers_wait_until_all_masters_have_come_and_are_told_where_they_are(tmp_path: Path) -> None:
    hosts = Hosts()
    found = children(hosts, tmp_path, FirstHost(0, 1, slice(0, 5), 2), 3, "master_1", "master_2")
    for ticket, party, at in ((2, "master_2", ("10.0.0.3", 8)), (1, "master_1", ("10.0.0.2", 7))):
        found._house()
        assert hosts.given == ["master_1", "master_2"]
        hosts.arrived.put(Arrival(party, ticket, "h", at, None))  # type: ignore[arg-type]
    for _ in range(2):
        found._house()
    assert hosts.given == ["master_1", "master_2", 3]
    hosts.arrived.put(Arrival(3, 3, "h", None, None))  # type: ignore[arg-type]
    found._house()
    told = [vars(found[party])["said"][0]["masters"] for party in ("master_1", "master_2", 3)]
    assert told == [[("10.0.0.2", 7)], [("10.0.0.3", 8)], [("10.0.0.2", 7), ("10.0.0.3", 8)]]
