"""A center that several masters own, a slice each (masters=k): the bits of one master where the order is the same, an
order for each slice that gives the center again, and one record of all of them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_closing import while_others_wait
from test_recovery import STAGE, Killer, lasting, replayed
from test_runs import (
    MOVING,
    POLYAK,
    disturbed,
    gated,
    hurried,
    one_worker,
    recorded_order,
    rows,
    run,
    saved_center,
    settings,
    training,
    unhurried,
)
from test_simulated import UNEVEN, on_a_function, same_files, stopped_after, virtual
from torch import Tensor

from easgd_cli.algorithms import EASGD
from easgd_cli.algorithms.base import CENTER
from easgd_cli.algorithms.slices import of_slice, slices
from easgd_cli.algorithms.statistics import WithStatistics
from easgd_cli.commands.replay import _refuse_half_exchanges
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.processes.masters import Masters
from easgd_cli.record.reader import Entries, by_variable, read_order
from easgd_cli.record.row_reader import returns_of
from easgd_cli.settings.schema import Checkpoint, Eval, Settings, check
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.center import Center

RESIDUAL = {"name": "residual", "target": "nets:Residual"}
AVERAGED = {"name": "dataset", "target": "easgd_cli.problems.net:NetProblem", "batch_norm": "average"}
DOUBLE = {"name": "double", "target": "nets:double"}


def orders(directory: Path, s: Settings) -> list[list[int]]:
    """Of each master."""
    entries = Entries.of(build.method(s), s.workers, s.masters)
    return by_variable(read_order(directory / "exchanges.bin", entries), s.masters)


def assert_replayed(s: Settings, directory: Path, *names: str) -> None:
    again = directory.with_name(f"{directory.name}_again")
    assert replayed(replace(s, until={}), directory, again).status == "completed"
    same_files(directory, again, "center.pt", *names)
    assert orders(directory, s) == orders(again, s)


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize(
    ("size", "masters", "unit"), [(61_128_808, 4, 1024), (14_378, 3, 1024), (700, 3, 64), (64, 1, 1)]
)
def test_slices_are_the_vector_and_about_equal(size: int, masters: int, unit: int) -> None:
    found = slices(size, masters)
    assert found[0].start == 0 and found[-1].stop == size and len(found) == masters
    assert all(a.stop == b.start and a.stop % unit == 0 for a, b in itertools.pairwise(found))
    assert all(abs(of.stop - of.start - size / masters) <= unit for of in found)


@pytest.mark.parametrize("masters", [2, 3, 5])
def test_statistics_may_be_cut_anywhere(masters: int) -> None:
    """The last entries have a rule of their own, on whichever masters they are; and every bit is that of one master."""
    size = 3 * 1024 * masters + 77
    method = WithStatistics(EASGD(alpha=0.3), statistics=size // 2, workers=4)
    torch.manual_seed(0)
    begin, message = torch.randn(size), torch.randn(size)

    def served(method: Any, entries: slice) -> tuple[Tensor, Tensor]:
        center = Center(method.variables[CENTER], {"x": begin[entries].clone()})
        reply = torch.zeros(entries.stop - entries.start)
        center.receive(center.lend(message[entries].clone(), reply))
        return center.vectors["x"], reply

    parts = [served(of_slice(method, entries, size), entries) for entries in slices(size, masters)]
    whole = served(method, slice(0, size))
    assert all(torch.equal(torch.cat(of), v) for of, v in zip(zip(*parts, strict=True), whole, strict=True))


# ---------------------------------------------------------------- the bits


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour"])
def test_with_one_worker_several_masters_give_the_bits_of_one(algo: str, tmp_path: Path, kept: Path) -> None:
    """Center, average of it, and whatever was evaluated on the way."""
    s, alone = one_worker(algo, kept)
    s = replace(s, masters=3)
    assert run(s, tmp_path / "run").status == "completed"
    same_files(alone, tmp_path / "run", "center.pt", "average.pt")
    for party in ("center", "average"):
        one, other = (
            [
                {k: v for k, v in r.items() if k not in ("seconds", "exchanges") and "best" not in k}
                for r in rows(d, party)
            ]
            for d in (alone, tmp_path / "run")
        )
        assert one == other
    assert orders(tmp_path / "run", s) == [recorded_order(alone)] * 3
    assert sorted(p.name for p in (tmp_path / "run" / "logs").glob("master*")) == [
        "master.log", "master_1.log", "master_2.log",
    ]  # fmt: skip
    virtual(s, tmp_path / "virtual")
    same_files(alone, tmp_path / "virtual", "center.pt", "average.pt")


def test_batch_norms_statistics_are_averaged_by_whichever_master_has_them(tmp_path: Path) -> None:
    s = settings("easgd", workers=1, steps=20, model=RESIDUAL, problem=AVERAGED)
    assert run(s, tmp_path / "one").status == "completed"
    assert run(replace(s, masters=3), tmp_path / "three").status == "completed"
    same_files(tmp_path / "one", tmp_path / "three", "center.pt")


@pytest.mark.parametrize("wire", ["fp32", "int8"])
def test_the_recorded_orders_of_four_workers_give_their_center_bit_for_bit(wire: str, tmp_path: Path) -> None:
    s = settings("easgd", gamma=1e-2, average=POLYAK, masters=2, wire=wire)
    outcome = run(s, tmp_path / "run")
    assert outcome.status == "completed"
    found = orders(tmp_path / "run", s)
    assert [sorted(order) for order in found] == [sorted([0, 1, 2, 3] * 14)] * 2
    assert outcome.summary["exchanges"] == sum(map(len, found))
    prepared = build.prepare(s)
    assert outcome.summary["bytes_exchanged"] == pytest.approx(2 * 4 * 14 * prepared.vector_bytes)
    assert_replayed(s, tmp_path / "run", "average.pt")
    last = rows(tmp_path / "run", "center")[-1]
    center = saved_center(tmp_path / "run", prepared)
    assert last["test_loss"] == pytest.approx(prepared.problem.evaluate(center)["test_loss"], rel=1e-5)


class Sliced:
    """The printed listing of EASGD or EAMSGD where each slice of the center has its own order: a message waits for each
    master, and its worker goes on when the last one has answered. Written from the listings, without easgd's rules.
    """

    def __init__(self, s: Settings, prepared: build.Experiment, cuts: list[slice]):
        self.s, self.problem, self.cuts = s, prepared.problem, cuts
        self.center = prepared.start.clone()
        self.x = [prepared.start.clone() for _ in range(s.workers)]
        self.v = [torch.zeros_like(prepared.start) for _ in range(s.workers)]
        self.t = [0] * s.workers
        self.message = [x.clone() for x in self.x]  # all are due at t = 0
        self.seen: list[list[Tensor | None]] = [[None] * len(cuts) for _ in self.x]
        self.alpha, self.schedule = 0.9 / s.workers, build.schedule(s, prepared.steps)

    def follow(self, found: list[list[int]]) -> None:
        left = [list(order) for order in found]
        while any(left):
            j = next(j for j, order in enumerate(left) if order and self.seen[order[0]][j] is None)
            i = left[j].pop(0)
            part, m = self.center[self.cuts[j]], self.message[i][self.cuts[j]]
            self.seen[i][j] = part.clone()
            part += self.alpha * (m - part)
            if all(reply is not None for reply in self.seen[i]):
                self.step(i, torch.cat([reply for reply in self.seen[i] if reply is not None]))
                while self.t[i] % self.s.tau and self.t[i] < (self.s.steps or 0):
                    self.step(i, None)
                self.message[i], self.seen[i] = self.x[i].clone(), [None] * len(self.cuts)

    def step(self, i: int, center: Tensor | None) -> None:
        delta = self.s.delta if self.s.algo["name"] == "eamsgd" else 0.0
        self.problem.load(i, self.t[i])
        g = self.problem.gradient(self.x[i] + delta * self.v[i]).clone()
        if center is not None:
            self.x[i] -= self.alpha * (self.x[i] - center)
        self.v[i] = delta * self.v[i] - self.schedule(self.t[i]) * g
        self.x[i] += self.v[i]
        self.t[i] += 1


@pytest.mark.parametrize("algo", ["easgd", "eamsgd"])
def test_the_printed_listing_with_each_slices_order_gives_the_center(algo: str, tmp_path: Path) -> None:
    s = settings(algo, gamma=1e-2, model=DOUBLE, masters=3)
    assert run(s, tmp_path).status == "completed"
    prepared = build.prepare(s)
    listing = Sliced(s, prepared, slices(prepared.size, 3))
    listing.follow(orders(tmp_path, s))
    torch.testing.assert_close(listing.center, saved_center(tmp_path, prepared), rtol=1e-9, atol=1e-9)
    assert float((listing.center - prepared.start).abs().max()) > 1e-3


# ---------------------------------------------------------------- ends


def test_a_run_ends_where_its_center_has_reached_the_level_and_its_record_gives_that_center(tmp_path: Path) -> None:
    s = unhurried("eamsgd", until={"test_error": 40.0}, batch_size=32, masters=2)
    outcome = run(s, tmp_path / "run")
    assert outcome.status == "completed"
    last = rows(tmp_path / "run", "center")[-1]
    assert last["test_error"] <= 40.0 and sum(map(len, orders(tmp_path / "run", s))) == last["exchanges"]
    prepared = build.prepare(s)
    center = saved_center(tmp_path / "run", prepared)
    assert prepared.problem.evaluate(center)["test_error"] == pytest.approx(last["test_error"])
    assert_replayed(s, tmp_path / "run")


def test_one_worker_stopped_and_resumed_goes_on_bit_for_bit(tmp_path: Path, kept: Path) -> None:
    s, whole = one_worker("eamsgd", kept)
    s = replace(s, masters=2)
    run(replace(s, steps=17), tmp_path)
    assert run(s, tmp_path, resume=True).status == "completed"
    same_files(whole, tmp_path, "center.pt", "average.pt")
    assert orders(tmp_path, s) == [recorded_order(whole)] * 2


def test_one_worker_killed_goes_on_from_its_last_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    """A checkpoint on the way is of one place in the worker's sessions, and the record is taken back to that."""
    s = unhurried("eamsgd", seconds=0.01, workers=1, steps=120, masters=2, average=MOVING)
    run(hurried(s), tmp_path / "whole")
    s = gated(replace(s, checkpoint=Checkpoint(every="12 steps")), tmp_path / "gate", 40)

    def kill(pids: dict[str, int]) -> None:
        os.kill(pids["master_1"], signal.SIGKILL)

    outcome = disturbed(s, tmp_path / "parts", kill, when=lambda d: any((d / "checkpoint").glob("*.pt")))
    assert outcome.status == "failed" and "resume=" in (outcome.reason or "")
    assert run(hurried(s), tmp_path / "parts", resume=True).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt", "average.pt")
    assert orders(tmp_path / "whole", s) == orders(tmp_path / "parts", s)


def test_a_signal_leaves_a_checkpoint_of_all_slices(tmp_path: Path) -> None:
    s = unhurried("easgd", masters=3)
    outcome = disturbed(s, tmp_path, lambda _: os.kill(os.getpid(), signal.SIGINT), training)
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    s.steps = max(outcome.summary["steps"].values()) + 20
    assert run(s, tmp_path, resume=True).status == "completed"
    found = orders(tmp_path, s)
    assert sum(map(len, found)) == json.loads((tmp_path / "summary.json").read_text())["exchanges"]
    assert [sorted(order) for order in found] == [sorted(found[0])] * 3, "every message has reached every master"


@pytest.mark.parametrize("launcher", ["local", "simulated"])
def test_the_closing_exchange_is_with_all_masters(launcher: str, tmp_path: Path) -> None:
    s = settings("async_diloco", workers=3, steps=23, masters=2, eval=Eval(train_images=100))
    made: Callable[..., Any] = run if launcher == "local" else lambda s, d, **more: virtual(s, d, **UNEVEN, **more)
    assert made(s, tmp_path / "run").status == "completed"
    assert [order[-3:] for order in orders(tmp_path / "run", s)] == [[0, 1, 2]] * 2
    assert_replayed(s, tmp_path / "run")
    assert made(replace(s, steps=40), tmp_path / "run", resume=True).status == "completed"
    assert [len(order) for order in orders(tmp_path / "run", s)] == [3 * 14 + 3] * 2, "it has closed once"


def test_a_run_that_is_told_to_end_closes_with_none_of_its_masters(tmp_path: Path) -> None:
    s = replace(unhurried("async_diloco", seconds=0.01, workers=3, steps=80, masters=2), eval=Eval(train_images=100))
    outcome = while_others_wait(s, tmp_path, lambda pids: os.kill(os.getpid(), signal.SIGINT))
    assert outcome.status == "interrupted"
    assert [sorted(order) for order in orders(tmp_path, s)] == [sorted(orders(tmp_path, s)[0])] * 2
    assert run(s, tmp_path, resume=True).status == "completed"
    assert [order[-3:] for order in orders(tmp_path, s)] == [[0, 1, 2]] * 2


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("algo", ["eamsgd", "downpour"])
def test_whoever_is_killed_the_others_go_on_and_the_record_gives_the_center(algo: str, tmp_path: Path) -> None:
    s = lasting(algo, masters=2)
    order = ["worker_01", "master_1", "worker_01", "master"]
    with Killer(tmp_path / "run", order) as killer:
        outcome = run(gated(s, killer.gate, STAGE), tmp_path / "run")
    assert killer.killed == len(order) and outcome.status == "completed"
    assert set(outcome.summary["steps"].values()) == {200} and outcome.summary["lost"] == {}
    assert outcome.summary["restarts"] == {"master": 2, "worker_01": 2}
    back = [(r["returned"], r["master"]) for r in rows(tmp_path / "run", "system") if "returned" in r]
    assert sorted(back) == [(1, 0), (1, 0), (1, 1), (1, 1)]
    log = (tmp_path / "run" / "logs" / "launcher.log").read_text()
    assert len(re.findall(r"INFO master: process", log)) == len(re.findall(r"INFO master_1: process", log)) == 2
    order = read_order(tmp_path / "run" / "exchanges.bin", Entries.of(build.method(s), s.workers, s.masters))
    try:
        _refuse_half_exchanges("replay=run", 2, order, returns_of(tmp_path / "run" / "metrics.jsonl", s.workers))
    except UsageError:  # a worker was killed between telling one master and the other
        told = [Counter(entry & 0xFFFF for entry in order if entry >> 16 == master) for master in (0, 1)]
        assert told[0] != told[1]
    else:
        assert_replayed(s, tmp_path / "run")


def test_masters_that_die_together_are_one_loss(tmp_path: Path) -> None:
    s, gate = lasting("easgd", masters=3, steps=120), tmp_path / "gate"

    def kill(pids: dict[str, int]) -> None:
        for party in ("master", "master_1", "master_2"):
            os.kill(pids[party], signal.SIGKILL)
        gate.touch()

    outcome = disturbed(gated(s, gate, 40), tmp_path / "run", kill, lambda d: len(recorded_order(d)) > 20)
    assert outcome.status == "completed" and outcome.summary["restarts"]["master"] <= 3
    assert_replayed(s, tmp_path / "run")


def test_half_an_exchange_of_one_that_came_back_cannot_be_gone_through() -> None:
    """It told one master of its message and died before it told the other."""
    order = [1, 1 + (1 << 16), 1, 0, 1 << 16, 1, 1 + (1 << 16)]
    whole = [*order[:3], 1 + (1 << 16), *order[3:]]
    _refuse_half_exchanges("replay=R", 2, whole, [(4, 1, 3, 0), (5, 1, 3, 1)])
    with pytest.raises(UsageError, match="in the middle of an exchange with its 2 masters"):
        _refuse_half_exchanges("replay=R", 2, order, [(4, 1, 3, 0), (5, 1, 3, 1)])


# ---------------------------------------------------------------- one of several


def said(masters: Masters, place: int, kind: str, **more: Any) -> list[dict[str, Any]]:
    tensors = SharedTensors.of({"x": torch.full((2,), float(place))}) if kind == "snapshot" else None
    if kind == "snapshot":
        more |= {"moment": {"seconds": 1.0, "step": 1.0, "exchanges": 5, "clocks": {"0": 3}}, "clock": 4, "cpu": 1.0}
        more |= {"pace": [more.pop("next"), 0.0]}
    if kind == "served":
        more |= {"cpu": 1.0, "waiting": [], "step": 1.0, "seconds": 1.0, "vectors": 2.0, "exchanges": 5}
    found = []
    for message, parts in masters.hear(place, {"kind": kind, **more}, tensors):
        found.append({**message, "x": parts["x"].tolist()} if parts is not None else message)
    return found


def test_whoever_is_ahead_is_not_listened_to_until_the_others_have_said_their_slices() -> None:
    masters = Masters([0, 0])
    masters.marks()
    assert [m["workers"] for m in said(masters, 0, "served", workers=[1, 2])] == [[1, 2]]
    assert said(masters, 0, "snapshot", purpose="checkpoint", next=10, mark=3) == []
    assert said(masters, 0, "served", workers=[3]) == []
    assert masters.heard == [3, 0]
    [entries] = said(masters, 1, "served", workers=[2])
    assert entries["workers"] == [2 + (1 << 16)] and entries["exchanges"] == 3
    whole, later = said(masters, 1, "snapshot", purpose="checkpoint", next=10, mark=3)
    assert whole["x"] == [0, 0, 1, 1] and whole["masters"] == [[4, 5], [4, 5]] and whole["moment"]["exchanges"] == 10
    assert later["workers"] == [3]


def test_a_snapshot_that_one_of_them_has_left_out_is_of_none() -> None:
    masters = Masters([0, 0])
    assert said(masters, 0, "snapshot", purpose="evaluate", next=20) == []
    assert said(masters, 0, "snapshot", purpose="evaluate", next=30) == []
    [whole] = said(masters, 1, "snapshot", purpose="evaluate", next=30)
    assert whole["pace"] == [30, 0.0]
    assert said(masters, 0, "snapshot", purpose="evaluate", next=40) == []
    [last] = [
        *said(masters, 0, "snapshot", purpose="final", next=40),
        *said(masters, 1, "snapshot", purpose="final", next=30),
    ]
    assert last["purpose"] == "final"


def test_a_mark_that_may_not_have_reached_all_is_forgotten() -> None:
    masters = Masters([0, 0])
    masters.marks()
    said(masters, 0, "snapshot", purpose="checkpoint", next=10, mark=3)
    said(masters, 0, "served", workers=[3])
    assert [m["kind"] for m, _ in masters.forget_checkpoint()] == ["served"]
    assert said(masters, 0, "snapshot", purpose="checkpoint", next=10, mark=3) == []
    assert [m["kind"] for m in said(masters, 0, "served", workers=[3])] == ["served"]


# ---------------------------------------------------------------- virtual seconds


@pytest.mark.parametrize("masters", [1, 2, 4])
def test_an_exchange_with_k_masters_takes_a_kth_of_the_transfer_and_of_the_service(
    masters: int, tmp_path: Path
) -> None:
    """Each has a link and a queue of its own: latency + (bytes up + bytes down + service) / k."""
    s = settings("downpour", workers=1, tau=1, steps=6, masters=masters, eval=Eval(every="6 steps", train_images=10))
    prepared = build.prepare(s)
    bandwidth, nbytes = prepared.vector_bytes / 2.0, prepared.vector_bytes
    assert nbytes == 4 * prepared.size
    cluster = {"compute": 0.1, "latency": [0.1, 0.2], "bandwidth": bandwidth, "service": 0.3}
    outcome = virtual(s, tmp_path, **cluster)
    longest = max(of.stop - of.start for of in slices(prepared.size, masters)) / prepared.size
    assert outcome.summary["wall_seconds"] == pytest.approx(6 * (0.1 + 0.3 + (2 + 2 + 0.3) * longest))


def test_each_master_has_a_link_of_its_own_that_all_workers_share(tmp_path: Path) -> None:
    """p messages at once, of a k-th of the bytes: the last is there after p / k of the seconds that one has alone."""
    s = settings("downpour", workers=4, tau=1, steps=1, masters=2, eval=Eval(every="1 steps", train_images=10))
    prepared = build.prepare(s)
    longest = max(of.stop - of.start for of in slices(prepared.size, 2)) / prepared.size
    outcome = virtual(s, tmp_path, compute=1.0, shared_bandwidth=[prepared.vector_bytes / 3.0, 1e15])
    assert outcome.summary["wall_seconds"] == pytest.approx(4 * 3.0 * longest + 1.0)


def test_messages_queue_at_each_master_by_itself(tmp_path: Path) -> None:
    """p messages arrive together at each of k masters and take s / k there: the last reply comes after p s / k."""
    s = settings("downpour", workers=4, tau=1, steps=1, masters=2, eval=Eval(every="1 steps", train_images=10))
    outcome = virtual(s, tmp_path, compute=1.0, service=0.1)
    longest = max(of.stop - of.start for of in slices(build.prepare(s).size, 2)) / build.prepare(s).size
    assert outcome.summary["wall_seconds"] == pytest.approx(4 * 0.1 * longest + 1.0)


@pytest.mark.parametrize("algo", ["easgd", "mdownpour", "async_diloco"])
def test_a_virtual_run_interrupted_in_mid_step_goes_on_bit_for_bit(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = settings(algo, workers=3, steps=20, masters=3, average=MOVING, eval=Eval(every="10 steps", train_images=50))
    virtual(s, tmp_path / "whole", **UNEVEN)
    for events in (1, 9, 40, 41, 42, 43, 90):
        stopped_after(events, monkeypatch)
        assert virtual(s, tmp_path / "parts", resume=events > 1, **UNEVEN).status == "interrupted"
    monkeypatch.undo()
    assert virtual(s, tmp_path / "parts", resume=True, **UNEVEN).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt", "average.pt")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert orders(tmp_path / "whole", s) == orders(tmp_path / "parts", s)
    assert_replayed(s, tmp_path / "whole", "average.pt")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"masters": 0}, "masters=0: must be a whole number of at least 1"),
        ({"masters": 2, "algo": "sync_easgd"}, "algo=sync_easgd masters=2: this method takes rounds"),
        ({"masters": 2, "fragments": 3, "tau": 3}, "algo=easgd masters=2 fragments=3: a vector is cut in one way"),
        ({"masters": 2, "algo": "easgd_tree"}, "algo=easgd_tree masters=2: slices are of one center"),
        ({"masters": 65}, "masters=65: launcher=local starts at most 64 masters"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], said: str) -> None:
    algo = values.pop("algo", "easgd")
    s = settings("easgd", **values)
    if algo != "easgd":
        maker, options = {"sync_easgd": ("SyncEASGD", {}), "easgd_tree": ("EASGDTree", {"degree": 2})}[algo]
        s.algo = {"name": algo, "target": f"easgd_cli.algorithms:{maker}", **options}
    s.launcher = {"name": "local", "target": "easgd_cli.launcher.kinds:Local"}
    with pytest.raises(UsageError, match=said):
        check(s)
        build.method(s)
        kinds.launcher(s)


def test_a_short_vector_has_no_room_for_many_masters() -> None:
    with pytest.raises(UsageError, match=r"masters=2: x has 1 entries and .* give at most 1"):
        build.prepare(on_a_function("easgd", masters=2))
