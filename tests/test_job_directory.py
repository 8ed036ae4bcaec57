"""Where a job of a sweep runs: what every earlier start can have left of it, killed at any moment, and what is not its
own.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import leave_checkpoint

from easgd_cli.record import reader, run_directory
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps.job_directory import NEW, STOPPED, JobDirectory, find, leave_failure
from easgd_cli.sweeps.job_status import FAILED

OURS = Settings(
    algo={"name": "easgd"},
    dataset={"name": "digits"},
    model={"name": "small"},
    schedule={"name": "decay"},
    launcher={"name": "local"},
    eta=0.1,
)


def run(path: Path, status: str | None, settings: Settings = OURS, **summary: Any) -> Path:
    """A run's directory with everything but a checkpoint."""
    for inside in ("logs", "snapshots", "report"):
        (path / inside).mkdir(parents=True)
    run_directory.write_config(path, settings, ["eta=0.1"])
    for name in (
        "metrics.jsonl",
        "exchanges.bin",
        "events.out.tfevents.1.host",
        "logs/master.log",
        ".1234.config.yaml",
        ".summary.json.1234",
    ):
        (path / name).write_text("...")
    if status:
        (path / "summary.json").write_text(json.dumps({"status": status, **summary}))
    return path


def everything(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


@pytest.mark.parametrize("status", [None, "running", "interrupted"])
def test_a_run_without_a_checkpoint_is_cleared_away_for_a_new_one(status: str | None, tmp_path: Path) -> None:
    path = run(tmp_path / "job", status)
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / ".000001_step_5.pt.1234").write_text("half of one")
    assert find(path, OURS, retry=False) == JobDirectory(path, NEW)
    assert list(tmp_path.iterdir()) == []


def test_whatever_moment_the_clearing_is_killed_at_the_next_start_clears_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    moments = 0
    while True:
        path, left = run(tmp_path / "job", "running"), moments

        def until_killed(do: Callable[..., None]) -> Callable[..., None]:
            def done(*args: Any, **options: Any) -> None:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                do(*args, **options)

            return done

        with monkeypatch.context() as patched:
            for module, name in ((os, "unlink"), (os, "rmdir"), (shutil, "rmtree")):
                patched.setattr(module, name, until_killed(getattr(module, name)))
            try:
                find(path, OURS, retry=False)
                break
            except Killed:
                moments += 1
        assert path.is_dir()
        assert find(path, OURS, retry=False) == JobDirectory(path, NEW)
        assert list(tmp_path.iterdir()) == []
    assert moments > 8


@pytest.mark.parametrize("inside", [[], [".1234.config.yaml"]])
def test_a_directory_that_was_being_made_is_the_jobs(inside: list[str], tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    for name in inside:
        (tmp_path / "job" / name).write_text("half of it")
    assert find(tmp_path / "job", OURS, retry=False) == JobDirectory(tmp_path / "job", NEW)
    with run_directory.held(run_directory.create(tmp_path / "job")):
        assert find(tmp_path / "job", OURS, retry=False).status == "running elsewhere"


def test_what_is_not_the_jobs_own_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text("somebody's")
    run(tmp_path / "c", "running", Settings(**{**vars(OURS), "eta": 0.2}))
    (run(tmp_path / "d", "running") / "notes.txt").write_text("what I think of it")
    before = everything(tmp_path)
    for name in "abcd":
        assert find(tmp_path / name, OURS, retry=True) == JobDirectory(tmp_path / f"{name}.2", NEW)
    with run_directory.held(run(tmp_path / "e", "running")):
        here = everything(tmp_path / "e")
        assert find(tmp_path / "e", OURS, retry=True).status == "running elsewhere"
        assert everything(tmp_path / "e") == here
    shutil.rmtree(tmp_path / "e")
    assert everything(tmp_path) == before


def test_nothing_of_a_users_is_cleared_away(tmp_path: Path) -> None:
    """Notes among the logs, a link to elsewhere, a run whose summary nobody can read."""
    for name in ("noted", "linked", "unread"):
        there = run(tmp_path / name, None)
        (there / "logs").mkdir(exist_ok=True)
        (there / "logs" / "launcher.log").write_text("begun")
    (tmp_path / "noted" / "logs" / "notes.txt").write_text("mine")
    (tmp_path / "unread" / "summary.json").write_text('{"status": "comp')
    (tmp_path / "linked").rename(tmp_path / "elsewhere")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("noted", "linked", "unread"):
        assert find(tmp_path / name, OURS, retry=True) == JobDirectory(tmp_path / f"{name}.2", NEW)
        assert (tmp_path / name / "logs" / "launcher.log").read_text() == "begun"


def test_a_directory_that_is_removed_before_it_can_be_held_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process clears it, and a new run of that name begins, between opening and locking."""
    flock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        (tmp_path / "job").rmdir()
        (tmp_path / "job").mkdir()
        flock(descriptor, how)

    (tmp_path / "job").mkdir()
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileNotFoundError), run_directory.held(tmp_path / "job"):
        pass


def test_what_has_a_result_stands_and_what_was_stopped_goes_on(tmp_path: Path) -> None:
    for status in ("completed", "diverged"):
        path = run(tmp_path / status, status)
        assert find(path, OURS, retry=True) == JobDirectory(path, status)
    for status in ("running", "interrupted"):
        path = run(tmp_path / status, status)
        leave_checkpoint(path, 5)
        assert find(path, OURS, retry=False) == JobDirectory(path, STOPPED)
    asked = Settings(**{**vars(OURS), "jobs": "2", "retry": True, "sweep": "mine"})  # which make no run another
    assert find(tmp_path / "completed", asked, retry=True).status == "completed"


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_result_beside_the_jobs_own_directory_counts(status: str, tmp_path: Path) -> None:
    """As earlier versions left it, which began anew there."""
    run(tmp_path / "job", status)
    run(tmp_path / "job.2", "completed")
    before = everything(tmp_path)
    assert find(tmp_path / "job", OURS, retry=True) == JobDirectory(tmp_path / "job.2", "completed")
    assert everything(tmp_path) == before


def test_a_failed_job_is_tried_again_only_if_asked(tmp_path: Path) -> None:
    never_made, without, stopped = (
        tmp_path / "never made",
        run(tmp_path / "without", "running", workers=2),
        run(tmp_path / "stopped", "failed", reason="no"),
    )
    leave_checkpoint(stopped, 5)
    for path in (never_made, without):
        leave_failure(path, OURS, ["eta=0.1"], "the disk is full.")
        assert find(path, OURS, retry=False) == JobDirectory(path, FAILED, "the disk is full.")
    assert reader.summary_of(without) == {"status": "failed", "reason": "the disk is full.", "workers": 2}
    assert find(stopped, OURS, retry=False) == JobDirectory(stopped, FAILED, "no")
    assert find(never_made, OURS, retry=True) == JobDirectory(never_made, NEW)
    assert find(without, OURS, retry=True) == JobDirectory(without, NEW)
    assert find(stopped, OURS, retry=True) == JobDirectory(stopped, STOPPED)
