"""Every local step is its namesake of torch.optim, and under a method the line of the listing that it stands for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_algorithms import ALPHA, DELTA, START, FunctionOf, falling, noisy
from test_runs import MOVING, recorded_order, settings
from test_simulated import UNEVEN, same_files, stopped_after, virtual
from torch import Tensor

from easgd_cli.algorithms import EAMSGD, EASGD, SGD, GaussSeidelEASGD, SyncEAMSGD, SyncEASGD, Worker
from easgd_cli.algorithms.local import Adagrad, AdamW, LocalStep, Momentum, Nesterov, Plain, RMSprop
from easgd_cli.algorithms.statistics import WithStatistics
from easgd_cli.commands import compose, configs
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Settings
from easgd_cli.training.drive import ByHand

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
NAMESAKES: dict[str, tuple[LocalStep, Optimizer]] = {
    "sgd": (Plain(), lambda x: torch.optim.SGD(x, lr=0)),
    "momentum": (Momentum(DELTA), lambda x: torch.optim.SGD(x, lr=0, momentum=DELTA)),
    "adam": (AdamW(weight_decay=0.0), lambda x: torch.optim.Adam(x, lr=0)),
    "adamw": (
        AdamW(weight_decay=0.3, beta1=0.8, beta2=0.95, eps=1e-3),
        lambda x: torch.optim.AdamW(x, lr=0, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-3),
    ),
    "rmsprop": (RMSprop(rho=0.9, eps=1e-3), lambda x: torch.optim.RMSprop(x, lr=0, alpha=0.9, eps=1e-3)),
    "adagrad": (Adagrad(), lambda x: torch.optim.Adagrad(x, lr=0)),
}


def torchs(optimizer: Optimizer, steps: int) -> list[Tensor]:
    """x after each step of a plain loop, with a rate that falls at every step."""
    x = START.clone().requires_grad_()
    moves, found = optimizer([x]), []
    for t in range(steps):
        for group in moves.param_groups:
            group["lr"] = falling(t)
        x.grad = noisy(0, t, x.detach())
        moves.step()
        found.append(x.detach().clone())
    return found


@pytest.mark.parametrize("name", NAMESAKES)
def test_alone_it_is_torchs_optimizer_in_a_plain_loop(name: str) -> None:
    step, optimizer = NAMESAKES[name]
    driver = ByHand(SGD(step), FunctionOf(), workers=1, tau=1, schedule=falling, start=START)
    for expected in torchs(optimizer, 60):
        driver.step(0)
        torch.testing.assert_close(driver.workers[0].x, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("chosen, listed", [
    (EASGD(ALPHA, Nesterov(DELTA)), EAMSGD(ALPHA, DELTA)),
    (SyncEASGD(ALPHA, Nesterov(DELTA)), SyncEAMSGD(ALPHA, DELTA)),
])  # fmt: skip
def test_easgd_with_nesterovs_step_is_eamsgd_bit_for_bit(chosen: Any, listed: Any) -> None:
    a, b = (ByHand(m, FunctionOf(), workers=3, tau=3, schedule=falling, start=START) for m in (chosen, listed))
    order = random.Random(0)
    for _ in range(60):
        i = order.randrange(3)
        for driver in (a, b):
            driver.round() if isinstance(chosen, SyncEASGD) else driver.step(i)
        for one, other in zip(a.workers, b.workers, strict=True):
            assert torch.equal(one.x, other.x) and torch.equal(one.v, other.v)
        assert a.center is not None and b.center is not None
        assert torch.equal(a.center.vectors["x"], b.center.vectors["x"])


def test_under_easgd_the_pull_comes_before_the_step_and_moments_stay_with_their_worker() -> None:
    """Algorithm 1 with AdamW's lines in place of its last one, written out once more."""
    step, p, tau = AdamW(weight_decay=0.2), 3, 2
    driver = ByHand(EASGD(ALPHA, step), FunctionOf(), workers=p, tau=tau, schedule=falling, start=START)
    x, m, s = ([v.clone() for _ in range(p)] for v in (START, START * 0, START * 0))
    center, clock, order = START.clone(), [0] * p, random.Random(1)
    for _ in range(80):
        i = order.randrange(p)
        t, eta = clock[i], falling(clock[i])
        g = noisy(i, t, x[i])
        if t % tau == 0:
            difference = ALPHA * (x[i] - center)
            x[i], center = x[i] - difference, center + difference
        m[i] = 0.9 * m[i] + 0.1 * g
        s[i] = 0.999 * s[i] + 0.001 * g**2
        m_hat, s_hat = m[i] / (1 - 0.9 ** (t + 1)), s[i] / (1 - 0.999 ** (t + 1))
        x[i] = x[i] - eta * 0.2 * x[i] - eta * m_hat / (s_hat.sqrt() + 1e-8)
        clock[i] += 1
        driver.step(i)
        assert driver.center is not None
        torch.testing.assert_close(driver.workers[i].x, x[i], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(driver.center.vectors["x"], center, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NAMESAKES)
def test_statistics_beside_the_parameters_are_not_moved_by_it(name: str) -> None:
    """What is no gradient takes no part: neither moments nor decay touch the last entries, which follow the batches."""
    step, _ = NAMESAKES[name]
    d = len(START) - 2
    whole = ByHand(WithStatistics(SGD(step), 2, 1), FunctionOf(), workers=1, tau=1, schedule=falling, start=START)
    alone = ByHand(
        SGD(step), FunctionOf(lambda i, t, x: noisy(i, t, torch.cat([x, START[d:]]))[:d]),
        workers=1, tau=1, schedule=falling, start=START[:d],
    )  # fmt: skip
    for t in range(5):
        r = whole.workers[0].x[d:].clone()
        change = noisy(0, t, whole.workers[0].x)[d:]
        whole.step(0)
        alone.step(0)
        assert torch.equal(whole.workers[0].x[:d], alone.workers[0].x)
        assert torch.equal(whole.workers[0].x[d:], r - change)


@pytest.mark.parametrize("algo", ["easgd", "sync_easgd", "sgd"])
def test_its_vectors_are_kept_by_a_checkpoint(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted anywhere and resumed, the moments and the clock of Adam's corrections are those of the whole run."""
    adamw = {"name": "adamw", "target": "easgd_cli.algorithms.local:AdamW"}
    s = settings(algo, workers=1 if algo == "sgd" else 4, steps=30, eta=0.01, local=adamw, average=MOVING)
    virtual(s, tmp_path / "whole", **UNEVEN)
    for events in (1, 9, 40):
        stopped_after(events, monkeypatch)
        virtual(s, tmp_path / "parts", resume=events > 1, **UNEVEN)
    monkeypatch.undo()
    assert virtual(s, tmp_path / "parts", resume=True, **UNEVEN).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt", "average.pt")
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "parts")


def composed(*overrides: str) -> Settings:
    with compose.composing("config") as job:
        return job(overrides).settings


@pytest.mark.parametrize("name", [n for n in configs.options("local") if n != "own"])
def test_every_step_can_be_chosen_by_its_name(name: str) -> None:
    s = composed(f"local={name}")
    method = build.method(s)
    assert isinstance(method, EASGD) and isinstance(method.local, LocalStep)
    if name in NAMESAKES:
        assert type(method.local) is type(NAMESAKES[name][0])


def test_the_step_that_a_listing_has_changes_no_default() -> None:
    for dataset in (["dataset=digits"], ["dataset=cifar10"], ["dataset=imagenet", "dataset.root=photos"]):
        own, sgd, nesterov, eamsgd = (
            composed(*dataset, *more) for more in ((), ("local=sgd",), ("local=nesterov",), ("algo=eamsgd",))
        )
        assert (own.eta, own.delta) == (sgd.eta, sgd.delta)
        assert (nesterov.eta, nesterov.delta) == (eamsgd.eta, eamsgd.delta)
    assert build.method(own) == build.method(sgd)


@pytest.mark.parametrize("algo", ["eamsgd", "downpour", "mdownpour", "msgd", "sync_eamsgd", "pull_then_step"])
def test_a_method_whose_step_is_part_of_its_rule_takes_no_other(algo: str) -> None:
    with pytest.raises(UsageError, match=f"algo={algo} local=adam: .* leave out local=.*such as algo=easgd"):
        build.method(composed(f"algo={algo}", "local=adam", "workers=1"))


@pytest.mark.parametrize("override, sentence", [
    ("local.beta1=1", r"local.beta1=1: lies in \[0, 1\)"),
    ("local.beta2=-0.1", r"local.beta2=-0.1: lies in \[0, 1\)"),
    ("local.eps=-1", "local.eps=-1: must be a finite number that is not negative"),
    ("local.weight_decay=inf", "local.weight_decay=inf: must be a finite number that is not negative"),
    ("local.decay=3", "local.decay=3: adamw has no such setting; did you mean local.weight_decay"),
])  # fmt: skip
def test_a_constant_that_breaks_a_step_is_refused(override: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build.method(composed("local=adamw", override))


@dataclass(frozen=True)
class Sign(LocalStep):
    """A step as a user writes it."""

    delta: float
    size: float = 2.0

    def move(self, w: Worker, g: Tensor) -> None:
        w.x.sub_(g.sign(), alpha=w.eta * self.size)


def test_a_step_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    s = composed("local=test_local_steps:Sign", "local.size=3", "delta=0.5", "algo=gauss_seidel_easgd")
    method = build.method(s)
    assert isinstance(method, GaussSeidelEASGD)
    assert (method.local.delta, method.local.size) == (0.5, 3)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"local=test_local_steps:falling needs local\.t"):
        build.method(composed("local=test_local_steps:falling"))
