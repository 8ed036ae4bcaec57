"""Jobs of a sweep side by side: real processes, held against the same jobs in turn; killed, interrupted and failing ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said

from easgd_cli import build
from easgd_cli.__main__ import main
from easgd_cli.commands import packing
from easgd_cli.config import Settings
from easgd_cli.errors import UsageError

# Cheap and the same bits on any number of cores.
QUICK = ["launcher=simulated", "threads=1", "problem=quadratic", "workers=2", "steps=40"]
LONG = ["launcher=simulated", "threads=1", "problem=quadratic", "workers=2", "steps=100000000", "eval.every=1000000 steps"]
FAILING = """
from easgd_cli.problems.quadratic import Quadratic

class Failing(Quadratic):
    def load(self, worker, t):
        if t == 5 and self.bad:
            raise ArithmeticError("the day is wrong")
        super().load(worker, t)

def failing(workers, seed, l2, device):
    made = Failing(workers=workers, seed=seed, l2=l2, device=device)
    made.bad = seed == 1
    return made
"""


@pytest.fixture
def train(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command in this process; jobs side by side are processes of their own."""

    def run(*words: str) -> Said:
        status = main(["train", *words])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


def standing(root: Path) -> dict[str, dict[str, object]]:
    return json.loads((root / "sweep.json").read_text())["jobs"]


def until(true: Callable[[], bool]) -> None:
    for _ in range(1800):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it has not happened for 90 s")


ENDLESS = ["-m", "sweep=long", "jobs=2", "seed=0,1", *LONG]


def both_training(here: Path) -> list[int]:
    """Waits until two jobs that take for ever are in training; their process numbers."""
    root = here / "runs" / "sweeps" / "long"
    until(lambda: all((root / f"seed={seed}" / "metrics.jsonl").exists() for seed in (0, 1)))
    return [int(str(job["pid"])) for job in standing(root).values()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if Path(f"/proc/{pid}").exists() else False


def test_jobs_side_by_side_end_as_in_turn_and_are_not_run_twice(train: Callable[..., Said], here: Path) -> None:
    for name, jobs in (("beside", "2"), ("in_turn", "1")):
        said = train("-m", f"sweep={name}", f"jobs={jobs}", "tau=1,4", *QUICK)
        assert said.status == 0, said.err
    beside, in_turn = (here / "runs" / "sweeps" / name for name in ("beside", "in_turn"))
    for job in ("tau=1", "tau=4"):
        one, other = (torch.load(root / job / "center.pt", weights_only=True) for root in (beside, in_turn))
        assert all(torch.equal(one[k], other[k]) for k in one)
        assert (beside / "logs" / f"{job}.log").read_text().count("completed")
        assert standing(beside)[job] == {"status": "completed"}
    again = train("-m", "sweep=beside", "jobs=2", "tau=1,4,8", *QUICK)  # another value adds a job
    assert (again.status, again.out.count("already done"), again.out.count("begun")) == (0, 2, 1)
    other = train("-m", "sweep=beside", "jobs=2", "tau=1,4", *QUICK[:-1], "steps=50")
    assert other.status == 2
    assert "sweep=beside: is the name of another sweep, where it had steps=40, and now steps=50" in other.err


def test_a_job_that_fails_is_a_line_with_its_reason_and_touches_no_other(train: Callable[..., Said], here: Path) -> None:
    (here / "mine.py").write_text(FAILING)
    said = train("-m", "sweep=one", "jobs=2", "seed=0,1", "problem=mine:failing", "launcher=simulated", "threads=1", "eta=0.1", "steps=20")
    assert said.status == 1
    jobs = standing(here / "runs" / "sweeps" / "one")
    assert jobs["seed=0"] == {"status": "completed"}
    assert jobs["seed=1"]["status"] == "failed"
    assert "the day is wrong" in str(jobs["seed=1"]["reason"])
    assert any(line.startswith("[2/2] seed=1: failed: ") and "the day is wrong" in line for line in said.out.splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed process")
def test_a_killed_sweep_takes_its_jobs_with_it(tmp_path: Path) -> None:
    sweep = subprocess.Popen([sys.executable, "-m", "easgd_cli", "train", *ENDLESS], cwd=tmp_path, stdout=subprocess.DEVNULL)
    pids = both_training(tmp_path)
    sweep.kill()
    sweep.wait()
    until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_interrupts_its_jobs_which_leave_checkpoints(number: signal.Signals, code: int, train: Callable[..., Said], here: Path) -> None:
    pids: list[int] = []
    ended = threading.Event()

    def interrupt() -> None:
        try:
            pids.extend(both_training(here))
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), number)  # also without them, or the sweep would go on for ever

    thread = threading.Thread(target=interrupt)
    thread.start()
    said = train(*ENDLESS)
    ended.set()
    thread.join()
    assert said.status == code
    assert len(pids) == 2 and not any(map(alive, pids))
    root = here / "runs" / "sweeps" / "long"
    assert {str(job["status"]) for job in standing(root).values()} == {"interrupted"}
    assert all(any((root / f"seed={seed}" / "checkpoint").iterdir()) for seed in (0, 1))
    assert "To go on with it, give the same command again." in said.out


def test_lanes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_cores", lambda: list(range(8)))
    local, simulated = ({"name": name.lower(), "target": f"easgd_cli.launcher.kinds:{name}"} for name in ("Local", "Simulated"))
    of = [Settings(eta=0.1, workers=2, launcher=local), Settings(eta=0.1, workers=4, launcher=local)] * 5
    assert packing.lanes("auto", of) == [{0, 1, 2, 3}, {4, 5, 6, 7}]  # the greatest has four workers
    assert packing.lanes("3", of) == [{0, 1}, {2, 3, 4}, {5, 6, 7}]
    assert packing.lanes("auto", [Settings(eta=0.1, launcher=simulated, threads=1)] * 3) == [{0, 1}, {2, 3, 4}, {5, 6, 7}]
    assert packing.lanes("auto", [Settings(eta=0.1, launcher=simulated)] * 3) == [set(range(8))]  # one job uses every core
    assert packing.lanes("20", of) == [set(range(8))] * 10
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(UsageError, match=f"jobs={wrong}: is how many"):
            packing.lanes(wrong, of)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("-m seed=0,1 jobs=0", "jobs=0: is how many jobs of a sweep run at a time"),
        ("-m seed=0,1 jobs=1,2", "jobs: is about the whole sweep and has one value"),
        ("-m seed=0,1 sweep=a/b", "sweep=a/b: is the name of a directory"),
        ("jobs=2", "jobs=2: is about a sweep; add -m"),
        ("sweep=mine", "sweep=mine: is about a sweep; add -m"),
    ],
)
def test_a_mistake_has_its_sentence(words: str, sentence: str, easgd: Callable[..., Said], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "prepare", lambda settings: None)
    said = easgd("train", *words.split())
    assert said.status == 2
    assert sentence in said.err
    assert list(here.iterdir()) == []
