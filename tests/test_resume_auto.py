"""`resume=auto`: the same command begins a run, goes on with it, and has nothing left to do when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from easgd_cli.record import run_directory

Easgd = Callable[..., Any]

SIMULATED = ("train", "resume=auto", "launcher=simulated", "algo=eamsgd", "problem=quadratic", "workers=2", "seed=4")


def center(run: Path) -> torch.Tensor:
    found: torch.Tensor = torch.load(run / "center.pt", weights_only=True)["x"]
    return found


@pytest.fixture
def launcher() -> None:
    """The real one."""


@pytest.fixture
def begun(easgd: Easgd, here: Path) -> Path:
    """A run of 20 steps that a command without a directory has begun."""
    said = easgd(*SIMULATED, "steps=20")
    assert said.status == 0, said.err
    [run] = (here / "runs" / "auto").iterdir()
    return run


def test_the_same_line_goes_on_with_its_run_bit_for_bit(begun: Path, easgd: Easgd, here: Path) -> None:
    """Its directory is named by what may not change: another length is the same run."""
    said = easgd(*SIMULATED, "steps=60")
    assert said.status == 0 and f"going on with {begun}" in said.err
    assert easgd(*SIMULATED, "steps=60", "hydra.run.dir=whole").status == 0
    assert torch.equal(center(begun), center(here / "whole"))
    assert [p.name for p in (here / "runs" / "auto").iterdir()] == [begun.name]


def test_of_a_complete_run_nothing_is_left_to_do(begun: Path, easgd: Easgd) -> None:
    before = (begun / "metrics.jsonl").read_bytes()
    said = easgd(*SIMULATED, "steps=20")
    assert said.status == 0 and "nothing is left to do" in said.out
    assert (begun / "metrics.jsonl").read_bytes() == before


def test_a_run_that_diverged_is_done(easgd: Easgd, here: Path) -> None:
    line = (*SIMULATED, "steps=3000", "eta=90", "problem.dimension=1")
    assert easgd(*line).status == 0
    said = easgd(*line)
    assert said.status == 0 and "has diverged: that is its result" in said.out


def test_killed_before_its_first_checkpoint_a_run_begins_again(begun: Path, easgd: Easgd) -> None:
    shutil.rmtree(begun / "checkpoint")
    (begun / "summary.json").unlink()
    said = easgd(*SIMULATED, "steps=20")
    assert said.status == 0 and "has no checkpoint to go on from" in said.err and f"{begun.name}.2" in said.err
    assert (begun / "center.pt").exists() and (begun.with_name(f"{begun.name}.2") / "metrics.jsonl").exists()


def test_another_run_in_the_same_directory_is_refused(begun: Path, easgd: Easgd) -> None:
    said = easgd(*SIMULATED, "steps=20", "eta=0.5", f"hydra.run.dir='{begun}'")
    assert said.status == 2 and "has eta=0.02, and eta=0.5 is asked for" in said.err and "hydra.run.dir=" in said.err
    assert easgd(*SIMULATED, "steps=20", "eta=0.5").status == 0, "without a directory it has its own"


def test_a_run_that_another_process_has_is_left_alone(begun: Path, easgd: Easgd) -> None:
    with run_directory.held(begun):
        said = easgd(*SIMULATED, "steps=60")
    assert said.status == 2 and str(begun) in said.err


def test_what_is_no_run_is_not_touched(easgd: Easgd, here: Path) -> None:
    (here / "notes").mkdir()
    (here / "notes" / "mine.txt").write_text("mine")
    said = easgd(*SIMULATED, "steps=20", "hydra.run.dir=notes")
    assert said.status == 2 and "is not the directory of a run" in said.err
    assert [p.name for p in (here / "notes").iterdir()] == ["mine.txt"]


def test_a_sweep_goes_on_by_itself(easgd: Easgd, here: Path) -> None:
    said = easgd("train", "-m", "resume=auto", "tau=1,2", "steps=5")
    assert said.status == 2 and "leave resume= out" in said.err
