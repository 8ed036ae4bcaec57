"""Which messages make an update: each by itself, all live workers' together, or as a recorded run had them, whatever
arrives when.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from easgd_cli.algorithms import EASGD, SyncEASGD
from easgd_cli.launcher.virtual import master as virtual_master
from easgd_cli.launcher.virtual.master import SERVE, VirtualMaster
from easgd_cli.training.center import Center
from easgd_cli.training.gathering import Each, Gathering, Recorded, Round
from easgd_cli.training.returning import Progress, Returning
from easgd_cli.transport.base import NEW, Kind, Request
from easgd_cli.transport.simulated import REPLY, Events, Network, SimulatedWorkerEnd, Wire


def updates(gathering: Gathering, arrivals: str) -> list[list[int]]:
    """What is served as messages arrive, each named by its worker's digit; `-1` is worker 1 lost, `!` one that has
    finished.
    """
    served = []
    tokens = iter(arrivals.replace(" ", ""))
    for token in tokens:
        if token == "-":
            gathering.lose(int(next(tokens)))
        elif token == "!":
            served.append([-1 - worker for worker in gathering.finish()])
        else:
            gathering.arrive(int(token))
        while members := gathering.next():
            served.append(members)
    return served


def test_each_message_is_an_update_in_the_order_of_arrival_also_after_one_has_finished() -> None:
    assert updates(Each(), "2 0 1 1 ! 0") == [[2], [0], [1], [1], [], [0]]
    each = Each()
    for worker in (2, 0, 1):
        each.arrive(worker)
    each.lose(0)
    assert [each.next(), each.next(), each.next()] == [[2], [1], []] and not each.over


def test_a_round_is_that_of_all_live_workers_in_the_order_of_their_numbers() -> None:
    assert updates(Round(range(3)), "2 0 1  1 2 0") == [[0, 1, 2], [0, 1, 2]]
    # the last that was waited for may be the one that is lost
    assert updates(Round(range(3)), "2 0 -1  0 2  2 -0 2") == [[0, 2], [0, 2], [2], [2]]
    assert updates(Round(range(2)), "0 -0 1") == [[1]]
    assert updates(Round(range(1)), "-0") == []


def test_the_first_that_finishes_ends_the_rounds_and_the_messages_that_wait_are_given_back() -> None:
    gathering = Round(range(3))
    assert updates(gathering, "0 1 2  2 0 !") == [[0, 1, 2], [-1, -3]]
    assert gathering.over and updates(gathering, "1 0 2 -1 !")[-1] == [-1, -3]


@pytest.mark.parametrize("in_rounds", [False, True])
def test_a_recorded_order_is_served_whatever_arrives_first(in_rounds: bool) -> None:
    chance, workers = random.Random(0), range(4)
    for _ in range(50):
        order = []
        for _ in range(5):
            members = sorted(chance.sample(workers, chance.randint(1, 4))) if in_rounds else [chance.randrange(4)]
            if in_rounds and order and members[0] > order[-1][-1]:
                continue  # rising on from the round before it: the record cannot tell them apart
            order.append(members)
        flat = [worker for members in order for worker in members]
        gathering, left, waiting, served = (
            Recorded(flat, in_rounds),
            {w: flat.count(w) for w in workers},
            set[int](),
            [],
        )
        while any(left.values()) or waiting:
            able = [w for w in workers if left[w] and w not in waiting]
            if able:
                w = chance.choice(able)
                gathering.arrive(w)
                left[w] -= 1
                waiting.add(w)
            while members := gathering.next():
                served.append(members)
                waiting -= set(members)
            assert able or not waiting
        assert served == order


def test_a_recorded_order_gives_back_what_waits_only_where_it_is_one_of_rounds() -> None:
    assert updates(Recorded([0, 1, 0, 1], True), "0 1 0 !") == [[0, 1], [-1]]
    single = Recorded([1, 0], False)
    assert updates(single, "0 ! 1") == [[], [1], [0]] and not single.over


@pytest.mark.parametrize(
    "make",
    [Each, lambda: Round(range(3)), lambda: Recorded([2, 0, 1, 2, 1], False), lambda: Recorded([0, 2, 0, 1, 2], True)],
)
def test_a_gathering_that_is_restored_goes_on_as_the_other(make: Any) -> None:
    chance = random.Random(1)
    for _ in range(30):
        before = "".join(chance.choice(("0", "1", "2")) for _ in range(chance.randint(0, 4)))
        after = before[::-1] + chance.choice(("", "!", "-1", "-2")) + "021"
        one, other = make(), make()
        updates(one, before)
        other.restore(one.state())
        assert updates(other, after) == updates(one, after) and other.over == one.over


def easgd_of_two() -> tuple[Events, Wire, list[SimulatedWorkerEnd], Center, VirtualMaster]:
    """Workers at x = 1 and 2, and a master at 0 that is a second busy with each message; alpha = 1/2."""
    events, method = Events(), EASGD(alpha=0.5)
    wire = Wire(Network(8), events)
    ends = [wire.end(i, {"x": torch.full((1,), i + 1.0)}, torch.zeros(1)) for i in range(2)]
    center = Center(method.variables["center"], {"x": torch.zeros(1)})
    return events, wire, ends, center, VirtualMaster(center, wire.master(), Each(), events, 1.0)


def test_a_message_that_is_in_service_when_its_worker_is_lost_is_an_update_all_the_same() -> None:
    """As on one machine: what has been received is received, and only the reply finds nobody."""
    events, wire, ends, center, master = easgd_of_two()
    ends[0].post(ends[0].vectors["x"], 0)
    wire.deliver(events.next())
    master.listen()
    ends[0].lose()
    master.listen()
    assert events.next().kind == SERVE
    assert [request.worker for request in master.serve()] == [0]
    assert center.vectors["x"].item() == 0.5 and center.clock == master.served == 1 and not events


def test_a_message_that_waits_when_its_worker_is_lost_is_no_update() -> None:
    events, wire, ends, _, master = easgd_of_two()
    for end in ends:
        end.post(end.vectors["x"], 0)
        wire.deliver(events.next())
        master.listen()
    ends[1].lose()
    master.listen()
    events.next()
    assert [request.worker for request in master.serve()] == [0] and master.served == 1
    assert events.next().kind == REPLY and not events


def test_a_worker_that_is_lost_while_it_waits_for_the_closing_exchange_has_none() -> None:
    events, wire, ends, center, master = easgd_of_two()
    for end in ends:
        end.post(end.vectors["x"], 4, kind=Kind.CLOSING)
        wire.deliver(events.next())
    master.listen()
    ends[1].lose()
    master.listen()
    master.close(everybody=True)
    events.next()
    assert [request.worker for request in master.serve()] == [0] and center.vectors["x"].item() == 0.5


def test_a_round_counts_as_many_exchanges_as_it_has_messages() -> None:
    events, method = Events(), SyncEASGD(alpha=0.5)
    wire = Wire(Network(8), events)
    ends = [wire.end(i, {"x": torch.full((1,), i + 1.0)}, torch.zeros(1)) for i in range(2)]
    master = VirtualMaster(
        Center(method.variables["center"], {"x": torch.zeros(1)}), wire.master(), Round([0, 1]), events, 1.0
    )
    for end in ends:
        end.post(end.vectors["x"], 0)
        wire.deliver(events.next())
        master.listen()
    assert events.next().kind == SERVE and len(master.serve()) == master.served == 2
    assert [end.collect().served for end in ends] == [2, 2]


def test_a_distribution_is_that_of_the_numbers_counted() -> None:
    """The median of an even number of them is the lower of the two in the middle."""
    assert list(virtual_master._distribution({5: 1, 1: 9})) == [1.4, 1.0, 1.0, 5.0, 5.0]
    assert list(virtual_master._distribution({0: 1, 2: 1})) == [1.0, 0.0, 2.0, 2.0, 2.0]


def test_the_mean_clock_rises_when_a_worker_is_lost_that_was_behind_and_does_not_fall_when_one_ahead_is() -> None:
    """Nobody else is heard meanwhile: who comes next begins at it."""
    progress = Progress({0: 0, 1: 0, 2: 0}, [], 0.0)
    progress.heard(0, 38)
    assert progress.step == 38 / 3
    progress.lose(1)
    assert progress.step == 38 / 2
    progress.lose(2)
    assert progress.step == 38
    progress.take_in(2, 90)
    assert progress.step == 64
    progress.lose(2)
    assert progress.step == 64
    progress.take_in(1, 70)
    progress.take_in(0, 70)  # which is still there: it has gone back to the center
    assert progress.step == 70
    progress.take_in(0, 30)
    assert progress.step == 70


def test_one_that_goes_back_to_the_center_is_there_all_the_time() -> None:
    progress = Progress({0: 10, 1: 20}, [], 0.0)
    progress.take_in(0, 12)
    assert progress.step == 16


@pytest.mark.parametrize(("asks", "goes_on"), [(NEW, 20), (4, 4), (25, 25)])
def test_a_new_worker_goes_on_at_the_mean_clock_of_the_others_and_one_that_was_lost_at_its_own(
    asks: int, goes_on: int
) -> None:
    """Without rounds. The others are at 15 and 26."""
    progress = Progress({0: 15, 1: 26, 2: 0}, [2], 0.0)
    replies, told = list[int](), list[dict[str, Any]]()
    center = SimpleNamespace(
        variable=SimpleNamespace(in_rounds=False, takes=lambda worker: True), pull=lambda reply: None
    )
    serving: Any = SimpleNamespace(
        centers=[center], ledger=None, reply=lambda request, mark=None, t=0: replies.append(t)
    )
    sessions: Any = SimpleNamespace(lent=lambda request: (None, None))
    gathering = Each()
    returning = Returning(serving, sessions, [gathering], progress, told.append)
    returning.ask(Request(2, Kind.JOIN, asks, 0))
    returning.go_on()
    assert replies == [goes_on] and progress.clocks[2] == goes_on and progress.lost == set()
    assert told == [{"worker": 2, "t": goes_on, "lost": max(0, asks), "missed": 20 if asks == NEW else 0}]
