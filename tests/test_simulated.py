"""The virtual cluster runs the same rules: real runs bit for bit, virtual seconds by closed forms, and it goes on as if
never stopped.
"""

from __future__ import annotations

import math
import os
import random
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_algorithms import rates
from test_runs import (
    MOVING,
    ROUNDS,
    by_hand,
    disturbed,
    exchanging,
    four_workers,
    gated,
    one_worker,
    recorded_order,
    rows,
    run,
    saved_center,
    settings,
    unhurried,
)

from easgd_cli.algorithms import EASGD, Exchange, Gradient, Rule, Worker
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.kinds import Simulated
from easgd_cli.launcher.signals import Signals
from easgd_cli.launcher.virtual import simulated
from easgd_cli.record import reader
from easgd_cli.settings.schema import Checkpoint, Eval, Settings
from easgd_cli.training.drive import ByHand
from easgd_cli.transport import simulated as transport
from easgd_cli.transport.shared_link import SharedLink
from easgd_cli.transport.turn import LARGE

ASYNCHRONOUS = ["easgd", "eamsgd", "downpour", "mdownpour"]
UNEVEN = {
    "compute": 0.01,
    "spread": 0.3,
    "speeds": [1.0, 0.7, 1.3],
    "latency": [0.001, 0.002],
    "bandwidth": 2e7,
    "service": 0.0005,
    "pause_probability": 0.05,
    "pause_seconds": 0.1,
}


def virtual(s: Settings, directory: Path, *, resume: bool = False, **cluster: Any) -> Outcome:
    directory.mkdir(exist_ok=True)
    s.launcher = {"name": "simulated", "target": "easgd_cli.launcher.kinds:Simulated", **cluster}
    return kinds.launcher(s)(Job(directory, resume=resume), build.prepare(s))


def on_a_function(algo: str, **values: Any) -> Settings:
    """1-d, g(x) = x, without noise, unless told otherwise."""
    problem = {
        "name": "quadratic",
        "target": "easgd_cli.problems.quadratic:Quadratic",
        "noise": 0.0,
        **values.pop("problem", {}),
    }
    none = {"name": "none", "target": None}
    return settings(algo, **{"problem": problem, "dataset": none, "model": none, "l2": 0.0, **values})


def center_of(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "center.pt", weights_only=True)


def same_files(a: Path, b: Path, *names: str) -> None:
    for name in names:
        one, other = (torch.load(d / name, weights_only=True) for d in (a, b))
        assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("launch", [run, virtual])
def test_a_rate_that_follows_the_length_is_told_it_by_every_launcher(launch: Any, tmp_path: Path) -> None:
    """g(x) = x: x_40 is the product of 1 - eta_t, with eta_t as torch has it."""
    cosine = {"name": "cosine", "target": "easgd_cli.algorithms.schedule:Cosine", "final": 0.1}
    s = on_a_function("sgd", problem={"start": 1.0})
    s.schedule, s.eta, s.warmup = cosine, 0.3, 10
    launch(s, tmp_path)
    linear = lambda o: torch.optim.lr_scheduler.LinearLR(o, 1 / 11, total_iters=10)  # noqa: E731
    annealed = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.03)  # noqa: E731
    expected = math.prod(1 - eta for eta in rates(linear, annealed, steps=40, milestone=10))
    assert center_of(tmp_path)["x"].tolist() == pytest.approx([expected], rel=1e-9)


@pytest.mark.parametrize("launch", [run, virtual])
def test_a_function_is_descended_in_steps_of_eta_times_the_clipped_norm(launch: Any, tmp_path: Path) -> None:
    """g(x) = x from x = 10 in both coordinates: 40 steps of length 0.05 * 2 along the diagonal, all of them clipped."""
    launch(on_a_function("sgd", problem={"start": 10.0, "dimension": 2}, clip=2.0), tmp_path)
    assert center_of(tmp_path)["x"].tolist() == pytest.approx([10 - 40 * 0.1 / math.sqrt(2)] * 2)


# --- the same bits ---------------------------------------------------------------------------------------------------


def test_taking_turns_reproduces_the_papers_trace(tmp_path: Path) -> None:
    """Algorithm 1 on g(x) = x, p = 2: workers as fast as each other take turns (paper.md's trace, derived by hand)."""
    expected = [(0.54, 0.027, 0.083), (0.28035, 0.1420425, 0.1709075), (0.20306587, 0.16298961, 0.18500527)]
    for steps, (x1, x2, center) in enumerate(expected, 1):
        s = on_a_function(
            "easgd", problem={"start": 0.2, "starts": [1.0, -0.5]}, workers=2, tau=1, eta=0.1, alpha=0.45, steps=steps
        )
        virtual(s, tmp_path / str(steps))
        [kept] = (tmp_path / str(steps) / "checkpoint").iterdir()
        workers = torch.load(kept, weights_only=True)["workers"]
        found = (float(workers[0]["vectors"]["x"]), float(center_of(tmp_path / str(steps))["x"]))
        assert found == pytest.approx((x1, center), abs=1e-8)
        assert recorded_order(tmp_path / str(steps)) == [0, 1] * steps
        assert x2  # worker 2 is seen in the next center


@pytest.mark.parametrize("algo", ASYNCHRONOUS)
def test_the_recorded_order_of_real_processes_replayed_gives_their_center_bit_for_bit(
    algo: str, tmp_path: Path, kept: Path
) -> None:
    s, real = four_workers(algo, kept)
    assert virtual(replace(s, replay=str(real)), tmp_path / "again", spread=0.5, latency=0.01).status == "completed"
    assert recorded_order(tmp_path / "again") == recorded_order(real)
    same_files(real, tmp_path / "again", "center.pt", "average.pt")


@pytest.mark.parametrize("algo", ["easgd", "sync_easgd"])
def test_a_run_that_lost_a_worker_is_replayed_too(algo: str, tmp_path: Path) -> None:
    """Nobody is past a gate in mid-run before that one is dead, so that it cannot have finished."""
    gate = tmp_path / "gate"
    s = gated(unhurried(algo, seconds=0.0, steps=100), gate, 50)

    def kill_one(pids: dict[str, int]) -> None:
        os.kill(pids["worker_01"], signal.SIGKILL)
        gate.touch()

    outcome = disturbed(s, tmp_path / "real", kill_one, exchanging)
    assert 0 < recorded_order(tmp_path / "real").count(1) <= 17 < recorded_order(tmp_path / "real").count(0)
    assert (outcome.status, outcome.summary["lost"]) == ("completed", {"worker_01": "killed by SIGKILL"})
    s.replay = str(tmp_path / "real")
    assert virtual(s, tmp_path / "again").status == "completed"
    assert recorded_order(tmp_path / "again") == recorded_order(tmp_path / "real")
    same_files(tmp_path / "real", tmp_path / "again", "center.pt")


@pytest.mark.parametrize("algo", [*ASYNCHRONOUS, "sgd", "msgd", "sync_easgd", "pull_then_step"])
def test_one_worker_gives_the_bits_of_a_real_run(algo: str, tmp_path: Path, kept: Path) -> None:
    s, real = one_worker(algo, kept)
    virtual(replace(s), tmp_path / "virtual", spread=0.5, latency=0.1, service=0.1)
    same_files(real, tmp_path / "virtual", "center.pt", "average.pt")
    same = ("step", "train_loss", "eta", "test_loss", "test_error", "distance_to_center", "staleness", "exchanges")
    for party in ("worker_00", "center", "average"):
        one, other = (
            [{k: v for k, v in r.items() if k in same} for r in rows(d, party)] for d in (real, tmp_path / "virtual")
        )
        assert one == other


@pytest.mark.parametrize("algo", ROUNDS)
def test_rounds_do_not_depend_on_the_clock(algo: str, tmp_path: Path) -> None:
    s = settings(algo)
    virtual(s, tmp_path, **UNEVEN | {"speeds": [1.0, 3.0]})
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    for _ in range(40):
        driver.round()
    assert driver.center is not None and torch.equal(driver.center.vectors["x"], saved_center(tmp_path, prepared))


@pytest.mark.parametrize("algo", ASYNCHRONOUS)
def test_its_order_of_exchanges_gone_through_by_hand_gives_its_center(algo: str, tmp_path: Path) -> None:
    s = settings(algo, workers=5)
    virtual(s, tmp_path, **UNEVEN)
    prepared = build.prepare(s)
    driver = by_hand(s, prepared)
    driver.replay(recorded_order(tmp_path))
    assert driver.center is not None and torch.equal(driver.center.vectors["x"], saved_center(tmp_path, prepared))
    assert recorded_order(tmp_path) != [0, 1, 2, 3, 4] * (len(recorded_order(tmp_path)) // 5)
    busy = [r["master_busy"] for r in rows(tmp_path, "system") if "master_busy" in r]
    assert busy and all(0 < share <= 100 for share in busy)


# --- virtual seconds -------------------------------------------------------------------------------------------------

BYTES = 8  # of a message: one float64


@pytest.mark.parametrize("tau", [1, 4])
@pytest.mark.parametrize(
    ("algo", "step"),
    [
        ("easgd", lambda compute, exchange: max(compute, exchange)),  # asked for at once, so they overlap
        ("eamsgd", lambda compute, exchange: max(compute, exchange)),
        ("downpour", lambda compute, exchange: compute + exchange),  # the gradient belongs to what is pulled
        ("mdownpour", lambda compute, exchange: compute + exchange),
        ("pull_then_step", lambda compute, exchange: compute + exchange),
    ],
)
@pytest.mark.parametrize("compute", [0.5, 3.0])
def test_a_step_lasts_as_long_as_its_rule_says(algo: str, step: Any, tau: int, compute: float, tmp_path: Path) -> None:
    if algo == "mdownpour" and tau > 1:
        pytest.skip("defined for tau = 1 only")
    cluster: dict[str, Any] = {"latency": [0.1, 0.2], "bandwidth": [16.0, 8.0], "service": 0.05, "overhead": 0.4}
    outcome = virtual(on_a_function(algo, workers=1, tau=tau, steps=12), tmp_path, compute=compute, **cluster)
    exchange = 0.1 + BYTES / 16 + 0.05 + 0.2 + BYTES / 8
    exchanges = 12 // tau
    assert outcome.summary["wall_seconds"] == pytest.approx(
        (12 - exchanges) * compute + exchanges * (0.4 + step(compute, exchange))
    )
    seconds = outcome.summary["seconds"]
    assert seconds["compute"] == pytest.approx(12 * compute)
    assert seconds["communication"] == pytest.approx(outcome.summary["wall_seconds"] - 12 * compute)
    assert rows(tmp_path, "center")[-1]["seconds"] <= outcome.summary["wall_seconds"]


def test_messages_queue_at_the_master(tmp_path: Path) -> None:
    """p messages arrive together and each takes s: the k-th waits k s, so p (p - 1) / 2 s in all, at every exchange
    that is as regular.
    """
    outcome = virtual(on_a_function("downpour", workers=4, tau=1, steps=1), tmp_path, compute=1.0, service=0.1)
    queue = outcome.summary["communication"]
    assert queue["queue_seconds"]["max"] == pytest.approx(0.3)
    assert queue["queue_seconds"]["mean"] == pytest.approx((0.1 + 0.2 + 0.3) / 4)
    assert outcome.summary["wall_seconds"] == pytest.approx(0.4 + 1.0)
    assert queue["waiting"] == pytest.approx(100 * (0.1 + 0.2 + 0.3 + 0.4) / (0.1 + 0.2 + 0.3 + 0.4 + 4.0))


@pytest.mark.parametrize(
    ("cluster", "seconds"),
    [
        ({"shared_bandwidth": [8.0, 16.0]}, 4 * 1.0 + 4 * 0.5),  # all are up at once, and down
        ({"shared_bandwidth": [8.0, 1e30]}, 4 * 1.0),
        ({"shared_bandwidth": 8.0, "bandwidth": 1.0}, 8.0 + 8.0),  # each has a link of its own that is slower
        ({"shared_bandwidth": 8.0, "here": 3}, 2.0),  # one of four is elsewhere
        ({"shared_bandwidth": 8.0, "overhead": 0.25, "latency": [0.1, 0.3]}, 0.25 + 0.1 + 0.3 + 8.0),
    ],
)
def test_messages_share_the_masters_link(cluster: dict[str, Any], seconds: float, tmp_path: Path) -> None:
    """Eight bytes each, of a round of four workers that begin together; a second of computing after it."""
    outcome = virtual(on_a_function("pull_then_step", workers=4, tau=1, steps=1), tmp_path, compute=1.0, **cluster)
    assert outcome.summary["wall_seconds"] == pytest.approx(seconds + 1.0)


def test_a_shared_link_gives_every_message_its_part_and_is_used_whole() -> None:
    """Against a link that hands out its bytes in small pieces; its parts are those of the fixed sequence."""
    draw = random.Random(4)
    arrivals = sorted((draw.random() * 6, draw.random() * 5 + 0.1) for _ in range(25))
    link, found = SharedLink(10.0, None), dict[int, float]()

    def until(second: float) -> None:
        while link.due is not None and link.due <= second:
            due = link.due
            found.update(dict.fromkeys(link.arrived(due), due))

    for number, (second, nbytes) in enumerate(arrivals):
        until(second)
        link.add(second, nbytes, number)
    until(math.inf)
    left, expected, now, dt = dict[int, float](), dict[int, float](), 0.0, 1e-3
    weights = [4.0 ** ((number + 1) * 0.6180339887498949 % 1.0) for number in range(len(arrivals))]
    waiting = list(enumerate(arrivals))
    while waiting or left:
        while waiting and waiting[0][1][0] <= now:
            number, (_, nbytes) = waiting.pop(0)
            left[number] = nbytes
        total = sum(weights[number] for number in left)
        left = {number: nbytes - dt * 10.0 * weights[number] / total for number, nbytes in left.items()}
        now += dt
        expected |= {number: now for number, nbytes in left.items() if nbytes <= 0}
        left = {number: nbytes for number, nbytes in left.items() if nbytes > 0}
    assert found.keys() == expected.keys()
    assert all(found[number] == pytest.approx(expected[number], abs=0.05) for number in found)


def test_large_replies_go_in_turn_and_nobody_faster_than_its_own_cable() -> None:
    link = SharedLink(8.0, 4.0)
    for of in range(3):
        link.add(0.0, 8.0, of, in_turn=True)
    found = []
    while link.due is not None:
        found.append((link.due, link.arrived(link.due)))
    assert found == [(2.0, [0, 1]), (3.0, [2])]  # the first by its own cable, the others by the link


@pytest.mark.parametrize(("algo", "tau"), [("allreduce", 1), ("pull_then_step", 2)])
def test_a_round_on_a_ring_takes_as_long_as_an_all_reduce_does(algo: str, tau: int, tmp_path: Path) -> None:
    """2 (p - 1) messages of a p-th of the vector one after another, and the work of one vector."""
    p, latency, bandwidth, service = 4, 0.01, 16.0, 0.3
    cluster = {"latency": latency, "bandwidth": bandwidth, "service": service, "compute": 1.0, "rounds": "ring"}
    outcome = virtual(on_a_function(algo, workers=p, tau=tau, steps=6), tmp_path, **cluster)
    ring = 2 * (p - 1) / p * BYTES / bandwidth + 2 * (p - 1) * latency
    assert outcome.summary["wall_seconds"] == pytest.approx(6 * 1.0 + 6 // tau * (ring + service))


def test_the_longest_wait_is_that_of_the_whole_run(tmp_path: Path) -> None:
    """After the first exchange, where all come at once, they come one after another and nobody waits."""
    outcome = virtual(on_a_function("downpour", workers=4, tau=1, steps=3), tmp_path, compute=1.0, service=0.1)
    queue = outcome.summary["communication"]["queue_seconds"]
    assert queue["max"] == pytest.approx(0.3) and queue["mean"] == pytest.approx((0.1 + 0.2 + 0.3) / 12)


def test_a_round_is_served_at_the_price_of_each_of_its_messages(tmp_path: Path) -> None:
    """p messages of service s take p s, whether one after another or together; the gradient is taken meanwhile, or
    after.
    """
    for algo, step in (("sync_easgd", max(1.0, 0.8)), ("pull_then_step", 1.0 + 0.8)):
        outcome = virtual(on_a_function(algo, workers=4, tau=1, steps=5), tmp_path / algo, compute=1.0, service=0.2)
        assert outcome.summary["wall_seconds"] == pytest.approx(5 * step)
        assert outcome.summary["communication"]["master_busy"] == pytest.approx(100 * 0.8 / step)
        assert outcome.summary["communication"]["queue_seconds"]["max"] == 0


def test_a_straggler_holds_up_rounds_and_nobody_else(tmp_path: Path) -> None:
    speeds = [1.0, 1.0, 1.0, 0.25]
    alone = virtual(on_a_function("easgd", tau=1, steps=40), tmp_path / "easgd", compute=1.0, speeds=speeds)
    together = virtual(on_a_function("sync_easgd", tau=1, steps=40), tmp_path / "sync", compute=1.0, speeds=speeds)
    for outcome in (alone, together):
        assert outcome.summary["wall_seconds"] == pytest.approx(160)  # the slow one's 40 steps
    ends = {d: [rows(tmp_path / d, f"worker_{i:02d}")[-1]["seconds"] for i in range(4)] for d in ("easgd", "sync")}
    assert ends["easgd"] == pytest.approx([40, 40, 40, 160])
    # the last round is complete when the slow one begins its last step
    assert ends["sync"] == pytest.approx([156, 156, 156, 160])
    assert together.summary["communication"]["waiting"] > 50 > 1 > alone.summary["communication"]["waiting"]


def test_staleness_is_what_others_did_meanwhile(tmp_path: Path) -> None:
    """Workers that take turns find p - 1 updates by others at every exchange but their first."""
    outcome = virtual(on_a_function("easgd", tau=2, steps=200), tmp_path, compute=1.0)
    staleness = outcome.summary["communication"]["staleness"]
    assert (staleness["median"], staleness["max"]) == (3, 3)
    assert {r["staleness"] for r in rows(tmp_path, "worker_02") if "staleness" in r and r["step"] > 2} == {3.0}


def test_step_times_are_distributed_as_asked() -> None:
    """A function of (seed, worker, t) with the mean and spread asked for; pauses as often as asked."""
    cluster = Simulated(compute=2.0, spread=0.5, speeds=[1.0, 0.25])
    drawn = torch.tensor([cluster.compute_seconds(0, 0, t) for t in range(20_000)], dtype=torch.float64)
    assert drawn.mean() == pytest.approx(2.0, rel=0.02) and drawn.std() == pytest.approx(1.0, rel=0.05)
    assert cluster.compute_seconds(0, 1, 5) != pytest.approx(cluster.compute_seconds(0, 0, 5) * 4)  # draws of their own
    assert sum(cluster.compute_seconds(0, 1, t) for t in range(5000)) / 5000 == pytest.approx(8.0, rel=0.03)
    listed = [Simulated(compute=[1.0, 5.0]).compute_seconds(3, 2, t) for t in range(2000)]
    assert set(listed) == {1.0, 5.0} and sum(listed) / 2000 == pytest.approx(3.0, rel=0.05)
    pausing = Simulated(compute=1.0, pause_probability=0.1, pause_seconds=7.0)
    assert sum(pausing.compute_seconds(0, 0, t) == 8.0 for t in range(5000)) == pytest.approx(500, rel=0.15)


# --- stopping and going on -------------------------------------------------------------------------------------------


def stopped_after(events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run is interrupted after so many events; those after it are not."""
    left = [events]

    def take(_: Signals) -> list[int]:
        left[0] -= 1
        return [signal.SIGINT] if left[0] == 0 else []

    monkeypatch.setattr(simulated, "_LOOK_UP_SECONDS", 0.0)
    monkeypatch.setattr(Signals, "take", take)


@pytest.mark.parametrize("algo", [*ASYNCHRONOUS, *ROUNDS, "msgd"])
def test_interrupted_in_the_middle_of_steps_it_goes_on_bit_for_bit(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = settings(
        algo, workers=1 if algo == "msgd" else 4, steps=30, average=MOVING, eval=Eval(every="10 steps", train_images=50)
    )
    virtual(s, tmp_path / "whole", **UNEVEN)
    for events in (1, 7, 11) if algo == "msgd" else (1, 7, 38, 39, 40, 77):  # each from where the last one stopped
        stopped_after(events, monkeypatch)
        outcome = virtual(s, tmp_path / "parts", resume=events > 1, **UNEVEN)
        assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    monkeypatch.undo()
    assert virtual(s, tmp_path / "parts", resume=True, **UNEVEN).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt", "average.pt")
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    whole, parts = (reader.summary_of(tmp_path / d) for d in ("whole", "parts"))
    assert {k: v for k, v in whole.items() if k != "real_seconds"} == {
        k: v for k, v in parts.items() if k != "real_seconds"
    }


@pytest.mark.parametrize("large", [LARGE, BYTES])
@pytest.mark.parametrize("algo", ["easgd", "downpour", "sync_easgd"])
def test_interrupted_while_messages_share_a_link_it_goes_on_bit_for_bit(
    algo: str, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LARGE", large)
    s = on_a_function(algo, steps=30, tau=2)
    cluster = UNEVEN | {"bandwidth": 1600.0, "shared_bandwidth": [2000.0, 900.0], "overhead": 0.001, "here": 1}
    virtual(s, tmp_path / "whole", **cluster)
    for events in (1, 7, 38, 39, 40, 77):
        stopped_after(events, monkeypatch)
        assert virtual(s, tmp_path / "parts", resume=events > 1, **cluster).status == "interrupted"
    monkeypatch.undo()
    monkeypatch.setattr(transport, "LARGE", large)
    assert virtual(s, tmp_path / "parts", resume=True, **cluster).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


@pytest.mark.parametrize("algo", ["easgd", "mdownpour", "sync_eamsgd"])
def test_given_more_steps_it_goes_on_as_if_it_had_never_ended(algo: str, tmp_path: Path) -> None:
    virtual(settings(algo, steps=40), tmp_path / "whole", **UNEVEN)
    virtual(settings(algo, steps=17), tmp_path / "parts", **UNEVEN)
    assert virtual(settings(algo, steps=40), tmp_path / "parts", resume=True, **UNEVEN).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt")
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "parts")
    for i in range(4):
        steps = [r["step"] for r in rows(tmp_path / "parts", f"worker_{i:02d}")]
        assert steps == sorted(set(steps)) and steps[-1] == 40


def test_a_checkpoint_on_the_way_is_one_to_go_on_from(tmp_path: Path) -> None:
    s = settings("eamsgd", steps=40, checkpoint=Checkpoint(every="10 steps", keep=9))
    virtual(s, tmp_path / "whole", **UNEVEN)
    kept = sorted((tmp_path / "whole" / "checkpoint").glob("*.pt"))
    assert len(kept) >= 3  # none after the first worker has finished
    before = rows(tmp_path / "whole")
    for path in kept[2:]:
        path.unlink()
    center = center_of(tmp_path / "whole")
    assert virtual(s, tmp_path / "whole", resume=True, **UNEVEN).status == "completed"
    assert all(torch.equal(center[k], v) for k, v in center_of(tmp_path / "whole").items())
    assert rows(tmp_path / "whole") == before


def test_a_run_that_wrote_checkpoints_on_the_way_goes_on_beyond_its_end(tmp_path: Path) -> None:
    """The slow worker's last steps leave the checkpoint of the first end where it is."""
    uneven = {"speeds": [1.0, 0.25], "compute": 1.0}
    s = on_a_function("easgd", workers=2, tau=2, steps=40, checkpoint=Checkpoint(every="1 steps"))
    virtual(s, tmp_path / "parts", **uneven)
    virtual(on_a_function("easgd", workers=2, tau=2, steps=80), tmp_path / "whole", **uneven)
    s.steps = 80
    assert set(virtual(s, tmp_path / "parts", resume=True, **uneven).summary["steps"].values()) == {80}
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt")


@dataclass(frozen=True)
class Late(EASGD):
    """A rule that holds its gradient over an exchange."""

    def step(self, w: Worker) -> Rule:
        g = yield Gradient(w.x)
        center = (yield Exchange(w.x)) if w.due else None
        if center is not None:
            w.x.lerp_(center, self.alpha)
        w.x.sub_(g, alpha=w.eta)


def test_a_gradient_outlives_the_gradients_of_others(tmp_path: Path) -> None:
    s = on_a_function("easgd", workers=3, tau=1, eta=0.1, problem={"starts": [1.0, -2.0, 3.0]})
    s.algo = {"name": "late", "target": "test_simulated:Late"}
    virtual(s, tmp_path, latency=0.01)
    prepared = build.prepare(s)
    starts = [prepared.problem.start(i) for i in range(3)]
    driver = ByHand(
        prepared.method,
        prepared.problem,
        workers=3,
        tau=1,
        schedule=build.schedule(s, prepared.steps),
        start=prepared.start,
        starts=starts,
    )
    driver.replay(recorded_order(tmp_path))
    assert driver.center is not None and torch.equal(driver.center.vectors["x"], center_of(tmp_path)["x"])


def test_minutes_are_virtual_and_a_level_ends_the_run(tmp_path: Path) -> None:
    outcome = virtual(on_a_function("easgd", steps=None, minutes=2.0), tmp_path / "minutes", compute=1.0)
    assert outcome.summary["wall_seconds"] == pytest.approx(120) and set(outcome.summary["steps"].values()) == {120}
    s = settings("eamsgd", steps=100_000, until={"test_error": 40.0}, batch_size=32)
    outcome = virtual(s, tmp_path / "level")
    assert outcome.status == "completed" and outcome.summary["center"]["test_error"] <= 40.0
    assert (
        len(recorded_order(tmp_path / "level"))
        == outcome.summary["exchanges"]
        == rows(tmp_path / "level", "center")[-1]["exchanges"]
    )


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    outcome = virtual(settings("downpour", eta=1e6, steps=5000), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("diverged", 0)


def test_a_thousand_workers(tmp_path: Path) -> None:
    """Each starts elsewhere, nobody is lost, and without noise the center goes where it must."""
    s = on_a_function("easgd", workers=1000, steps=4, tau=2, eta=0.1, problem={"start": 1.0, "dimension": 3})
    outcome = virtual(s, tmp_path, compute=1.0, spread=0.2)
    assert outcome.summary["exchanges"] == 2_000
    assert 0 < rows(tmp_path, "center")[-1]["distance_to_optimum"] < math.sqrt(3)


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("compute", 0.0, "launcher.compute=0"),
        ("compute", [], "launcher.compute="),
        ("compute", [0.1, -1.0], "launcher.compute="),
        ("spread", -0.1, "launcher.spread=-0.1"),
        ("speeds", [1.0, 0.0], "launcher.speeds="),
        ("pause_probability", 1.5, "launcher.pause_probability=1.5"),
        ("pause_seconds", -1.0, "launcher.pause_seconds=-1"),
        ("latency", [1.0, 2.0, 3.0], "launcher.latency="),
        ("latency", -1.0, "launcher.latency=-1"),
        ("bandwidth", 0.0, "launcher.bandwidth=0"),
        ("service", math.inf, "launcher.service=inf"),
        ("shared_bandwidth", 0.0, "launcher.shared_bandwidth=0.0"),
        ("here", -1, "launcher.here=-1"),
        ("rounds", "star", "launcher.rounds=star"),
        ("overhead", -0.1, "launcher.overhead=-0.1"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(option: str, value: Any, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        Simulated(**{option: value})
