"""What the configuration takes from the paper, value by value, and every other default that the docs state.

Held through composition: what `easgd train algo=... dataset=...` runs with, wherever that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from easgd_cli.commands import compose
from easgd_cli.models.convnet7 import ConvNet7
from easgd_cli.models.convnet11 import ConvNet11
from easgd_cli.settings.schema import Settings, effective_alpha, effective_beta

# Zhang, Choromanska, LeCun 2015 (arXiv 1412.6651v8): of the three rates tried on CIFAR (Tables 1 and 2) the middle one;
# on ImageNet Table 3, of two rates that for 4 workers. The synchronous methods take those of their asynchronous forms,
# which the paper has none for.
CIFAR = {"easgd": 0.01, "eamsgd": 0.005, "downpour": 0.001, "mdownpour": 1e-5, "sgd": 0.01, "msgd": 0.0005}
IMAGENET = {"easgd": 0.1, "eamsgd": 0.001, "downpour": 0.02, "sgd": 0.05, "msgd": 0.0005}
LIKE = {
    "adownpour": "downpour", "mvadownpour": "downpour", "asgd": "sgd", "mvasgd": "sgd",
    "sync_easgd": "easgd", "gauss_seidel_easgd": "easgd", "pull_then_step": "easgd", "sync_eamsgd": "eamsgd",
}  # fmt: skip
RATES = [
    *(("cifar10", algo, eta) for algo, eta in CIFAR.items()), *(("cifar100", algo, eta) for algo, eta in CIFAR.items()),
    *(("imagenet", algo, eta) for algo, eta in IMAGENET.items()),
    *((data, algo, rates[like]) for data,
    rates in (("cifar10", CIFAR), ("cifar100", CIFAR), ("imagenet", IMAGENET)) for algo, like in LIKE.items()),
    # ours, found on the data themselves
    *(("digits", algo, eta) for algo,
    eta in {"easgd": 0.2, "eamsgd": 0.05, "downpour": 0.1, "mdownpour": 0.01, "sgd": 0.2, "msgd": 0.02}.items()),
    *(("synthetic", algo, eta) for algo,
    eta in {"easgd": 0.05, "eamsgd": 0.005, "downpour": 0.01, "mdownpour": 0.001, "sgd": 0.05, "msgd": 0.005}.items()),
]  # fmt: skip
SEQUENTIAL = ("sgd", "asgd", "mvasgd", "msgd")
AT_TAU_1 = ("downpour", "adownpour", "mvadownpour", "mdownpour")


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., Settings]]:
    """The settings that a command with these words runs with."""
    with compose.composing("config") as composing:

        def of(*words: str) -> Settings:
            root = ["dataset.root=nowhere"] if {"dataset=imagenet", "dataset=imagefolder"} & set(words) else []
            return composing([*words, *root]).settings

        yield of


@pytest.mark.parametrize(("data", "algo", "eta"), RATES)
def test_rates_are_the_papers(composed: Callable[..., Settings], data: str, algo: str, eta: float) -> None:
    s = composed(f"algo={algo}", f"dataset={data}")
    assert s.eta == eta
    if data in ("cifar10", "cifar100", "imagenet"):
        assert s.l2 == (1e-5 if data == "imagenet" else 1e-4)  # p. 6
        assert s.delta == 0.99  # p. 6
        assert s.batch_size == 128  # p. 6
        assert s.model["dropout"] == 0.5  # p. 6
        # one pass; ten
        assert s.default_steps == (1_281_167 // 128 + 1 if data == "imagenet" else 10 * (50_000 // 128))
    assert s.tau == (1 if algo in AT_TAU_1 else 10)  # p. 7, Figures 3 and 4
    assert s.workers == (1 if algo in SEQUENTIAL else 4)  # p. 6
    assert (effective_beta(s), effective_alpha(s)) == (0.9, 0.9 / s.workers)  # p. 6: beta = 0.9 and alpha = beta / p
    assert (s.gamma, s.warmup, s.clip, s.schedule["name"]) == (0.0, 0, None, "decay")  # p. 6: a constant rate


@pytest.mark.parametrize(("tau", "workers"), [(1, 4), (64, 4), (10, 16)])
def test_alpha_is_beta_over_p_for_every_tau(composed: Callable[..., Settings], tau: int, workers: int) -> None:
    s = composed(f"tau={tau}", f"workers={workers}")
    assert effective_alpha(s) == 0.9 / workers
    s = composed(f"tau={tau}", f"workers={workers}", "alpha=0.05")
    assert (effective_alpha(s), effective_beta(s)) == (0.05, 0.05 * workers)


# The docs' tables and sentences, page by page: words of a command, setting, value.
STATED: list[tuple[str, Sequence[str], str, Any]] = [
    ("README.md", [], "algo.name", "easgd"),
    ("README.md", [], "dataset.name", "digits"),
    ("README.md", [], "model.name", "small"),
    ("docs/algorithms.md", [], "schedule.name", "decay"),
    ("docs/algorithms.md", [], "average.name", "none"),
    ("docs/algorithms.md", ["average=moving"], "average.rate", 0.001),
    ("docs/algorithms.md", ["average=moving"], "average.start", 0),
    ("docs/algorithms.md", ["average=polyak"], "average.start", 0),
    ("docs/algorithms.md", ["algo=mvadownpour"], "average.rate", 0.001),
    ("docs/algorithms.md", ["algo=mvasgd"], "average.rate", 0.001),
    ("docs/algorithms.md", ["algo=adownpour"], "average.name", "polyak"),
    ("docs/algorithms.md", ["algo=asgd"], "average.name", "polyak"),
    ("docs/algorithms.md", ["schedule=cosine"], "schedule.final", 0.0),
    ("docs/algorithms.md", ["schedule=stepwise", "schedule.milestones=[5]"], "schedule.factor", 0.1),
    ("docs/algorithms.md", ["dataset=cifar10"], "model.name", "convnet7"),
    ("docs/algorithms.md", ["dataset=cifar100"], "model.name", "convnet7"),
    ("docs/algorithms.md", ["dataset=synthetic"], "model.name", "convnet7"),
    ("docs/algorithms.md", ["dataset=imagenet"], "model.name", "convnet11"),
    ("docs/algorithms.md", [], "problem.name", "dataset"),
    ("docs/algorithms.md", [], "problem.batch_norm", "estimate"),
    ("docs/algorithms.md", [], "problem.batch_norm_images", None),
    ("docs/algorithms.md", [], "task.label_smoothing", 0.0),
    ("docs/experiments.md", ["algo=eamsgd"], "delta", 0.9),
    ("docs/experiments.md", ["algo=msgd"], "delta", 0.9),
    ("docs/experiments.md", [], "batch_size", 32),
    ("docs/experiments.md", [], "default_steps", 1500),
    ("docs/data.md", ["dataset=imagenet"], "dataset.resize", 256),
    ("docs/data.md", ["dataset=imagenet"], "dataset.crop", 221),  # paper p. 21
    ("docs/data.md", ["dataset=imagenet"], "dataset.flip", True),
    ("docs/data.md", ["dataset=imagenet"], "dataset.mean", None),  # paper p. 21
    ("docs/data.md", ["dataset=imagefolder", "eta=1", "steps=1"], "dataset.resize", 256),
    ("docs/data.md", ["dataset=imagefolder", "eta=1", "steps=1"], "dataset.crop", 224),
    ("docs/data.md", ["dataset=imagenet"], "dataset.ahead", 2),
    ("docs/data.md", ["dataset=imagenet"], "eval.train_images", 50_000),
    ("configs/problem", ["problem=quadratic"], "problem.noise", 1.0),
    ("configs/problem", ["problem=quadratic"], "problem.spectrum", 1.0),
    ("configs/problem", ["problem=double_well"], "problem.noise", 0.1),
    ("configs/problem", ["problem=double_well"], "problem.start", 0.5),
    ("docs/simulation.md", ["launcher=simulated"], "launcher.bandwidth", None),
    ("docs/simulation.md", ["launcher=simulated"], "launcher.compute", 0.01),
    ("docs/simulation.md", ["launcher=simulated"], "launcher.latency", 0.0),
    ("docs/simulation.md", ["launcher=simulated"], "launcher.service", 0.0),
    ("docs/experiments.md", ["launcher=table4_cifar"], "launcher.compute", (12 + 1) / 400),  # paper p. 24
    # paper p. 24
    ("docs/experiments.md", ["launcher=table4_imagenet"], "launcher.compute", round((1248 + 20) / 1024, 2)),
    ("easgd train --help", [], "seed", 0),
    ("easgd train --help", [], "eval.when", "running"),
    ("easgd train --help", [], "eval.device", "cpu"),
    ("easgd train --help", [], "checkpoint.every", None),
    ("easgd train --help", [], "checkpoint.keep", 1),
    ("easgd train --help", [], "device", "auto"),
    ("easgd train --help", [], "center_device", "cpu"),
    ("easgd train --help", [], "precision", "fp32"),
    ("easgd train --help", [], "compile", False),
    ("easgd train --help", [], "deterministic", False),
    ("easgd train --help", [], "jobs", "1"),
    ("easgd train --help", [], "retry", False),
    ("easgd train --help", ["dataset=cifar10"], "eval.train_images", 5000),
    ("easgd train --help", [], "l2", 0.0),
]


@pytest.mark.parametrize(
    ("page", "words", "key", "value"),
    STATED,
    ids=[f"{page}:{' '.join((*words, key))}" for page, words, key, _ in STATED],
)
def test_a_default_is_what_the_docs_say(
    composed: Callable[..., Settings], page: str, words: Sequence[str], key: str, value: Any
) -> None:
    node: Any = composed(*words)
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    assert node == value


@pytest.mark.parametrize(("name", "shares"), [("ConvNet7", [0.5]), ("ConvNet11", [0.5, 0.5])])
def test_a_net_made_without_words_drops_what_the_papers_does(name: str, shares: list[float]) -> None:
    """p. 6: D layers, with dropout 0.5."""
    with torch.device("meta"):  # of 61 million parameters nothing but their shapes
        net = {"ConvNet7": ConvNet7, "ConvNet11": ConvNet11}[name]()
    assert [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)] == shares
