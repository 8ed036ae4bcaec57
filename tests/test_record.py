"""The record of a run: whole lines, cut and gone on with exactly, and told once when it cannot be written."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from easgd_cli.algorithms import EASGD
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.errors import RunError
from easgd_cli.experiment import build
from easgd_cli.experiment.build import Experiment, Parts, Recipe
from easgd_cli.launcher.job import Job
from easgd_cli.problems.classification import METRICS
from easgd_cli.problems.double_well import DoubleWell
from easgd_cli.problems.metric import Metric, Metrics
from easgd_cli.problems.tasks.multi_label import MultiLabel
from easgd_cli.problems.tasks.next_token import NextToken
from easgd_cli.problems.tasks.regression import Regression
from easgd_cli.record import checkpoint, initial_record, metrics, reader
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.record.initial_record import open_record, up_to
from easgd_cli.record.reader import read_rows
from easgd_cli.record.recorder import Recorder
from easgd_cli.settings.schema import Settings
from easgd_cli.training.snapshot import Moment

FACTS = {"algo": "easgd", "workers": 2, "tau": 4, "batch_size": 10, "seed": 0}
ENDED: dict[str, Any] = {
    "status": "completed", "reason": None, "steps": {"worker_00": 40, "worker_01": 60}, "exchanges": 7,
    "wall_seconds": 4.0,
    "lost": {}, "threads": 1, "vector_bytes": 1000,
}  # fmt: skip


def recorder(directory: Path, workers: int = 2) -> Recorder:
    return Recorder(directory, workers, {"algo": "easgd"}, {}, FACTS)


def center(step: float, error: float, seconds: float | None = None, exchanges: int = 0) -> dict[str, Any]:
    at = step / 10 if seconds is None else seconds
    return {
        "seconds": at,
        "step": step,
        "exchanges": exchanges,
        "party": "center",
        "train_loss": error / 50,
        "test_loss": error / 40,
        "test_error": error,
    }


def worker(number: int, step: int, **values: Any) -> dict[str, Any]:
    return {
        "seconds": step / 10, "step": step, "exchanges": step, "party": f"worker_{number:02d}", "train_loss": 1.0,
        "eta": 0.1, "samples_per_second": 100.0,
        "seconds_compute": step / 20, "seconds_data": 0.1, "seconds_communication": 0.2, "seconds_other": 0.3, **values,
    }  # fmt: skip


def recorded(directory: Path, party: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if party is None or r["party"] == party]


def order(directory: Path) -> list[int]:
    data = (directory / "exchanges.bin").read_bytes()
    return [data[i] + 256 * data[i + 1] for i in range(0, len(data), 2)]


def test_rows_are_lines_in_the_order_they_came_and_the_run_begins_with_all_workers(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    rows = [worker(1, 4), center(0, 90.0), worker(0, 4, note="a text, ü")]
    for row in rows:
        r.row(row)
    r.flush()
    first, *others = recorded(tmp_path)
    assert first == {"seconds": 0.0, "step": 0, "exchanges": 0, "party": "system", "workers_alive": 2}
    assert others[0] == rows[0] and others[2] == rows[2]
    assert rows[1].items() <= others[1].items()


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    r.row(worker(0, 1, train_loss=math.nan, distance_to_center=math.inf))
    r.row(center(1, 90.0) | {"test_loss": -math.inf})
    r.flush()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    row = recorded(tmp_path, "worker_00")[0]
    assert row["train_loss"] is None and row["distance_to_center"] is None
    assert recorded(tmp_path, "center")[0]["test_loss"] is None


def test_best_error_and_when_it_was_reached_are_in_the_centers_rows(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    errors = [90.0, 20.0, 30.0, 20.0, 5.0, 6.0]
    for i, e in enumerate(errors):
        assert r.row(center(i, e))["best_test_error"] == min(errors[: i + 1])
    r.flush()
    rows = recorded(tmp_path, "center")
    assert [row["best_test_error"] for row in rows] == [min(errors[: i + 1]) for i in range(len(errors))]
    assert [row["seconds_to_best"] for row in rows] == [0.0, 0.1, 0.1, 0.1, 0.4, 0.4]  # the first time it was reached
    assert "best_test_error" not in r.row(worker(0, 1))


def test_the_best_follows_the_metric_that_is_declared_and_its_direction(tmp_path: Path) -> None:
    accuracy = Metrics([Metric("test_accuracy", unit="%", direction="higher", primary=True)])
    r = Recorder(tmp_path, 2, {}, {}, {**FACTS, "metrics": accuracy.told()})
    for i, value in enumerate([10.0, 80.0, 70.0]):
        r.row(
            {
                "seconds": float(i),
                "step": i,
                "exchanges": 0,
                "party": "center",
                "train_loss": 1.0,
                "test_accuracy": value,
                "test_error": 100 - value,
            }
        )
    ended = r.close(ENDED)
    assert [row["best_test_accuracy"] for row in recorded(tmp_path, "center")] == [10.0, 80.0, 80.0]
    assert ended["center"]["seconds_to_best"] == 1.0 and "best_test_error" not in ended["center"]
    assert reader.metrics_of(tmp_path).primary == accuracy.primary
    assert reader.result_of(reader.summary_of(tmp_path)) == "test accuracy 70 %"


def test_the_order_of_exchanges_is_two_bytes_each(tmp_path: Path) -> None:
    r = recorder(tmp_path, workers=400)
    r.order([0, 1, 399])
    r.order([])
    r.order([258])
    r.flush()
    assert (tmp_path / "exchanges.bin").read_bytes() == b"\x00\x00\x01\x00\x8f\x01\x02\x01"


def test_cutting_takes_rows_exchanges_and_the_best_back(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    for step, error in ((0, 90.0), (10, 40.0), (20, 10.0), (30, 50.0)):
        r.row(center(step, error))
        r.row(worker(0, step + 1))
    r.order([0, 1, 1, 0, 1])
    r.cut(lambda row: row["step"] <= 11, exchanges=3)
    r.row(center(12, 45.0))
    r.order([1])
    r.flush()
    assert [(row["party"], row["step"]) for row in recorded(tmp_path)] == [
        ("system", 0), ("center", 0), ("worker_00", 1), ("center", 10), ("worker_00", 11), ("center", 12),
    ]  # fmt: skip
    assert recorded(tmp_path)[-1]["best_test_error"] == 40.0
    assert order(tmp_path) == [0, 1, 1, 1]
    assert r.close(ENDED)["center"]["best_test_error"] == 40.0


def test_going_on_drops_an_unfinished_line_and_continues_as_if_nothing_had_been(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    rows = [row for t in range(1, 9) for row in (worker(0, t), worker(1, t), center(t, 50.0 - t))]
    whole = recorder(tmp_path / "whole")
    for row in rows:
        whole.row(row)
    whole.close(ENDED)

    parts = recorder(tmp_path / "parts")
    for row in rows[:15]:
        parts.row(row)
    parts.order([0, 1, 0])
    parts.flush()
    with open(tmp_path / "parts" / "metrics.jsonl", "ab") as f:
        f.write(b'{"seconds": 0.5, "step": 5, "exch')  # killed in the middle of a line
    with open(tmp_path / "parts" / "exchanges.bin", "ab") as f:
        f.write(b"\x01")
    again = Recorder.reopen(tmp_path / "parts", 2, {}, {}, FACTS, keep=lambda row: row["step"] <= 4, exchanges=2)
    again.order([1])
    for row in rows[12:]:
        again.row(row)
    again.close(ENDED)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    assert order(tmp_path / "parts") == [0, 1, 1]


def test_a_record_that_is_missing_damaged_or_too_short_is_refused(tmp_path: Path) -> None:
    def reopen(exchanges: int = 0) -> None:
        Recorder.reopen(tmp_path, 2, {}, {}, FACTS, keep=lambda _: True, exchanges=exchanges)

    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be read \(No such file"):
        reopen()
    r = recorder(tmp_path)
    r.order([0, 1])
    r.close(ENDED)
    with pytest.raises(RunError, match=r"exchanges\.bin: holds 2 exchanges, and 3 are needed"):
        reopen(3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(b"not a row\n" + before)
    with pytest.raises(RunError, match="line 1 is not a row of the record"):
        reopen()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"not a row\n" + before


class FullDisk:
    """os.pwrite on a disk with room for so many bytes."""

    def __init__(self, room: int):
        self.room = room
        self._pwrite = os.pwrite

    def __call__(self, fd: int, data: Any, offset: int) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(self.room, len(data))
        self.room -= taken
        return self._pwrite(fd, data[:taken], offset)


def test_a_full_disk_pauses_the_record_which_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = recorder(tmp_path)
    r.row(worker(0, 1))
    r.flush()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    disk = FullDisk(0)
    monkeypatch.setattr(os, "pwrite", disk)
    for t in range(2, 30):
        r.row(worker(0, t))
    r.order([0, 0])
    assert not r.flush()
    assert r.paused is not None and r.paused[1].errno == errno.ENOSPC
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    disk.room = 1_000_000
    r.row(worker(0, 30))
    assert r.flush() and r.paused is None
    assert [row["step"] for row in recorded(tmp_path) if row["party"] == "worker_00"] == list(range(1, 31))
    assert order(tmp_path) == [0, 0]
    assert r.close(ENDED)["status"] == ENDED["status"]


def test_a_line_that_was_half_written_is_taken_back_and_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from easgd_cli.record.append_file import AppendFile

    file = AppendFile(tmp_path / "lines")
    file.add(b"first\n")
    file.flush()
    file.add(b"second\n")
    disk = FullDisk(3)
    monkeypatch.setattr(os, "pwrite", disk)
    with pytest.raises(OSError):
        file.flush()
    assert (tmp_path / "lines").read_bytes() == b"first\n"
    disk.room = 100
    file.add(b"third\n")
    file.flush()
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\nthird\n"


def test_the_summary_says_how_the_run_stands_and_ended(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    running = json.loads((tmp_path / "summary.json").read_text())
    assert running["status"] == "running" and running["algo"] == "easgd"
    r.row(worker(0, 40))
    r.row(worker(1, 60))
    r.row(center(0, 90.0))
    r.row(center(50, 4.0))
    r.row(center(60, 5.0) | {"train_loss": math.nan})
    summary = r.close(ENDED)
    assert reader.summary_of(tmp_path) == summary
    assert summary["center"] == {
        "train_loss": None,
        "test_loss": 0.125,
        "test_error": 5.0,
        "best_test_error": 4.0,
        "seconds_to_best": 5.0,
    }
    assert summary["seconds"] == pytest.approx({"compute": 2.5, "data": 0.1, "communication": 0.2, "other": 0.3})
    assert summary["samples_per_second"] == (40 + 60) * 10 / 4.0
    assert summary["bytes_exchanged"] == 7 * 2 * 1000
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["hardware"]["cores"] >= 1 and summary["threads"] == 1 and summary["seed"] == 0
    assert list(tmp_path.glob(".*")) == []  # nothing is left beside


def test_the_seconds_of_the_summary_are_those_of_whole_loops_and_of_workers_that_were_not_lost(tmp_path: Path) -> None:
    r = recorder(tmp_path, workers=3)
    for number in range(3):
        r.row(worker(number, 40))
    r.row({"seconds": 5.0, "step": 45, "exchanges": 9, "party": "system", "workers_alive": 2, "lost": 1})
    # beyond its last row
    r.spent(2, {"seconds_compute": 4.0, "seconds_data": 0.3, "seconds_communication": 0.4, "seconds_other": 0.5})
    assert r.reached == {"worker_00": 40, "worker_01": 40, "worker_02": 40}
    assert r.close(ENDED)["seconds"] == pytest.approx(
        {"compute": (2.0 + 4.0) / 2, "data": 0.2, "communication": 0.3, "other": 0.4}
    )


def test_the_summary_says_that_a_run_failed_even_where_the_disk_is_too_full_for_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = recorder(tmp_path)

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    r.close({**ENDED, "status": "failed", "reason": "the disk is full"})
    assert json.loads((tmp_path / "summary.json").read_text())["reason"] == "the disk is full"
    assert list(tmp_path.glob(".*")) == []


def test_the_summary_names_the_commit_of_this_program() -> None:
    from easgd_cli.record.summary import surroundings

    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = git.stdout.strip() if git.returncode == 0 else None
    found = surroundings()["git_commit"]
    assert (found or "").removesuffix("-dirty") == (expected or "")


# --- from a job to its record ----------------------------------------------------------------------------------------


def settings(algo: str = "EASGD", **values: Any) -> Settings:
    given: dict[str, Any] = {
        "eta": 0.1, "steps": 40, "workers": 3,
        "problem": {"name": "dataset", "target": "easgd_cli.problems.net:NetProblem"},
        "dataset": {"name": "digits", "target": "easgd_cli.data.digits:digits", "root": "somewhere", "validation": 100},
        "model": {"name": "small", "target": "easgd_cli.models.convnet_digits:ConvNetDigits"}, **values,
    }  # fmt: skip
    return Settings(
        algo={"name": algo.lower(), "target": f"easgd_cli.algorithms:{algo}"},
        schedule={"name": "decay", "target": "easgd_cli.algorithms.schedule:Decay"},
        launcher={"name": "local", "target": "easgd_cli.launcher.processes.local:launch"},
        **given,
    )


def hparams(s: Settings) -> dict[str, Any]:
    return initial_record.hparams(s, build.method(s))


def test_hyperparameters_are_those_the_method_uses() -> None:
    easgd, eamsgd, downpour, sgd = (
        hparams(settings(a, workers=1 if a == "SGD" else 3)) for a in ("EASGD", "EAMSGD", "DOWNPOUR", "SGD")
    )
    assert easgd["alpha"] == pytest.approx(0.3) and easgd["tau"] == 10 and easgd["delta"] is None
    assert eamsgd["alpha"] == pytest.approx(0.3) and eamsgd["delta"] == 0.99
    assert downpour["alpha"] is None and downpour["delta"] is None and downpour["tau"] == 10
    assert sgd["tau"] is None
    assert {h["gamma"] for h in (easgd, eamsgd, downpour, sgd)} == {0.0}
    assert easgd["dataset.validation"] == 100 and "dataset.root" not in easgd
    assert easgd["steps"] == 40 and "epochs" not in easgd
    assert hparams(settings(steps=None, epochs=2.5))["epochs"] == 2.5
    none = {"name": "none", "target": None}
    quadratic = {
        "name": "quadratic",
        "target": "easgd_cli.problems.quadratic:Quadratic",
        "noise": 3.0,
        "spectrum": [1.0, 2.0],
    }
    on_function = hparams(settings(problem=quadratic, dataset=none, model=none))
    assert on_function["problem"] == "quadratic" and on_function["dataset"] == "none"
    assert on_function["problem.noise"] == 3.0 and on_function["problem.spectrum"] == "[1.0, 2.0]"
    virtual = hparams(
        replace(
            settings(threads=2),
            launcher={"name": "simulated", "target": "easgd_cli.launcher.kinds:Simulated", "latency": 0.1},
        )
    )
    # they make its speed
    assert (virtual["launcher"], virtual["launcher.latency"], virtual["threads"]) == ("simulated", 0.1, 2)


CHECKPOINT = Checkpoint(
    OwnerState(Moment(5.0, 50.0, 12, {0: 49, 1: 51, 2: 30}), 12, {}),
    workers={0: WorkerState(50, {}), 1: WorkerState(53, {})},
    pending=[(Moment(4.0, 40.0, 10), {"x": torch.zeros(1)})],
)


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        (worker(0, 50), True),
        (worker(0, 51), False),
        (worker(1, 53), True),  # in its next step when the center was kept
        (worker(1, 54), False),
        (worker(2, 30), True),  # lost before: it comes back with its old clock
        (worker(2, 31), False),
        (center(30, 9.0, seconds=3.0, exchanges=8), True),
        (center(40, 9.0, seconds=4.0, exchanges=10), False),  # evaluated later, and again when the run goes on
        (center(50, 9.0, seconds=5.0, exchanges=12), True),
        (center(50, 9.0, seconds=5.1, exchanges=12), False),
        (center(50, 9.0, seconds=5.0, exchanges=13), False),
        ({"seconds": 4.9, "step": 49, "exchanges": 11, "party": "system", "workers_alive": 2}, True),
        ({"seconds": 5.1, "step": 51, "exchanges": 12, "party": "system", "workers_alive": 2}, False),
    ],
)
def test_what_came_before_a_checkpoint_is_kept(row: dict[str, Any], kept: bool) -> None:
    assert up_to(CHECKPOINT)(row) is kept


def test_the_newest_checkpoint_is_the_last_written_and_the_older_ones_go(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    for seconds, step in ((1.0, 500.0), (2.0, 60.0), (3.0, 60.0), (4.0, 7.0)):
        written = checkpoint.write(directory, Checkpoint(OwnerState(Moment(seconds, step, 0), 0, {}), {}), keep=2)
        assert reader.checkpoints(directory)[-1] == written
        assert reader.newest_checkpoint(tmp_path).owner.moment.seconds == seconds
    assert len(reader.checkpoints(directory)) == 2
    reader.checkpoints(directory)[-1].unlink()
    assert reader.newest_checkpoint(tmp_path).owner.moment.seconds == 3.0


def test_the_steps_of_a_checkpoint_are_those_of_the_worker_that_is_furthest() -> None:
    assert checkpoint.steps_taken(CHECKPOINT) == 53


def test_a_job_is_recorded_and_gone_on_with(tmp_path: Path) -> None:
    s = settings()
    rules = EASGD(alpha=0.3)
    parts = Parts(SimpleNamespace(batch_size=32), rules, rules, Constant(0.1), None)  # type: ignore[arg-type]
    prepared = Experiment(Recipe(s, None, 40), parts, torch.zeros(5), 0)  # type: ignore[arg-type]
    job = Job(tmp_path, command="easgd train algo=easgd")
    r = open_record(job, prepared, None)
    for t in range(1, 60):
        r.row(worker(0, t))
    r.order([0] * 20)
    r.close({**ENDED, "status": "interrupted"})
    assert json.loads((tmp_path / "summary.json").read_text())["parameters"] == 5
    again = open_record(job, prepared, CHECKPOINT)
    again.close(ENDED)
    assert recorded(tmp_path, "worker_00")[-1]["step"] == 50
    assert len(order(tmp_path)) == 12


# --- the documentation -----------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_as_such_and_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save raises a RuntimeError about positions, whose context is the disk's error."""
    opened = io.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data) or 0

    monkeypatch.setattr(
        "builtins.open",
        lambda path, mode="r", *rest, **named: Full(path, "wb") if mode == "wb" else opened(path, mode, *rest, **named),
    )
    with pytest.raises(OSError) as raised:
        checkpoint.save({"x": torch.zeros(100_000), "y": torch.zeros(100_000)}, tmp_path / "center.pt")
    assert raised.value.strerror == "No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_every_metric_has_its_sentence_in_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    told = {**metrics.WORKER, **metrics.SYSTEM, **metrics.LINK}
    of_tasks = [m for task in (Regression, MultiLabel, NextToken) for m in task.metrics if m.name.startswith("test_")]
    declared = [*METRICS.known(), *DoubleWell.metrics, *(m for m in of_tasks if m.name != "test_loss")]
    for name, sentence in [*told.items(), *((m.name, m.description) for m in declared)]:
        assert f"| `{name}` | {sentence} |" in text


def test_reading_stops_at_an_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"seconds": 0.0, "step": step, "exchanges": 0, "party": "center"}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines))
    assert [row["step"] for row in read_rows(path)] == [1, 2]
