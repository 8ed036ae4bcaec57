"""Processes that read a Dataset change no bit, and none of them is left: not by a run that ends, is interrupted or
killed. One that raises, dies or stands still is told.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_runs import disturbed, run
from test_simulated import same_files, virtual
from test_tasks import theirs
from theirs import Augmented

from easgd_cli.data import loaders
from easgd_cli.data.mapped import Mapped
from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.randomness import AUGMENTATION, key

CPU = torch.device("cpu")


def mapped(name: str = "Augmented", **dataset: Any) -> Mapped:
    made = build.data(theirs(name, "Linear", dataset=dataset))
    assert isinstance(made, Mapped)
    return made


def batch(data: Mapped, t: int) -> Any:
    generator = torch.Generator().manual_seed(key(0, AUGMENTATION, 1, t))
    return data.begin(torch.arange(t, t + 9) % data.count("train"), generator, torch.float64)


def children() -> list[str]:
    """The names of this process's children."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition(" (")[2].rpartition(") ")
        except OSError:
            continue
        if int(rest.split()[1]) == os.getpid():
            names.append(name)
    return names


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.parametrize("count", [1, 3])
def test_batches_and_figures_are_those_of_the_process_itself(count: int) -> None:
    """Begun ahead, asked for in another order, and some never; in float64, with what the Dataset draws."""
    alone, many = mapped(validation=20), mapped(validation=20, loaders=count)
    assert (alone.ahead, many.ahead) == (0, 2 * count)
    begun = {t: batch(many, t) for t in range(11)}
    for t in (1, 0, 2, 5, 3, 10, 9):
        for ours, theirs_ in zip(begun.pop(t)(), batch(alone, t)(), strict=True):
            assert torch.equal(ours, theirs_)
    for split in ("train", "test", "held_out"):
        pairs = zip(*(d.evaluation_batches(split, 7, CPU, torch.float64) for d in (alone, many)), strict=True)  # type: ignore[arg-type]
        for (x, y), (u, v) in pairs:
            assert torch.equal(x, u) and torch.equal(y, v)


@pytest.mark.parametrize("algo", ["eamsgd", "sync_easgd"])
def test_a_simulated_run_has_the_bits_of_one_without(algo: str, tmp_path: Path) -> None:
    for count, lengths in ((0, [14]), (1, [14]), (3, [6, 14])):
        for steps in lengths:
            s = theirs("Augmented", "Linear", algo, workers=3, steps=steps, dataset={"loaders": count})
            virtual(s, tmp_path / str(count), resume=steps != lengths[0], spread=0.3, latency=0.002)
    same_files(tmp_path / "0", tmp_path / "1", "center.pt")
    same_files(tmp_path / "0", tmp_path / "3", "center.pt")


@linux
def test_a_run_of_processes_has_them_too_and_leaves_none(tmp_path: Path) -> None:
    s = theirs("Augmented", "Linear", "sync_easgd", workers=2, steps=9)
    virtual(s, tmp_path / "virtual")
    for name, lengths in (("whole", [9]), ("stopped", [4, 9])):
        for steps in lengths:
            of = theirs("Augmented", "Linear", "sync_easgd", workers=2, steps=steps, dataset={"loaders": 2})
            assert run(of, tmp_path / name, resume=steps != lengths[0]).status == "completed"
        same_files(tmp_path / "virtual", tmp_path / name, "center.pt")
    nothing_is_left(tmp_path)


def nothing_is_left(directory: Path) -> None:
    """At once, but for the moment in which the system takes them away."""
    deadline = time.monotonic() + 60
    while left(directory) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left(directory) == []


def left(marked: Path) -> list[str]:
    """Names of processes that have the run's directory among their open files, or are loaders of such."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(fd) for fd in (process / "fd").iterdir()]
            if any(path.startswith(str(marked)) for path in opened) and int(process.name) != os.getpid():
                found.append((process / "comm").read_text().strip())
        except OSError:
            continue
    return found


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_and_a_killed_worker_leave_none(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C reaches all of them, as a terminal sends it; a worker that is killed takes its loaders with it, and its
    successor has its own.
    """
    s = theirs("Slow", "Linear", "easgd", workers=2, steps=200, max_restarts=3, dataset={"loaders": 2})

    def act(pids: dict[str, int]) -> None:
        os.kill(os.getpid() if number == signal.SIGINT else pids["worker_00"], number)

    # the other worker may be far behind, and a loader is named a moment after it has been forked
    outcome = disturbed(s, tmp_path, act, lambda directory: left(directory).count("easgd-loader") >= 4)
    assert outcome.status == ("interrupted" if number == signal.SIGINT else "completed")
    nothing_is_left(tmp_path)


@linux
def test_they_end_with_what_holds_them() -> None:
    gc.collect()  # those of other tests
    assert children().count("easgd-loader") == 0
    data = mapped(loaders=3)
    batch(data, 0)()
    assert children().count("easgd-loader") == 3
    del data
    gc.collect()
    assert children().count("easgd-loader") == 0


class Failing(Augmented):
    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise OSError("no such file: seven.png")
        if i == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        if i == 40:
            os._exit(3)
        if i == 60:
            signal.pause()
        return super().__getitem__(i)


def failing(index: int) -> Any:
    data = Mapped(Failing(train=True), Failing(train=False), "failing", loaders=2)
    generator = torch.Generator()
    first = data.begin(torch.tensor([1, 2]), generator, torch.float64)
    wrong = data.begin(torch.tensor([3, index]), generator, torch.float64)
    assert first()[0].shape == (2, 6)
    return wrong()


def test_one_that_raises_dies_or_stands_still_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"dataset=failing: sample 7 of train raised OSError: no such file: seven"):
        failing(7)
    with pytest.raises(RunError, match=r"a loader \(process \d+\) was killed by SIGKILL; .*fewer dataset.loaders"):
        failing(20)
    with pytest.raises(RunError, match=r"a loader \(process \d+\) ended with status 3"):
        failing(40)
    monkeypatch.setattr(loaders, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(UsageError, match=r"has not read a batch within 0.05 s; with dataset.loaders=0"):
        data = Mapped(Failing(train=True), Failing(train=False), "failing", loaders=1)
        data.begin(torch.tensor([60]), torch.Generator(), torch.float64)()


def test_a_run_with_a_sample_that_cannot_be_read_ends_with_its_sentence(tmp_path: Path) -> None:
    s = theirs("Broken", "Linear", "easgd", workers=2, steps=9, dataset={"loaders": 1})
    outcome = run(s, tmp_path)
    assert outcome.status == "failed" and "sample 7 of train raised OSError: no such file" in (outcome.reason or "")


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(UsageError, match=r"dataset.loaders=-1: must be a whole number of at least 0"):
        mapped(loaders=-1)
    with pytest.raises(UsageError, match=r"dataset.loaders=2: are processes that read a torch Dataset sample"):
        mapped("table", loaders=2)


class Opened(Augmented):
    """Keeps a file open from the first sample on, as lazily opened archives are."""

    file: Any = None

    def __getitem__(self, i: int) -> Any:
        if self.file is None:
            self.file = open(__file__, "rb")  # noqa: SIM115
        self.file.seek(i)
        here = self.file.tell()
        return self.x[i], here

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"file": None}


def test_each_has_a_dataset_of_which_nothing_has_been_read() -> None:
    """A file that is open here is not theirs, too: its place would be everybody's."""
    data = Mapped(Opened(train=True), Opened(train=False), "opened", loaders=3)
    assert data.targets == "labels"  # reads a sample here
    begun = [data.begin(torch.arange(70), torch.Generator(), torch.float64) for _ in range(9)]
    for finish in begun:
        assert np.array_equal(finish()[1], np.arange(70))
