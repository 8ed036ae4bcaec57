"""A disk that is full, or fails otherwise, ends no run: its record pauses, and at the end its center is written first.

Real ones are file systems of 1 to 2 MB in memory, mounted for a command alone; where that is not permitted, these tests
are skipped. Beside them a stand-in refuses every write of one kind.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import POLYAK, recorded_order, run, settings
from test_simulated import on_a_function, virtual

from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.journal import disk_estimate
from easgd_cli.launcher.journal.checkpoint_writer import CheckpointWriter
from easgd_cli.record import checkpoint, reader
from easgd_cli.record.append_file import AppendFile
from easgd_cli.record.checkpoint import Checkpoint as Resumed
from easgd_cli.record.summary import write_summary
from easgd_cli.settings.schema import Checkpoint, Eval, Settings

FAILURES = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO]


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test before has done to the launcher's log."""
    for name in ("easgd.launcher", "easgd.launcher.record"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)


@functools.cache
def may_mount() -> bool:
    tried = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1M none /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


def on_a_small_disk(tmp_path: Path, free: int, *words: str) -> tuple[int, str, Path]:
    """`easgd train` with its run on a disk of so many free KiB. Returns its status, what it said on stderr, and a copy
    of the run.
    """
    if not may_mount():
        pytest.skip("mounting a file system is not permitted here")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    train = [sys.executable, "-m", "easgd_cli", "train", *words, f"hydra.run.dir={disk}/run"]
    mounts = f"mount -t tmpfs -o size={free}k none {disk} && echo mounted && cat"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", mounts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:  # as long as it runs, there is the disk
        assert holder.stdin is not None and holder.stdout is not None and holder.stdout.readline() == "mounted\n"
        there = ["nsenter", "-t", str(holder.pid), "-m"]
        done = subprocess.run([*there, *train], capture_output=True, text=True, timeout=120)
        subprocess.run([*there, "cp", "-r", f"{disk}/run", str(kept)], capture_output=True, check=False)
        holder.stdin.close()
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr, kept


# center.pt 58 KB, a checkpoint 278 to 388 KB, one without its workers 57 KB, the record from 360 KB on
RUN = ("algo=easgd", "workers=2", "steps=300", "checkpoint.every=50 steps", "eval.every=50 steps", "threads=1")


@pytest.mark.parametrize(("free", "status"), [(1100, 0), (300, None), (150, 1)])
def test_a_run_on_a_disk_that_is_too_small_leaves_its_center_and_what_else_fits(
    free: int, status: int | None, tmp_path: Path
) -> None:
    """How long the record is hangs on how long the run took. In the first case there is room for one of 650 KB, beside
    a whole checkpoint and one without its workers; in the middle case the record may just fit.
    """
    code, said, run = on_a_small_disk(tmp_path, free, *RUN)
    assert code in ((0, 1) if status is None else (status,))
    status = code
    summary = reader.summary_of(run)
    assert summary["status"] == ("failed" if status else "completed")
    assert set(summary["steps"].values()) == {300}  # training went on to its end
    torch.load(run / "center.pt", weights_only=True)
    if free == 1100:  # whole, or without its workers
        last = reader.newest_checkpoint(run)
        assert len(last.workers) in (0, 2) and last.owner.moment.exchanges == summary["exchanges"]
    assert [p for p in run.rglob(".*") if p.is_file()] == []
    if status:
        assert said.count("\n") == 1 and "could not be written" in said and "No space left on device" in said


def test_a_last_checkpoint_that_does_not_fit_is_kept_without_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = checkpoint.write

    def refusing(directory: Path, kept: Resumed, keep: int) -> Path:
        if kept.workers:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(directory, kept, keep)

    monkeypatch.setattr(checkpoint, "write", refusing)
    outcome = run(settings("easgd", steps=12, checkpoint=Checkpoint(every="5 steps")), tmp_path)
    last = reader.newest_checkpoint(tmp_path)
    assert outcome.status == "completed" and not last.workers
    assert last.owner.moment.exchanges == outcome.summary["exchanges"] == len(recorded_order(tmp_path))
    assert "it is without its workers: resumed, they begin at the center" in capsys.readouterr().out


def test_a_single_worker_goes_on_bit_for_bit_from_a_last_checkpoint_that_is_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the owner of what is evaluated, and that is there: x, v and the average."""
    s, write = settings("msgd", steps=24, average=POLYAK), checkpoint.write
    run(s, tmp_path / "whole")
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "write", lambda directory, kept, keep: write(directory, replace(kept, workers={}), keep))
        run(replace(s, steps=12), tmp_path / "parts")
    run(s, tmp_path / "parts", resume=True)
    for file in ("center.pt", "average.pt"):
        whole, parts = (torch.load(tmp_path / name / file, weights_only=True) for name in ("whole", "parts"))
        assert all(torch.equal(parts[name], v) for name, v in whole.items())


def test_a_disk_with_nothing_left_is_one_sentence(tmp_path: Path) -> None:
    code, said, _ = on_a_small_disk(tmp_path, 16, *RUN)
    assert code in (1, 2)
    assert said.startswith("easgd: ") and said.count("\n") == 1 and "No space left on device" in said


class Refusing:
    """Every os.pwrite, and with it the record, fails while `on`."""

    def __init__(self, number: int):
        self.on, self._number, self._pwrite = True, number, os.pwrite

    def __call__(self, fd: int, data: Any, offset: int) -> int:
        if self.on:
            raise OSError(self._number, os.strerror(self._number))
        return self._pwrite(fd, data, offset)


def short(**values: Any) -> Settings:
    given = {"workers": 2, "steps": 4, "tau": 1, "checkpoint": Checkpoint(every="1 steps")} | values
    return on_a_function("easgd", eval=Eval(every="1 steps"), **given)


def told(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def run_beside(directory: Path) -> Outcome:
    return virtual(short(), directory)


@pytest.mark.parametrize("number", FAILURES)
def test_a_record_that_cannot_be_written_is_told_once_and_the_center_is_there(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_beside(tmp_path / "whole")
    monkeypatch.setattr(os, "pwrite", Refusing(number))
    outcome = virtual(short(), tmp_path / "run")
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.reason is not None and "center.pt is there" in outcome.reason
    ours, theirs = (torch.load(tmp_path / d / "center.pt", weights_only=True) for d in ("run", "whole"))
    assert all(torch.equal(ours[name], v) for name, v in theirs.items())
    log = (tmp_path / "run" / "logs" / "launcher.log").read_text()
    assert log.count("it is tried again, and the run goes on") == 2  # of the record, and of TensorBoard's file


def test_a_record_that_was_paused_is_whole_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_beside(tmp_path / "whole")
    refusing, write = Refusing(errno.ENOSPC), checkpoint.save
    monkeypatch.setattr(os, "pwrite", refusing)

    def save(content: Any, path: Path, sealed: bool = False) -> Any:
        refusing.on = False  # room is made when the center is written
        return write(content, path, sealed)

    monkeypatch.setattr(checkpoint, "save", save)
    assert virtual(short(), tmp_path / "run").status == "completed"
    assert recorded_order(tmp_path / "run") == recorded_order(tmp_path / "whole")
    parties = [[row for row in told(tmp_path / d) if row["party"] != "system"] for d in ("run", "whole")]
    assert parties[0] == parties[1]
    assert virtual(short(), tmp_path / "run", resume=True).status == "completed"


@pytest.mark.parametrize("number", FAILURES)
def test_an_unfinished_checkpoint_is_removed_at_once_and_told_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(content: Any, file: Any) -> None:
        file.write(b"a beginning")
        raise OSError(number, os.strerror(number))

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: (fails if "owner" in content else save)(content, file))
    outcome = virtual(short(), tmp_path / "run")
    assert outcome.status == "completed" and (tmp_path / "run" / "center.pt").exists()
    assert list((tmp_path / "run" / "checkpoint").iterdir()) == []
    assert not [p for p in (tmp_path / "run").rglob(".*") if p.is_file()]


@pytest.mark.parametrize("algo", ["easgd", "msgd", "async_diloco", "model_averaging"])
def test_a_longer_virtual_run_goes_on_from_what_is_kept_where_the_disk_took_it_only_at_the_end(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a longer run goes on from is of the moment at which the first worker has taken its last step, and before the
    closing exchange of a method that has one. It is refused then, and written when the run is over.
    """

    def of(steps: int) -> Settings:
        return on_a_function(
            algo, workers=1 if algo == "msgd" else 3, steps=steps, tau=2, eval=Eval(every="1 steps"),
            problem={"dimension": 3, "noise": 1.0}, checkpoint=Checkpoint(every="3 steps"),
        )  # fmt: skip

    uneven = {"spread": 0.3, "latency": 0.002, "service": 0.001}
    virtual(of(12), tmp_path / "whole", **uneven)
    write, asked = CheckpointWriter.write, list[Resumed]()

    def refused_once(writer: CheckpointWriter, kept: Resumed) -> bool:
        if max(w.t for w in kept.workers.values()) < 7:
            return write(writer, kept)
        asked.append(kept)
        if len(asked) > 1:
            return write(writer, kept)
        writer._told(kept, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return False

    monkeypatch.setattr(CheckpointWriter, "write", refused_once)
    assert virtual(of(7), tmp_path / "run", **uneven).status == "completed"
    assert len(asked) == 2
    monkeypatch.undo()
    assert virtual(of(12), tmp_path / "run", resume=True, **uneven).status == "completed"
    assert recorded_order(tmp_path / "run") == recorded_order(tmp_path / "whole")
    parties = [[row for row in told(tmp_path / d) if row["party"] != "system"] for d in ("run", "whole")]
    assert parties[0] == parties[1]
    ours, theirs = (torch.load(tmp_path / d / "center.pt", weights_only=True) for d in ("run", "whole"))
    assert all(torch.equal(ours[name], v) for name, v in theirs.items())


def test_a_summary_that_finds_no_room_is_never_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_summary(tmp_path, {"status": "running"})

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    write_summary(tmp_path, {"status": "failed", "reason": "the disk is full", "more": "x" * 10_000})
    assert reader.summary_of(tmp_path) == {"status": "failed", "reason": "the disk is full"}


def test_a_file_is_cut_back_also_where_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(tmp_path / "lines")
    file.add(b"line\n")

    def read_only(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", read_only)
        failing.setattr(os, "ftruncate", read_only)
        with pytest.raises(OSError, match="Read-only"):
            file.flush()
    file.flush()
    assert (tmp_path / "lines").read_bytes() == b"line\n"


def test_what_a_run_leaves_is_estimated_and_too_little_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from easgd_cli.experiment import build

    s = short(problem={"dimension": 50_000})
    experiment = build.prepare(s)
    assert disk_estimate.too_little(tmp_path, experiment) is None
    assert virtual(s, tmp_path / "run").status == "completed"
    left = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
    beside = max(p.stat().st_size for p in (tmp_path / "run" / "checkpoint").iterdir())
    assert left + beside <= disk_estimate.needed_bytes(experiment) <= 2 * (left + beside)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    assert virtual(s, tmp_path / "small").status == "completed"
    [line] = [x for x in (tmp_path / "small/logs/launcher.log").read_text().splitlines() if "this run needs" in x]
    assert "0.0 MiB are free" in line
