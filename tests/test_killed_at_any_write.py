"""The launcher is ended before every single operation on a file of its run, and the run goes on as if nothing had been:
not by chance but by enumeration.

A run on the virtual clock, or without a center, is a function of its settings. A forked child takes it and ends by
os._exit at its k-th operation; then it is resumed and held against the run that nobody disturbed. A run on the virtual
clock is one thread of one process, so what it has left when it ends there is what there is at that moment: most of the
directories are copied from one run, before each of its operations.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import recorded_order, run
from test_simulated import on_a_function, virtual

from easgd_cli.algorithms.base import Worker
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.record import reader
from easgd_cli.record.checkpoint import Checkpoint as Resumed
from easgd_cli.record.checkpoint import OwnerState, WorkerState, steps_taken
from easgd_cli.record.checksum import Summing
from easgd_cli.record.initial_record import up_to
from easgd_cli.settings.schema import Checkpoint, Eval, Settings
from easgd_cli.training.meter import Meter
from easgd_cli.training.snapshot import Moment

_KILLED = 77
EACH = "EASGD_EVERY_WRITE" in os.environ
_CHANGING = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "shutil.rmtree"}


class Operations:
    """Calls `before(k)` before the k-th operation of this process on a file below `directory`, counted from 1."""

    def __init__(self, directory: Path, before: Callable[[int], None]):
        self._k, self._below, self._before, self._within = 0, str(directory), before, False

    def happens(self) -> None:
        self._k, self._within = self._k + 1, True
        self._before(self._k)
        self._within = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._within:
            return
        if event == "open":
            if not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _CHANGING:
            return
        if isinstance(arguments[0], int) or str(arguments[0]).startswith(self._below):
            self.happens()

    def begin(self) -> None:
        """Counts what Python tells of files by itself, and what it does not: writing and waiting for the disk. How much
        there is of a file that nobody has renamed yet makes no difference.
        """
        sys.addaudithook(self.audit)
        for where, name in ((os, "pwrite"), (os, "fsync"), (Summing, "seal")):
            setattr(where, name, self._counted(getattr(where, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.happens()
            return call(*arguments)

        return counted


def killed_at(k: int, directory: Path, task: Callable[[], Any]) -> bool:
    """Whether the task, in a process of its own, was ended at its k-th operation; False where it has fewer."""

    def end(now: int) -> None:
        if now == k:
            os._exit(_KILLED)

    return done_by_another(task, directory, end) == _KILLED


def copied_at_each(directory: Path, task: Callable[[], Any]) -> None:
    """The task in a process of its own, with the directory copied to k.copy beside it before its k-th operation."""

    def copy(k: int) -> None:
        assert threading.active_count() == 1
        shutil.copytree(directory, directory.with_name(f"{k}.copy"), symlinks=True)

    assert done_by_another(task, directory, copy) == 0


def done_by_another(task: Callable[[], Any], directory: Path, before: Callable[[int], None]) -> int:
    """The exit status of a process that does the task, and calls `before` before each operation."""
    pid = os.fork()
    if pid == 0:
        try:
            Operations(directory, before).begin()
            task()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, _KILLED)
    return code


def short(algo: str, **more: Any) -> Settings:
    workers = 1 if algo == "msgd" else 2
    return on_a_function(
        algo, workers=workers, tau=1, checkpoint=Checkpoint(every="1 steps", keep=2),
        eval=Eval(every="1 steps"), problem={"dimension": 3, "noise": 1.0}, **{"steps": 3, **more},
    )  # fmt: skip


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def told(directory: Path) -> list[dict[str, Any]]:
    """The rows, but for the real time among them."""
    return [row for row in rows(directory) if row["party"] != "system"]


def check_is_as_if_undisturbed(directory: Path, whole: Path) -> None:
    assert told(directory) == told(whole)
    assert recorded_order(directory) == recorded_order(whole)
    check_vectors(directory, whole)
    now, then = (reader.summary_of(d) for d in (directory, whole))
    for timed in ("real_seconds", "hardware", "files"):
        now.pop(timed), then.pop(timed)
    assert now == then
    for name, held in reader.held_at_the_end(directory).items():
        assert reader.wrong_at_the_end(directory / name, held) is None
    assert steps_taken(reader.newest_checkpoint(directory)) == steps_taken(reader.newest_checkpoint(whole))


def check_vectors(directory: Path, whole: Path) -> None:
    for name in ("center.pt", "average.pt") if (whole / "average.pt").exists() else ("center.pt",):
        ours, theirs = (torch.load(d / name, weights_only=True) for d in (directory, whole))
        assert all(torch.equal(ours[key], v) for key, v in theirs.items()), name


def content(directory: Path) -> frozenset[tuple[str, bytes]]:
    """All there is in it: what goes on from it does so in the same way from another with the same."""
    files = [path for path in directory.rglob("*") if not path.is_dir() or path.is_symlink()]
    assert not any(path.is_symlink() for path in files)
    told = {(str(path.relative_to(directory)), path.read_bytes()) for path in files}
    return frozenset(told | {(f"{path.relative_to(directory)}/", b"") for path in directory.rglob("*/")})


def hidden(directory: Path) -> list[Path]:
    return [path for path in directory.rglob(".*") if path.is_file()]


POLYAK = {"name": "polyak", "target": "easgd_cli.algorithms.average:Polyak"}


LEVEL = {"distance_to_optimum": 1.6}  # reached at step 2


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("easgd", {"average": POLYAK}), ("sync_easgd", {}), ("msgd", {}), ("async_diloco", {}), ("model_averaging", {}),
        ("easgd", {"until": LEVEL}), ("msgd", {"until": LEVEL}),
    ],
)  # fmt: skip
def test_killed_before_any_operation_on_a_file_a_run_goes_on_as_if_nothing_had_been(
    algo: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that ends where it reaches its level. With EASGD_EVERY_WRITE=1 each is killed, and none copied."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # counted, not done
    whole = tmp_path / "whole"
    virtual(short(algo, **more), whole)
    if "until" in more:
        below_its_level(short(algo, **more), whole)
        assert reader.summary_of(whole)["steps"]["worker_00"] == 2
    resumed = 0
    directory = tmp_path / "copied"
    directory.mkdir()
    copied_at_each(directory, lambda: virtual(short(algo, **more), directory))
    each = 1 if EACH else 16
    seen = set[frozenset[tuple[str, bytes]]]()
    for k in range(1, len(list(tmp_path.glob("*.copy"))) + 1):
        directory = tmp_path / f"{k}.copy"
        if k % each == 0:  # killed there; one that took less real time may have had fewer
            directory = tmp_path / f"{k}.killed"
            directory.mkdir()
            if not killed_at(k, directory, lambda directory=directory: virtual(short(algo, **more), directory)):
                continue
        if not reader.checkpoints(directory / "checkpoint"):
            continue
        resumed += 1
        # where the operation before, such as waiting for the disk, has changed nothing, that has been tried
        if (there := content(directory)) not in seen:
            seen.add(there)
            virtual(short(algo, **more), directory, resume=True)
            check_is_as_if_undisturbed(directory, whole)
            assert hidden(directory) == [], f"after a kill at operation {k}"
    assert resumed > 20
    print(f"{k} operations, {resumed} with a checkpoint, {len(seen)} of them different")


@pytest.mark.parametrize("algo", ["easgd", "msgd"])
def test_a_run_that_reached_its_level_goes_on_to_a_harder_one_as_if_that_had_been_asked_for(
    algo: str, tmp_path: Path
) -> None:
    """Though its checkpoint has the snapshot that reached the level once more."""
    harder = {"distance_to_optimum": 1.4}
    virtual(short(algo, until=harder, steps=20), tmp_path / "whole")
    virtual(short(algo, until=LEVEL, steps=20), tmp_path / "easier")
    virtual(short(algo, until=harder, steps=20), tmp_path / "easier", resume=True)
    check_is_as_if_undisturbed(tmp_path / "easier", tmp_path / "whole")


def below_its_level(s: Settings, directory: Path) -> None:
    """A run that has reached its level ends there, whatever was done to it before."""
    summary = reader.summary_of(directory)
    last = [row for row in rows(directory) if row["party"] == "center"][-1]
    metric, level = next(iter(s.until.items()))
    assert summary["status"] == "completed" and last[metric] <= level
    assert all(row["seconds"] <= last["seconds"] for row in rows(directory))
    assert len(recorded_order(directory)) == summary["exchanges"] == last["exchanges"]
    for name, held in reader.held_at_the_end(directory).items():
        assert reader.wrong_at_the_end(directory / name, held) is None


def real(algo: str, **more: Any) -> Settings:
    """Of processes, and a function of its settings all the same: of one worker, or in rounds."""
    s = short(algo, threads=1, **more)
    s.workers, s.steps = 1 if algo in ("msgd", "easgd") else 2, 6
    seconds = 0.25 if EACH else 0.05  # its launcher looks at its clock five times a second
    s.problem |= {"name": "takes_its_time", "target": "nets:TakesItsTime", "seconds": seconds}
    return s


def steps_told(directory: Path) -> list[tuple[Any, ...]]:
    """The rows, but for what is measured in real time."""
    of_time = ("seconds", "samples_per_second", "staleness")
    told = [row for row in rows(directory) if row["party"] != "system"]
    return sorted([tuple(sorted((k, v) for k, v in row.items() if not k.startswith(of_time))) for row in told], key=str)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["msgd", "easgd", "sync_easgd", "until"])
def test_so_does_one_of_processes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the operations, or with EASGD_EVERY_WRITE=1 each of them."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    algo = "easgd" if kind == "until" else kind
    more: dict[str, Any] = {"until": LEVEL} if kind == "until" else {"average": POLYAK}
    whole = tmp_path / "whole"
    run(real(algo, **more), whole)
    if kind == "until":
        below_its_level(real(algo, **more), whole)
    resumed = 0

    def goes_on_after(k: int) -> bool:
        """Whether there was such an operation; a run that was killed there and has a checkpoint goes on."""
        nonlocal resumed
        directory = tmp_path / str(k)
        if not killed_at(k, directory, lambda: run(real(algo, **more), directory)):
            return False
        if reader.checkpoints(directory / "checkpoint"):
            run(real(algo, **more), directory, resume=True)
            if kind == "until":
                below_its_level(real(algo, **more), directory)
            else:
                assert steps_told(directory) == steps_told(whole), f"after a kill at operation {k}"
                check_vectors(directory, whole)
                assert sorted(recorded_order(directory)) == sorted(recorded_order(whole))
                assert reader.summary_of(directory)["steps"] == reader.summary_of(whole)["steps"]
            assert hidden(directory) == [], f"after a kill at operation {k}"
            resumed += 1
        return True

    each = 1 if EACH else 23
    k = each // 2 + 1
    while goes_on_after(k):
        k += each
    while not resumed and k > 1:  # of a quick run few are tried, and perhaps none late enough
        k -= 1
        goes_on_after(k)
    assert resumed
    print(f"{kind}: {k} operations, resumed {resumed} times")


def test_a_row_that_a_worker_writes_again_when_resumed_is_taken_back() -> None:
    """A checkpoint at a worker's last step, when the row of its end has not been told: at 251 steps one is due at every
    second.
    """
    meter, w = Meter(0, 1, 1, 251, torch.device("cpu")), Worker({"x": torch.zeros(1)}, 1, Constant(0.1), number=0)
    told = []
    for w.t in range(1, 252):
        meter.step(torch.tensor(1.0), None)
        if meter.due(w.t):
            told.append(meter.row(w, float(w.t), 0, None))
    moment = Moment(250.0, 250.0, 0, {0: 250})
    before = Resumed(OwnerState(moment, 0, {}), {0: WorkerState(251, {}, tally=meter.state())})
    told.append(meter.row(w, 251.0, 0, None))
    after = Resumed(OwnerState(moment, 0, {}), {0: WorkerState(251, {}, tally=meter.state())})
    assert [row["step"] for row in told[-2:]] == [250, 251]
    assert list(filter(up_to(before), told)) == told[:-1]
    assert list(filter(up_to(after), told)) == told
