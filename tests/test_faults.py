"""Faults on purpose: the printed rule restarted from the center, the same under both launchers, recorded, gone through
again, and interrupted and resumed to the bit.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_recovery import lasting, replayed
from test_runs import recorded_order, rows, run, settings
from test_simulated import UNEVEN, center_of, on_a_function, same_files, virtual

from easgd_cli.__main__ import main
from easgd_cli.algorithms import EASGDTree, GossipPull
from easgd_cli.commands import replay
from easgd_cli.errors import UsageError
from easgd_cli.launcher.processes.watch import Watch
from easgd_cli.settings import faults
from easgd_cli.settings.schema import Checkpoint, Eval, Settings, check
from easgd_cli.training.faults import Rejoin, Watched, WatchedSession

KILL = {"kind": "kill", "worker": 1, "step": 10}


def given(*entries: dict[str, Any], **values: Any) -> Settings:
    return settings("easgd", faults=list(entries), **({"workers": 2, "steps": 40} | values))


# ---------------------------------------------------------------- what may be said


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"kind": "kil"}, r"faults\[0\].kind=kil: is one of kill, stop, slow"),
        ({}, r"faults\[0\].kind=None: is one of kill"),
        ({"kind": "kill", "step": 3, "worker": 2}, r"worker=2: the run has the workers 0 to 1; leave worker out"),
        ({"kind": "kill", "step": 40}, r"step=40: .* counted from 0 to 39\."),
        ({"kind": "kill", "step": 3.5}, r"faults\[0\].step=3.5: must be a whole number"),
        ({"kind": "kill"}, "says when it happens by step, or per_step"),
        ({"kind": "kill", "step": 3, "per_step": 0.1}, "by one of them"),
        ({"kind": "kill", "per_step": 2}, r"per_step=2: is the probability of a step, from 0 to 1"),
        ({"kind": "stop", "step": 3}, "kind stop needs seconds"),
        ({"kind": "stop", "step": 3, "seconds": math.inf}, "seconds=inf: must be a number greater than 0"),
        (
            {"kind": "slow", "per_step": 0.1, "factor": 2},
            "kind slow has no such setting; it takes worker, step",
        ),
        ({"kind": "slow", "step": 3, "factor": 0.5}, "factor=0.5: .* at least 1"),
        ({"kind": "kill", "step": 3, "seconds": 1}, "kind kill has no such setting"),
        ({"kind": "kill", "party": "launcher", "step": 3}, "party=launcher: is one of master, evaluator"),
        ({"kind": "nan", "party": "master", "exchange": 3}, "kind=nan: the master suffers kill and stop only"),
        ({"kind": "kill", "party": "master", "step": 3}, r"step=3: a fault of the master .* it takes exchange\."),
        ({"kind": "stop", "party": "evaluator", "evaluation": 1}, "kind stop needs seconds"),
        ({"kind": "kill", "party": "master"}, "kind kill needs exchange"),
        ({"kind": "kill", "party": "evaluator", "evaluation": -1}, "evaluation=-1: is counted from 0"),
        ({"kind": "stop", "party": "master", "exchange": 1, "seconds": -1}, "seconds=-1: must be a number greater"),
    ],
)
def test_a_fault_that_cannot_happen_is_refused_in_a_sentence(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        faults.read(given(entry))


def test_nan_on_a_command_line_is_a_kind() -> None:
    assert faults.named([{"kind": math.nan, "step": 3}]) == [{"kind": "nan", "step": 3}]


def test_to_go_back_takes_leave_to_come_back() -> None:
    with pytest.raises(UsageError, match="on_nan=rejoin max_restarts=0"):
        check(given(on_nan="rejoin", max_restarts=0))
    with pytest.raises(UsageError, match="on_nan=explode: is diverge or rejoin"):
        check(given(on_nan="explode"))


def test_what_is_drawn_depends_on_seed_worker_and_step_alone_and_is_as_frequent_as_it_says() -> None:
    read = faults.read(given({"kind": "kill", "per_step": 0.02}))
    of = [faults.Faults(read, 3, worker) for worker in (0, 1)]
    when = [[t for t in range(20_000) if f.at(t)] for f in of]
    assert when[0] != when[1]
    assert all(400 - 5 * 20 < len(steps) < 400 + 5 * 20 for steps in when)
    assert [t for t in reversed(range(20_000)) if of[0].at(t)] == when[0][::-1]
    of[0].spared = when[0][3]
    assert [t for t in range(20_000) if of[0].at(t)] == when[0][4:]


def test_nothing_is_watched_without_faults() -> None:
    assert faults.read(given()) == ()
    assert faults.read(given(KILL, replay="there")) == ()


# ---------------------------------------------------------------- right answers


def easgd_by_hand(steps: int, tau: int, killed: dict[int, int], back_after: int) -> float:
    """Algorithm 1 with g(x) = x, one worker, eta = 0.1, alpha = 0.5: a worker killed before its step t begins again
    with the center.
    """
    x = center = 1.0
    for t in range(steps):
        if t in killed:
            x = center
        if t % tau == 0:
            difference = 0.5 * (x - center)
            x, center = x - difference - 0.1 * x, center + difference
        else:
            x -= 0.1 * x
    return center


def test_on_the_virtual_clock_too_a_step_of_the_run_is_that_of_those_that_are_left(tmp_path: Path) -> None:
    """All take equal steps, so the run is at k when they are; who is lost at its step 3 counts no more."""
    s = on_a_function("easgd", workers=4, tau=1, steps=40, max_restarts=0, eval=Eval(every="10 steps"))
    s.faults = [{"kind": "kill", "worker": 3, "step": 3}]
    assert virtual(s, tmp_path).summary["lost"] == {"worker_03": "killed by SIGKILL"}
    steps = [row["step"] for row in rows(tmp_path, "center")]
    assert [round(step) for step in steps] == [0, 10, 20, 30, 40] and steps[-1] == 40


@pytest.mark.parametrize("launch", [run, virtual])
@pytest.mark.parametrize("kind", ["kill", "exception", "nan", "link"])
def test_a_worker_that_fails_goes_on_as_the_printed_rule_does_from_the_center(
    launch: Any, kind: str, tmp_path: Path
) -> None:
    at = 12 if kind == "link" else 10  # a link is missed at the next exchange
    s = on_a_function(
        "easgd", problem={"start": 1.0}, workers=1, alpha=0.5, eta=0.1, tau=4, max_restarts=3, on_nan="rejoin",
        faults=[{"kind": kind, "worker": 0, "step": at}],
    )  # fmt: skip
    assert launch(s, tmp_path).status == "completed"
    assert center_of(tmp_path)["x"].tolist() == pytest.approx([easgd_by_hand(40, 4, {at: at}, 0)], rel=1e-9)
    back = [r for r in rows(tmp_path, "system") if "returned" in r]
    assert [(r["returned"], r["returned_at"], r["steps_lost"]) for r in back] == [(0, at, at - 8)]


def test_by_default_what_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    s = on_a_function("easgd", workers=2, faults=[{"kind": "nan", "worker": 1, "step": 10}])
    outcome = virtual(s, tmp_path)
    assert outcome.status == "diverged" and "worker_01's training loss is nan" in (outcome.reason or "")


def test_a_worker_that_cannot_get_further_ends_the_run(tmp_path: Path) -> None:
    """eta = 1e30 with g(x) = x: not finite a few steps from the center, wherever that is."""
    s = on_a_function("easgd", problem={"start": 1.0}, workers=2, eta=1e30, on_nan="rejoin", max_restarts=2, steps=400)
    outcome = virtual(s, tmp_path)
    assert outcome.status == "diverged"


def test_a_gradient_that_is_not_finite_reaches_no_rule_and_a_message_no_center() -> None:
    class Overflow:
        def load(self, worker: int, t: int) -> None:
            pass

        def gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x / 0, torch.ones(())

    watched = Watched(Overflow(), faults.Faults((), 0, 0), checked=True)
    with pytest.raises(Rejoin, match="loss or gradient is not finite"):
        watched.gradient(torch.ones(3))
    posted: list[Any] = []
    session = WatchedSession(type("Session", (), {"post": lambda self, m, t: posted.append(m)})(), watched)
    with pytest.raises(Rejoin, match="what it would send is not finite"):
        session.post(torch.tensor([1.0, -math.inf]), 0)
    assert not posted and not session.outstanding


# ---------------------------------------------------------------- the virtual cluster


def test_a_killed_worker_is_away_as_long_as_it_says(tmp_path: Path) -> None:
    """0.01 s a step: killed after 0.1 s, away for 3 s."""
    outcome = virtual(given(KILL, max_restarts=3), tmp_path, restart_seconds=3.0)
    system = rows(tmp_path, "system")
    assert [(r["seconds"], r["lost"]) for r in system if "lost" in r] == [(pytest.approx(0.1), 1)]
    assert [(r["seconds"], r["returned"]) for r in system if "returned" in r] == [(pytest.approx(3.1), 1)]
    assert outcome.summary["wall_seconds"] == pytest.approx(3.4)
    goodput = outcome.summary["goodput"]
    assert goodput == {
        "steps_lost": 1, "steps_missed": 0, "seconds_away": pytest.approx(3.0),
        "steps_per_second": pytest.approx(79 / 3.4), "without_faults": pytest.approx(2 * 80 / (2 * 3.4 - 3.0)),
    }  # fmt: skip


def test_a_worker_that_stands_still_or_is_slow_takes_its_time(tmp_path: Path) -> None:
    stop = {"kind": "stop", "worker": 1, "step": 5, "seconds": 2.0}
    slow = {"kind": "slow", "worker": 1, "step": 10, "factor": 3.0, "steps": 20}
    outcome = virtual(given(stop, slow), tmp_path)
    assert outcome.summary["wall_seconds"] == pytest.approx(0.4 + 2.0 + 20 * 0.02)
    assert outcome.summary["restarts"] == {}


def test_who_may_not_come_back_is_lost(tmp_path: Path) -> None:
    outcome = virtual(given(KILL), tmp_path)
    assert outcome.status == "completed" and list(outcome.summary["lost"]) == ["worker_01"]
    assert outcome.summary["steps"] == {"worker_00": 40, "worker_01": 10}


@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "sync_easgd"])
def test_interrupted_anywhere_and_resumed_it_is_the_same_run(algo: str, tmp_path: Path) -> None:
    """All kinds at once on an uneven cluster; a checkpoint every five steps, and on from each of some."""
    entries = [
        {"kind": "kill", "per_step": 0.03}, {"kind": "nan", "worker": 2, "step": 12},
        {"kind": "stop", "worker": 0, "step": 9, "seconds": 0.2}, {"kind": "link", "worker": 1, "step": 20},
        {"kind": "slow", "worker": 2, "step": 5, "factor": 2.0},
    ]  # fmt: skip
    s = settings(
        algo, workers=3, max_restarts=3, on_nan="rejoin", faults=entries,
        checkpoint=Checkpoint(every="5 steps", keep=100),
    )  # fmt: skip
    cluster = {**UNEVEN, "restart_seconds": 0.05}
    whole = virtual(s, tmp_path / "whole", **cluster)
    assert whole.status == "completed" and whole.summary["restarts"] and whole.summary["rejoins"]
    kept = sorted((tmp_path / "whole" / "checkpoint").glob("*.pt"))
    assert len(kept) > 4
    for path in kept[1:-1:2]:
        again = shutil.copytree(tmp_path / "whole", tmp_path / path.stem)
        for later in sorted((again / "checkpoint").glob("*.pt")):
            if later.name > path.name:
                later.unlink()
        resumed = virtual(s, again, resume=True, **cluster)
        assert recorded_order(again) == recorded_order(tmp_path / "whole")
        assert rows(again) == rows(tmp_path / "whole")
        same_files(tmp_path / "whole", again, "center.pt")
        for name in ("restarts", "rejoins", "goodput", "steps"):
            assert resumed.summary[name] == whole.summary[name]


# ---------------------------------------------------------------- real processes


@pytest.mark.parametrize("algo", ["easgd", "downpour", "sync_easgd"])
def test_a_real_run_with_faults_gives_its_center_when_its_record_is_gone_through(algo: str, tmp_path: Path) -> None:
    entries = [  # whoever is away in rounds leaves out the steps that the others take, and what would happen to it then
        {"kind": "nan", "worker": 1, "step": 20}, {"kind": "link", "worker": 0, "step": 30},
        {"kind": "exception", "worker": 0, "step": 50}, KILL | {"step": 70},
    ]  # fmt: skip
    steps = 300 if algo == "sync_easgd" else 120
    s = lasting(algo, steps=steps, on_nan="rejoin", faults=entries)
    outcome = run(s, tmp_path / "run")
    assert outcome.status == "completed" and set(outcome.summary["steps"].values()) == {steps}
    assert outcome.summary["restarts"] == {"worker_00": 1, "worker_01": 1}
    assert sum(outcome.summary["rejoins"].values()) == 2
    assert replayed(replace(s), tmp_path / "run", tmp_path / "again").status == "completed"
    same_files(tmp_path / "run", tmp_path / "again", "center.pt")


def test_a_real_worker_stands_still_and_goes_on(tmp_path: Path) -> None:
    outcome = run(given({"kind": "stop", "worker": 1, "step": 10, "seconds": 0.3}), tmp_path)
    assert outcome.status == "completed" and outcome.summary["wall_seconds"] > 0.3
    assert json.loads((tmp_path / "summary.json").read_text())["restarts"] == {}


# ---------------------------------------------------------------- master and evaluator


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algo=easgd", "launcher=simulated"], "under launcher=simulated only workers suffer faults"),
        (["algo=sgd"], "party=master: algo=sgd has no master"),
    ],
)
def test_a_master_that_is_not_there_suffers_nothing(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "faults=[{party: master, exchange: 3, kind: kill}]"]) == 2
    assert said in capsys.readouterr().err


def test_a_killed_master_and_a_killed_evaluator_are_followed_by_others_and_change_nothing(tmp_path: Path) -> None:
    """Each fault once: the record gives the center, and all is measured."""
    entries = [
        {"party": "master", "exchange": 20, "kind": "kill"},
        {"party": "master", "exchange": 60, "kind": "stop", "seconds": 0.3},
        {"party": "evaluator", "evaluation": 1, "kind": "kill"},
    ]
    s = lasting("easgd", steps=120, faults=entries)
    outcome = run(s, tmp_path / "run")
    assert outcome.status == "completed" and outcome.summary["restarts"] == {"master": 1}
    log = (tmp_path / "run" / "logs" / "launcher.log").read_text()
    assert log.count("a fault on purpose, kill") == 2 and log.count("a fault on purpose, stop") == 1
    assert "the evaluator died (killed by SIGKILL); starting it again" in log
    steps = [row["step"] for row in rows(tmp_path / "run", "center")]
    assert steps[0] == 0 and steps[-1] == 120 and len(steps) == len(set(steps)) == 3
    assert replayed(s, tmp_path / "run", tmp_path / "again").status == "completed"
    ours, theirs = center_of(tmp_path / "run"), center_of(tmp_path / "again")
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


def test_faults_of_a_master_that_have_happened_do_not_when_a_run_goes_on() -> None:
    class Killed(list):  # type: ignore[type-arg]
        began = None

        def signal(self, number: int, parties: list[str]) -> None:
            self.extend((number, party) for party in parties)

        def __getitem__(self, party: Any) -> Any:
            return SimpleNamespace(name=party)

    given = faults.read(
        settings("easgd", workers=2, faults=[{"party": "master", "exchange": n, "kind": "kill"} for n in (10, 20)])
    )
    killed: Any = Killed()
    watch = Watch(killed, Any, given, served=15)  # type: ignore[arg-type]
    for served in (15, 19, 25, 30):
        watch.served(served)
    assert list(killed) == [(signal.SIGKILL, "master")]


@pytest.mark.parametrize(("exchange", "happens"), [(20, True), (2000, False)])
def test_a_run_whose_tree_has_lost_a_node_is_not_replayed(
    exchange: int, happens: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who went on alone meanwhile is not in the order of exchanges."""
    words = [
        "algo=easgd_tree", "algo.degree=2", "algo.tau2=4", "tau=1", "workers=4", "problem=quadratic", "eta=0.1",
        "steps=40", "launcher=simulated", "launcher.spread=0.3", "launcher.restart_seconds=0.1", "hydra.run.dir=tree",
    ]  # fmt: skip
    fault = f"faults=[{{variable: node_1, exchange: {exchange}, kind: kill}}]"
    assert main(["train", *words, fault]) == 0
    assert ("node_1 is back" in (here / "tree" / "logs" / "launcher.log").read_text()) == happens
    assert main(["train", "replay=tree", "hydra.run.dir=again"]) == (2 if happens else 0)
    said = capsys.readouterr()
    if happens:
        assert "replay=tree: node_1 of this run was lost (faults)" in said.err and not (here / "again").exists()
    else:
        assert "bit for bit" in said.out


def test_a_run_in_which_a_worker_of_gossip_died_in_the_middle_of_a_step_is_not_replayed() -> None:
    """Of an order made by hand: worker 1 has published, or has published and pulled."""
    method = GossipPull(workers=3, seed=0)
    homes = [list(method.variables).index(method.home(i)) << 16 for i in range(3)]
    own, others = 1 + homes[1], 1 + homes[2]
    order = [own, others, 0 + homes[0], 0 + homes[1], own, own, others]
    replay._refuse_half_steps("replay=x", method, order, [(4, 1, 2, 0)])
    replay._refuse_half_steps("replay=x", method, order, [(5, 0, 2, 0)])
    with pytest.raises(UsageError, match=r"replay=x: worker 1 of this run died between its own variable and another's"):
        replay._refuse_half_steps("replay=x", method, order, [(5, 1, 2, 0)])
    tree = EASGDTree(workers=4, tau=1, degree=2)  # whose workers exchange with their parent alone
    replay._refuse_half_steps("replay=x", tree, [1 + (1 << 16)] * 3, [(3, 1, 2, 0)])
