"""Parameters with rates of their own are torch.optim's parameter groups, under every method and local step; a step that
cannot have them is told so; frozen parameters are neither moved nor sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_algorithms import ALPHA, DELTA, START, FunctionOf, falling
from test_runs import run
from test_simulated import same_files, virtual
from test_tasks import theirs
from torch import Tensor, nn

from easgd_cli.algorithms import DOWNPOUR, EAMSGD, EASGD, MDOWNPOUR, MSGD, SGD, Method, Rule, SyncEAMSGD, Worker
from easgd_cli.algorithms.base import Gradient
from easgd_cli.algorithms.groups import Part, in_parts
from easgd_cli.algorithms.local import Adagrad, AdamW, LocalStep, Momentum, Nesterov, Plain, RMSprop
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.batches import Batches
from easgd_cli.training.drive import ByHand

CPU = torch.device("cpu")
GROUPS = [{"match": "*.bias", "l2": 0.0}, {"match": "head.*", "eta": 3.0}, {"match": "b.*", "l2": 0.2, "eta": 0.5}]
LOCAL = {
    "sgd": Plain(), "momentum": Momentum(DELTA), "nesterov": Nesterov(DELTA),
    "adamw": AdamW(weight_decay=0.3, eps=1e-3), "rmsprop": RMSprop(eps=1e-3), "adagrad": Adagrad(),
}  # fmt: skip
METHODS = {
    "msgd": MSGD(DELTA), "easgd": EASGD(ALPHA), "eamsgd": EAMSGD(ALPHA, DELTA), "downpour": DOWNPOUR(),
    "mdownpour": MDOWNPOUR(DELTA, 1), "sync_eamsgd": SyncEAMSGD(ALPHA, DELTA),
} | {f"easgd {name}": EASGD(ALPHA, step) for name, step in LOCAL.items()}  # fmt: skip


def local(name: str, **options: Any) -> dict[str, Any]:
    kind = {"adamw": "AdamW", "momentum": "Momentum", "rmsprop": "RMSprop"}[name]
    return {"name": name, "target": f"easgd_cli.algorithms.local:{kind}", **options}


def in_groups(net: nn.Module, eta: float, l2: float, decay: str, own: float | None = None) -> list[dict[str, Any]]:
    """What GROUPS say, by hand: of the last group that says something of it."""
    found = []
    for name, p in net.named_parameters():
        rate = 3.0 if name.startswith("head.") else 0.5 if name.startswith("b.") else 1.0
        part = 0.2 if name.startswith("b.") else 0.0 if name.endswith(".bias") else l2
        if own is not None:  # decoupled
            part = own if name.endswith(".bias") else 0.05
        found.append({"params": [p], "lr": eta * rate, decay: part})
    return found


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("case", ["msgd", "sgd", "momentum", "rmsprop", "adamw"])
def test_a_run_is_a_plain_loop_with_torchs_parameter_groups(case: str, clip: float | None, tmp_path: Path) -> None:
    groups = [*GROUPS[:2], {"match": "b.*", "eta": 0.5}, {"match": "*.bias", "weight_decay": 0.4}]
    s = theirs(
        "two_inputs", "Siamese", "msgd" if case == "msgd" else "sgd", steps=20, clip=clip, eta=0.02,
        l2=0.0 if case == "adamw" else 0.1, groups=groups if case == "adamw" else GROUPS,
        **({"local": local(case, **({"weight_decay": 0.05} if case == "adamw" else {}))}
           if case not in ("msgd", "sgd") else {}),
    )  # fmt: skip
    virtual(s, tmp_path)
    center = torch.load(tmp_path / "center.pt", weights_only=True)
    data: Any = build.data(s)
    net = build.model(s, data).train()
    of = in_groups(net, s.eta, s.l2, "weight_decay", own=0.4 if case == "adamw" else None)
    decays = [group["weight_decay"] for group in of]
    optimizer: Any = {
        "msgd": lambda: torch.optim.SGD(of, momentum=s.delta, nesterov=True), "sgd": lambda: torch.optim.SGD(of),
        "momentum": lambda: torch.optim.SGD(of, momentum=s.delta),
        "rmsprop": lambda: torch.optim.RMSprop(of), "adamw": lambda: torch.optim.AdamW(of),
    }[case]()  # fmt: skip
    (a, b), y = data.inputs["train"], data.labels["train"].double()
    batches = Batches(len(y), s.batch_size, s.seed)
    for t in range(20):
        i = batches.indices(0, t)
        optimizer.zero_grad()
        out = net(a[i].double(), b[i].double())
        loss = ((out - y[i]) ** 2).mean()
        loss.backward()
        if clip is not None:  # the norm is that of the gradient with its l2 term
            for group, decay in zip(of, decays, strict=True):
                [p] = group["params"]
                if case != "adamw":
                    p.grad += decay * p.detach()
                    group["weight_decay"] = 0.0
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    for group in of:
        [p] = group["params"]
        name = next(name for name, q in net.named_parameters() if q is p)
        ahead = s.delta * group["lr"] * optimizer.state[p]["momentum_buffer"] if case == "msgd" else 0.0
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if clip else {}  # torch adds 1e-6 to the norm
        torch.testing.assert_close(center[name], (p + ahead).detach(), **tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_each_part_goes_its_own_way(name: str) -> None:
    """Three workers on a gradient without coupling: each part is the same run with only that part and its rate."""
    method, d = METHODS[name], len(START)
    cuts = [(0, 2, 1.0), (2, d - 1, 0.25), (d - 1, d, 3.0)]
    whole = ByHand(
        in_parts(method, [Part(b, e, f) for b, e, f in cuts], START), FunctionOf(lambda i, t, x: entrywise(i, t, x, 0)),
        workers=3, tau=2, schedule=falling, start=START,
    )  # fmt: skip
    parts = [
        ByHand(method, FunctionOf(lambda i, t, x, b=b: entrywise(i, t, x, b)), workers=3, tau=2,
               schedule=lambda t, f=f: f * falling(t), start=START[b:e])
        for b, e, f in cuts
    ]  # fmt: skip
    in_rounds = method.in_rounds
    workers = 1 if method.alone else 3
    for k in range(30):
        for driver in (whole, *parts):
            driver.round() if in_rounds else driver.step(k * k % workers)
        for key in ("x",):
            together = torch.cat([part.vectors()[key] for part in parts])
            torch.testing.assert_close(whole.vectors()[key], together, rtol=1e-12, atol=1e-13)


def entrywise(i: int, t: int, x: Tensor, begin: int) -> Tensor:
    return torch.sin(3 * x + torch.arange(begin, begin + len(x)) + t + i)


@dataclass(frozen=True)
class Normed(LocalStep):
    """Divides by the norm of the whole gradient."""

    def move(self, w: Worker, g: Tensor) -> None:
        w.x.sub_(g / g.norm(), alpha=w.eta)


@dataclass(frozen=True)
class Signed(Method):
    """A listing whose step does not grow with g."""

    center = ()

    def step(self, w: Worker) -> Rule:
        g = yield Gradient(w.x)
        w.x.sub_(g.sign(), alpha=w.eta)


@pytest.mark.parametrize("method", [SGD(Normed()), Signed(), EASGD(ALPHA, Normed())])
def test_a_rule_without_rates_for_parts_is_told(method: Method) -> None:
    with pytest.raises(ValueError, match="groups: rates of their own have no meaning"):
        in_parts(method, [Part(0, 1), Part(1, 3, 2.0)], START)


@pytest.mark.parametrize(
    ("groups", "algo", "sentence"),
    [
        ([{"match": "haed.*", "eta": 2.0}], "msgd",
         r"groups\[0\].match=haed.\*: fits the name of no parameter .*head.weight"),
        ([{"match": "frozen", "l2": 0.0}], "msgd", r"fits only parameters that are frozen"),
        ([{"match": "*.bias"}], "msgd", r"groups\[0\]: has match, and what is to hold where it fits, as in 'groups=\["),
        ([{"l2": 0.0}], "msgd", r"groups\[0\]: has match, and what is to hold"),
        ([{"match": "*", "lr": 2}], "msgd", r"groups\[0\].lr=2: a group has match, l2, eta and weight_decay"),
        ([{"match": "*", "eta": -1}], "msgd", r"groups\[0\].eta=-1: must be a finite number that is not negative"),
        ([{"match": "*", "l2": "no"}], "msgd", r"groups\[0\].l2=no: must be a number"),
        ([{"match": "*.bias", "weight_decay": 0.0}], "eamsgd", r"weight_decay is a constant of local=adamw"),
        ([{"match": "*.bias", "weight_decay": 0.0}], "easgd", r"weight_decay is a constant of local=adamw"),
    ],
)  # fmt: skip
def test_what_a_group_cannot_be_is_told(groups: list[dict[str, Any]], algo: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build.prepare(theirs("two_inputs", "PartlyFrozen", algo, steps=3, groups=groups))


def test_a_problem_without_names_takes_none() -> None:
    s = theirs("two_inputs", "Siamese", steps=3, groups=GROUPS)
    s.problem = {"name": "quadratic", "target": "easgd_cli.problems.quadratic:Quadratic"}
    s.dataset = s.model = {"name": "none", "target": None}
    with pytest.raises(UsageError, match=r"problem=quadratic groups=.*no named parameters"):
        build.prepare(s)


def test_a_tied_parameter_goes_by_each_of_its_names() -> None:
    s = theirs("tokens", "Tied", steps=3, groups=[{"match": "out.*", "eta": 4.0}])
    assert [tuple(part) for part in build.prepare(s).problem.parts] == [(0, 11 * 6, 4.0, None)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("algo", ["easgd", "eamsgd"])
def test_processes_and_simulation_agree_and_go_on_bit_for_bit(algo: str, tmp_path: Path) -> None:
    groups = [*GROUPS[:2], {"match": "head.*", "eta": 0.5}]
    for name, lengths, taken in (("virtual", [12], virtual), ("real", [5, 12], run)):
        for steps in lengths:
            s = theirs("two_inputs", "PartlyFrozen", algo, workers=1, steps=steps, groups=groups)
            taken(s, tmp_path / name, resume=steps != lengths[0])
    same_files(tmp_path / "virtual", tmp_path / "real", "center.pt")


@pytest.mark.parametrize("local_step", [None, local("adamw", weight_decay=0.5)])
def test_frozen_parameters_are_neither_moved_nor_sent(local_step: dict[str, Any] | None, tmp_path: Path) -> None:
    """x, and with it every message, is as long as the trained ones are; the others come out as they went in, to the
    bit, whatever decays the rest.
    """
    s = theirs("two_inputs", "PartlyFrozen", "easgd", workers=3, steps=20, l2=0.1,
               **({} if local_step is None else {"local": local_step}))  # fmt: skip
    virtual(s, tmp_path)
    begun = build.model(s, build.data(s))
    trained = [p for p in begun.parameters() if p.requires_grad]
    assert build.prepare(s).size == sum(p.numel() for p in trained) < sum(p.numel() for p in begun.parameters())
    center = torch.load(tmp_path / "center.pt", weights_only=True)
    assert set(center) == {name for name, _ in begun.named_parameters()}
    for name, p in begun.named_parameters():
        assert torch.equal(center[name], p) is not p.requires_grad
