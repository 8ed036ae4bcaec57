"""Vectors of fewer bits on their way: what they are rounded to, that nothing is lost on the average, and that every
launcher, a run that goes on and a replay round alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recovery import replayed
from test_runs import rows, run, settings
from test_simulated import on_a_function, same_files, virtual
from torch import Tensor

from easgd_cli.algorithms import EASGD, EASGDTree
from easgd_cli.algorithms.base import CENTER, Worker
from easgd_cli.algorithms.fragments import in_fragments
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.algorithms.slices import slices
from easgd_cli.algorithms.wire import SHARING, WIRES, OnTheWire, Wire
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.function import FunctionProblem
from easgd_cli.randomness import WIRE, key
from easgd_cli.record import reader
from easgd_cli.settings import schema
from easgd_cli.settings.schema import Eval
from easgd_cli.training.drive import ByHand
from easgd_cli.transport.base import Kind, Request
from easgd_cli.transport.packing import Packing

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def wire(name: str) -> Wire:
    found = WIRES[name]
    assert found is not None
    return found


def rounded(name: str, x: Tensor, seed: int = 3) -> Tensor:
    out = torch.full_like(x, torch.nan)
    wire(name).round(x, out, torch.Generator().manual_seed(seed))
    return out


def numbers(n: int = 150_000, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of all sizes between 1e-9 and 1e3, of both signs, and zeros."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(n, generator=drawn, dtype=torch.float64) * 10 ** (
        torch.rand(n, generator=drawn, dtype=torch.float64) * 12 - 9
    )
    x[::1000] = 0
    return x.to(dtype)


@pytest.mark.parametrize("name", KINDS)
def test_a_number_becomes_one_of_its_two_neighbours_of_torchs_own_type(name: str) -> None:
    x = numbers()
    out, nearest = rounded(name, x), x.to(KINDS[name])
    assert torch.equal(out.to(KINDS[name]).to(x.dtype), out)  # can be sent
    # the largest number that can be sent and is at most x, and the least that is at least x
    step = torch.tensor(1, dtype=torch.int16)
    down, up = nearest.clone(), nearest.clone()
    for end, past, sign in ((down, nearest.float() > x, -1), (up, nearest.float() < x, 1)):
        bits = end.view(torch.int16)  # ordered by size: one more is the next farther from 0
        bits += torch.where(past, step * sign * torch.where(x < 0, -1, 1), 0).to(torch.int16)
    inside = x.abs() >= 2.0**-14 if name == "fp16" else x != 0
    assert bool((((out == down.float()) | (out == up.float())) | ~inside).all())
    assert (out[inside] != nearest.float()[inside]).float().mean() > 0.1  # not always the nearer one
    assert bool((out[x == 0] == 0).all())
    assert torch.equal(rounded(name, out, seed=99), out)  # what can be sent is sent as it is


def test_int8_has_whole_numbers_times_a_power_of_two_that_so_many_entries_share() -> None:
    x = numbers(2 * SHARING * 64 + 5)
    out = rounded("int8", x)
    for first in range(0, len(x), SHARING):
        a, b = x[first : first + SHARING].double(), out[first : first + SHARING].double()
        ulp = 2.0 ** torch.log2(a.abs().max() / 127).ceil() if bool((a != 0).any()) else torch.tensor(1.0)
        whole = b / ulp
        assert torch.equal(whole, whole.round()) and float(whole.abs().max()) <= 127
        assert bool(((b - a).abs() < ulp).all())
    assert torch.equal(rounded("int8", out, seed=99), out)
    assert not bool(rounded("int8", torch.zeros(10)).any())
    assert wire("int8").nbytes(2 * SHARING + 1) == 2 * SHARING + 1 + 6 and wire("bf16").nbytes(10) == 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["bf16", "fp16", "int8"])
def test_its_expectation_is_the_number(name: str, dtype: torch.dtype) -> None:
    """Over 4,000 draws of 300 numbers the mean lies within 5 standard errors of each."""
    x = torch.linspace(-3, 3, 300, dtype=dtype)
    drawn = torch.Generator().manual_seed(5)
    many = x.repeat(4000)
    out = torch.empty_like(many)
    wire(name).round(many, out, drawn)
    drawn_of = out.view(4000, 300).double()
    error = (drawn_of.mean(0) - x.double()).abs()
    # a number drawn once in 10,000 times may not have been drawn at all
    assert bool((error <= 5 * drawn_of.std(0) / 4000**0.5 + 2e-4 * drawn_of.abs().max()).all())
    assert float(drawn_of.std(0).max()) > 1e-4


@pytest.mark.parametrize("name", [*KINDS, "int8"])
def test_a_slice_that_a_machine_has_alone_is_sent_back_as_in_the_whole_vector(name: str) -> None:
    x, method = numbers(), OnTheWire(EASGD(alpha=0.1), wire(name), seed=3)
    asked = Request(1, Kind.EXCHANGE, 5, 0)

    def arrived(v: Tensor, before: int) -> Tensor:
        packing, out = Packing.of(method, 1, before), torch.full_like(v, torch.nan)
        packing.unpack(packing.packed(v, asked, reply=True), out, asked)
        return out

    whole = arrived(x, 0)
    assert not torch.equal(whole, x)
    for part in slices(x.numel(), 4):
        assert torch.equal(arrived(x[part], part.start), whole[part])


def test_more_than_can_be_sent_is_sent_as_the_most_and_what_is_not_finite_stays() -> None:
    out = rounded("fp16", torch.tensor([1e9, -1e9, 65504.0, torch.nan]))
    assert out[:3].tolist() == [65504.0, -65504.0, 65504.0] and bool(out[3].isnan())
    for name in ("bf16", "int8"):
        assert not bool(rounded(name, torch.tensor([torch.inf, 1.0])).isfinite().all())


def by_bits(x: Tensor, seed: int, worker: int, n: int) -> Tensor:
    """bf16 of float64 by adding random numbers to the 45 bits that are cut, in whole numbers: a second way to the
    same.
    """
    u = torch.empty_like(x).random_(0, 1 << 16, generator=torch.Generator().manual_seed(key(seed, WIRE, worker, n)))
    k, lowest = u.to(torch.int64) << 29, (1 << 45) - 1
    magnitude = x.abs().view(torch.int64)
    cut = (magnitude + torch.where(x < 0, lowest - k, k)) & ~lowest
    return cut.view(torch.float64).copysign(x)


def pulling(d: int) -> FunctionProblem:
    """g(x) = x, from a start that is worth rounding."""

    def gradient(x: Tensor, worker: int, t: int, out: Tensor) -> None:
        out.copy_(x)

    start = torch.randn(d, generator=torch.Generator().manual_seed(2))
    return FunctionProblem(start, gradient)


def test_easgd_in_bf16_is_the_listing_with_both_vectors_rounded() -> None:
    """In any order of workers, with what is drawn for (seed, worker, t), the variable and the way."""
    problem, alpha, eta, p, tau = pulling(300), 0.3, 0.1, 3, 2
    driver = ByHand(
        OnTheWire(EASGD(alpha=alpha), wire("bf16"), seed=7), problem, workers=p, tau=tau, schedule=Constant(eta),
        start=problem.start(), starts=[problem.start() * (1 + i) for i in range(p)],
    )  # fmt: skip
    x, center, t = [problem.start() * (1 + i) for i in range(p)], problem.start(), [0] * p
    for i in torch.randint(p, (40,), generator=torch.Generator().manual_seed(4)).tolist():
        driver.step(i)
        g = x[i].clone()
        if t[i] % tau == 0:
            m, reply = by_bits(x[i], 7, i, 2 * t[i]), by_bits(center, 7, i, 2 * t[i] + 1)
            x[i] = x[i].lerp(reply, alpha)
            center = center.lerp(m, alpha)
        x[i] = x[i] - eta * g
        t[i] += 1
        torch.testing.assert_close(driver.workers[i].x, x[i], rtol=0, atol=1e-14)
        torch.testing.assert_close(driver.vectors()["x"], center, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["bf16", "fp16", "int8"])
def test_the_sum_that_elastic_averaging_keeps_is_kept_in_expectation(name: str) -> None:
    """Without gradient, x + x~ of an exchange moves by alpha times what rounding moved the two: less than an ulp each,
    and nothing on the average over 20,000 entries.
    """
    problem = pulling(20_000)
    driver = ByHand(
        OnTheWire(EASGD(alpha=0.4), wire(name), seed=1), problem, workers=1, tau=1, schedule=Constant(0.0),
        start=problem.start(), starts=[problem.start().flip(0)],
    )  # fmt: skip

    def total() -> Tensor:
        return driver.workers[0].x.double() + driver.vectors()["x"].double()

    before = total()
    driver.step(0)
    moved = total() - before
    ulp = {"bf16": 2.0**-5, "fp16": 2.0**-8, "int8": 2.0**-4}[name]  # of numbers up to 8
    assert 0 < float(moved.abs().max()) < 0.4 * 2 * ulp
    assert abs(float(moved.mean())) < 4 * float(moved.std()) / 20_000**0.5


def on_the_wire(algo: str, name: str = "bf16", **values: Any) -> schema.Settings:
    return settings(algo, wire=name, **({"workers": 3, "steps": 20, "eval": Eval(train_images=100)} | values))


def test_every_launcher_and_a_run_that_goes_on_round_alike(tmp_path: Path) -> None:
    for algo, workers, name in (("easgd", 1, "int8"), ("sync_easgd", 3, "bf16")):
        s = on_the_wire(algo, name, workers=workers)
        outcome = run(s, tmp_path / f"{algo}_real")
        virtual(replace(s), tmp_path / f"{algo}_virtual")
        virtual(replace(s, steps=7), tmp_path / f"{algo}_parts")
        virtual(replace(s), tmp_path / f"{algo}_parts", resume=True)
        virtual(replace(s, wire="fp32"), tmp_path / f"{algo}_plain")
        same_files(tmp_path / f"{algo}_real", tmp_path / f"{algo}_virtual", "center.pt")
        same_files(tmp_path / f"{algo}_virtual", tmp_path / f"{algo}_parts", "center.pt")
        with pytest.raises(AssertionError):
            same_files(tmp_path / f"{algo}_virtual", tmp_path / f"{algo}_plain", "center.pt")
        parameters, exchanges = outcome.summary["parameters"], outcome.summary["exchanges"]
        each = {"int8": parameters + 2 * -(-parameters // SHARING), "bf16": 2 * parameters}[name]
        assert outcome.summary["bytes_exchanged"] == 2 * exchanges * each


@pytest.mark.parametrize("algo", ["eamsgd", "easgd_tree"])
def test_real_runs_are_replayed_bit_for_bit(algo: str, tmp_path: Path) -> None:
    s = on_the_wire("eamsgd", workers=4)
    if algo == "easgd_tree":
        s.algo = {"name": algo, "target": "easgd_cli.algorithms:EASGDTree", "degree": 2, "tau2": 6}
    run(s, tmp_path / "real")
    replayed(replace(s), tmp_path / "real", tmp_path / "again")
    same_files(tmp_path / "real", tmp_path / "again", "center.pt")


def test_workers_that_are_equal_stay_equal(tmp_path: Path) -> None:
    """In all-reduce everybody takes the same step, since a round's reply is rounded alike for all."""
    s = on_the_wire("allreduce", "int8")
    run(s, tmp_path / "run")
    first, *others = reader.newest_checkpoint(tmp_path / "run").workers.values()
    assert len(others) == 2 and all(torch.equal(first.vectors["x"], other.vectors["x"]) for other in others)


def test_what_lies_beside_its_owner_takes_no_way() -> None:
    """The courier of a node takes its x as it is, sends it up rounded, and takes down what arrives rounded."""
    tree = OnTheWire(EASGDTree(alpha=0.2, degree=2, workers=4, tau=1, tau2=1), wire("bf16"), seed=0)
    courier = tree.couriers["node_1"]
    x, above = (torch.randn(50, dtype=torch.float64) for _ in range(2))
    w = Worker({name: torch.zeros_like(x) for name in courier.vectors}, 1, Constant(0.1), t=2, number=4)
    rule = courier.step(w)
    pull = rule.send(None)
    assert (pull.message, pull.to) == (None, "node_1")
    up = rule.send(x)
    assert up.to == CENTER and torch.equal(w.x, x) and not torch.equal(up.message, x)
    assert torch.equal(up.message.to(torch.bfloat16).double(), up.message)
    torch.testing.assert_close(up.message, x, rtol=2**-7, atol=0)
    down = rule.send(above)
    assert down.to == "node_1" and down.message is w.x and torch.equal(w.x.to(torch.bfloat16).double(), w.x)
    torch.testing.assert_close(w.x, above, rtol=2**-7, atol=0)
    with pytest.raises(StopIteration):
        rule.send(None)


def test_virtual_seconds_are_those_of_fewer_bytes(tmp_path: Path) -> None:
    """Of 1,000 numbers over 1,000 bytes a second, tau = 1, nothing overlapped but the gradient's second."""
    seconds = {}
    for name in ("fp32", "bf16", "int8"):
        s = on_a_function("easgd", problem={"dimension": 1000}, workers=1, tau=1, steps=3, wire=name)
        outcome = virtual(s, tmp_path / name, compute=1.0, bandwidth=1000.0)
        seconds[name] = rows(tmp_path / name, "center")[-1]["seconds"]
        assert outcome.status == "completed"
    itemsize = build.prepare(on_a_function("easgd", problem={"dimension": 1000})).dtype.itemsize
    assert seconds == pytest.approx({"fp32": 3 * 2 * itemsize, "bf16": 3 * 4.0, "int8": 3 * 2 * 1.002})


def test_a_wire_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"wire=fp8: is fp32, bf16, fp16 or int8\."):
        schema.check(on_the_wire("easgd", "fp8"))


def test_only_a_fragment_is_rounded_and_sent(tmp_path: Path) -> None:
    """The rest of what is lent is not looked at; a run in fragments goes on and is the same on the virtual cluster."""
    x = torch.randn(9)
    method = OnTheWire(in_fragments(EASGD(alpha=0.5), 3, 9, (), x), wire("bf16"), seed=0)
    vectors = {name: torch.full((9,), 7.0) for name in (*method.state, *method.scratch)} | {"x": x}
    rule = method.step(Worker(vectors, 3, Constant(0.1), t=1))
    _, ask = rule.send(None)
    assert ask.fragment == 1 and torch.equal(ask.message[:3], torch.full((3,), 7.0))
    assert torch.equal(ask.message[6:], torch.full((3,), 7.0)) and not torch.equal(ask.message[3:6], x[3:6])
    torch.testing.assert_close(ask.message[3:6], x[3:6], rtol=2**-7, atol=0)
    s = on_the_wire("sync_easgd", "int8", fragments=3)
    run(s, tmp_path / "real")
    virtual(replace(s), tmp_path / "virtual")
    same_files(tmp_path / "real", tmp_path / "virtual", "center.pt")
