"""Tasks: each one's loss and gradient against a plain loop with torch.optim, its metrics against their definitions,
what ends a run, and what is refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_runs import settings
from test_simulated import virtual
from torch import Tensor, nn

from easgd_cli.commands import compose
from easgd_cli.data.nest import mapped
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.batches import Batches
from easgd_cli.problems.classification import metrics_of
from easgd_cli.problems.metric import HIGHER
from easgd_cli.problems.net import NetProblem
from easgd_cli.record import reader, run_directory
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps import objective

TASKS = {
    "classification": "classification:Classification", "regression": "regression:Regression",
    "multi_label": "multi_label:MultiLabel", "next_token": "next_token:NextToken",
}  # fmt: skip


def task(name: str, **options: Any) -> dict[str, Any]:
    known = f"easgd_cli.problems.tasks.{TASKS[name]}" if name in TASKS else name
    return {"name": name, "target": known, **options}


def theirs(data: str, net: str, algo: str = "msgd", **values: Any) -> Settings:
    group = lambda name: {"name": f"theirs:{name}", "target": f"theirs:{name}"}  # noqa: E731
    dataset = group(data) | values.pop("dataset", {})
    return settings(algo, **{"dataset": dataset, "model": group(net), "l2": 0.0, **values})


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, ignore_index=255)


# the data set, the net, the task asked for, the loss as a plain loop has it, on outputs and the rows of its arrays
CASES = {
    "numbers": ("table", "Linear", None, lambda out, y: ((out[:, 0] - y) ** 2).mean()),
    "a function": ("table", "Linear", task("theirs:quartic", power=2), lambda out, y: ((out[:, 0] - y) ** 2).mean()),
    "torch's": ("table", "Linear", task("torch.nn:L1Loss"), lambda out, y: (out[:, 0] - y).abs().mean()),
    "two inputs": ("two_inputs", "Siamese", None, lambda out, y: ((out - y) ** 2).mean()),
    "segments": ("segments", "Convolution", task("classification", ignore_index=255), cross_entropy),
    "smoothed": ("segments", "Convolution", task("classification", ignore_index=255, label_smoothing=0.1),
                 lambda out, y: F.cross_entropy(out, y, ignore_index=255, label_smoothing=0.1)),
    "tags": ("tags", "Linear", None, lambda out, y: -F.logsigmoid(torch.where(y, out, -out)).mean()),
    "tokens": ("tokens", "Bigram", None,
               lambda out, y: F.cross_entropy(out.reshape(-1, 11), y.reshape(-1))),
}  # fmt: skip


def arrays_of(problem: NetProblem, split: str = "train") -> tuple[Any, Any]:
    """Inputs and targets of a split, as the net sees them."""
    data: Any = problem._data
    inputs, y = data.inputs[split], data.labels[split]
    if y is None:
        return inputs[:, :-1], inputs[:, 1:]
    double = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
    return mapped(double, inputs), double(y)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algo", ["sgd", "msgd"])
def test_a_run_is_a_plain_loop_with_torchs_optimizer(algo: str, case: str, tmp_path: Path) -> None:
    data, net, asked, loss = CASES[case]
    s = theirs(data, net, algo, steps=25, **({"task": asked} if asked else {}))
    virtual(s, tmp_path)
    center = torch.load(tmp_path / "center.pt", weights_only=True)
    given = build.data(s)
    plain = build.model(s, given).train()
    problem = NetProblem(build.model(s, given), given, build.task(s, given), batch_size=16, seed=0, l2=0.0,
                         device=torch.device("cpu"), train_images=100)  # fmt: skip
    x, y = arrays_of(problem)
    batches = Batches(len(y), s.batch_size, s.seed)
    momentum = {"momentum": s.delta, "nesterov": True} if algo == "msgd" else {}
    optimizer = torch.optim.SGD(plain.parameters(), lr=s.eta, **momentum)
    for t in range(25):
        i = batches.indices(0, t)
        rows = mapped(lambda part: part[i], x)  # noqa: B023
        out = plain(*rows) if isinstance(rows, tuple) else plain(rows)
        problem.load(0, t)
        problem.gradient(torch.cat([p.detach().flatten() for p in plain.parameters()]))
        expected = loss(out, y[i])
        torch.testing.assert_close(problem.loss, expected.detach())
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    for name, parameter in plain.named_parameters():  # torch keeps x + delta v, with v = -eta times its buffer
        ahead = s.delta * s.eta * optimizer.state[parameter]["momentum_buffer"] if algo == "msgd" else 0.0
        torch.testing.assert_close(center[name], (parameter + ahead).detach())


def outputs_and_targets(case: str, split: str = "test") -> tuple[NetProblem, Tensor, Any, Any]:
    data, net, asked, _ = CASES[case]
    s = theirs(data, net, **({"task": asked} if asked else {}))
    given = build.data(s).hold_out(10)
    problem = build.problem(s, given, torch.device("cpu"))
    assert isinstance(problem, NetProblem)
    x = torch.randn(problem.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    inputs, y = arrays_of(problem, split)
    plain: nn.Module = build.model(s, given)
    nn.utils.vector_to_parameters(x, plain.parameters())
    with torch.no_grad():
        out = plain(*inputs) if isinstance(inputs, tuple) else plain(inputs)
    return problem, x, out, y


@pytest.mark.parametrize(("split", "prefix"), [("test", "test"), ("held_out", "validation")])
def test_metrics_are_what_they_are_called(split: str, prefix: str) -> None:
    problem, x, out, y = outputs_and_targets("numbers", split)
    found, error = problem.evaluate(x), out[:, 0] - y
    assert found[f"{prefix}_rmse"] == pytest.approx(float((error**2).mean().sqrt()))
    assert found[f"{prefix}_mae"] == pytest.approx(float(error.abs().mean()))
    problem, x, out, y = outputs_and_targets("segments", split)
    found, counted = problem.evaluate(x), y != 255
    assert found[f"{prefix}_error"] == pytest.approx(100 * float((out.argmax(1) != y)[counted].double().mean()))
    assert found[f"{prefix}_loss"] == pytest.approx(float(cross_entropy(out, y)))
    problem, x, out, y = outputs_and_targets("tags", split)
    found, said = problem.evaluate(x), out > 0
    precision, recall = (said & y).sum() / said.sum(), (said & y).sum() / y.sum()
    assert found[f"{prefix}_label_error"] == pytest.approx(100 * float((said != y).double().mean()))
    assert found[f"{prefix}_f1"] == pytest.approx(100 * float(2 * precision * recall / (precision + recall)))
    problem, x, out, y = outputs_and_targets("tokens", split)
    found, loss = problem.evaluate(x), float(F.cross_entropy(out.reshape(-1, 11), y.reshape(-1)))
    assert found[f"{prefix}_perplexity"] == pytest.approx(math.exp(loss))
    assert found[f"{prefix}_bits_per_byte"] == pytest.approx(loss / math.log(2))


@pytest.mark.parametrize("case", CASES)
def test_what_a_task_declares_is_what_it_measures(case: str) -> None:
    problem, x, _, _ = outputs_and_targets(case)
    figures, metrics = problem.evaluate(x), metrics_of(problem)
    assert set(figures) == set(problem.measures) and set(figures) <= metrics.declared_names | {"train_loss"}
    assert metrics.primary is not None and metrics.primary.name in figures
    assert all(metrics[name].title and metrics[name].description for name in figures)
    assert metrics_of(problem).named(metrics.primary.name.removeprefix("test_")) == metrics.primary.name


def test_a_level_of_any_metric_ends_a_run_and_the_record_says_the_task(tmp_path: Path) -> None:
    s = theirs("table", "Linear", "easgd", steps=4000, until={"rmse": 0.2})
    assert virtual(s, tmp_path).status == "completed"
    summary = reader.summary_of(tmp_path)
    assert max(summary["steps"].values()) < 4000 and summary["center"]["test_rmse"] <= 0.2
    assert (summary["task"], summary["until"]) == ("regression", {"rmse": 0.2})
    assert reader.metrics_of(tmp_path).primary.name == "test_rmse"  # type: ignore[union-attr]
    s = theirs("tags", "Linear", "easgd", steps=4000, until={"test_f1": 90.0})
    virtual(s, tmp_path / "higher")
    summary = reader.summary_of(tmp_path / "higher")
    assert reader.metrics_of(tmp_path / "higher")["test_f1"].direction == HIGHER
    assert max(summary["steps"].values()) < 4000 and summary["center"]["test_f1"] >= 90


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"until": {"rsme": 1.0}}, r"until.rsme=1: problem=dataset has no rsme.* has train_loss, test_rmse, test_mae"),
        ({"until": {"validation_rmse": 1.0}}, r"no training samples are held out.*dataset.validation=200"),
        ({"task": task("regression", loss="l3")}, "task.loss=l3: is mse, l1 or huber"),
        ({"task": task("classification")}, "this data set has numbers to learn, and the task takes labels"),
        ({"task": task("theirs:table")}, "task=theirs:table: made a tuple; a task is"),
        ({"model": {"name": "theirs:Siamese", "target": "theirs:Siamese"}}, r"does not take the inputs of this data"),
        ({"model": {"name": "small", "target": "easgd_cli.models.convnet_digits:ConvNetDigits"}},
         r"model=small: takes images .* a sample is \[5\]; use model=mlp"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build.prepare(replace(theirs("table", "Linear"), **values))


def test_outputs_that_torch_would_pair_each_with_each_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text("")
    s = theirs("table", "Linear")
    given = build.data(s)
    with pytest.raises(UsageError, match=r"turned inputs \[4, 5\] into \[4, 4\], and the targets are \[4\]"):
        build.task(s, given).check(torch.zeros(4, 4), torch.zeros(4, 5), torch.zeros(4))


def test_settings_of_before_are_a_classifications(tmp_path: Path) -> None:
    """A config.yaml from before there were tasks: label smoothing stood among the problem's settings."""
    (tmp_path / "config.yaml").write_text(
        "algo: {name: sgd, target: 'easgd_cli.algorithms:SGD'}\n"
        "problem: {name: dataset, target: 'easgd_cli.problems.images:ImageProblem', label_smoothing: 0.1, top5: null}\n"
        "dataset: {name: digits, target: 'easgd_cli.data.digits:digits', validation: 0}\n"
        "model: {name: small, target: 'easgd_cli.models.convnet_digits:ConvNetDigits'}\n"
        "schedule: {name: decay, target: 'easgd_cli.algorithms.schedule:Decay'}\n"
        "launcher: {name: simulated, target: 'easgd_cli.launcher.kinds:Simulated'}\n"
        "eta: 0.1\nworkers: 1\nsteps: 5\nuntil: {test_error: null}\n"
    )
    s = compose.resumed(str(tmp_path / "config.yaml"), [], {})
    assert s.task == task("classification", label_smoothing=0.1, top5=None) and s.until == {"test_error": None}
    assert isinstance(build.prepare(s).problem, NetProblem)


def test_a_search_judges_by_the_metric_of_the_task(tmp_path: Path) -> None:
    """Of a declared task without looking at the data, else by what they are."""
    s = theirs("table", "Linear", "easgd", steps=10, dataset={"validation": 20})
    virtual(s, tmp_path)
    run_directory.write_config(tmp_path, s, [])
    row = [row for row in reader.read_rows(tmp_path / "metrics.jsonl") if row["party"] == "center"][-1]
    for asked in (s, replace(s, task=task("regression"))):
        assert str(objective.of(asked)) == "lowest held-out rmse"
        assert objective.of(replace(asked, objective="final_rmse")).value(tmp_path) == row["validation_rmse"]
    tagged = theirs("tags", "Linear", objective="test:seconds_to_label_error:20")
    assert str(objective.of(tagged)) == "seconds to 20 % test label error"
    with pytest.raises(UsageError, match="objective=best_error: is best_rmse, final_rmse, seconds_to_rmse:LEVEL"):
        objective.of(replace(s, objective="best_error"))
