"""`easgd train resume=RUN`: what may be changed, what is refused, and that one process at a time is in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Launcher, Said, leave_checkpoint

from easgd_cli.record import run_directory

Easgd = Callable[..., Said]
pytestmark = pytest.mark.usefixtures("unprepared")
NAME = "runs/x_algo=eamsgd,tau=4"  # with = and , in it, as the default names have


@pytest.fixture
def stopped(easgd: Easgd, launcher: Launcher, here: Path) -> Path:
    """A run that was interrupted."""
    assert easgd("train", "algo=eamsgd", "tau=4", "steps=100", f"hydra.run.dir={NAME}").status == 0
    launcher.jobs.clear()
    ended(here / NAME, "interrupted", 60)
    leave_checkpoint(here / NAME, 60)
    return here / NAME


def ended(path: Path, status: str, at: int = 100, **facts: Any) -> None:
    summary = {
        "status": status,
        "steps": {"worker_00": at, "worker_01": at},
        "length": {"steps": 100},
        "until": {"test_error": None},
    }
    (path / "summary.json").write_text(json.dumps(summary | facts))


def test_a_run_goes_on_with_the_settings_it_had(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    said = easgd("train", f"resume={NAME}")
    assert said.status == 0, said.err
    [job] = launcher.jobs
    assert job.resume
    assert job.run_dir == stopped
    assert (job.settings.algo["name"], job.settings.tau, job.settings.steps) == ("eamsgd", 4, 100)


def test_length_and_intervals_may_be_changed_and_are_recorded(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    said = easgd(
        "train", f"resume={NAME}", "epochs=3", "eval.every=50 steps", "checkpoint.keep=2", "until.test_error=3"
    )
    assert said.status == 0, said.err
    s = launcher.jobs[0].settings
    assert (s.steps, s.epochs, s.eval.every, s.checkpoint.keep) == (None, 3.0, "50 steps", 2)
    assert s.until == {"test_error": 3.0}
    assert yaml.safe_load((stopped / "config.yaml").read_text())["epochs"] == 3.0
    assert yaml.safe_load((stopped / "overrides.yaml").read_text()) == [
        "algo=eamsgd", "tau=4", "epochs=3", "eval.every=50 steps", "checkpoint.keep=2", "until.test_error=3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "goes_on"),
    [("steps=100", True), ("steps=200", False), ("steps=80", False), ("epochs=3", False), ("eval.every=9 s", True)],
)
def test_a_run_whose_schedule_follows_its_length_keeps_it(
    word: str, goes_on: bool, easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    assert easgd("train", "schedule=cosine", "warmup=5", "steps=100", f"hydra.run.dir={NAME}").status == 0
    ended(here / NAME, "interrupted", 60)
    leave_checkpoint(here / NAME, 60)
    said = easgd("train", f"resume={NAME}", word)
    assert said.status == (0 if goes_on else 2), said.err
    assert (
        goes_on
        or f"{word}: schedule=cosine follows the run's length, so with another than steps=100 the steps taken"
        in said.err
    )
    assert len(launcher.jobs) == 1 + goes_on
    ended(here / NAME, "completed")
    assert easgd("train", f"resume={NAME}").out.endswith("is complete after 100 steps: nothing is left to do.\n")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("eta=0.1", "eta=0.1: a run goes on with the settings it had; only steps, epochs, minutes"),
        ("algo=easgd", "algo=easgd: a run goes on with"),
        ("hydra.run.dir=other", "hydra.run.dir=other: a run goes on with"),
        ("steps=many", "steps=many: must be a whole number"),
        ("steps=0", "steps=0: must be a whole number of at least 1"),
        ("eval.evry=3", "there is no setting eval.evry; did you mean eval.every?"),
        ("eval.every=3", "eval.every=3: an interval is a positive number with a unit"),
    ],
)
def test_nothing_else_may_and_nothing_is_written(
    word: str, sentence: str, stopped: Path, easgd: Easgd, launcher: Launcher
) -> None:
    before = (stopped / "config.yaml").read_text()
    said = easgd("train", f"resume={NAME}", word)
    assert said.status == 2
    assert sentence in said.err
    assert launcher.jobs == []
    assert (stopped / "config.yaml").read_text() == before


@pytest.mark.parametrize("word", ["steps=200", "epochs=2", "minutes=1"])
def test_a_replay_has_the_length_of_the_order_it_goes_through(
    word: str, stopped: Path, easgd: Easgd, launcher: Launcher
) -> None:
    config = stopped / "config.yaml"
    config.write_text(config.read_text().replace("replay: null", "replay: recorded"))
    refused(easgd, launcher, stopped, f"{word}: this run goes through the exchanges of recorded again", word)


def test_a_complete_run_goes_on_only_when_given_more(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    ended(stopped, "completed")
    for words in ([], ["steps=100"], ["steps=50"], ["eval.every=10 steps"]):
        said = easgd("train", f"resume={NAME}", *words)
        assert said.status == 0
        assert "complete after 100 steps: nothing is left to do" in said.out
    assert launcher.jobs == []
    assert easgd("train", f"resume={NAME}", "steps=200").status == 0
    assert launcher.jobs[0].settings.steps == 200


def test_a_run_that_diverged_does_not_go_on(stopped: Path, easgd: Easgd) -> None:
    ended(stopped, "diverged")
    said = easgd("train", f"resume={NAME}", "steps=200")
    assert said.status == 2
    assert "diverged" in said.err


def test_a_second_process_is_kept_out(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    with run_directory.held(stopped):
        said = easgd("train", f"resume={NAME}")
    assert said.status == 2
    assert "another process is running this run" in said.err
    assert launcher.jobs == []
    assert easgd("train", f"resume={NAME}").status == 0


def test_without_a_checkpoint_nothing_is_changed(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    (stopped / "checkpoint" / "000001_step_60.pt").unlink()
    refused(easgd, launcher, stopped, "holds no checkpoint", "steps=200")


def refused(easgd: Easgd, launcher: Launcher, run: Path, sentence: str, *words: str) -> None:
    """One sentence, nothing started, and the run as it was."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = easgd("train", f"resume={NAME}", *words)
    assert said.status == 2
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1
    assert launcher.jobs == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "line", ["[1, 2]", '{"a": 1}', '{"seconds": 0.0, "step": "many", "exchanges": 0, "party": "system"}', "not a row"]
)
def test_a_damaged_record_is_refused_and_nothing_is_changed(
    line: str, stopped: Path, easgd: Easgd, launcher: Launcher
) -> None:
    with open(stopped / "metrics.jsonl", "a") as f:
        f.write(line + "\n")
    refused(easgd, launcher, stopped, "metrics.jsonl: line 2 is not a row of the record", "steps=200")


def test_a_damaged_checkpoint_or_order_is_refused_and_nothing_is_changed(
    stopped: Path, easgd: Easgd, launcher: Launcher
) -> None:
    (stopped / "exchanges.bin").write_bytes(bytes(2))
    refused(easgd, launcher, stopped, "exchanges.bin: holds 1 exchanges, and 3 are needed")
    (stopped / "exchanges.bin").unlink()
    refused(easgd, launcher, stopped, "exchanges.bin: cannot be read (No such file or directory)")
    (stopped / "checkpoint" / "000001_step_60.pt").write_bytes(b"torn")
    refused(easgd, launcher, stopped, "000001_step_60.pt: is damaged", "steps=200")


def test_a_run_is_not_resumed_to_a_length_that_it_is_past(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    refused(
        easgd,
        launcher,
        stopped,
        "its workers have taken up to 60 steps and would have to end after 50; give a greater length",
        "steps=50",
    )
    refused(
        easgd,
        launcher,
        stopped,
        "minutes=0.01: its workers have trained for 0.03 minutes already; give more",
        "minutes=0.01",
    )


def test_what_was_asked_and_never_done_is_left_to_do(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    """A run that was to go on for longer and did not begin, whatever ended it, has its new length in config.yaml and
    the old one in summary.json.
    """
    ended(stopped, "completed")
    config = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(config.replace("steps: 100", "steps: 200"))
    assert easgd("train", f"resume={NAME}").status == 0
    assert launcher.jobs[0].settings.steps == 200


def test_a_lost_worker_is_told_of_where_nothing_is_left(stopped: Path, easgd: Easgd, launcher: Launcher) -> None:
    ended(
        stopped,
        "completed",
        steps={"worker_00": 100, "worker_01": 36, "worker_02": 98},
        lost={"worker_01": "killed by SIGKILL"},
    )
    assert (
        "complete after 98 to 100 steps, worker_01 lost after 36: nothing is left to do"
        in easgd("train", f"resume={NAME}").out
    )
    assert launcher.jobs == []


def test_what_is_not_a_run_is_told_apart(stopped: Path, easgd: Easgd, here: Path) -> None:
    (here / "empty").mkdir()
    assert "not the directory of a run" in easgd("train", "resume=empty").err
    (here / "empty" / "config.yaml").write_text("tau: [")
    assert "is not YAML" in easgd("train", "resume=empty").err
    (here / "empty" / "config.yaml").write_text("tau: 3\ncolour: blue\n")
    assert "is not a configuration of this version of easgd" in easgd("train", "resume=empty").err
    older = {
        key: value for key, value in yaml.safe_load((stopped / "config.yaml").read_text()).items() if key != "schedule"
    }
    (here / "empty" / "config.yaml").write_text(yaml.safe_dump(older))
    assert (
        "is not a configuration of this version of easgd: it says nothing of schedule; start the run again"
        in easgd("train", "resume=empty").err
    )
    assert "resume=runs/x" in easgd("train", NAME).err  # the directory alone
