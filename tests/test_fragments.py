"""The vector in fragments, each exchanged in its turn: every method against a transcription entry by entry, messages
that leave the other fragments alone, and runs that are resumed and replayed.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from listings import MU, NU
from test_algorithms import ALPHA, DELTA, METHODS, START, D, FunctionOf, falling, noisy
from test_runs import recorded_order, rows, run, saved_center, settings
from test_simulated import UNEVEN, on_a_function, same_files, stopped_after, virtual
from torch import Tensor

from easgd_cli.algorithms import EASGD, DiLoCo, Exchange, GossipPull, Gradient, Method, StreamingDiLoCo, Worker
from easgd_cli.algorithms.average import Moving, Polyak
from easgd_cli.algorithms.base import CENTER, Rule
from easgd_cli.algorithms.elementwise import moved
from easgd_cli.algorithms.fragments import InFragments, in_fragments
from easgd_cli.algorithms.groups import Part
from easgd_cli.algorithms.local import AdamW, Nesterov
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.record.reader import summary_of
from easgd_cli.settings.schema import Eval, check
from easgd_cli.training.center import Center
from easgd_cli.training.drive import ByHand, Step
from easgd_cli.transport.base import Reply

TAU, F = 5, 3
OF_ENTRY = torch.tensor([0, 0, 1, 1, 2, 2, 2])  # seven entries in three fragments
TURN = torch.tensor([0, 0, 1, 1, 3, 3, 3])  # of 5 steps: where 0, 5/3 and 10/3 are, rounded down


def in_turn(method: Method, fragments: int = F, parts: list[Part] | None = None) -> Method:
    return in_fragments(method, fragments, D, parts or [], START)


def driven(method: Method, p: int = 3, **values: Any) -> ByHand:
    given: dict[str, Any] = {"workers": p, "tau": TAU, "schedule": falling, "start": START}
    return ByHand(in_turn(method), FunctionOf(), **(given | values))


class Masked:
    """The equations, entry by entry: `due` says of each whether it is exchanged in the worker's step t."""

    def __init__(self, p: int):
        self.x = [START.clone() for _ in range(p)]
        self.v = [torch.zeros(D, dtype=torch.float64) for _ in range(p)]
        self.pulled = [START.clone() for _ in range(p)]
        self.heard = [torch.zeros(D, dtype=torch.bool) for _ in range(p)]
        self.t = [0] * p
        self.center, self.outer, self.sum = START.clone(), torch.zeros(D).double(), torch.zeros(D).double()
        self.updates = torch.zeros(D, dtype=torch.int64)

    def due(self, t: int) -> Tensor:
        return (t - TURN) % TAU == 0

    def gradient(self, i: int, at: Tensor) -> Tensor:
        return falling(self.t[i]) * noisy(i, self.t[i], at)

    def easgd(self, i: int) -> None:
        x = self.x[i]
        difference = ALPHA * (x - self.center) * self.due(self.t[i])
        self.x[i], self.center = x - difference - self.gradient(i, x), self.center + difference

    def eamsgd(self, i: int) -> None:
        x = self.x[i]
        difference = ALPHA * (x - self.center) * self.due(self.t[i])
        self.v[i] = DELTA * self.v[i] - self.gradient(i, x + DELTA * self.v[i])
        self.x[i], self.center = x - difference + self.v[i], self.center + difference

    def downpour(self, i: int) -> None:
        due = self.due(self.t[i])
        self.center = self.center + due * self.v[i]
        self.x[i] = torch.where(due, self.center, self.x[i])
        g = self.gradient(i, self.x[i])
        self.x[i], self.v[i] = self.x[i] - g, ~due * self.v[i] - g

    def async_diloco(self, i: int) -> None:
        due = self.due(self.t[i])
        self.delayed(due, self.pulled[i] - self.x[i])
        self.pulled[i] = torch.where(due, self.center, self.pulled[i])
        self.x[i] = torch.where(due, self.center, self.x[i])
        self.x[i] = self.x[i] - self.gradient(i, self.x[i])

    def delayed(self, due: Tensor, d: Tensor) -> None:
        self.updates = self.updates + due
        self.sum = self.sum + due * d
        momentum = due & (self.updates % 2 == 0)
        self.outer = torch.where(momentum, MU * self.outer + self.sum / 2, self.outer)
        self.center = self.center - NU * d / 2 * due - NU * MU * self.outer * momentum
        self.sum = self.sum * ~momentum

    def mean(self) -> Tensor:
        return torch.stack(self.x).mean(0)

    def sync_easgd(self) -> None:
        center, mean, due = self.center, self.mean(), self.due(self.t[0])
        self.center = center + len(self.x) * ALPHA * (mean - center) * due
        self.x = [x - ALPHA * (x - center) * due - self.gradient(i, x) for i, x in enumerate(self.x)]

    def gauss_seidel_easgd(self) -> None:
        due = self.due(self.t[0])
        self.center = self.center + len(self.x) * ALPHA * (self.mean() - self.center) * due
        self.x = [x + ALPHA * (self.center - x) * due - self.gradient(i, x) for i, x in enumerate(self.x)]

    def pull_then_step(self) -> None:
        due = self.due(self.t[0])
        self.center = self.center + 0.6 * (self.mean() - self.center) * due
        ys = [x + ALPHA * (self.center - x) * due for x in self.x]
        self.x = [y - self.gradient(i, y) for i, y in enumerate(ys)]

    def model_averaging(self) -> None:
        due = self.due(self.t[0])
        self.center = torch.where(due, self.mean(), self.center)
        self.go_on_from(due)

    def outer_step(self, due: Tensor) -> None:
        d = self.center - self.mean()
        self.outer = torch.where(due, MU * self.outer + d, self.outer)
        self.center = self.center - NU * (d + MU * self.outer) * due

    def diloco(self) -> None:
        due = self.due(self.t[0])
        self.outer_step(due)
        self.go_on_from(due)

    def go_on_from(self, due: Tensor) -> None:
        xs = [torch.where(due, self.center, x) for x in self.x]
        self.x = [x - self.gradient(i, x) for i, x in enumerate(xs)]

    def streaming_diloco(self) -> None:
        """Algorithm 2 of arXiv 2501.18512 with a delay of 2 steps: what is sent now, and what was sent then."""
        t = self.t[0]
        back = (t - 2 - TURN) % TAU == 0
        xs = []
        for x, pulled, heard in zip(self.x, self.pulled, self.heard, strict=True):
            xs.append(torch.where(back & heard, 0.3 * x + 0.7 * pulled, x))
        self.x = xs
        if t:
            due = self.due(t)
            self.outer_step(due)
            self.pulled = [torch.where(due, self.center, pulled) for pulled in self.pulled]
            self.heard = [heard | due for heard in self.heard]
        self.x = [x - self.gradient(i, x) for i, x in enumerate(self.x)]

    def close(self, name: str) -> None:
        everything = torch.ones(D, dtype=torch.bool)
        if name == "model_averaging":
            self.center = self.mean()
        elif name in ("diloco", "streaming_diloco"):
            self.outer_step(everything)
        elif name == "async_diloco":
            for pulled, x in zip(self.pulled, self.x, strict=True):
                self.delayed(everything, pulled - x)


def agree(driver: ByHand, masked: Masked) -> None:
    assert driver.center is not None
    for i, w in enumerate(driver.workers):
        torch.testing.assert_close(w.x, masked.x[i], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(driver.center.vectors["x"], masked.center, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["easgd", "eamsgd", "downpour", "async_diloco"])
def test_equals_the_equations_entry_by_entry_in_any_order(name: str) -> None:
    driver, masked, draw = driven(METHODS[name]), Masked(3), random.Random(1)
    for _ in range(90):
        i = draw.randrange(3)
        driver.step(i)
        getattr(masked, name)(i)
        masked.t[i] += 1
        agree(driver, masked)
    assert len(driver.order) == driver.center.clock == sum(driver.center.clocks)  # type: ignore[union-attr]
    driver.close()
    masked.close(name)
    agree(driver, masked)


METHOD = METHODS | {"streaming_diloco": StreamingDiLoCo(tau=TAU, nu=NU, mu=MU, delay=2, mix=0.3)}


@pytest.mark.parametrize(
    "name", ["sync_easgd", "gauss_seidel_easgd", "pull_then_step", "model_averaging", "diloco", "streaming_diloco"]
)
def test_rounds_equal_the_equations_entry_by_entry(name: str) -> None:
    driver, masked = driven(METHOD[name]), Masked(3)
    for _ in range(40):
        driver.round()
        getattr(masked, name)()
        masked.t = [t + 1 for t in masked.t]
        agree(driver, masked)
    driver.close()
    masked.close(name)
    agree(driver, masked)


def test_a_local_step_of_another_kind_moves_all_fragments_at_every_step() -> None:
    """One worker at its own center, which therefore moves nothing: Nesterov's step alone."""
    driver, v, x = driven(EASGD(0.0, Nesterov(0.8)), p=1), torch.zeros_like(START), START.clone()
    for t in range(20):
        driver.step(0)
        v = 0.8 * v - falling(t) * noisy(0, t, x + 0.8 * v)
        x = x + v
        torch.testing.assert_close(driver.workers[0].x, x, rtol=1e-12, atol=1e-13)


def test_gossip_publishes_and_takes_in_a_fragment() -> None:
    from test_variables import partner

    p, driver = 4, driven(GossipPull(workers=4, seed=5), p=4)
    publishes = Step(driver.method, driver.workers[0])
    assert publishes.exchange is not None and publishes.exchange.fragment == 0
    publishes.answer(None, Reply(torch.zeros_like(START), 1))
    assert publishes.exchange is not None and publishes.exchange.message is None and publishes.exchange.fragment == 0
    masked = Masked(p)
    published, order = [START.clone() for _ in range(p)], random.Random(2)
    for _ in range(120):
        i = order.randrange(p)
        driver.step(i)
        due, old = masked.due(masked.t[i]), masked.x[i]
        published[i] = torch.where(due, old, published[i])
        theirs = torch.where(due, (old + published[partner(i, masked.t[i], p)]) / 2, old)
        masked.x[i] = theirs - masked.gradient(i, old)
        masked.t[i] += 1
        torch.testing.assert_close(driver.workers[i].x, masked.x[i], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(driver.vectors()["x"], torch.stack(published).mean(0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["easgd", "downpour", "diloco", "eamsgd"])
def test_an_exchange_leaves_every_bit_of_the_other_fragments(name: str) -> None:
    driver = driven(METHODS[name], average=Polyak(start=0))
    center = driver.center
    assert center is not None
    for t in range(12):
        kept = {vector: v.clone() for vector, v in center.vectors.items()}
        replies = [s.reply.clone() for s in driver._sessions]  # type: ignore[union-attr]
        if driver.method.in_rounds:
            driver.round()
        else:
            driver.step(0)
        still = t % TAU != TURN
        for vector, v in center.vectors.items():
            assert torch.equal(v[still], kept[vector][still])
        for session, reply in zip(driver._sessions, replies, strict=True):
            bits = session.reply.view(torch.int64)  # type: ignore[union-attr]  # before a reply there is anything
            assert torch.equal(bits[still], reply.view(torch.int64)[still])


def test_a_fragment_that_is_asked_for_is_all_of_a_reply_that_changes() -> None:
    x = torch.arange(D, dtype=torch.float64)
    reply = torch.full_like(x, -1.0)
    Center(in_turn(EASGD(alpha=0.5)).variables[CENTER], {"x": x}).serve([(0, None, reply)], fragment=1)
    assert torch.equal(reply, torch.where(OF_ENTRY == 1, x, -1.0))


@pytest.mark.parametrize("average", [Polyak(start=1), Moving(rate=0.1, start=0)])
def test_an_average_is_of_each_fragment_on_its_own_clock(average: Any) -> None:
    driver = driven(METHODS["easgd"], p=1, average=average)
    assert driver.center is not None
    z, seen = START.clone(), torch.zeros(D, dtype=torch.int64)
    for t in range(30):
        driver.step(0)
        due = t % TAU == TURN
        seen = seen + due
        weight = torch.tensor([average(int(n)) for n in seen], dtype=torch.float64) * due
        z = z + weight * (driver.center.vectors["x"] - z)
        torch.testing.assert_close(driver.center.vectors["average"], z, rtol=1e-12, atol=1e-13)


def test_parts_with_rates_of_their_own_may_be_cut_anywhere() -> None:
    """A part from entry 1 to 5, half of two fragments and one whole, against a worker with a rate for each entry."""
    parts = [Part(0, 1), Part(1, 5, eta=0.3), Part(5, D, eta=2.0)]
    method = in_turn(METHODS["easgd"], parts=parts)
    driver = ByHand(method, FunctionOf(), workers=2, tau=TAU, schedule=falling, start=START)
    masked, draw = Masked(2), random.Random(3)
    rates = torch.tensor([1, 0.3, 0.3, 0.3, 0.3, 2.0, 2.0], dtype=torch.float64)
    plain = masked.gradient
    masked.gradient = lambda i, at: rates * plain(i, at)  # type: ignore[method-assign]
    for _ in range(40):
        i = draw.randrange(2)
        driver.step(i)
        masked.easgd(i)
        masked.t[i] += 1
        agree(driver, masked)


def test_one_fragment_is_the_method_without_bit_for_bit() -> None:
    for name in ("easgd", "downpour", "diloco"):
        method = METHODS[name]
        wrapped = InFragments(method, (method,))
        drivers = [ByHand(m, FunctionOf(), workers=2, tau=3, schedule=falling, start=START) for m in (method, wrapped)]
        for _ in range(20):
            for driver in drivers:
                driver.round() if method.in_rounds else driver.step(0)
        assert torch.equal(*(driver.vectors()["x"] for driver in drivers))
        assert torch.equal(*(driver.workers[0].x for driver in drivers))


def test_an_exchange_and_the_gradient_still_overlap() -> None:
    driver = driven(METHODS["easgd"])
    w = driver.workers[0]
    step = Step(driver.method, w)
    assert step.at is w.x and step.exchange is not None and step.exchange.message is w.x
    assert step.exchange.fragment == 0
    w.t = 2
    assert Step(driver.method, w).exchange is None


class Late(Method):
    """Exchanges after the gradient, and once more then: a rule of somebody's own."""

    def step(self, w: Worker) -> Rule:
        g = yield Gradient(w.x)
        first = (yield Exchange(w.x)) if w.due else None
        w.x.sub_(g)
        if first is not None:
            w.x.copy_(first)

    def receive(self, center: Any, m: Tensor, reply: Tensor, n: int) -> None:
        reply.copy_(m).mul_(2)


def test_no_fragment_changes_before_the_last_exchange_of_a_step() -> None:
    driver = driven(Late(), p=1)
    w = driver.workers[0]
    before = w.x.clone()
    step = Step(driver.method, w)
    step.answer((torch.ones_like(START), torch.zeros(())), None)
    assert step.exchange is not None and torch.equal(w.x, before)


# --- runs ------------------------------------------------------------------------------------------------------------


def fragmented(algo: str, **values: Any) -> Any:
    given = {"workers": 3, "steps": 30, "tau": 6, "fragments": 4, "eval": Eval(every="10 steps", train_images=50)}
    s = settings("easgd" if algo == "streaming_diloco" else algo, **(given | values))
    if algo == "streaming_diloco":
        s.algo = {"name": algo, "target": "easgd_cli.algorithms:StreamingDiLoCo", "delay": 2}
    return s


ALGOS = ["easgd", "downpour", "sync_easgd", "async_diloco", "streaming_diloco"]


@pytest.mark.parametrize("algo", ALGOS)
def test_a_virtual_run_goes_on_bit_for_bit_wherever_it_is_interrupted(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = fragmented(algo)
    virtual(s, tmp_path / "whole", **UNEVEN)
    for events in (1, 7, 38, 39, 40, 41, 77):
        stopped_after(events, monkeypatch)
        assert virtual(s, tmp_path / "parts", resume=events > 1, **UNEVEN).status == "interrupted"
    monkeypatch.undo()
    assert virtual(s, tmp_path / "parts", resume=True, **UNEVEN).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt")
    assert (tmp_path / "whole/exchanges.bin").read_bytes() == (tmp_path / "parts/exchanges.bin").read_bytes()
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


@pytest.mark.parametrize("algo", ALGOS)
def test_real_processes_are_replayed_bit_for_bit_and_go_on(algo: str, tmp_path: Path) -> None:
    s = fragmented(algo)
    assert run(s, tmp_path / "real").status == "completed"
    assert virtual(replace(s, replay=str(tmp_path / "real")), tmp_path / "again", spread=0.5).status == "completed"
    same_files(tmp_path / "real", tmp_path / "again", "center.pt")
    distances = [r["distance_to_center"] for r in rows(tmp_path / "real", "worker_00") if "distance_to_center" in r]
    assert distances and max(distances) < 3, "the reply's other fragments are not 0 before their first exchange"
    longer = replace(s, steps=s.steps + 12)
    assert run(longer, tmp_path / "real", resume=True).status == "completed"
    if build.method(s).in_rounds:
        run(longer, tmp_path / "whole")
        same_files(tmp_path / "real", tmp_path / "whole", "center.pt")


def test_what_is_sent_is_what_would_be_sent_at_once(tmp_path: Path) -> None:
    """In 60 steps with tau = 6: ten whole vectors of a worker, or ten of each fragment; the same bytes and seconds."""
    s = on_a_function("easgd", problem={"start": 1.0, "dimension": 8}, workers=2, steps=60, tau=6)
    seconds = {}
    for fragments in (1, 2):
        virtual(replace(s, fragments=fragments), tmp_path / str(fragments), compute=0.001, bandwidth=1000.0)
        summary = summary_of(tmp_path / str(fragments))
        seconds[fragments] = summary["wall_seconds"]
        assert summary["exchanges"] == 2 * 10 * fragments
        assert summary["bytes_exchanged"] == 2 * 10 * 2 * 8 * 8
    assert seconds[1] == pytest.approx(10 * 0.128 + 50 * 0.001)
    assert seconds[2] == pytest.approx(20 * 0.064 + 40 * 0.001)


def test_the_order_by_hand_gives_a_real_runs_center(tmp_path: Path) -> None:
    from test_runs import by_hand

    s = fragmented("eamsgd")
    run(s, tmp_path)
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    driver.replay(recorded_order(tmp_path))
    assert torch.equal(driver.vectors()["x"], saved_center(tmp_path, prepared))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fragments": 0}, "fragments=0: must be a whole number of at least 1"),
        ({"fragments": 7}, r"fragments=7 tau=6: .*at most tau"),
    ],
)
def test_numbers_that_cannot_be(values: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check(fragmented("easgd", **values))


def test_methods_and_problems_that_cannot_be() -> None:
    s = fragmented("easgd", workers=4)
    s.algo = {"name": "easgd_tree", "target": "easgd_cli.algorithms:EASGDTree", "degree": 2}
    with pytest.raises(UsageError, match=r"algo=easgd_tree fragments=4: what is carried"):
        build.method(s)
    s.algo = {**s.algo, "degree": 16}  # a star, that goes by periods of its own
    with pytest.raises(UsageError, match="does not exchange by tau alone"):
        build.prepare(s)
    with pytest.raises(UsageError, match=r"fragments=4: x has 1 entries"):
        build.prepare(on_a_function("easgd", problem={"start": 1.0}, fragments=4, tau=6))
    with pytest.raises(ValueError, match="looks at more of a vector than the entry"):
        in_turn(EASGD(0.2, Normed()))


class Normed(AdamW):
    def move(self, w: Worker, g: Tensor) -> None:
        w.x.sub_(g / g.norm(), alpha=w.eta)


def test_trying_a_rule_moves_something() -> None:
    assert any(not torch.equal(v, START) for v in moved(METHODS["easgd"], START, 0.1))
    assert isinstance(in_turn(DiLoCo()), InFragments) and in_turn(DiLoCo()).variables[CENTER].fragments == F
