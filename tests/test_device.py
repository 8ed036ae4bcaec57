"""What is the same on a device as on a CPU, and runs whose workers compute there: pytest -m device, on a CUDA device,
or skipped.

With EASGD_TEST_DEVICE=late:0 on the device of late_device.py, and that this one shows mistakes: test_late_device.py
does so.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import CONVNET, POLYAK, by_hand, on_function, recorded_order, run, saved_center
from test_runs import settings as any_settings
from test_simulated import virtual
from test_transport import RealStar
from torch import Tensor

from easgd_cli.algorithms.base import Method, Worker
from easgd_cli.data.images import Images
from easgd_cli.experiment import build
from easgd_cli.launcher.processes import fork_server
from easgd_cli.record.reader import checkpoints
from easgd_cli.settings.schema import Eval, Settings
from easgd_cli.training import drive
from easgd_cli.training.center import Center
from easgd_cli.training.meter import Tally
from easgd_cli.training.stopwatch import Timed
from easgd_cli.transport.on_device import DeviceVectors, hand_out
from easgd_cli.transport.shared import Link, SharedMasterEnd, SharedWorkerEnd
from easgd_cli.transport.staging import Staging

NAME = os.environ.get("EASGD_TEST_DEVICE", "cuda:0")
LATE = NAME == "late:0"
if LATE:
    import late_device  # which registers it, here and in the server that a run's processes are forked from

    fork_server.begin_here()

CPU, DEVICE = torch.device("cpu"), torch.device(NAME)
THERE: Any = torch.get_device_module(DEVICE)
pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not LATE and not torch.cuda.is_available(), reason="this machine shows no CUDA device"),
]


def settings(algo: str, **values: Any) -> Settings:
    """With convolutions, of which a device makes more kinds of kernels than of a small net's products."""
    return any_settings(algo, **{"model": CONVNET, **values})


on_late = pytest.mark.skipif(not LATE, reason="only of the device that is late")


@pytest.fixture
def images() -> Images:
    g = torch.Generator().manual_seed(0)
    pixels, labels = (
        torch.randint(256, (50, 3, 12, 11), generator=g, dtype=torch.uint8),
        torch.randint(5, (50,), generator=g),
    )
    return Images(pixels, labels, pixels[:9], labels[:9], num_classes=5, crop=(8, 7), flip=True)


@pytest.mark.parametrize("cropped", [True, False])
def test_a_batch_cut_on_the_device_is_the_cpus(images: Images, cropped: bool) -> None:
    images = images if cropped else replace(images, crop=None, flip=False)
    there, indices = images.training_on(DEVICE), torch.tensor([3, 49, 0, 3, 17, 21])
    for seed in range(5):
        ours, labels = images.training_batch(indices, torch.Generator().manual_seed(seed))
        theirs, their_labels = there.training_batch(indices, torch.Generator().manual_seed(seed))
        assert theirs.device == DEVICE and torch.equal(theirs.cpu(), ours) and torch.equal(their_labels.cpu(), labels)


def in_float64(algo: str, net: str = "double", **values: Any) -> Settings:
    return settings(algo, **values, model={"name": net, "target": f"nets:{net}"})


@pytest.mark.parametrize(
    ("net", "batch_norm"), [("double", "estimate"), ("double_residual", "estimate"), ("double_residual", "average")]
)
def test_gradient_loss_and_evaluation_are_the_cpus_within_rounding(net: str, batch_norm: str) -> None:
    s = in_float64("easgd", net)
    s.problem |= {"batch_norm": batch_norm}
    data = build.data(s)
    ours, theirs = (build.problem(s, data, device) for device in (CPU, DEVICE))
    x = ours.start()
    for t in range(3):
        ours.load(1, t)
        theirs.load(1, t)
        g, h = ours.gradient(x), theirs.gradient(x.to(DEVICE))
        torch.testing.assert_close(h.cpu(), g, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(theirs.loss.cpu(), ours.loss, rtol=1e-10, atol=0.0)
        x -= 0.1 * g
    assert theirs.evaluate(x.to(DEVICE)) == pytest.approx(ours.evaluate(x), rel=1e-8)
    assert torch.equal(theirs.confusion(x.to(DEVICE)), ours.confusion(x))
    saved = theirs.state_dict(x.to(DEVICE))
    torch.testing.assert_close(saved, ours.state_dict(x), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour", "msgd"])
def test_one_worker_on_the_device_gives_the_cpus_center_within_rounding(algo: str, tmp_path: Path) -> None:
    """Messages and replies are staged through the host, and what comes out is what the CPU computes; where the center
    is on the device, too, no vector goes over the bus, and the run is the same.
    """
    s = in_float64(algo, workers=1, steps=9)
    prepared = build.prepare(s)
    cpu = by_hand(s, prepared)
    for _ in range(9):
        cpu.step(0)
    centers = []
    for where in ("cpu", NAME) if algo in ("easgd", "downpour", "mdownpour") else ("cpu",):
        path = tmp_path / where.partition(":")[0]
        assert run(replace(s, device=NAME, center_device=where), path).status == "completed"
        centers.append(saved_center(path, prepared))
    assert not torch.equal(cpu.vectors()["x"], prepared.start)
    torch.testing.assert_close(centers[0], cpu.vectors()["x"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(centers[-1], centers[0], rtol=1e-9, atol=1e-12)


def test_two_workers_exchange_with_a_center_on_the_device(tmp_path: Path) -> None:
    steps = 20 if LATE else 200
    s = settings("easgd", workers=2, steps=steps, device=NAME, center_device=NAME, tau=1)
    outcome = run(s, tmp_path)
    assert (outcome.status, outcome.summary["exchanges"]) == ("completed", 2 * steps)


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour", "msgd"])
def test_no_step_waits_for_the_device_but_for_its_message(algo: str) -> None:
    """Torch raises where it makes the host wait for a stream, as for a number, or a copy of which nobody has said that
    it need not block.
    """
    s = settings(algo, workers=1, device=NAME, batch_size=4, clip=1.0, l2=1e-4)
    s.dataset = {
        "name": "synthetic",
        "target": "easgd_cli.data.synthetic:synthetic",
        "train": 200,
        "test": 20,
        "crop": 28,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    s.model = {"name": "convnet7", "target": "easgd_cli.models.convnet7:ConvNet7"}
    method, problem = build.method(s), build.problem(s, build.data(s), DEVICE)
    start = problem.start()
    hand = drive.ByHand(method, problem, clip=s.clip, start=start, workers=1, tau=s.tau, schedule=build.schedule(s, 20))
    hand.step(0)
    THERE.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            hand.step(0)
    finally:
        THERE.set_sync_debug_mode("default")


class OtherProcess(RealStar):
    """A master in a thread, which has streams of its own on the device, where that can be had."""

    def _serve(self) -> None:
        with late_device.process() if LATE else nullcontext():
            super()._serve()


def begun(method: Method, start: Tensor, where: str) -> OtherProcess:
    """A center and one worker on the device that begin at `start`: its messages are staged through the host, or both
    have been handed out.
    """
    link = Link.new(0, method, len(start), start.dtype)
    link.memory["x"].copy_(start)
    at = DEVICE if where == "handed out" else CPU
    center = Center(
        method.variables["center"],
        {name: torch.zeros_like(start, device=at) for name in method.variables["center"].state},
    )
    center.vectors["x"].copy_(start)
    master = SharedMasterEnd(
        [link.for_master()], hand_out([link.for_master()], DEVICE) if where == "handed out" else None
    )
    elsewhere = (
        DeviceVectors(link.for_worker(), DEVICE) if where == "handed out" else Staging(link.memory.tensors, DEVICE)
    )
    star = OtherProcess(method, 1, center, master, [SharedWorkerEnd(link.for_worker(), elsewhere)])
    star.begin()
    return star


@pytest.mark.parametrize("algo", ["easgd", "downpour"])
def test_a_staged_exchange_is_what_the_host_makes_of_it_and_no_step_waits_for_more(algo: str) -> None:
    """A worker's own session and clock against a master in a thread, with torch raising as above."""
    s = settings(algo, workers=1, device=NAME, tau=1)
    method, problem = build.method(s), build.problem(s, build.data(s), DEVICE)
    start = problem.start()
    expected = drive.ByHand(
        method,
        build.problem(s, build.data(s), CPU),
        start=start.cpu(),
        workers=1,
        tau=1,
        schedule=build.schedule(s, 20),
    )
    star = begun(method, start, "staged")
    session = star.workers[0]
    assert isinstance(session, SharedWorkerEnd)
    assert session._memory["x"].is_pinned() and session._memory["reply"].is_pinned()
    w, tally = Worker(session.vectors, 1, build.schedule(s, 20), 0, 0), Tally()
    timed = Timed(drive.ProblemGradients(problem), session, tally, DEVICE)
    drive.take_step(method, w, timed, timed)
    THERE.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            drive.take_step(method, w, timed, timed)
    finally:
        THERE.set_sync_debug_mode("default")
    timed.settle()
    session.close(w.t)
    star.wait()
    for _ in range(6):
        expected.step(0)
    torch.testing.assert_close(star.center.vectors["x"], expected.vectors()["x"], rtol=1e-3, atol=1e-4)
    assert tally.seconds_compute > 0 and tally.seconds_communication > 0


def test_the_seconds_of_a_worker_are_the_devices_and_add_up(tmp_path: Path) -> None:
    """By events: what is left of the loop for the update and for telling rows is no longer than the rest, and nothing
    is counted twice.
    """
    s = settings("easgd", workers=1, steps=10 if LATE else 60, device=NAME, tau=1)
    assert run(s, tmp_path).status == "completed"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["party"] == "worker_00"][-1]
    compute, data, communication, other = (
        last[f"seconds_{part}"] for part in ("compute", "data", "communication", "other")
    )
    assert compute > 0 and data > 0 and communication > 0
    assert compute + data + communication + other <= last["seconds"] + 0.05


def test_one_worker_repeats_bit_for_bit_when_deterministic(tmp_path: Path) -> None:
    s = settings("eamsgd", workers=1, steps=3 if LATE else 40, device=NAME, deterministic=True)
    s.dataset = {
        "name": "synthetic",
        "target": "easgd_cli.data.synthetic:synthetic",
        "train": 200,
        "test": 20,
        "crop": 28,
    }
    s.model = {"name": "convnet7", "target": "easgd_cli.models.convnet7:ConvNet7"}
    prepared = build.prepare(s)
    for name in ("once", "again"):
        assert run(s, tmp_path / name).status == "completed"
    assert torch.equal(saved_center(tmp_path / "once", prepared), saved_center(tmp_path / "again", prepared))


def test_two_workers_share_a_device_and_the_evaluator_uses_it_too(tmp_path: Path) -> None:
    s = settings("eamsgd", workers=2, device=NAME, eval=Eval(every="20 steps", train_images=100, device=NAME))
    outcome = run(s, tmp_path)
    assert (outcome.status, outcome.summary["steps"]) == ("completed", {"worker_00": 40, "worker_01": 40})
    assert 0 <= outcome.summary["center"]["test_error"] < 90
    net = build.model(s, build.data(s))
    state = torch.load(tmp_path / "center.pt", weights_only=True)
    assert all(v.device.type == "cpu" for v in state.values())
    net.load_state_dict(state)


@pytest.mark.parametrize("where", ["cpu", NAME])
@pytest.mark.parametrize("algo", ["sync_eamsgd", "gauss_seidel_easgd"])
def test_rounds_on_a_device_are_the_same_rounds_on_a_cpu_within_rounding(algo: str, where: str, tmp_path: Path) -> None:
    s = settings(
        algo,
        workers=2,
        steps=9,
        tau=2,
        average=POLYAK,
        **on_function("quadratic:Quadratic", dimension=5, spectrum=[0.5, 2.0]),
    )
    assert (
        run(replace(s, device=NAME, center_device=where, eval=Eval(every="4 steps", device=NAME)), tmp_path).status
        == "completed"
    )
    driver = by_hand(s, build.prepare(s))
    for _ in range(9):
        driver.round()
    for party, name in (("center", "x"), ("average", "average")):
        saved = torch.load(tmp_path / f"{party}.pt", weights_only=True)["x"]
        torch.testing.assert_close(saved, driver.vectors()[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("algo", "where"), [("eamsgd", "cpu"), ("eamsgd", NAME), ("msgd", "cpu")])
def test_a_run_on_a_device_that_was_stopped_goes_on_as_if_nothing_had_been(
    algo: str, where: str, tmp_path: Path
) -> None:
    s = settings(
        algo,
        workers=1,
        steps=12,
        average=POLYAK,
        deterministic=True,
        device=NAME,
        center_device=where,
    )
    run(s, tmp_path / "whole")
    run(replace(s, steps=5), tmp_path / "parts")
    assert run(s, tmp_path / "parts", resume=True).status == "completed"
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "parts")
    for file in ("center.pt", "average.pt"):
        a, b = (torch.load(tmp_path / d / file, weights_only=True) for d in ("whole", "parts"))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_virtual_cluster_on_a_device_goes_on_from_a_checkpoint_that_needs_none(tmp_path: Path) -> None:
    s = in_float64("eamsgd", workers=2, steps=9)
    assert virtual(s, tmp_path / "cpu").status == "completed"
    s.device = NAME
    assert virtual(replace(s, steps=4), tmp_path / "there").status == "completed"
    content = torch.load(checkpoints(tmp_path / "there" / "checkpoint")[-1], weights_only=True)
    assert (
        all(v.device == CPU for v in content["workers"][0]["vectors"].values())
        and content["owner"]["vectors"]["x"].device == CPU
    )
    assert virtual(s, tmp_path / "there", resume=True).status == "completed"
    centers = (torch.load(tmp_path / d / "center.pt", weights_only=True) for d in ("there", "cpu"))
    torch.testing.assert_close(*centers, rtol=1e-7, atol=1e-9)


@on_late
def test_a_device_of_its_own_is_not_mixed_with_the_cpu_nor_read_unasked() -> None:
    x, host = torch.arange(6.0, device=DEVICE), torch.full((6,), -1.0).pin_memory()
    for mixed in (
        lambda: x + host,
        lambda: torch.cat([x, torch.empty(0)]),
        lambda: x[torch.tensor([1])],
        lambda: torch.dot(x, host),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="can't convert"):
        x.numpy()
    host.copy_(x, non_blocking=True)
    assert host.tolist() == [-1] * 6
    THERE.synchronize()
    assert host.tolist() == [0, 1, 2, 3, 4, 5]
    sent = torch.ones(6).pin_memory()
    there = sent.to(DEVICE, non_blocking=True)
    sent.fill_(2)
    assert there.sum().item() == 12  # it was sent later than it was changed
    THERE.set_sync_debug_mode("error")
    try:
        for waits in (
            lambda: x.sum().item(),
            lambda: x.cpu(),
            lambda: torch.ones(6).to(DEVICE, non_blocking=True),
            lambda: torch.equal(x, x),
        ):
            with pytest.raises(RuntimeError, match="waits"):
                waits()
    finally:
        THERE.set_sync_debug_mode("default")


def exchanged(s: Settings, where: str) -> Tensor:
    """The center after 12 steps of a worker whose messages are `where`."""
    method, problem = build.method(s), build.problem(s, None, DEVICE)
    star = begun(method, problem.start(), where)
    [session] = star.workers
    w, gradients = Worker(session.vectors, s.tau, build.schedule(s, 12), 0, 0), drive.ProblemGradients(problem)
    for _ in range(12):
        drive.take_step(method, w, gradients, session)
    session.close(w.t)
    star.wait()
    return star.center.vectors["x"].cpu()


@on_late
@pytest.mark.parametrize(
    ("where", "left_out"),
    [("staged", None), ("staged", "message down"), ("staged", "gradient before message"), ("staged", "reply up"),
     ("handed out", None), ("handed out", "message down"), ("handed out", "rule before reply")],
)  # fmt: skip
def test_an_exchange_with_a_device_waits_where_it_must(
    where: str, left_out: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait that a transport owes is left out in turn, and the center shows it: with work done as late as it may,
    or with the gradient ahead.
    """
    s = settings("easgd", workers=1, tau=2, **on_function("quadratic:Quadratic", dimension=5, spectrum=[0.5, 2.0]))
    expected = by_hand(s, build.prepare(s))
    for _ in range(12):
        expected.step(0)
    wait, own = late_device.Stream.wait_stream, late_device.here.process.default
    if left_out == "message down":
        monkeypatch.setattr(late_device.Event, "synchronize", lambda event: None)
    elif left_out == "gradient before message":
        monkeypatch.setattr(
            late_device.Stream, "wait_stream", lambda stream, other: wait(stream, other) if stream is own else None
        )
    elif left_out == "reply up":
        monkeypatch.setattr(
            late_device.Stream, "wait_stream", lambda stream, other: None if stream is own else wait(stream, other)
        )
    elif left_out == "rule before reply":
        monkeypatch.setattr(late_device, "synchronize", lambda device=None: None)
    right = []
    for prompt in (False, True):
        monkeypatch.setattr(late_device, "prompt", prompt)
        right.append(torch.allclose(exchanged(s, where), expected.vectors()["x"], rtol=1e-10))
    assert all(right) == (left_out is None)
