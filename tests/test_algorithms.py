"""Every method is its printed listing: step by step, in float64, in any order of workers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from listings import MU, NU, Listing
from torch import Tensor

from easgd_cli.algorithms import (
    DOWNPOUR,
    EAMSGD,
    EASGD,
    MDOWNPOUR,
    MSGD,
    SGD,
    AllReduce,
    AsyncDiLoCo,
    DiLoCo,
    Exchange,
    GaussSeidelEASGD,
    Gradient,
    Method,
    ModelAveraging,
    PullThenStep,
    StreamingDiLoCo,
    SyncEAMSGD,
    SyncEASGD,
    Worker,
)  # fmt: skip
from easgd_cli.algorithms.average import Average, Moving, Polyak
from easgd_cli.algorithms.base import CENTER
from easgd_cli.algorithms.local import AdamW
from easgd_cli.algorithms.schedule import Constant, Cosine, Decay, Schedule, Stepwise, Warmup
from easgd_cli.algorithms.statistics import WithStatistics
from easgd_cli.errors import UsageError
from easgd_cli.training.center import Center
from easgd_cli.training.drive import ByHand, ProblemGradients, Step, new_vectors, take_step
from easgd_cli.transport.base import Reply

D = 7
CURVATURE = torch.linspace(0.3, 1.7, D, dtype=torch.float64)


def noisy(i: int, t: int, x: Tensor) -> Tensor:
    """A gradient that depends on worker, clock and, not linearly, on the point."""
    noise = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 * i + t))
    return CURVATURE * x + 0.3 * torch.sin(3 * x) + 0.2 * noise


class FunctionOf:
    """The problem of every worker for the driver; its loss is not looked at."""

    loss = torch.zeros(())

    def __init__(self, gradient: Callable[[int, int, Tensor], Tensor] = noisy):
        self.i, self.t, self.of = -1, -1, gradient

    def load(self, worker: int, t: int) -> None:
        self.i, self.t = worker, t

    def gradient(self, x: Tensor) -> Tensor:
        return self.of(self.i, self.t, x)


START = torch.linspace(-1, 2, D, dtype=torch.float64)
ETA, ALPHA, DELTA = 0.07, 0.225, 0.8
CONSTANT = Constant(ETA)
METHODS: dict[str, Method] = {
    "easgd": EASGD(alpha=ALPHA),
    "eamsgd": EAMSGD(alpha=ALPHA, delta=DELTA),
    "downpour": DOWNPOUR(),
    "mdownpour": MDOWNPOUR(delta=DELTA, tau=1),
    "sgd": SGD(),
    "msgd": MSGD(delta=DELTA),
    "sync_easgd": SyncEASGD(alpha=ALPHA),
    "sync_eamsgd": SyncEAMSGD(alpha=ALPHA, delta=DELTA),
    "gauss_seidel_easgd": GaussSeidelEASGD(alpha=ALPHA),
    "pull_then_step": PullThenStep(alpha=ALPHA, beta=0.6, workers=3),
    "allreduce": AllReduce(delta=DELTA, tau=1),
    "model_averaging": ModelAveraging(),
    "diloco": DiLoCo(nu=NU, mu=MU),
    "async_diloco": AsyncDiLoCo(workers=3, nu=NU, mu=MU, period=2),
}
ROUNDS = [
    "sync_easgd", "sync_eamsgd", "gauss_seidel_easgd", "pull_then_step", "allreduce", "model_averaging", "diloco",
]  # fmt: skip
AT_EACH_STEP = ["mdownpour", "allreduce"]  # defined for tau = 1 only


def pair(name: str, p: int, tau: int, schedule: Schedule = CONSTANT) -> tuple[ByHand, Listing]:
    driver = ByHand(METHODS[name], FunctionOf(), workers=p, tau=tau, schedule=schedule, start=START)
    return driver, Listing(START, p, schedule(0), tau, noisy, ALPHA, DELTA, beta=0.6)


def falling(t: int) -> float:
    """A rate that no two steps share: a rule that looks at another's clock, or at its own a step late or early, is seen
    at once.
    """
    return ETA * 0.97**t


def same(driver: ByHand, listing: Listing) -> None:
    for i, w in enumerate(driver.workers):
        torch.testing.assert_close(w.x, listing.x[i], rtol=1e-12, atol=1e-13)
        if "v" in driver.method.state:
            torch.testing.assert_close(w.v, listing.v[i], rtol=1e-12, atol=1e-13)
    if driver.center is not None:
        torch.testing.assert_close(driver.center.vectors["x"], listing.center, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tau", [1, 3, 10])
@pytest.mark.parametrize("name", ["easgd", "eamsgd", "downpour", "mdownpour", "async_diloco"])
def test_equals_the_listing_after_every_step_in_any_order(name: str, tau: int) -> None:
    if name in AT_EACH_STEP and tau > 1:
        pytest.skip("defined for tau = 1 only")
    driver, listing = pair(name, p=3, tau=tau, schedule=falling)
    order = random.Random(tau)
    exchanges = []
    for _ in range(90):
        i = order.randrange(3)
        listing.eta = falling(listing.t[i])
        driver.step(i)
        if getattr(listing, name)(i):
            exchanges.append(i)
        same(driver, listing)
    assert driver.order == exchanges
    assert driver.center is not None and driver.center.clock == len(exchanges)
    assert_closes(name, driver, listing)


def assert_closes(name: str, driver: ByHand, listing: Listing) -> None:
    """As its listing says; a method that has no closing exchange changes nothing."""
    before, clocks = driver.vectors()["x"].clone(), [w.t for w in driver.workers]
    driver.close()
    getattr(listing, f"close_{name}", lambda: None)()
    same(driver, listing)
    assert torch.equal(before, driver.vectors()["x"]) is (not hasattr(listing, f"close_{name}"))
    assert [w.t for w in driver.workers] == clocks


@pytest.mark.parametrize("name", ["sgd", "msgd"])
def test_a_sequential_method_equals_its_listing(name: str) -> None:
    driver, listing = pair(name, p=1, tau=10, schedule=falling)
    for t in range(50):
        listing.eta = falling(t)
        driver.step(0)
        assert not getattr(listing, name)(0)
        same(driver, listing)
    assert driver.center is None and driver.order == []


def test_the_printed_trace_of_algorithm_1() -> None:
    """Round robin on F = x^2 / 2 with p = 2, tau = 1, eta = .1, alpha = .45: three rounds by hand."""
    one = torch.ones(1, dtype=torch.float64)
    quadratic = FunctionOf(lambda i, t, x: x.clone())
    driver = ByHand(
        EASGD(alpha=0.45),
        quadratic,
        workers=2,
        tau=1,
        schedule=Constant(0.1),
        start=0.2 * one,
        starts=[1.0 * one, -0.5 * one],
    )
    rows = [(0.54, 0.027, 0.083), (0.28035, 0.1420425, 0.1709075), (0.20306587, 0.16298961, 0.18500527)]
    for row in rows:
        driver.step(0)
        driver.step(1)
        assert driver.center is not None
        state = (driver.workers[0].x.item(), driver.workers[1].x.item(), driver.center.vectors["x"].item())
        assert state == pytest.approx(row, abs=6e-9)


@pytest.mark.parametrize("name", ["easgd", "eamsgd"])
def test_without_gradient_the_sum_of_center_and_workers_is_conserved(name: str) -> None:
    starts = [START * k for k in (1.0, -2.0, 0.5)]
    driver = ByHand(METHODS[name], FunctionOf(), workers=3, tau=1, schedule=Constant(0.0), start=START, starts=starts)
    before = START + sum(starts)
    for i in (0, 1, 2, 2, 1, 0, 0, 1):
        driver.step(i)
    assert driver.center is not None
    after = driver.center.vectors["x"] + sum(w.x for w in driver.workers)
    torch.testing.assert_close(after, before, rtol=1e-13, atol=1e-13)
    assert not torch.allclose(driver.center.vectors["x"], START)


def test_eamsgd_without_momentum_is_easgd() -> None:
    a = ByHand(EASGD(alpha=ALPHA), FunctionOf(), workers=2, tau=2, schedule=Constant(ETA), start=START)
    b = ByHand(EAMSGD(alpha=ALPHA, delta=0.0), FunctionOf(), workers=2, tau=2, schedule=Constant(ETA), start=START)
    for i in (0, 1, 1, 0, 0, 1, 1):
        a.step(i)
        b.step(i)
    torch.testing.assert_close(a.workers[0].x, b.workers[0].x, rtol=1e-12, atol=0)
    assert a.center and b.center
    torch.testing.assert_close(a.center.vectors["x"], b.center.vectors["x"], rtol=1e-12, atol=0)


def test_one_worker_downpour_at_tau_1_is_torch_sgd_and_its_center_one_step_behind() -> None:
    driver, _ = pair("downpour", p=1, tau=1)
    x = START.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=ETA)
    for t in range(40):
        behind = x.detach().clone()
        x.grad = noisy(0, t, x.detach())
        optimizer.step()
        driver.step(0)
        assert driver.center is not None
        torch.testing.assert_close(driver.workers[0].x, x.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(driver.center.vectors["x"], behind, rtol=1e-12, atol=1e-13)


def test_one_worker_mdownpour_is_torch_heavy_ball_with_step_delta_eta() -> None:
    driver, _ = pair("mdownpour", p=1, tau=1)
    x = START.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=DELTA * ETA, momentum=DELTA)
    for t in range(40):
        x.grad = noisy(0, t, x.detach())
        optimizer.step()
        driver.step(0)
        torch.testing.assert_close(driver.workers[0].x, x.detach(), rtol=1e-12, atol=1e-13)


def test_msgd_is_torch_nesterov_seen_from_the_look_ahead_point() -> None:
    """With y = x + delta v, torch's nesterov=True iterates y; both take the gradient at the same points."""
    driver, _ = pair("msgd", p=1, tau=1)
    y = START.clone().requires_grad_()
    optimizer = torch.optim.SGD([y], lr=ETA, momentum=DELTA, nesterov=True)
    for t in range(40):
        y.grad = noisy(0, t, y.detach())
        optimizer.step()
        driver.step(0)
        w = driver.workers[0]
        torch.testing.assert_close(w.x + DELTA * w.v, y.detach(), rtol=1e-11, atol=1e-12)


def test_sgd_is_torch_sgd_with_a_decaying_rate_and_alpha_does_not_decay() -> None:
    schedule = Decay(eta=ETA, gamma=0.1)
    driver = ByHand(SGD(), FunctionOf(), workers=1, tau=1, schedule=schedule, start=START)
    x = START.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=ETA)
    decayed = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + 0.1 * t) ** -0.5)
    for t in range(30):
        x.grad = noisy(0, t, x.detach())
        optimizer.step()
        decayed.step()
        driver.step(0)
        torch.testing.assert_close(driver.workers[0].x, x.detach(), rtol=1e-12, atol=1e-13)
    frozen = ByHand(
        EASGD(alpha=0.5),
        FunctionOf(),
        workers=1,
        tau=1,
        schedule=Decay(eta=0.0, gamma=9.0),
        start=START * 0,
        starts=[START],
    )
    frozen.step(0)
    frozen.step(0)
    torch.testing.assert_close(frozen.workers[0].x, START / 2)  # 1 -> 1/2 with the center at 1/2, then they agree


def rates(*schedulers: Callable[[torch.optim.Optimizer], Any], steps: int, milestone: int | None = None) -> list[float]:
    """What torch's schedulers make of eta = 0.3 at each step, one after another from `milestone` on."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    made = [scheduler(optimizer) for scheduler in schedulers]
    scheduler = made[0] if milestone is None else torch.optim.lr_scheduler.SequentialLR(optimizer, made, [milestone])
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_a_cosine_is_torchs(final: float) -> None:
    schedule = Cosine(eta=0.3, steps=40, warmup=0, final=final)
    expected = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40, eta_min=0.3 * final), steps=40)
    assert [schedule(t) for t in range(40)] == pytest.approx(expected, rel=1e-9)
    assert schedule(40) == schedule(41) == pytest.approx(0.3 * final)


@pytest.mark.parametrize("warmup", [1, 7, 39])
def test_a_warm_up_and_a_cosine_are_torchs_one_after_the_other(warmup: int) -> None:
    schedule = Warmup(Cosine(eta=0.3, steps=40, warmup=warmup), warmup)
    linear = lambda o: torch.optim.lr_scheduler.LinearLR(o, 1 / (warmup + 1), total_iters=warmup)  # noqa: E731
    cosine = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40 - warmup)  # noqa: E731
    assert [schedule(t) for t in range(40)] == pytest.approx(
        rates(linear, cosine, steps=40, milestone=warmup), rel=1e-9
    )


def test_a_warm_up_scales_any_schedule() -> None:
    schedule = Warmup(Stepwise(eta=1.0, milestones=[2, 5], factor=0.5), 3)
    assert [schedule(t) for t in range(6)] == pytest.approx([0.25, 0.5, 0.375, 0.5, 0.5, 0.25])


def test_a_stepwise_rate_changes_at_its_milestones() -> None:
    schedule = Stepwise(eta=1.0, milestones=[3, 5], factor=0.2)
    assert [schedule(t) for t in range(7)] == pytest.approx([1, 1, 1, 0.2, 0.2, 0.04, 0.04])
    # what the docs say of both where nothing is given
    assert Stepwise(eta=1.0, milestones=[1])(1) == 0.1 and Cosine(eta=1.0, steps=4, warmup=0)(4) == 0.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Stepwise(eta=1.0, milestones=[5, 3]), "rising order"),
        (lambda: Stepwise(eta=1.0, milestones=[3, 3]), "rising order"),
        (lambda: Stepwise(eta=1.0, milestones=[0, 3]), "each at least 1"),
        (lambda: Stepwise(eta=1.0, milestones=[3], factor=0.0), r"schedule\.factor=0"),
        (lambda: Stepwise(eta=1.0, milestones=[3], factor=[0.1, 0.1]), "one for each of 1 milestones"),
        (lambda: Stepwise(eta=1.0, milestones=[3, 4], factor=[0.1]), "one for each of 2 milestones"),
        (lambda: Cosine(eta=1.0, steps=4, warmup=0, final=1.1), r"schedule\.final=1\.1"),
        (lambda: Cosine(eta=1.0, steps=4, warmup=0, final=-0.1), r"schedule\.final=-0\.1"),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused(make: Callable[[], Schedule], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_stepwise_rate_may_have_a_factor_for_each_milestone() -> None:
    schedule = Stepwise(eta=1.0, milestones=[3, 5], factor=[0.2, 0.5])
    assert [schedule(t) for t in range(7)] == pytest.approx([1, 1, 1, 0.2, 0.2, 0.1, 0.1])
    with pytest.raises(ValueError, match="one for each of 2 milestones"):
        Stepwise(eta=1.0, milestones=[3, 5], factor=[0.2])
    with pytest.raises(ValueError, match="greater than 0"):
        Stepwise(eta=1.0, milestones=[3, 5], factor=[0.2, 0.0])


@pytest.mark.parametrize("name", ["easgd", "eamsgd"])
def test_gradient_and_exchange_are_asked_for_at_once_and_the_message_is_lent_untouched(name: str) -> None:
    """The overlap of Algorithms 1 and 2: neither the order of the answers nor what the center does meanwhile matters to
    x.
    """
    method = METHODS[name]
    driver, _ = pair(name, p=1, tau=1)
    w = driver.workers[0]
    before = w.x.clone()
    step = Step(method, w)
    assert step.at is not None and step.exchange is not None and step.exchange.message is not None
    assert step.exchange.message.data_ptr() == w.x.data_ptr()
    torch.testing.assert_close(w.x, before, rtol=0, atol=0)
    assert w.t == 0
    step.answer((noisy(0, 0, step.at), FunctionOf.loss), Reply(START * 0, clock=1))
    assert w.t == 1 and step.ended


@pytest.mark.parametrize("name", METHODS)
def test_a_rule_changes_no_state_before_its_last_yield(name: str) -> None:
    """Run up to its last yield and thrown away, a step leaves no trace: so it can be lent, saved and repeated."""
    driver, _ = pair(name, p=1, tau=1)
    driver.round() if name in ROUNDS else driver.step(0)
    w, method = driver.workers[0], METHODS[name]
    before = {v: getattr(w, v).clone() for v in method.state}
    reply = START * 0.5
    rule = method.step(w)
    ask = next(rule)
    while True:
        for v, value in before.items():
            torch.testing.assert_close(getattr(w, v), value, rtol=0, atol=0)
        asks = ask if isinstance(ask, tuple) else (ask,)
        answers = tuple(
            noisy(0, 1, a.at) if isinstance(a, Gradient) else reply if isinstance(a, Exchange) else None for a in asks
        )
        try:
            ask = rule.send(answers if isinstance(ask, tuple) else answers[0])
        except StopIteration:
            break
    assert any(not torch.equal(getattr(w, v), value) for v, value in before.items())


@pytest.mark.parametrize("nesterov", [True, False])
def test_allreduce_is_torch_sgd_on_the_concatenated_batch(nesterov: bool) -> None:
    """Linear regression: in every step each of three workers has five samples of its own, and torch all fifteen."""

    def batch(i: int, t: int) -> tuple[Tensor, Tensor]:
        drawn = torch.randn(5, D + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 * i + t))
        return drawn[:, :D], drawn[:, D]

    def loss(samples: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        a, b = (torch.cat(parts) for parts in zip(*samples, strict=True))
        return ((a @ x - b) ** 2).mean()

    def gradient(i: int, t: int, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(loss([batch(i, t)], x), x)[0] + 0.1 * x.detach()

    method = AllReduce(delta=DELTA, tau=1, nesterov=nesterov)
    driver = ByHand(method, FunctionOf(gradient), workers=3, tau=1, schedule=CONSTANT, start=START)
    x = START.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=ETA, momentum=DELTA, nesterov=nesterov, weight_decay=0.1)
    for t in range(40):
        optimizer.zero_grad()
        loss([batch(i, t) for i in range(3)], x).backward()
        optimizer.step()
        driver.round()
        torch.testing.assert_close(driver.vectors()["x"], x.detach(), rtol=1e-11, atol=1e-12)


def torchs_adamw(outer_momentum: float, outer_rate: float, rounds: int, tau: int) -> Tensor:
    """DiLoCo as a plain loop of torch's own optimizers: three AdamW, which last, and SGD for the outer step."""
    center = START.clone().requires_grad_()
    outer = torch.optim.SGD([center], lr=outer_rate, momentum=outer_momentum, nesterov=outer_momentum > 0)
    xs = [START.clone().requires_grad_() for _ in range(3)]
    inner = [torch.optim.AdamW([x], lr=ETA, weight_decay=0.1) for x in xs]
    for t in range(rounds * tau):
        for i, (x, optimizer) in enumerate(zip(xs, inner, strict=True)):
            x.grad = noisy(i, t, x.detach())
            optimizer.step()
        if (t + 1) % tau == 0:
            center.grad = center.detach() - sum(x.detach() for x in xs) / 3
            outer.step()
            for x in xs:
                x.data.copy_(center.detach())
    return center.detach()


@pytest.mark.parametrize(
    ("method", "momentum", "rate"),
    [
        (DiLoCo(local=AdamW(weight_decay=0.1), nu=0.7, mu=0.9), 0.9, 0.7),
        (ModelAveraging(local=AdamW(weight_decay=0.1)), 0.0, 1.0),
    ],
    ids=["diloco", "model_averaging"],
)
def test_local_adamw_within_an_outer_step_is_torchs(method: Method, momentum: float, rate: float) -> None:
    """The closing exchange is the last outer step."""
    driver = ByHand(method, FunctionOf(), workers=3, tau=5, schedule=CONSTANT, start=START)
    for _ in range(30):
        driver.round()
    driver.close()
    torch.testing.assert_close(driver.vectors()["x"], torchs_adamw(momentum, rate, 6, 5), rtol=1e-10, atol=1e-12)


def test_delayed_momentum_of_workers_in_turn_moves_as_far_as_one_step_of_diloco() -> None:
    """With N = p, after every p updates the center has taken DiLoCo's step with the mean of the p displacements."""
    moved = torch.randn(4, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = (Center(m.variables[CENTER], new_vectors(m.center, START)) for m in (AsyncDiLoCo(workers=3), DiLoCo()))
    for three in moved:
        mean = b.vectors["x"] + three.mean(0)
        for d in three:
            a.receive(a.lend(d, torch.empty_like(START)))
        b.receive_round([b.lend(mean, torch.empty_like(START))])
        torch.testing.assert_close(a.vectors["x"], b.vectors["x"], rtol=1e-12, atol=1e-12)


STREAMING = StreamingDiLoCo(tau=3, nu=NU, mu=MU, delay=1, mix=0.3)


def test_streaming_diloco_equals_its_equations_after_every_step() -> None:
    """It has no exchange at t = 0, and takes in what it gets a step later."""
    driver = ByHand(STREAMING, FunctionOf(), workers=3, tau=3, schedule=falling, start=START)
    listing = Listing(START, 3, falling(0), 3, noisy)
    for t in range(40):
        listing.eta = falling(t)
        before = [w.x.clone() for w in driver.workers]
        step = Step(STREAMING, driver.workers[0])  # run to its only yield and thrown away, it leaves no trace
        assert (step.exchange is not None) is (t > 0 and t % 3 == 0)
        assert all(torch.equal(w.x, x) for w, x in zip(driver.workers, before, strict=True))
        driver.round()
        listing.streaming_diloco()
        same(driver, listing)
        assert driver.order == [0, 1, 2] * (t // 3)
    assert_closes("streaming_diloco", driver, listing)


def test_a_worker_that_is_back_mixes_nothing_before_its_next_exchange() -> None:
    method = STREAMING
    driver = ByHand(method, FunctionOf(), workers=1, tau=3, schedule=CONSTANT, start=START)
    w = driver.workers[0]
    w.t = 4  # when it would take in what it has from step 3, and has nothing
    driver.round()
    torch.testing.assert_close(w.x, START - ETA * noisy(0, 4, START), rtol=1e-13, atol=0)


def test_model_averaging_is_a_corner_of_pull_then_step_and_of_diloco() -> None:
    methods = (ModelAveraging(), PullThenStep(alpha=1.0, beta=1.0, workers=3), DiLoCo(nu=1.0, mu=0.0))
    drivers = [ByHand(m, FunctionOf(), workers=3, tau=4, schedule=falling, start=START) for m in methods]
    for _ in range(30):
        for driver in drivers:
            driver.round()
            torch.testing.assert_close(driver.vectors()["x"], drivers[0].vectors()["x"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AllReduce(delta=0.9, tau=4), r"tau=4.*tau=1.*model_averaging"),
        (lambda: StreamingDiLoCo(tau=3, delay=3), r"algo\.delay=3 tau=3"),
        (lambda: StreamingDiLoCo(tau=3, delay=0), r"algo\.delay=0 tau=3"),
        (lambda: StreamingDiLoCo(tau=3, delay=1, mix=1.1), r"algo\.mix=1\.1"),
        (lambda: DiLoCo(nu=0.0), r"algo\.nu=0"),
        (lambda: DiLoCo(mu=1.0), r"algo\.mu=1"),
        (lambda: AsyncDiLoCo(workers=3, mu=-0.1), r"algo\.mu=-0\.1"),
        (lambda: AsyncDiLoCo(workers=3, period=0), r"algo\.period=0"),
    ],
)
def test_constants_that_break_an_outer_rule_are_refused(make: Callable[[], Method], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_mdownpour_refuses_longer_periods() -> None:
    with pytest.raises(ValueError, match=r"tau=4.*tau=1"):
        MDOWNPOUR(delta=0.9, tau=4)


@pytest.mark.parametrize("method", [EASGD, SyncEASGD, GaussSeidelEASGD])
@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_a_moving_rate_outside_0_to_1_is_refused(method: type[EASGD], alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        method(alpha=alpha)


def test_a_rule_that_yields_something_else_is_told_so() -> None:
    class Wrong(SGD):
        def step(self, w: Worker):  # type: ignore[no-untyped-def]
            yield w.x

    driver = ByHand(Wrong(), FunctionOf(), workers=1, tau=1, schedule=Constant(0.1), start=START)
    with pytest.raises(TypeError, match="yields Gradient, Exchange"):
        driver.step(0)


@pytest.mark.parametrize("ask", [Gradient, Exchange])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_second_gradient_or_exchange_in_a_step_is_refused(ask: type[Gradient | Exchange], at_once: bool) -> None:
    class Twice(EASGD):
        def step(self, w: Worker):  # type: ignore[no-untyped-def]
            if at_once:
                yield ask(w.x), ask(w.x)
            else:
                yield ask(w.x)
                yield ask(w.x)

    driver = ByHand(Twice(alpha=0.5), FunctionOf(), workers=1, tau=1, schedule=Constant(0.1), start=START)
    with pytest.raises(TypeError, match=f"a second {ask.__name__}"):
        driver.step(0)


@pytest.mark.parametrize("tau", [1, 3])
@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_equal_their_equations_after_every_step(name: str, tau: int) -> None:
    if name in AT_EACH_STEP and tau > 1:
        pytest.skip("defined for tau = 1 only")
    driver, listing = pair(name, p=3, tau=tau, schedule=falling)
    for t in range(40):
        listing.eta = falling(t)
        driver.round()
        getattr(listing, name)()
        same(driver, listing)
        assert driver.order == [0, 1, 2] * (t // tau + 1)
    assert driver.center is not None and driver.center.clock == len(driver.order) // 3
    assert_closes(name, driver, listing)


def test_a_round_of_one_is_an_exchange() -> None:
    """With p = 1 the synchronous method is the asynchronous one, bit for bit."""
    a = ByHand(SyncEAMSGD(alpha=0.9, delta=DELTA), FunctionOf(), workers=1, tau=2, schedule=Constant(ETA), start=START)
    b = ByHand(EAMSGD(alpha=0.9, delta=DELTA), FunctionOf(), workers=1, tau=2, schedule=Constant(ETA), start=START)
    for _ in range(30):
        a.round()
        b.step(0)
        assert torch.equal(a.workers[0].x, b.workers[0].x)
    assert a.center is not None and b.center is not None and torch.equal(a.center.vectors["x"], b.center.vectors["x"])


def test_jacobi_is_neither_gauss_seidel_nor_pulling_first() -> None:
    ends = []
    for method in (SyncEASGD(alpha=0.3), GaussSeidelEASGD(alpha=0.3), PullThenStep(alpha=0.3, beta=0.9, workers=3)):
        driver = ByHand(method, FunctionOf(), workers=3, tau=1, schedule=Constant(ETA), start=START)
        for _ in range(3):
            driver.round()
        assert driver.center is not None
        ends.append(driver.center.vectors["x"])
    assert min(float((a - b).norm()) for a, b in ((ends[0], ends[1]), (ends[1], ends[2]), (ends[0], ends[2]))) > 1e-4


def test_pull_then_step_at_its_corners_is_synchronous_downpour_and_model_averaging() -> None:
    """alpha = 1: with beta = p the center moves by the sum of the workers' steps, with beta = 1 to the mean of the
    workers.
    """
    for beta in (3.0, 1.0):
        driver = ByHand(
            PullThenStep(alpha=1.0, beta=beta, workers=3),
            FunctionOf(),
            workers=3,
            tau=1,
            schedule=Constant(ETA),
            start=START,
        )
        center, steps = START.clone(), [torch.zeros(D, dtype=torch.float64)] * 3
        for t in range(20):
            driver.round()
            center = center + sum(steps) * beta / 3
            steps = [-ETA * noisy(i, t, center) for i in range(3)]
            assert driver.center is not None
            torch.testing.assert_close(driver.center.vectors["x"], center, rtol=1e-12, atol=1e-13)


def test_rounds_and_turns_are_not_mixed_up() -> None:
    rounds, _ = pair("sync_easgd", p=2, tau=1)
    with pytest.raises(TypeError, match="call round"):
        rounds.step(0)
    turns, _ = pair("easgd", p=2, tau=1)
    with pytest.raises(TypeError, match="has no rounds"):
        turns.round()


def moving(xs: list[Tensor], rate: float, start: int) -> Tensor:
    """z of the values x_0 .. x_t: x itself up to x_start, from then on a share of each new one."""
    z = xs[min(start, len(xs) - 1)]
    for x in xs[start + 1 :]:
        z = (1 - rate) * z + rate * x
    return z


@pytest.mark.parametrize(
    ("average", "mean"),
    [
        (Polyak(), lambda xs: sum(xs) / len(xs)),
        (Polyak(start=4), lambda xs: sum(xs[4:]) / len(xs[4:]) if len(xs) > 4 else xs[-1]),
        (
            Moving(rate=0.2),
            lambda xs: (
                sum(0.2 * 0.8 ** (len(xs) - 1 - k) * x for k, x in enumerate(xs) if k) + 0.8 ** (len(xs) - 1) * xs[0]
            ),
        ),
        (Moving(rate=0.2, start=90), lambda xs: xs[-1]),
        (Moving(rate=0.2, start=4), lambda xs: moving(xs, rate=0.2, start=4)),
        (Moving(), lambda xs: moving(xs, rate=0.001, start=0)),
    ],
)
def test_an_average_of_the_center_is_that_of_its_values_after_every_update(
    average: Average, mean: Callable[[list[Tensor]], Tensor]
) -> None:
    """On the master's clock: one more value at every update by any worker."""
    driver = ByHand(DOWNPOUR(), FunctionOf(), workers=3, tau=2, schedule=Constant(ETA), start=START, average=average)
    assert driver.center is not None
    values = [START.clone()]
    order = random.Random(5)
    for _ in range(80):
        before = len(driver.order)
        driver.step(order.randrange(3))
        if len(driver.order) > before:
            values.append(driver.center.vectors["x"].clone())
        torch.testing.assert_close(driver.center.vectors["average"], mean(values), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ROUNDS)
def test_an_average_of_a_center_of_rounds_is_of_its_values_after_each_round(name: str) -> None:
    driver = ByHand(
        METHODS[name], FunctionOf(), workers=3, tau=2, schedule=CONSTANT, start=START, average=Moving(rate=0.2)
    )
    assert driver.center is not None
    values = [START.clone()]
    for t in range(20):
        driver.round()
        if t % 2 == 0 or name in AT_EACH_STEP:
            values.append(driver.center.vectors["x"].clone())
        torch.testing.assert_close(
            driver.center.vectors["average"], moving(values, rate=0.2, start=0), rtol=1e-12, atol=1e-13
        )


@pytest.mark.parametrize(
    "make", [lambda: Moving(rate=0.0), lambda: Moving(rate=1.5), lambda: Moving(start=-1), lambda: Polyak(start=-1)]
)
def test_an_average_that_makes_no_sense_is_refused(make: Callable[[], Average]) -> None:
    with pytest.raises(ValueError, match=r"average\.(rate|start)="):
        make()


def test_a_sequential_method_with_several_workers_is_refused() -> None:
    from easgd_cli.algorithms.base import check_method

    with pytest.raises(UsageError, match=r"algo=sgd workers=4.*workers=1"):
        check_method(SGD(), "sgd", workers=4)


def test_blocks_change_nothing() -> None:
    """The center's rule in blocks equals the rule on whole vectors, elementwise as it is."""
    import easgd_cli.training.center as center

    size = 3 * center.BLOCK + 17
    x, m = torch.randn(size), torch.randn(size)
    for method in (METHODS["easgd"], METHODS["downpour"], METHODS["mdownpour"]):
        vectors = {name: x.clone() if name == "x" else torch.zeros(size) for name in method.center}
        whole = center.Vectors({n: v.clone() for n, v in vectors.items()})
        blocked = center.Center(method.variables["center"], vectors)
        reply, reply_whole = torch.empty(size), torch.empty(size)
        blocked.receive(blocked.lend(m, reply))
        method.receive(whole, m, reply_whole, 1)
        torch.testing.assert_close(blocked.vectors["x"], whole.x, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(reply, reply_whole, rtol=1e-6, atol=1e-6)
        assert blocked.clock == 1


class PullAndStep(Method):
    """In rounds, with the gradient at the reply, or at a vector made for it."""

    gathers = "round"

    def step(self, w: Worker) -> Any:
        pulled = (yield Exchange(w.x)) if w.due else None
        g = yield Gradient(w.x * 0.5 if pulled is None else pulled)
        w.x.sub_(g, alpha=w.eta)

    def receive(self, center: Any, m: Tensor, reply: Tensor, n: int) -> None:
        center.x.copy_(m)
        reply.copy_(m)


@pytest.mark.parametrize("name", [*METHODS, "pull_and_step"])
def test_statistics_are_averaged_and_the_parameters_follow_the_method(name: str) -> None:
    """A step moves them by a share to what it sees; the center's by 1/p to a worker's at each exchange, to their mean
    in a round.
    """
    method, share, statistics = METHODS.get(name, PullAndStep()), 0.3, 2
    p, tau = (1 if name in ("sgd", "msgd") else 3), (1 if name in AT_EACH_STEP else 2)

    def seen(i: int, t: int) -> Tensor:
        return torch.tensor([100.0 + i, math.cos(t)], dtype=torch.float64)

    def gradient(i: int, t: int, x: Tensor) -> Tensor:
        return torch.cat([noisy(i, t, x[:D]), share * (x[D:] - seen(i, t))])

    starts = [torch.cat([START, torch.tensor([float(i), -1.0], dtype=torch.float64)]) for i in range(p)]
    plain = ByHand(method, FunctionOf(), workers=p, tau=tau, schedule=Constant(ETA), start=START)
    averaging = WithStatistics(method, statistics, p)
    whole = ByHand(
        averaging, FunctionOf(gradient), workers=p, tau=tau, schedule=Constant(ETA), start=starts[0], starts=starts
    )
    r, center = [start[D:].clone() for start in starts], starts[0][D:].clone()
    order = random.Random(3)
    for step in range(40):
        if not method.alone and method.in_rounds:
            plain.round()
            whole.round()
            turn = range(p)
            if step % tau == 0:
                center = sum(r[1:], r[0]) / p
                if name in ("pull_and_step", "model_averaging", "diloco"):
                    r = [center] * p
        else:
            turn = range(i := order.randrange(p), i + 1)
            t, before = whole.workers[i].t, len(whole.order)
            plain.step(i)
            whole.step(i)
            assert (len(whole.order) > before) == (p > 1 and t % tau == 0)
            if len(whole.order) > before:
                center = center + (r[i] - center) / p
        for i in turn:
            r[i] = (1 - share) * r[i] + share * seen(i, whole.workers[i].t - 1)
        for i, (one, both) in enumerate(zip(plain.workers, whole.workers, strict=True)):
            for vector in method.state:
                assert torch.equal(getattr(both, vector)[:D], getattr(one, vector))
            torch.testing.assert_close(both.x[D:], r[i], rtol=1e-12, atol=1e-12)
        if whole.center is not None and plain.center is not None:
            assert torch.equal(whole.center.vectors["x"][:D], plain.center.vectors["x"])
            torch.testing.assert_close(whole.center.vectors["x"][D:], center, rtol=1e-12, atol=1e-12)


def test_a_step_without_exchange_needs_no_session() -> None:
    w = Worker({"x": START.clone()}, tau=10, schedule=Constant(ETA), t=1)
    take_step(EASGD(alpha=0.1), w, ProblemGradients(FunctionOf()), None)
    torch.testing.assert_close(w.x, START - ETA * noisy(0, 1, START))
