"""The benchmarks measure what they say: what their peers compute, which runs they make, what they print and write. No
time is asserted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Said
from test_runs import settings

from easgd_cli.__main__ import main
from easgd_cli.bench import data, measure, plain, rounds, runs, scaling, startup, table4
from easgd_cli.bench.ddp import DataParallelLoop, GroupedStart
from easgd_cli.bench.plain import loop_starts, side_by_side
from easgd_cli.data.listing import Listed
from easgd_cli.data.sources import Files, Shards
from easgd_cli.data.stored import StoredImages
from easgd_cli.data.synthetic import synthetic
from easgd_cli.errors import RunError
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.processes.child import Child
from easgd_cli.problems.batches import Batches
from easgd_cli.settings.schema import Settings
from easgd_cli.system import interruption
from easgd_cli.system.channel import Channel

SMALL = [
    "dataset=synthetic",
    "dataset.shape=[1,8,8]",
    "dataset.crop=null",
    "dataset.train=64",
    "dataset.test=16",
    "model=small",
    "batch_size=8",
    "threads=1",
]


class Told(DataParallelLoop):
    """Takes three steps and tells the parameters it has then."""

    def run(self, began: float) -> None:
        self._loop._steps(0, 3)
        parameters = torch.cat([p.detach().reshape(-1) for p in self._loop._net.parameters()])
        self._loop._channel.post({"kind": "parameters", "values": parameters.tolist()})


class Dying:
    """A loop that is killed while the others are at work."""

    def __init__(self, start: Any, channel: Channel):
        self._start, self._channel = start, channel

    def run(self, began: float) -> None:
        if self._start.worker == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self._channel.wait()


def test_data_parallel_steps_are_those_of_the_mean_gradient(tmp_path: Path) -> None:
    """Two processes with a batch each against one net that adds up both gradients by itself, with the same optimizer;
    without momentum under EASGD.
    """
    s = settings("easgd", workers=2, tau=1, clip=0.5)
    s.task = {
        "name": "classification",
        "target": "easgd_cli.problems.tasks.classification:Classification",
        "label_smoothing": 0.1,
    }
    images = build.data(s).share()
    starts = [GroupedStart(loop, str(tmp_path / "meeting"), "gloo") for loop in loop_starts(s, images, 3)]
    children = [Child(f"told_{i}", Told, start, tmp_path / f"told_{i}.log") for i, start in enumerate(starts)]
    try:
        for child in children:
            assert plain.heard(child, "ready")
        for child in children:
            child.channel.post({"kind": "start", "began": 0.0})
        told = [torch.tensor(plain.heard(child, "parameters")["values"]) for child in children]
    finally:
        plain._end(children)
    net = build.model(s, images).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=s.eta, weight_decay=s.l2)
    batches, generators = (
        Batches(len(images.train), s.batch_size, s.seed),
        [torch.Generator().manual_seed(i) for i in range(2)],
    )
    for t in range(3):
        optimizer.zero_grad()
        for i in range(2):
            inputs, labels = images.training_batch(batches.indices(i, t), generators[i])
            (F.cross_entropy(net(inputs), labels, label_smoothing=0.1) / 2).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    assert torch.equal(told[0], told[1])
    torch.testing.assert_close(
        told[0], torch.cat([p.detach().reshape(-1) for p in net.parameters()]), rtol=1e-4, atol=1e-6
    )


def test_a_loop_that_is_killed_ends_the_benchmark_and_the_others(tmp_path: Path) -> None:
    s = settings("easgd", workers=3)
    first, *others = loop_starts(s, build.data(s), 3)
    with pytest.raises(RunError, match="loop_0: killed by SIGKILL"):
        side_by_side("loop", Dying, [others[0], first, others[1]], 16)
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("easgd-loop")]


def test_step_measures_runs_and_loops(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One worker and two, DistributedDataParallel and plain loops: real ones, of a few steps."""
    assert (
        main(
            [
                "bench",
                "step",
                *SMALL,
                "algo=easgd",
                "workers=2",
                "tau=3",
                "steps=5",
                "--windows",
                "1",
                "--json",
                "figures.json",
            ]
        )
        == 0
    )
    rows = json.loads(Path("figures.json").read_text())
    ddp = "DistributedDataParallel on gloo, 2 processes"
    assert [(r["what"].partition(", batch")[0], r["peer_name"], r["target"]) for r in rows] == [
        ("easgd, 1 worker, tau=3", "1 plain loop", 0.98),
        ("easgd, 2 workers, tau=3", "2 plain loops", None),
        ("easgd, 2 workers, tau=1", ddp, 1.0),
        (ddp, "2 plain loops", None),
    ]
    for r in rows:
        assert r["ratio"] == r["least"] == r["greatest"] == pytest.approx(r["figure"] / r["peer"]) and r["peer"] > 0
    assert f"{rows[2]['ratio']:.3f}" in capsys.readouterr().out
    assert not multiprocessing.active_children() and list(here.iterdir()) == [here / "figures.json"]


@pytest.mark.parametrize(
    ("workers", "tau", "measured"),
    [
        ("3", "7", [(1, 7), (2, 7), (3, 7)]),
        ("1", "7", [(1, 7)]),
        ("2,5", "7", [(2, 7), (5, 7)]),
        ("2", "1,7", [(1, 1), (2, 1), (1, 7), (2, 7)]),
    ],
)
def test_scaling_goes_from_one_worker_to_all_or_by_a_list(
    workers: str, tau: str, measured: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    asked: list[Settings] = []

    def against_plain(what: str, s: Settings, windows: int) -> measure.Row:
        asked.append(s)
        return measure.Row("", 1.0, "", 1.0, "", 1.0, 1.0, 1.0, windows)

    monkeypatch.setattr(scaling, "against_plain", against_plain)
    assert main(["bench", "scaling", *SMALL, "algo=easgd", f"workers={workers}", f"tau={tau}", "steps=9"]) == 0
    assert [(s.workers, s.tau, s.steps) for s in asked] == [(p, period, 9) for p, period in measured]


def test_table4_tells_where_the_seconds_of_real_runs_went(here: Path) -> None:
    assert (
        main(["bench", "table4", *SMALL, "algo=downpour", "workers=1,2", "tau=1,4", "steps=20", "--json=figures.json"])
        == 0
    )
    found = json.loads(Path("figures.json").read_text())
    assert [(r["workers"], r["tau"], r["steps"], r["paper"]) for r in found] == [
        (1, 1, 20, None),
        (1, 4, 20, None),
        (2, 1, 20, None),
        (2, 4, 20, None),
    ]
    for r in found:
        seconds = [r[part] for part in ("compute", "data", "communication", "other")]
        assert all(value > 0 for value in seconds)
        # nobody's loop is longer than the run
        assert 20 * 8 / sum(seconds) * r["workers"] >= 0.99 * r["samples_per_second"]


@pytest.mark.parametrize(
    ("algo", "net", "workers", "tau", "batch_size", "paper"),
    [
        ("downpour", "convnet7", 1, 1, 128, (12, 1, 0)), ("easgd", "convnet7", 16, 10, 128, (12, 2, 1)),
        ("easgd", "convnet7", 16, 10, 64, None),
        ("easgd", "convnet7", 2, 10, 128, None), ("easgd", "convnet7", 1, 10, 128, None),
        ("downpour", "convnet11", 8, 1, 128, (1239, 61, 284)),
        ("downpour", "convnet11", 16, 1, 128, None), ("downpour", "mlp", 1, 1, 128, None),
        ("downpour", "convnet7", 16, 10, 128, None), ("easgd", "convnet7", 16, 1, 128, None),
        ("eamsgd", "convnet7", 16, 10, 128, None),
    ],
)  # fmt: skip
def test_table4_quotes_the_papers_row_for_its_method_net_and_batch(
    algo: str,
    net: str,
    workers: int,
    tau: int,
    batch_size: int,
    paper: Any,
    monkeypatch: pytest.MonkeyPatch,
    here: Path,
) -> None:
    @contextmanager
    def recorded(s: Settings, prepared: Any) -> Iterator[Any]:
        yield (
            here,
            {
                "seconds": {"compute": 6.0, "data": 1.0, "communication": 2.0, "other": 1.0},
                "samples_per_second": 1000.0,
            },
        )

    monkeypatch.setattr(table4, "recorded", recorded)
    s = settings(algo, workers=workers, tau=tau, batch_size=batch_size, steps=100)
    s.dataset = {
        "name": "synthetic",
        "target": "easgd_cli.data.synthetic:synthetic",
        "train": 16,
        "test": 16,
        "crop": 28,
    }
    s.model = {"name": net, "target": "easgd_cli.models.convnet7:ConvNet7"}
    found = table4.spent(s)
    assert (found.paper, found.paper_steps, found.communication, found.steps) == (
        paper,
        paper and {"convnet7": 400, "convnet11": 1024}[net],
        2.0,
        100,
    )
    assert found.columns()["comm. %"] == "20"
    assert ("the paper's: " in found.what) == (net != "mlp" and batch_size == 128)
    assert found.columns()["paper"] == (" / ".join(map(str, paper)) if paper else "-")


def test_startup_is_written_too(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    seconds = iter([4.0, 1.0, 2.5])
    monkeypatch.setattr(startup, "_seconds_to_first_steps", lambda overrides, workers: next(seconds))
    assert main(["bench", "startup", "workers=8", "--windows=3", "--json", "figures.json"]) == 0
    [found] = json.loads(Path("figures.json").read_text())
    assert (
        found["workers"],
        found["seconds"],
        found["least"],
        found["greatest"],
        found["windows"],
        found["target"],
    ) == (8, 2.5, 1.0, 4.0, 3, 3.0)


def test_the_peer_of_data_makes_the_same_images_and_its_smaller_batches_count_as_they_are() -> None:
    images = synthetic((3, 8, 8), classes=2, train=5, test=2, crop=None, flip=False).normalised(
        (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    )
    peer = data._OneByOne(images)
    for i in range(5):
        inputs, labels = images.training_batch(torch.tensor([i]), torch.Generator())
        torch.testing.assert_close(peer[i][0], inputs[0])
        assert peer[i][1] == labels.item()
    work = data._again_and_again(torch.utils.data.DataLoader(peer, 3))  # type: ignore[arg-type]
    assert [work() for _ in range(4)] == [3, 2, 3, 2]
    clock = iter([10.0, 11.0, 12.0])
    assert data._rate(work, lambda: next(clock), 2.0) == 5 / 2


def test_a_signal_that_ends_the_measured_run_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    s = settings("easgd", workers=1, steps=5)
    monkeypatch.setattr(
        runs.kinds, "launcher", lambda s: lambda job, prepared: Outcome("interrupted", 143, {}, "SIGTERM received")
    )
    with interruption.raised() as came, pytest.raises(KeyboardInterrupt), runs.recorded(s, build.prepare(s)):
        pass
    assert came == [signal.SIGTERM]


def test_a_run_that_is_timed_is_measured_on_few_test_images_and_trains_on_all() -> None:
    labels = torch.arange(40) % 2
    files = Files.of(Path("photos"), Listed.of([f"{i}.jpg" for i in range(40)], labels.numpy()), "")
    shards = Shards(
        "copy",
        ("0.bin",),
        ((120, 0),),
        labels,
        torch.stack([torch.zeros(40), torch.arange(40), torch.ones(40)], 1).long(),
    )
    stored = [StoredImages(source, source, num_classes=2, resize=8, crop=(8, 8)) for source in (files, shards)]
    for images in (synthetic((3, 8, 8), classes=2, train=40, test=40, crop=None), *stored):
        few = runs._little_to_test(images)
        assert few is not None and (few.count("train"), few.count("test")) == (40, 16)
        if isinstance(images, StoredImages):
            assert [few.test.name(i) for i in range(16)] == [images.test.name(i) for i in range(16)]  # type: ignore[attr-defined]


def test_rounds_by_an_all_reduce_are_held_against_sessions_and_the_all_reduce_alone(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setattr(rounds, "_SIZES", {"few": 70_001})
    monkeypatch.setattr(rounds, "_SECONDS", 0.005)
    words = ["bench", "exchange", "algo=diloco", "launcher.transport=collective", "workers=2", "--windows", "2"]
    assert main([*words, "--json", "figures.json"]) == 0
    found = json.loads(Path("figures.json").read_text())
    assert [row["peer_name"] for row in found] == ["over sessions", "DistributedDataParallel's all-reduce"]
    assert all(row["windows"] == 2 and row["least"] <= row["ratio"] <= row["greatest"] for row in found)


def test_ratios_are_of_windows_in_turn() -> None:
    """A machine that slows down between windows changes figures and not ratios; the first window of each side does not
    count.
    """
    speed = iter([9.0, 0.1, 2.0, 4.0, 1.0, 2.0, 3.0, 4.0])
    row = measure.alternate("", lambda: next(speed), "", lambda: next(speed), "1", windows=3, target=0.5)
    assert (row.figure, row.peer, row.ratio, row.least, row.greatest) == (2.0, 4.0, 0.5, 0.5, 0.75)
    assert row.columns()["ratio"] == "0.500" and row.columns()["target"] == ">= 0.5" and asdict(row)["windows"] == 3


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["stpe"], "did you mean step?"),
        (["xyz"], "there are: step, scaling"),
        (["step", "--windows", "0"], "--windows 0"),
        (["step", "--json", "."], "--json .: is a directory"),
        (["step", "--json"], "--json: name the file"),
        (["step", "--windows", "²"], "--windows ²"),
        (["step", "--cfg", "job"], "bench step --cfg: is an option of easgd train"),
        (["exchange", "algo=easgd,downpour"], "bench exchange algo=easgd,downpour: takes one value"),
        (["step", "launcher=simulated", "steps=20"], "bench step launcher=simulated: its seconds are virtual"),
        (
            ["table4", "launcher=table4_cifar", "steps=20"],
            "bench table4 launcher=table4_cifar: its seconds are virtual",
        ),
        (["startup", "steps=5"], "bench startup steps=5: its runs take one step"),
        (["step", "--json=nowhere/figures.json"], "there is no directory nowhere"),
        (["step", "problem=quadratic", "eta=0.1", "steps=20"], "bench step problem=quadratic"),
        (["step", "minutes=1"], "bench step minutes=1"),
        (["step", "steps=3"], "bench step steps=3: the first 3 steps"),
        (["scaling", "tua=1"], "did you mean tau?"),
        (["table4", "minutes=1"], "bench table4 minutes=1"),
        (["table4", "--windows", "3"], "makes each run once"),
        (["table4", "algo=mdownpour", "tau=2,4"], "tau = 1 only"),
        (["exchange", "algo=sgd"], "never exchanges"),
        (["data", "problem=quadratic", "eta=0.1"], "has no data set"),
        (["network", "masters=1,0"], "masters=0: must be a whole number of at least 1"),
        (["network", "masters=1,2", "--step", "0.1"], "bench network --step: tau is proposed for one master"),
    ],
)
def test_a_wrong_command_is_a_sentence(words: list[str], part: str, easgd: Callable[..., Said], here: Path) -> None:
    said = easgd("bench", *words)
    assert said.status == 2 and part in said.err and "Traceback" not in said.err
