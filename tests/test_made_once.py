"""What the settings of a run name is made once in each process of a command, whatever it does with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import easgd_cli
from easgd_cli.__main__ import main

# each maker leaves a line: the process, and what it has made there
MAKERS = """
import os
from easgd_cli.algorithms import EASGD, average as averages, schedule as schedules
from easgd_cli.algorithms.local import Plain
from easgd_cli.launcher import kinds
from easgd_cli.problems.quadratic import Quadratic

def note(what):
    with open("{notes}", "a") as file:
        file.write(f"{{os.getpid()}} {{what}}\\n")

def method(alpha: float, local: Plain):
    note("method")
    return EASGD(alpha, local)

def local():
    note("local step")
    return Plain()

def schedule(eta: float):
    note("schedule")
    return schedules.Constant(eta)

def average():
    note("average")
    return averages.Polyak()

def problem(seed: int, workers: int, l2: float, device: object):
    note("problem")
    return Quadratic(seed=seed, workers=workers, l2=l2, device=device)

class Virtual(kinds.Simulated):
    def __post_init__(self):
        super().__post_init__()
        note("launcher")

class Processes(kinds.Local):
    def __post_init__(self):
        super().__post_init__()
        note("launcher")
"""
NAMED = {
    "algo": "method", "local": "local", "schedule": "schedule", "average": "average", "problem": "problem",
}  # fmt: skip
NUMBERS: dict[str, Any] = {"steps": 10, "tau": 2, "workers": 2, "eta": 0.1, "threads": 1}
OF_A_WORKER = {"method", "local step", "schedule", "average", "problem"}


@pytest.fixture
def words(here: Path) -> list[str]:
    (here / "mine_once.py").write_text(MAKERS.format(notes=here / "notes"))
    return [
        *(f"{group}=mine_once:{name}" for group, name in NAMED.items()),
        *(f"{key}={value}" for key, value in NUMBERS.items()),
        "hydra.run.dir=run",
    ]


def made(here: Path) -> list[dict[str, int]]:
    """What each process has made since this was last asked, and how often; the one with a launcher first."""
    lines = [line.split(maxsplit=1) for line in (here / "notes").read_text().splitlines()]
    (here / "notes").unlink()
    processes = {pid: Counter(what for by, what in lines if by == pid) for pid, _ in lines}
    return sorted(map(dict, processes.values()), key=lambda found: "launcher" not in found)


@pytest.mark.parametrize("launcher", ["Virtual", "Processes"])
def test_a_command_makes_each_once(launcher: str, here: Path, words: list[str]) -> None:
    once = dict.fromkeys({*OF_A_WORKER, "launcher"}, 1)
    others: list[dict[str, int]] = []
    if launcher == "Processes":  # its workers, and the evaluator
        others = [*[dict.fromkeys(OF_A_WORKER, 1)] * 2, {"problem": 1}]

    def held() -> None:
        first, *rest = made(here)
        assert first == once
        assert sorted(rest, key=len, reverse=True) == others

    assert main(["train", *words, f"launcher=mine_once:{launcher}"]) == 0
    held()
    assert main(["train", "resume=run", "steps=20"]) == 0
    held()
    words[-1] = "hydra.run.dir=auto"
    assert main(["train", *words, "resume=auto", f"launcher=mine_once:{launcher}"]) == 0
    held()
    named = {group: f"mine_once:{name}" for group, name in NAMED.items()}
    run = easgd_cli.train(**named, launcher=f"mine_once:{launcher}", **NUMBERS, directory="python", progress=False)
    held()
    easgd_cli.train(resume=run, steps=20, progress=False)
    held()
    if launcher == "Virtual":
        assert main(["train", "replay=run", "hydra.run.dir=replayed"]) == 0
        [found] = made(here)
        assert found == dict.fromkeys(OF_A_WORKER, 1)  # on another cluster


def test_the_task_of_a_net_is_made_once(here: Path) -> None:
    (here / "mine_once.py").write_text(MAKERS.format(notes=here / "notes") + TASK)
    assert main(["train", "task=mine_once:task", "steps=1", "workers=1", "algo=sgd", "launcher=simulated"]) == 0
    assert made(here) == [{"task": 1}]


TASK = """
from easgd_cli.problems.tasks.classification import Classification

def task(data):
    note("task")
    return Classification(data=data)
"""
