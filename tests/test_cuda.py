"""What is the same on a GPU as on a CPU, and runs whose workers compute there: pytest -m cuda. Skipped without a CUDA device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import run, saved_center, settings
from test_transport import RealStar

from easgd_cli.algorithms.base import Worker
from easgd_cli.data.images import Images
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Eval, Settings
from easgd_cli.training import drive
from easgd_cli.training.center import Center
from easgd_cli.training.meter import Tally
from easgd_cli.training.stopwatch import Timed
from easgd_cli.transport.shared import Link, SharedMasterEnd, SharedWorkerEnd
from easgd_cli.transport.staging import Staging

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine shows no CUDA device")]

CUDA = torch.device("cuda:0")


@pytest.fixture
def images() -> Images:
    g = torch.Generator().manual_seed(0)
    pixels, labels = torch.randint(256, (50, 3, 12, 11), generator=g, dtype=torch.uint8), torch.randint(5, (50,), generator=g)
    return Images(pixels, labels, pixels[:9], labels[:9], num_classes=5, crop=(8, 7), flip=True)


@pytest.mark.parametrize("cropped", [True, False])
def test_a_batch_cut_on_the_device_is_the_cpus(images: Images, cropped: bool) -> None:
    images = images if cropped else replace(images, crop=None, flip=False)
    there, indices = images.training_on(CUDA), torch.tensor([3, 49, 0, 3, 17, 21])
    for seed in range(5):
        ours, labels = images.training_batch(indices, torch.Generator().manual_seed(seed))
        theirs, their_labels = there.training_batch(indices, torch.Generator().manual_seed(seed))
        assert theirs.device == CUDA and torch.equal(theirs.cpu(), ours) and torch.equal(their_labels.cpu(), labels)


def in_float64(**values: Any) -> Settings:
    s = settings("easgd", **values)
    s.model = {"name": "double", "target": "nets:double"}
    return s


def test_gradient_loss_and_evaluation_are_the_cpus_within_rounding() -> None:
    s = in_float64()
    data = build.data(s)
    ours, theirs = (build.problem(s, data, device) for device in (torch.device("cpu"), CUDA))
    x = ours.start()
    for t in range(3):
        ours.load(1, t)
        theirs.load(1, t)
        g, h = ours.gradient(x), theirs.gradient(x.to(CUDA))
        torch.testing.assert_close(h.cpu(), g, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(theirs.loss.cpu(), ours.loss, rtol=1e-10, atol=0.0)
        x -= 0.1 * g
    assert theirs.evaluate(x.to(CUDA)) == pytest.approx(ours.evaluate(x), rel=1e-8)


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour", "msgd"])
def test_one_worker_on_the_device_gives_the_cpus_center_within_rounding(algo: str, tmp_path: Path) -> None:
    """Messages and replies are staged through the host, and what comes out is what the CPU computes."""
    s = in_float64(workers=1, steps=9) if algo == "easgd" else replace(settings(algo, workers=1, steps=9), model={"name": "double", "target": "nets:double"})
    prepared = build.prepare(s)
    centers = []
    for device in ("cpu", "cuda:0"):
        assert run(replace(s, device=device), tmp_path / device.partition(":")[0]).status == "completed"
        centers.append(saved_center(tmp_path / device.partition(":")[0], prepared))
    assert not torch.equal(centers[0], prepared.start)
    torch.testing.assert_close(centers[1], centers[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("algo", ["easgd", "downpour", "mdownpour"])
def test_a_center_on_the_device_is_the_one_on_the_host_within_rounding(algo: str, tmp_path: Path) -> None:
    """No vector goes over the bus, and the run is the same."""
    s = replace(settings(algo, workers=1, steps=9), model={"name": "double", "target": "nets:double"}, device="cuda:0")
    prepared = build.prepare(s)
    for where in ("cpu", "cuda:0"):
        assert run(replace(s, center_device=where), tmp_path / where.partition(":")[0]).status == "completed"
    torch.testing.assert_close(saved_center(tmp_path / "cuda", prepared), saved_center(tmp_path / "cpu", prepared), rtol=1e-9, atol=1e-12)


def test_two_workers_exchange_with_a_center_on_the_device(tmp_path: Path) -> None:
    s = settings("easgd", workers=2, steps=200, device="cuda:0", center_device="cuda:0", tau=1)
    outcome = run(s, tmp_path)
    assert (outcome.status, outcome.summary["exchanges"]) == ("completed", 400)


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour", "msgd"])
def test_no_step_waits_for_the_device_but_for_its_message(algo: str) -> None:
    """Torch raises where it makes the host wait for a stream, as for a number, or a copy of which nobody has said that it need not block."""
    s = settings(algo, workers=1, device="cuda:0", clip=1.0, l2=1e-4)
    s.dataset = {"name": "synthetic", "target": "easgd_cli.data.synthetic:synthetic", "train": 200, "test": 20, "crop": 28, "mean": [0.5] * 3, "std": [0.2] * 3}
    s.model = {"name": "convnet7", "target": "easgd_cli.models.convnet7:ConvNet7"}
    method, problem = build.method(s), build.problem(s, build.data(s), CUDA)
    start = problem.start()
    hand = drive.ByHand(method, problem, clip=s.clip, start=start, workers=1, tau=s.tau, schedule=build.schedule(s, 20))
    hand.step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            hand.step(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("algo", ["easgd", "downpour"])
def test_a_staged_exchange_is_what_the_host_makes_of_it_and_no_step_waits_for_more(algo: str) -> None:
    """A worker's own session and clock against a master in a thread, with torch raising as above."""
    s = settings(algo, workers=1, device="cuda:0", tau=1)
    method, problem = build.method(s), build.problem(s, build.data(s), CUDA)
    start = problem.start()
    link = Link.new(0, method, start.numel(), start.dtype)
    link.memory["x"].copy_(start)
    center = Center(method, {name: torch.zeros_like(start, device="cpu") for name in method.center})
    center.vectors["x"].copy_(start)
    expected = drive.ByHand(method, build.problem(s, build.data(s), torch.device("cpu")), start=start.cpu(), workers=1, tau=1, schedule=build.schedule(s, 20))
    star = RealStar(method, 1, center, SharedMasterEnd([link.for_master()]), []).begin()
    session = SharedWorkerEnd(link.for_worker(), Staging(link.memory.tensors, CUDA))
    assert link.memory["x"].is_pinned() and link.memory["reply"].is_pinned()
    w, tally = Worker(session.vectors, 1, build.schedule(s, 20), 0, 0), Tally()
    timed = Timed(drive.ProblemGradients(problem), session, tally, CUDA)
    drive.take_step(method, w, timed, timed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            drive.take_step(method, w, timed, timed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    timed.settle()
    session.close(w.t)
    star.wait()
    for _ in range(6):
        expected.step(0)
    torch.testing.assert_close(center.vectors["x"], expected.vectors()["x"], rtol=1e-3, atol=1e-4)
    assert tally.seconds_compute > 0 and tally.seconds_communication > 0


def test_the_seconds_of_a_worker_are_the_devices_and_add_up(tmp_path: Path) -> None:
    """By events: what is left of the loop for the update and for telling rows is no longer than the rest, and nothing is counted twice."""
    s = settings("easgd", workers=1, steps=60, device="cuda:0", tau=1)
    assert run(s, tmp_path).status == "completed"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["party"] == "worker_00"][-1]
    compute, data, communication, other = (last[f"seconds_{part}"] for part in ("compute", "data", "communication", "other"))
    assert compute > 0 and data > 0 and communication > 0
    assert compute + data + communication + other <= last["seconds"] + 0.05


def test_one_worker_repeats_bit_for_bit_when_deterministic(tmp_path: Path) -> None:
    s = settings("eamsgd", workers=1, device="cuda:0", deterministic=True)
    s.dataset = {"name": "synthetic", "target": "easgd_cli.data.synthetic:synthetic", "train": 200, "test": 20, "crop": 28}
    s.model = {"name": "convnet7", "target": "easgd_cli.models.convnet7:ConvNet7"}
    prepared = build.prepare(s)
    for name in ("once", "again"):
        assert run(s, tmp_path / name).status == "completed"
    assert torch.equal(saved_center(tmp_path / "once", prepared), saved_center(tmp_path / "again", prepared))


def test_two_workers_share_a_device_and_the_evaluator_uses_it_too(tmp_path: Path) -> None:
    s = settings("eamsgd", workers=2, device="cuda:0", eval=Eval(every="20 steps", train_images=100, device="cuda"))
    outcome = run(s, tmp_path)
    assert (outcome.status, outcome.summary["steps"]) == ("completed", {"worker_00": 40, "worker_01": 40})
    assert 0 <= outcome.summary["center"]["test_error"] < 90
    net = build.model(s, build.data(s))
    state = torch.load(tmp_path / "center.pt", weights_only=True)
    assert all(v.device.type == "cpu" for v in state.values())
    net.load_state_dict(state)
