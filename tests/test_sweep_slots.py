"""Jobs of a sweep in slots: real processes, side by side and in turn; killed, interrupted and failing ones."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Said
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from easgd_cli.__main__ import main
from easgd_cli.algorithms import EASGD
from easgd_cli.errors import UsageError
from easgd_cli.experiment.build import Outline
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps import slots
from easgd_cli.sweeps.plan import SweepJob
from easgd_cli.sweeps.slots import Devices, Slot, dealt

# Cheap and the same bits on any number of cores.
QUICK = ["launcher=simulated", "threads=1", "problem=quadratic", "workers=2", "steps=40"]
Begin = Callable[..., tuple[subprocess.Popen[str], list[int]]]
LONG = [
    "launcher=simulated",
    "threads=1",
    "problem=quadratic",
    "workers=2",
    "steps=100000000",
    "eval.every=1000000 steps",
]
FAILING = """
import os
import signal

from easgd_cli.problems.quadratic import Quadratic

class Failing(Quadratic):
    def load(self, worker, t):
        if t == 5 and self.number == 1:
            raise ArithmeticError("the day is wrong")
        if t == 5 and self.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        super().load(worker, t)

def failing(workers, seed, l2, device):
    made = Failing(workers=workers, seed=seed, l2=l2, device=device)
    made.number = seed
    return made
"""

NOTING = """
import multiprocessing
import os

from easgd_cli.problems.quadratic import Quadratic

class Noting(Quadratic):
    def load(self, worker, t):
        if t == 5 and multiprocessing.parent_process() is not None:
            with open("parents", "a") as f:
                f.write(f"{os.getppid()} ")
        super().load(worker, t)
"""


def told(directory: Path) -> list[str]:
    """The words of the command on TensorBoard's Text page."""
    [text] = EventAccumulator(str(directory)).Reload().Tensors("command")[0].tensor_proto.string_val
    return shlex.split(text.decode())


def statuses(root: Path) -> dict[str, dict[str, object]]:
    return json.loads((root / "sweep.json").read_text())["jobs"]


def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it has not happened for 100 s")


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """A function that begins a sweep; what it has begun ends with the test."""
    with ExitStack() as ending:
        yield lambda *more, at_once=2: begun(ending, tmp_path, *more, at_once=at_once)


def begun(ending: ExitStack, here: Path, *more: str, at_once: int) -> tuple[subprocess.Popen[str], list[int]]:
    """A sweep of two jobs that take for ever, those that run at once in training, and their process numbers."""
    words = [
        sys.executable,
        "-m",
        "easgd_cli",
        "train",
        "-m",
        "sweep=long",
        f"jobs={at_once}",
        "seed=0,1",
        *LONG,
        *more,
    ]
    (here / "temporary").mkdir(exist_ok=True)
    sweep = subprocess.Popen(
        words,
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(here / "temporary")},
    )
    ending.enter_context(sweep)
    ending.callback(sweep.kill)
    root = here / "runs" / "sweeps" / "long"

    def trains(seed: int) -> bool:
        try:
            pid = int(str(statuses(root)[f"seed={seed}"]["pid"]))
            said = (root / f"seed={seed}" / "logs" / "launcher.log").read_text()
        except (OSError, KeyError):
            return False
        return alive(pid) and f"process {pid}:" in said and (root / f"seed={seed}" / "metrics.jsonl").exists()

    until(lambda: all(trains(seed) for seed in range(at_once)))
    return sweep, [int(str(job["pid"])) for job in statuses(root).values() if "pid" in job]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        if Path(f"/proc/{pid}").exists()
        else False
    )


def test_jobs_side_by_side_end_as_in_turn_and_are_not_run_twice(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "sweep=in_turn", "jobs=1", "tau=1,4", *QUICK]) == 0
    assert main(["train", "-m", "sweep=beside", "jobs=2", "tau=1,4", *QUICK]) == 0
    beside, in_turn = (tmp_path / "runs" / "sweeps" / name for name in ("beside", "in_turn"))
    for job in ("tau=1", "tau=4"):
        one, other = (torch.load(root / job / "center.pt", weights_only=True) for root in (beside, in_turn))
        assert all(torch.equal(one[k], other[k]) for k in one)
        assert (beside / "logs" / f"{job}.log").read_text().count("completed")
        assert statuses(beside)[job] == {"status": "completed"}
        for root in (beside, in_turn):  # what TensorBoard shows of a job is the command that runs it by itself
            assert told(root / job) == [
                "easgd",
                "train",
                job,
                *QUICK,
                f"hydra.run.dir=runs/sweeps/{root.name}/{job}",
                "hydra.mode=RUN",
            ]
    assert told(beside) == ["easgd", "train", "-m", "sweep=beside", "jobs=2", "tau=1,4", *QUICK]
    capsys.readouterr()
    assert main(["train", "-m", "sweep=beside", "jobs=2", "tau=1,4,8", *QUICK]) == 0  # another value adds a job
    said = capsys.readouterr().out
    assert (said.count("already done"), said.count("begun")) == (2, 1)
    assert main(["train", "-m", "sweep=beside", "jobs=2", "tau=1,4", *QUICK[:-1], "steps=50"]) == 2
    assert (
        "sweep=beside: is the name of another sweep, where it had steps=40, and now steps=50" in capsys.readouterr().err
    )


def test_two_sweeps_at_once_run_each_job_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "easgd_cli", "train", "-m", "sweep=shared", "seed=0,1,2", *QUICK]
    sweeps = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [sweep.communicate(timeout=90)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0]
    root = tmp_path / "runs" / "sweeps" / "shared"
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == ["logs", "seed=0", "seed=1", "seed=2"]
    assert statuses(root) == {f"seed={seed}": {"status": "completed"} for seed in range(3)}
    ends = [
        line.partition(": ")[2]
        for out in outs
        for line in out.splitlines()
        if line.startswith("[") and not line.endswith("begun")
    ]
    # a sweep may replace a status that the other, which ran the job, has not read yet: that one then tells less
    assert len(ends) == 6 and set(ends) <= {"completed", "running elsewhere", "already done"}
    begun = [(root / "logs" / f"seed={seed}.log").read_text().count("training begins") for seed in range(3)]
    assert begun == [1, 1, 1]


def test_jobs_ended_from_outside_are_interrupted_and_the_sweep_has_not_ended(begin: Begin, tmp_path: Path) -> None:
    sweep, pids = begin("report=")
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    out = sweep.communicate(timeout=60)[0]
    assert sweep.returncode == 1 and "To go on with it, give the same command again." in out
    root = tmp_path / "runs" / "sweeps" / "long"
    assert {job["status"] for job in statuses(root).values()} == {"interrupted"}
    assert not (root / "report").exists()  # there is more to come
    assert all(any((root / f"seed={seed}" / "checkpoint").iterdir()) for seed in (0, 1))


def test_a_sweep_that_nobody_reads_runs_its_jobs(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "easgd_cli", "train", "-m", "sweep=unread", "seed=0,1", *QUICK]
    sweep = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert sweep.stdout is not None
    sweep.stdout.close()
    assert sweep.communicate(timeout=60)[1] == b""
    assert sweep.returncode == 0
    assert statuses(tmp_path / "runs/sweeps/unread") == {f"seed={seed}": {"status": "completed"} for seed in (0, 1)}


def test_a_job_that_fails_or_dies_is_a_line_with_its_reason_and_touches_no_other(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(FAILING)
    words = [
        "train",
        "-m",
        "sweep=one",
        "jobs=2",
        "seed=0,1,2,3,4",
        "problem=mine:failing",
        "launcher=simulated",
        "threads=1",
        "eta=0.1",
        "steps=20",
    ]
    assert main(words) == 1
    jobs = statuses(tmp_path / "runs" / "sweeps" / "one")
    assert jobs["seed=0"] == jobs["seed=3"] == jobs["seed=4"] == {"status": "completed"}
    assert jobs["seed=1"]["status"] == "failed"
    assert "the day is wrong" in str(jobs["seed=1"]["reason"])
    assert jobs["seed=2"] == {"status": "killed", "reason": "its process was ended by SIGKILL"}
    assert any(
        line.startswith("[2/5] seed=1: failed: ") and "the day is wrong" in line
        for line in capsys.readouterr().out.splitlines()
    )
    (tmp_path / "mine.py").write_text(FAILING.replace("t == 5", "False"))
    words[words.index("jobs=2")] = "jobs=1"  # which makes it no other sweep
    assert main([*words, "retry=true"]) == 0
    assert capsys.readouterr().out.count("already done") == 3
    assert sorted(p.name for p in (tmp_path / "runs/sweeps/one").iterdir() if p.is_dir()) == [
        "logs",
        *(f"seed={i}" for i in range(5)),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed process")
def test_a_killed_sweep_takes_its_jobs_with_it_and_begins_them_again_where_they_were(
    begin: Begin, tmp_path: Path
) -> None:
    root = tmp_path / "runs" / "sweeps" / "long"
    jobs = ["seed=0", "seed=1"]
    for at_once in (1, 2):
        sweep, pids = begin(at_once=at_once)
        assert len(pids) == at_once
        sweep.kill()
        sweep.wait()
        until(lambda pids=pids: not any(map(alive, pids)))  # type: ignore[misc]
    assert all((root / job / "logs" / "launcher.log").read_text().count("process") == 1 for job in jobs)
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == ["logs", *jobs]


@pytest.mark.parametrize(
    ("number", "code", "at_once"),
    [(signal.SIGINT, 130, 2), (signal.SIGHUP, 129, 1), (signal.SIGTERM, 143, 1), (signal.SIGUSR1, 138, 1)],
)
def test_an_interrupted_sweep_interrupts_its_jobs_which_leave_checkpoints(
    begin: Begin, number: signal.Signals, code: int, at_once: int, tmp_path: Path
) -> None:
    sweep, pids = begin(at_once=at_once)
    sweep.send_signal(number)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == code
    assert not any(map(alive, pids))
    root = tmp_path / "runs" / "sweeps" / "long"
    assert [job["status"] for job in statuses(root).values()] == ["interrupted"] * at_once + ["queued"] * (2 - at_once)
    assert all(any((root / f"seed={seed}" / "checkpoint").iterdir()) for seed in range(at_once))
    assert "To go on with it, give the same command again." in out
    assert out.count("not started") == 2 - at_once
    assert not list((tmp_path / "temporary").iterdir())


def test_sigquit_shows_where_the_jobs_are_and_they_go_on(begin: Begin, tmp_path: Path) -> None:
    sweep, _ = begin()
    sweep.send_signal(signal.SIGQUIT)
    logs = [tmp_path / f"runs/sweeps/long/seed={seed}/logs/launcher.log" for seed in (0, 1)]
    until(lambda: all("in _to_the_end" in log.read_text() for log in logs))
    assert all("SIGQUIT: the stacks of all processes are in the logs" in log.read_text() for log in logs)
    assert sweep.poll() is None
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    assert sweep.returncode == 143


def test_killed_jobs_and_servers_leave_no_temporary_file(begin: Begin, tmp_path: Path) -> None:
    sweep, [job] = begin(at_once=1)
    os.kill(job, signal.SIGKILL)
    until(lambda: statuses(tmp_path / "runs/sweeps/long")["seed=1"]["status"] == "running")
    sweep.kill()
    sweep.communicate(timeout=60)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_killed_server_takes_its_job_with_it_and_the_next_job_has_a_new_one(begin: Begin, tmp_path: Path) -> None:
    sweep, [job] = begin(at_once=1)
    server = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    until(lambda: not alive(job) and statuses(tmp_path / "runs/sweeps/long")["seed=1"]["status"] == "running")
    sweep.send_signal(signal.SIGTERM)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 143
    assert "[1/2] seed=0: killed: its process was ended by SIGKILL" in out and "[2/2] seed=1: interrupted" in out


def test_jobs_in_turn_have_their_workers_from_one_server_and_end_as_a_run_alone(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(NOTING)
    local = ["problem=mine:Noting", "workers=1", "threads=1", "algo=msgd", "eta=0.1", "steps=10"]
    assert main(["train", "-m", "sweep=one", "seed=0,1", *local]) == 0
    said = capsys.readouterr().out
    assert main(["train", "seed=1", "hydra.run.dir=alone", *local]) == 0
    root = tmp_path / "runs/sweeps/one"
    one, other = (torch.load(path / "center.pt", weights_only=True) for path in (root / "seed=1", tmp_path / "alone"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    # one server for both jobs of the sweep, one for the run alone
    assert len(set((tmp_path / "parents").read_text().split())) == 2
    lines = [line.partition(",")[0] for line in said.splitlines() if line.startswith("[")]
    assert lines == ["[1/2] seed=0: begun", "[1/2] seed=0: completed", "[2/2] seed=1: begun", "[2/2] seed=1: completed"]
    assert "training begins" in (root / "logs/seed=1.log").read_text()


LOCAL, SIMULATED = (
    {"name": name.lower(), "target": f"easgd_cli.launcher.kinds:{name}"} for name in ("Local", "Simulated")
)


def jobs(number: int, memory: int = 0, **settings: Any) -> list[SweepJob]:
    outline = Outline(Settings(eta=0.1, **{"launcher": LOCAL, **settings}), EASGD(alpha=0.1), None, None)
    return [SweepJob([], str(i), outline, steps=10, memory=memory) for i in range(number)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes this a machine with so many cores and CUDA devices and so much memory."""

    def like(cores: int, devices: int = 0, memory: int | None = None) -> None:
        monkeypatch.setattr(slots, "_cores", lambda: list(range(cores)))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr("easgd_cli.system.shared_memory.available_memory", lambda: memory)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return like


def cores(of: list[Slot]) -> list[set[int]]:
    return [slot.cores for slot in of]


def test_slots_share_the_cores(machine: Callable[..., None]) -> None:
    machine(cores=8)
    of = jobs(5, workers=2) + jobs(5, workers=4)
    assert cores(slots.slots("auto", of)) == [{0, 1, 2, 3}, {4, 5, 6, 7}]  # the greatest has four workers
    assert cores(slots.slots("3", of)) == [{0, 1}, {2, 3, 4}, {5, 6, 7}]
    assert cores(slots.slots("auto", jobs(3, launcher=SIMULATED, threads=1))) == [{0, 1}, {2, 3, 4}, {5, 6, 7}]
    assert cores(slots.slots("auto", jobs(3, launcher=SIMULATED))) == [set(range(8))]  # one job uses every core
    assert cores(slots.slots("auto", jobs(3, workers=16))) == [set(range(8))]
    assert cores(slots.slots("20", of)) == [set(range(8))] * 10
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(UsageError, match=f"jobs={wrong}: is how many"):
            slots.slots(wrong, of)


def test_slots_share_the_memory(machine: Callable[..., None]) -> None:
    gib = 2**30
    machine(cores=64, memory=16 * gib)
    assert [len(slots.slots("auto", jobs(9, workers=2, memory=m * gib))) for m in (0, 1, 3, 7, 15, 20)] == [
        9,
        9,
        4,
        2,
        1,
        1,
    ]
    assert len(slots.slots("auto", jobs(8, workers=2) + jobs(1, workers=2, memory=7 * gib))) == 2  # the greatest
    assert len(slots.slots("5", jobs(9, workers=2, memory=7 * gib))) == 5  # whoever says how many knows


def test_devices_are_dealt_to_slots(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for number, count in ((1, 1), (4, 2), (5, 3), (8, 8), (3, 5)):
        shares = dealt(range(number), count)
        assert len(shares) == count and all(shares)
        assert sorted({d for share in shares for d in share}) == list(range(number))
        if count <= number:
            assert sum(map(len, shares)) == number and max(map(len, shares)) - min(map(len, shares)) <= 1
    assert dealt("ab", 5) == [["a"], ["b"], ["a"], ["b"], ["a"]]
    assert dealt([], 2) == [[], []]

    def shown(jobs_: str, of: list[SweepJob]) -> list[str | None]:
        wanted = Devices.of(of[0].settings)
        return [slot.environment(wanted).get("CUDA_VISIBLE_DEVICES") for slot in slots.slots(jobs_, of)]

    machine(cores=64, devices=8)
    assert shown("auto", jobs(9, workers=4)) == ["0,1,2,3", "4,5,6,7"]  # a device for each worker
    assert shown("auto", jobs(9, workers=4, launcher=SIMULATED, threads=1)) == list("01234567")
    assert shown("3", jobs(9, workers=4, device="cuda")) == ["0,1", "2,3,4", "5,6,7"]
    assert shown("2", jobs(9, device="cpu")) == ["", ""]
    assert shown("2", jobs(9, device="cuda:0,cuda:1")) == [None, None]  # numbered among all
    assert len(slots.slots("auto", jobs(9, workers=1, device="cuda:3"))) == 1
    assert len(slots.slots("auto", jobs(20, workers=1, device="cpu"))) == 20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8932f937")
    machine(cores=64, devices=2)
    assert shown("2", jobs(9, workers=1)) == ["5", "GPU-8932f937"]
    assert shown("3", jobs(9, workers=1)) == ["5", "GPU-8932f937", "5"]
    assert shown("2", jobs(9, workers=1, device="cuda:1")) == ["5, GPU-8932f937"] * 2
    machine(cores=64)
    assert shown("2", jobs(9, workers=1)) == ["5, GPU-8932f937"] * 2  # there is none to deal: as it was


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("-m seed=0,1 jobs=0", "jobs=0: is how many jobs of a sweep run at a time"),
        ("-m seed=0,1 jobs=1,2", "jobs: is about the whole sweep and has one value"),
        ("-m seed=0,1 sweep=a/b", "sweep=a/b: is the name of a directory"),
        ("jobs=2", "jobs=2: is about a sweep, and this is a single run; add -m"),
        ("sweep=mine", "sweep=mine: is about a sweep, and this is a single run; add -m"),
    ],
)
@pytest.mark.usefixtures("unprepared")
def test_a_mistake_has_its_sentence(words: str, sentence: str, easgd: Callable[..., Said], here: Path) -> None:
    said = easgd("train", *words.split())
    assert said.status == 2
    assert sentence in said.err
    assert list(here.iterdir()) == []
