"""Rounds whose messages travel by an all-reduce."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_runs import run, saved_center, settings

from easgd_cli.experiment import build
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.local import launch
from easgd_cli.settings.schema import Settings


def collective(s: Settings, directory: Path, resume: bool = False) -> Outcome:
    directory.mkdir(exist_ok=True)
    return launch(Job(directory, resume=resume), build.prepare(s), collective=True)


FIVE = ["allreduce", "model_averaging", "sync_easgd", "sync_eamsgd", "diloco"]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("algo", FIVE)
def test_sums(algo: str, workers: int, tmp_path: Path) -> None:
    s = settings(algo, workers=workers, steps=23)
    assert run(s, tmp_path / "sessions").status == "completed"
    assert collective(s, tmp_path / "sums").status == "completed"
    prepared = build.prepare(s)
    one, other = (saved_center(tmp_path / d, prepared) for d in ("sessions", "sums"))
    print((one - other).abs().max())
    if workers < 3:
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
