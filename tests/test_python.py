"""The way in from Python: the same settings, bits and sentences as the command line's, objects of every kind, signals,
threads, and a process that is left as it was.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nets import Unhurried
from PIL import Image
from theirs import Augmented, Broken, Linear, Stream, quartic, table
from torch import nn
from torch.utils.data import TensorDataset

import easgd_cli
from easgd_cli.__main__ import main
from easgd_cli.commands import compose, configs
from easgd_cli.launcher.processes import fork_server
from easgd_cli.python import keywords
from easgd_cli.python.here import _screen
from easgd_cli.randomness import INIT, seeded
from easgd_cli.settings.schema import GROUPS

ROOT = Path(__file__).parent.parent
X, Y, X_TEST, Y_TEST = table()
DATA = ((X, Y), (X_TEST, Y_TEST))
SIMULATED = {"launcher": "simulated", "launcher.latency": 0.002, "launcher.spread": 0.3}
SHORT: dict[str, Any] = {"steps": 30, "eta": 0.02, "tau": 5, "batch_size": 8, "threads": 1, "progress": False}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def in_a_process(script: str, where: Path, fresh: bool = True) -> subprocess.CompletedProcess[str]:
    """The script by itself, as `python script.py`, with the tests' modules at hand; or not `fresh`, as `python -m
    script` in a process that may have imported everything (warm.py).
    """
    (where / "script.py").write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run(
        [sys.executable, *(["script.py"] if fresh else ["-m", "script"])],
        cwd=where, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- settings ---------------------------------------------------------------------------------------------------------


def every_choice() -> Iterator[dict[str, Any]]:
    yield from ({"algo": option, "dataset": "cifar10"} for option in configs.options("algo"))
    yield from ({"algo": "mdownpour", "dataset": option} for option in configs.options("dataset"))
    yield from ({group: option} for group in GROUPS if group != "algo" for option in configs.options(group))
    yield from (
        {"problem": "quadratic", "problem.noise": 10, "launcher": "table4_cifar", "launcher.latency": 0.1},
        {"dataset": "table", "dataset.root": "x.csv", "dataset.targets": "price", "eta": 0.1, "delta": 0.5},
        {"model": "mlp", "model.hidden": (3, 4), "eval": {"every": "5 steps"}, "until": {"rmse": 2}},
        {"faults": [{"worker": 1, "step": 20, "kind": "kill"}], "clip": None, "eval.every": "10 s"},
        {"model": "torchvision", "model.name": "resnet18"}, {"model": "torchvision"}, {"schedule": "stepwise"},
        {"dataset": "theirs:table", "model": "theirs:Linear", "task": "theirs:quartic", "task.power": 6},
        {"problem": "nets:Slow"}, {"init_without": ["fc"]}, {"init_without": "fc"},
        *({key: value} for key, value in {
            "tua": 10, "tau": "ten", "lr": 1, "eval": 3, "eval.evry": 3, "eval.every": 100, "model": "mpl",
            "model.hidden": [5], "model.hiden": [3], "algo": "foo", "until.x": "y", "workers": 2.5, "optimizer": "adam",
            "hidden": [3], "model.tau": 3, "nodes": 3, "every": 3, "dataset.root": "x", "launcher.latency": 1,
        }.items()),
    )  # fmt: skip


def test_settings_are_those_that_hydra_composes_to_the_last_and_so_are_the_sentences() -> None:
    count = 0
    with compose.composing("config") as composed:
        for given in every_choice():
            said: list[Any] = []
            for found in (
                lambda g=given: keywords.composed(keywords.flat(g), {}),
                lambda g=given: composed(keywords.lines(keywords.flat(g))).settings,
            ):
                try:
                    said.append(asdict(found()))
                except easgd_cli.UsageError as e:
                    said.append(str(e))
            assert said[0] == said[1], given
            count += 1
    assert count > 80


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tua": 3}, r"^tua=3: there is no setting tua; did you mean tau\?$"),
        ({"eval": {"evry": 3}}, r"^eval.evry=3: there is no setting eval.evry; did you mean eval.every\?"),
        ({"algo": "mdownpour", "tau": 4}, "^tau=4: MDOWNPOUR is defined for tau = 1 only"),
        ({"algo": 3}, "^algo=3: is chosen by its name"),
        ({"eval": {"every": "5 steps"}, "eval.every": "6 steps"}, "^eval.every: is given twice"),
        ({"sweep": "x"}, "^sweep=x: is of a sweep; from Python that is a loop"),
        ({"replay": "x"}, "^replay=x: goes through a run again; that is easgd train replay=RUN"),
        ({"dataset": "digits"}, "^train, dataset=digits: both say the same thing"),
        ({"loss": quartic, "task": "regression"}, "^loss, task=regression: both say the same thing"),
        ({"loss": 3}, "^loss: is a int; give a callable"),
        ({"loss": nn.Linear(1, 1)}, "^task: the loss has parameters"),
        ({"model": 3}, "^model: is a int; give a torch.nn.Module"),
        ({"model": nn.Linear(4, 1)}, "^model=Linear: does not take the inputs of this data set"),
        ({"train": None}, "^test: is given without train"),
        ({"test": None}, r"^dataset=arrays-90x5: returned no test set; .* dataset.test=0.2"),
        ({"train": (X, Y, Y)}, "^train, test: of arrays each is a pair"),
        ({"train": Augmented}, "^train, test: Augmented is a class; give Datasets that have been made of it"),
        ({"train": Stream(), "test": Stream()}, "^dataset=Stream: a Stream can only be read from its beginning"),
        ({"directory": "a file"}, "^directory=a file: is a file, and a run needs a directory"),
        ({"resume": "nowhere"}, "^resume=nowhere eta=0.02: a run goes on with the settings it had"),
        ({"resume": "auto", "tau": 5}, "^resume=auto: is for the command line"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_written(here: Path, given: dict[str, Any], sentence: str) -> None:
    (here / "a file").touch()
    asked: dict[str, Any] = {"model": Linear, "train": DATA[0], "test": DATA[1]} | SHORT | given
    with pytest.raises(easgd_cli.UsageError, match=sentence):
        easgd_cli.train(**asked)
    assert [p.name for p in here.iterdir()] == ["a file"]


def test_a_setting_without_effect_is_a_warning_where_train_is_called(here: Path) -> None:
    with pytest.warns(UserWarning, match=r"delta=0.5 has no effect: algo=easgd has no momentum") as told:
        easgd_cli.train(Linear, *DATA, algo="easgd", delta=0.5, **SHORT | SIMULATED)
    assert told[0].filename == __file__


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[f"{k}={v}" for k, v in SIMULATED.items()], ["workers=1"]], ids=["virtual", "real"])
def test_the_center_is_that_of_the_same_command_bit_for_bit_whatever_is_handed_over(
    here: Path, words: list[str]
) -> None:
    """By name, as a function, as an object with the weights that a function gives, as a lambda, which workers
    inherit.
    """
    own = yaml.safe_load("\n".join(word.replace("=", ": ") for word in words))
    asked = {**own, **SHORT, "algo": "easgd", "seed": 3}
    line = [f"{key}={value}" for key, value in asked.items() if key != "progress"]
    assert main(["train", "dataset=theirs:table", "model=theirs:Linear", "hydra.run.dir=command", *line]) == 0
    with seeded(3, INIT):
        net = Linear((5,), 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    runs = [
        easgd_cli.train("theirs:Linear", dataset="theirs:table", **asked),
        easgd_cli.train(Linear, *DATA, **asked),
        easgd_cli.train(net, *DATA, **asked),
        easgd_cli.train(lambda num_classes: Linear((5,), num_classes), *DATA, loss="regression", **asked),
        easgd_cli.train(net, TensorDataset(X, Y), TensorDataset(X_TEST, Y_TEST), **asked),
    ]
    center = easgd_cli.load("command").center
    assert [same(run.center, center) for run in runs] == [True] * 5
    assert same(net.state_dict(), before)  # it is a copy that trains
    assert [run.config["model"]["target"].split(" ")[0] for run in runs] == [
        "theirs:Linear", "theirs:Linear", "python:theirs.Linear", f"python:{__name__}.{_here()}.<locals>.<lambda>",
        "python:theirs.Linear",
    ]  # fmt: skip
    assert yaml.safe_load((runs[1].directory / "overrides.yaml").read_text())[0] == "model=theirs:Linear"
    assert re.fullmatch(r"[\d-]{10}_[\d-]{8}_algo=easgd,.*", runs[1].directory.name)


def _here() -> str:
    return "test_the_center_is_that_of_the_same_command_bit_for_bit_whatever_is_handed_over"


class Tied(nn.Module):
    """Two layers that share their weight, batch norm, and a layer that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(5, 5), nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.frozen, self.head = nn.Linear(5, 5), nn.Linear(5, 1)
        self.b.weight = self.a.weight
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1  # type: ignore[operator]
        return self.head(self.frozen(torch.tanh(self.norm(self.b(self.a(x))))))


@pytest.mark.parametrize("handed", [Tied(), lambda: Tied()], ids=["sent", "inherited"])
def test_of_an_object_all_workers_begin_with_its_weights_and_the_center_has_its_keys(here: Path, handed: Any) -> None:
    """With the rate 0 nothing moves; buffers of a worker are its own, so a run of processes ends as a virtual one."""
    net = handed if isinstance(handed, nn.Module) else Tied()
    still = easgd_cli.train(net, *DATA, workers=2, **SHORT | {"eta": 0.0, "steps": 6})
    own = net.state_dict()
    assert list(still.center) == list(own)
    assert all(torch.equal(still.center[k], own[k]) for k in own if "norm.running" not in k and "num_batches" not in k)
    moved = easgd_cli.train(handed, *DATA, workers=1, **SHORT)
    virtual = easgd_cli.train(handed, *DATA, workers=1, **SHORT | {"launcher": "simulated"})
    without = [{k: v for k, v in run.center.items() if v.is_floating_point()} for run in (moved, virtual)]
    assert same(*without) and len(without[0]) == len(own) - 2  # but for counters, which every process has for itself
    net.load_state_dict(moved.center)
    assert torch.equal(net.a.weight, net.b.weight)
    if handed is net:
        assert torch.equal(net.frozen.weight, own["frozen.weight"])


@pytest.mark.parametrize(
    ("train", "test", "loss"),
    [
        ((X.numpy(), Y.numpy()), (X_TEST.numpy(), Y_TEST.numpy()), None),
        (TensorDataset(X, Y), None, nn.HuberLoss()),
        ((X, Y), None, lambda out, y: (out[:, 0] - y).abs().mean()),
    ],
    ids=["numpy", "one Dataset", "a pair"],
)
def test_data_and_losses_of_every_kind(here: Path, train: Any, test: Any, loss: Any) -> None:
    more = {} if test is not None else {"dataset": {"test": 0.2}}
    run = easgd_cli.train(Linear, train, test, loss=loss, workers=2, **SHORT, **more)
    measured = run.summary["center"]
    assert run.status == "completed" and ("test_rmse" if loss is None else "test_loss") in measured
    assert run.config["task"]["name"] == ("auto" if loss is None else "lambda" if test is None and callable(
        loss) and not isinstance(loss, nn.Module) else "HuberLoss")  # fmt: skip


class Noisy(TensorDataset):
    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x + torch.randn(5), y


@pytest.mark.parametrize("handed", [Linear, lambda: Linear((5,), 1)], ids=["sent", "inherited"])
def test_loaders_of_a_dataset_change_no_bit(here: Path, handed: Any) -> None:
    data = Noisy(X, Y), Noisy(X_TEST, Y_TEST)
    one, other = (
        easgd_cli.train(handed, *data, workers=1, seed=1, **SHORT | {"steps": 12}, **{"dataset.loaders": loaders})
        for loaders in (0, 1)
    )
    assert same(one.center, other.center)


def test_tokens_without_targets_and_a_collate_of_ones_own(here: Path) -> None:
    tokens = torch.randint(0, 11, (60, 9), generator=torch.Generator().manual_seed(0))
    run = easgd_cli.train("theirs:Bigram", tokens[:40], tokens[40:], **SHORT | SIMULATED)
    assert "test_perplexity" in run.summary["center"]

    def doubled(samples: list[Any]) -> Any:
        return torch.stack([x for x, _ in samples]) * 2, torch.stack([y for _, y in samples])

    collated = easgd_cli.train(
        Linear, TensorDataset(X, Y), TensorDataset(X_TEST, Y_TEST), workers=2, **{"dataset.collate": doubled}, **SHORT
    )
    assert "doubled" in collated.config["dataset"]["collate"]
    twice = (2 * X, Y), (2 * X_TEST, Y_TEST)
    assert collated.metrics("center")[0]["train_loss"] == pytest.approx(
        easgd_cli.train(Linear, *twice, workers=2, **SHORT).metrics("center")[0]["train_loss"]
    )


def test_threads_that_have_decoded_images_here_are_not_inherited(here: Path) -> None:
    """A worker that had such a pool would wait for threads that are not there."""
    for i in range(24):
        folder = here / "photos" / ("train" if i < 16 else "val") / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 12, 3), 20 * (i % 2) + i, np.uint8)).save(folder / f"{i}.png")
    photos = {"root": "photos", "resize": 12, "crop": 8}
    run = easgd_cli.train(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), dataset="imagefolder", workers=2,
        **SHORT | {"steps": 4, "tau": 1}, **{f"dataset.{key}": value for key, value in photos.items()},
    )  # fmt: skip
    assert run.status == "completed" and "test_error" in run.summary["center"]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_bit_for_bit_with_the_objects_it_had_or_is_given_again(here: Path) -> None:
    asked: dict[str, Any] = {**SHORT, **SIMULATED, "algo": "eamsgd", "workers": 3, "eta": 1e-5}
    net = Linear((5,), 1)
    whole = easgd_cli.train(net, *DATA, loss=quartic, **asked | {"steps": 50})
    kept = easgd_cli.train(net, *DATA, loss=quartic, directory="kept", **asked)
    easgd_cli.train(net, *DATA, loss=quartic, directory="given", **asked)
    went_on = easgd_cli.train(resume=kept, steps=50, progress=False)
    assert same(went_on.center, whole.center) and went_on.directory == kept.directory
    assert set(went_on.summary["steps"].values()) == {50}
    assert same(easgd_cli.train(resume=went_on, progress=False).center, whole.center)  # nothing is left to do
    for missing, said in (({}, "model=theirs.Linear object: was handed over in Python"),
                          ({"model": nn.Linear(5, 1)}, "its model was theirs.Linear object, and torch.*given"),
                          ({"model": net}, "dataset=arrays 90x5: was handed over")):  # fmt: skip
        with pytest.raises(easgd_cli.UsageError, match=said):
            easgd_cli.train(resume="given", steps=50, progress=False, **missing)
    again = easgd_cli.train(net, *DATA, resume=easgd_cli.load("given"), steps=50, progress=False)
    assert same(again.center, whole.center)


def test_the_command_line_goes_on_with_what_has_names_and_says_so_of_what_has_none(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    easgd_cli.train(Linear, dataset="theirs:table", directory="named", workers=1, **SHORT)
    easgd_cli.train(Linear((5,), 1), *DATA, directory="handed", workers=1, **SHORT)
    assert [main(words) for words in (["train", "resume=named", "steps=40"], ["eval", "named"])] == [0, 0]
    capsys.readouterr()
    for words in (["train", "resume=handed", "steps=40"], ["eval", "handed"], ["train", "replay=handed"]):
        assert main(words) == 2
        assert "model=theirs.Linear object: was handed over in Python, and its name does not" in capsys.readouterr().err
    assert main(["report", "handed", "named"]) == 0


# --- ended by others --------------------------------------------------------------------------------------------------


def unhurried() -> nn.Module:
    return Unhurried((1, 8, 8), 10)


def when_it_trains(directory: Path, act: Callable[[], object]) -> threading.Thread:
    """Acts when workers have told of steps."""

    def watch() -> None:
        record = directory / "metrics.jsonl"
        while not record.exists() or "worker_00" not in record.read_text():
            threading.Event().wait(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_signal_ends_a_run_with_a_checkpoint_from_which_it_goes_on_bit_for_bit(here: Path) -> None:
    asked: dict[str, Any] = {"dataset": "digits", "algo": "msgd", "eval": {"every": "5000 steps"}, "progress": False}
    net = unhurried()
    when_it_trains(here / "ended", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as told:
        easgd_cli.train(net, directory="ended", steps=20_000, **asked)
    assert isinstance(told.value, easgd_cli.Interrupted)
    run = told.value.run
    assert run.status == "interrupted" and (run.directory / "checkpoint").is_dir() and "ended" in str(told.value)
    steps = run.summary["steps"]["worker_00"]
    assert 0 < steps < 20_000
    went_on = easgd_cli.train(resume=run, steps=steps + 20, progress=False)
    assert same(went_on.center, easgd_cli.train(net, steps=steps + 20, **asked).center)


def test_sigterm_reaches_whoever_handles_it_here_after_the_checkpoint(here: Path) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        when_it_trains(here / "ended", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(easgd_cli.Interrupted) as told:
            easgd_cli.train(unhurried(), dataset="digits", directory="ended", steps=20_000, workers=2, progress=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM] and "SIGTERM" in told.value.run.summary["reason"]


def test_in_a_thread_a_run_is_ended_by_stop_and_no_other_may_begin_beside_it(here: Path) -> None:
    ended: list[Any] = []

    def run() -> None:
        try:
            easgd_cli.train(unhurried(), dataset="digits", directory="ended", steps=20_000, workers=2, progress=False)
        except easgd_cli.Interrupted as e:
            ended.append(e.run)

    assert not easgd_cli.stop()
    thread = threading.Thread(target=run)
    thread.start()
    said: list[Any] = []

    def act() -> None:
        try:
            easgd_cli.train(Linear, *DATA, **SHORT)
        except easgd_cli.UsageError as e:
            said.append(str(e))
        said.append(easgd_cli.load("ended").status)
        said.append(easgd_cli.stop())

    when_it_trains(here / "ended", act).join()
    thread.join()
    assert "another run of this process is under way" in said[0] and said[1:] == ["running", True]
    assert ended[0].status == "interrupted" and (ended[0].directory / "checkpoint").is_dir()


def test_a_run_that_fails_says_why_and_has_its_directory(here: Path) -> None:
    with pytest.raises(easgd_cli.Failed, match=r"sample 7 of train raised OSError: no such file: seven.png") as told:
        easgd_cli.train(Linear, Broken(True), Augmented(False), workers=2, **SHORT)
    assert told.value.run.status == "failed" and isinstance(told.value, easgd_cli.RunError)


def test_a_worker_that_is_killed_comes_back_also_where_it_had_inherited_its_net(here: Path) -> None:
    faults = [{"worker": 1, "step": 10, "kind": "kill"}]
    run = easgd_cli.train(lambda: Linear((5,), 1), *DATA, workers=2, faults=faults, **SHORT | {"steps": 200})
    assert run.status == "completed" and set(run.summary["steps"].values()) == {200}
    assert fork_server.running() is None  # the copy of this process has gone


# --- the process ------------------------------------------------------------------------------------------------------


def test_nothing_of_the_process_is_changed(here: Path) -> None:
    def state() -> list[Any]:
        launcher = logging.getLogger("easgd.launcher")
        return [
            [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)],
            signal.pthread_sigmask(signal.SIG_BLOCK, []), list(logging.getLogger().handlers), launcher.handlers[:],
            launcher.level, launcher.propagate, random.getstate(), torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(), torch.get_num_threads(), torch.get_default_dtype(),  # type: ignore[index]
            torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), dict(os.environ), os.getcwd(),
            list(sys.path), sys.stdout, sys.argv[:],
        ]  # fmt: skip

    torch.set_default_dtype(torch.float64)
    made_there = functools.partial(nn.Linear, 5, 1)
    try:
        before = state()
        for more in ({"launcher": "simulated", "deterministic": True, "threads": 2}, {"workers": 2, "threads": 2}):
            with torch.no_grad():
                run = easgd_cli.train(lambda: nn.Linear(5, 1), *DATA, **SHORT | more)
            sent = easgd_cli.train(made_there, *DATA, **SHORT | more)
            # workers have the same default
            assert {v.dtype for r in (run, sent) for v in r.center.values()} == {torch.float64}
            assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory the process has")
def test_memory_that_is_freed_after_a_virtual_run_goes_back_to_the_system(here: Path) -> None:
    """In a process of its own: where others have left a hole in the heap, the large vector comes to lie there."""
    script = """
        import os
        import pathlib
        import torch
        import easgd_cli

        def resident():
            return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        x = torch.randn(64, 3)
        data = (x, x.sum(1, keepdim=True))
        easgd_cli.train(
            torch.nn.Linear(3, 1), data, data, steps=5, eta=0.02, threads=1, launcher="simulated", progress=False
        )
        before, large = resident(), torch.ones(50_000_000)
        assert resident() - before > 150_000_000
        del large
        assert resident() - before < 50_000_000
    """
    said = in_a_process(script, here)
    assert said.returncode == 0, said.stderr


def test_importing_the_package_loads_nothing_and_its_names_are_there(here: Path) -> None:
    script = """
        import sys
        import easgd_cli
        loaded = {"torch", "numpy", "yaml", "hydra", "rich", "easgd_cli.python"} & set(sys.modules)
        assert not loaded, loaded
        assert {"train", "load", "report", "stop", "Run", "UsageError", "Interrupted"} <= set(dir(easgd_cli))
        easgd_cli.UsageError
        try:
            easgd_cli.train("mlp", dataset="digits", tua=3)
        except easgd_cli.UsageError as e:
            print(e)
        assert not hasattr(easgd_cli, "trian")
    """
    said = in_a_process(script, here)
    assert (said.stdout, said.stderr) == ("tua=3: there is no setting tua; did you mean tau?\n", "")


def test_a_script_without_a_guard_trains_once_with_what_it_has_defined_and_without_hydra(here: Path) -> None:
    """Its process has computed with several threads, too, which do not outlive a fork."""
    script = """
        import sys, torch, easgd_cli as easgd
        torch.set_num_threads(2)
        print("the script runs as", __name__, flush=True)
        torch.randn(3_000_000).exp().sum()

        class Net(torch.nn.Module):
            def __init__(self, width=8):
                super().__init__()
                self.layers = torch.nn.Sequential(torch.nn.Linear(5, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

            def forward(self, x):
                return self.layers(x)

        class Rows(torch.utils.data.Dataset):
            def __init__(self, n):
                self.x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))

            def __len__(self):
                return len(self.x)

            def __getitem__(self, i):
                return self.x[i], self.x[i].sum()

        sums = [(Rows(n).x, Rows(n).x.sum(1)) for n in (80, 20)]
        for model in (Net(), Net):
            run = easgd.train(model, Rows(80), Rows(20), workers=2, threads=2, steps=20, eta=0.05, progress=False)
            print(run.status, run.config["model"]["target"], run.config["dataset"]["name"])
        easgd.train(torch.nn.Linear(5, 1), *sums, steps=20, eta=0.05, progress=False)
        loaded = {"hydra", "omegaconf"} & set(sys.modules)
        print("loaded", loaded)
    """
    said = in_a_process(script, here)
    assert said.stdout.splitlines() == [
        "the script runs as __main__", "completed python:__main__.Net object Rows",
        "completed python:__main__.Net Rows", "loaded set()",
    ], said.stderr  # fmt: skip


def test_a_run_in_a_thread_ends_with_a_checkpoint_when_ctrl_c_has_ended_the_main_one(here: Path) -> None:
    script = """
        import os, pathlib, signal, threading
        import easgd_cli as easgd, nets

        def run():
            net = nets.Unhurried((1, 8, 8), 10)
            easgd.train(net, dataset="digits", workers=1, steps=20_000, directory="ended", progress=False)

        threading.excepthook = lambda told: print(told.exc_type.__name__, flush=True)
        thread = threading.Thread(target=run)
        thread.start()
        record = pathlib.Path("ended/metrics.jsonl")
        while not record.exists() or "worker_00" not in record.read_text():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        thread.join()
    """
    said = in_a_process(script, here, fresh=False)
    assert said.stdout == "Interrupted\n" and said.returncode == -signal.SIGINT
    run = easgd_cli.load(here / "ended")
    assert run.status == "interrupted" and (run.directory / "checkpoint").is_dir()


def test_where_a_gpu_is_what_cannot_be_sent_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(easgd_cli.UsageError, match=r"^model=lambda: .*put it at the top of a module, and import it"):
        easgd_cli.train(lambda: Linear((5,), 1), *DATA, **SHORT | {"device": "cpu"})
    assert not list(here.iterdir())


# --- looking at it ----------------------------------------------------------------------------------------------------


def test_a_run_is_read_without_its_code_and_reported(here: Path) -> None:
    runs = [easgd_cli.train(Linear, *DATA, seed=seed, average="polyak", **SHORT | SIMULATED) for seed in (0, 1)]
    run = easgd_cli.load(runs[0].directory)
    assert run == runs[0] and same(run.center, runs[0].center) and list(run.average) == list(run.center)
    rows = run.metrics()
    assert {row["party"] for row in rows} == {"center", "average", "system", *(f"worker_{i:02d}" for i in range(4))}
    assert run.metrics("center")[-1]["test_rmse"] == run.summary["center"]["test_rmse"]
    assert run.config["eta"] == 0.02 and run.directory.is_absolute()
    page = easgd_cli.report(runs, out="compared", rows=["seed"])
    assert page == Path("compared/report.html") and "seed" in page.read_text()
    assert easgd_cli.report(run) == run.directory / "report" / "report.html"
    assert easgd_cli.report.__module__ == "easgd_cli.python.api"
    (run.directory / "center.pt").write_bytes(b"nothing")
    with pytest.raises(easgd_cli.UsageError, match=r"center.pt: is damaged"):
        _ = run.center
    for nowhere in ("nowhere", "."):
        with pytest.raises(easgd_cli.UsageError, match=r"holds no config.yaml, so this is not the directory of a run"):
            easgd_cli.load(nowhere)


def test_a_notebook_has_one_line_that_is_written_over_and_progress_may_be_silent(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    easgd_cli.train(Linear, *DATA, **SHORT | SIMULATED)
    assert capsys.readouterr() == ("", "")
    easgd_cli.train(Linear, *DATA, **SHORT | SIMULATED | {"progress": True})
    said = capsys.readouterr().out
    assert "\r" not in said and "test RMSE" in said
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: object()))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    assert _screen(True) is not None
    easgd_cli.train(Linear, *DATA, **SHORT | SIMULATED | {"progress": True})
    lines = out.getvalue().split("\r")
    assert len(lines) > 3 and any("samples/s" in line and "test RMSE" in line for line in lines)
    assert "\x1b" not in "".join(lines) and "status           completed" in lines[-1]


def test_every_block_of_docs_python_runs(here: Path) -> None:
    """In one script, in their order, each with a tenth of its steps."""
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    script = re.sub(r"\bsteps=(\d+)0\b", r"steps=\1", "\n".join(blocks))
    said = in_a_process(script, here, fresh=False)
    assert said.returncode == 0, said.stderr


def test_the_arrays_of_a_net_are_packed_once_and_its_copies_are_a_workers_own() -> None:
    """Weights lie in shared memory; two nets made of them share none of it."""
    from easgd_cli.data import packing
    from easgd_cli.python.handed import CopyOf

    net = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(20_000))
    maker = packing.unpack(*packing.pack(CopyOf(net)))
    one, other = maker(), maker()
    with torch.no_grad():
        for tensor in one.state_dict().values():
            tensor.fill_(7)
    assert same(other.state_dict(), net.state_dict())
