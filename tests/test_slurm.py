"""Runs whose processes SLURM has started, on a stand-in for it whose nodes are network namespaces (slurm.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Said
from machines import Machines
from slurm import Slurm
from test_distributed import PATIENCE, SMALL, environment, machines, until

from easgd_cli.commands import plugins, sweep
from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher.hosts import agent, world
from easgd_cli.launcher.hosts.world import SlurmStep, Torchrun
from easgd_cli.sweeps import job_status
from easgd_cli.system import devices

__all__ = ["machines"]
STEP = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_NTASKS": "5", "SLURM_NTASKS_PER_NODE": "9",
}  # fmt: skip
QUADRATIC = ["problem=quadratic", "eta=0.1", "threads=1"]


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """This process is a task of a step of SLURM's with these variables changed, None: not there."""

    def be(**changed: str | None) -> None:
        for name, value in (STEP | changed).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return be


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, (3, 5, 1, 2, "7.0.0")),
        ({"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}, (4, 5, 0, 1, "7.0.0")),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,4", "SLURM_RESTART_COUNT": "2"}, (3, 5, 1, 4, "7.0.2")),
    ],
)
def test_the_tasks_of_a_step_are_one_run(
    changed: dict[str, str], found: tuple[Any, ...], in_step: Callable[..., None]
) -> None:
    in_step(**changed)
    step = world.world()
    assert isinstance(step, SlurmStep)
    assert (step.rank, step.size, step.local_rank, step.local_size, step.name) == found


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_STEP_ID": None, "SLURM_STEP_TASKS_PER_NODE": None},  # sbatch's script
        {name: None for name in STEP if name != "SLURM_NTASKS"},  # salloc's shell
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},  # srun --pty bash
    ],
)
def test_who_is_no_task_among_others_is_alone(changed: dict[str, Any], in_step: Callable[..., None]) -> None:
    in_step(**changed)
    assert world.world() is None


def test_torchrun_that_srun_has_started_is_torchrun(
    in_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_step()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "n0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert isinstance(world.world(), Torchrun)


@pytest.mark.parametrize(("name", "value"), [("SLURM_NODEID", "3"), ("SLURM_STEP_TASKS_PER_NODE", "two")])
def test_what_srun_would_not_write_is_refused(name: str, value: str, in_step: Callable[..., None]) -> None:
    in_step(**{name: value})
    with pytest.raises(UsageError, match="are not as srun gives them"):
        world.world()


def test_a_file_says_where_the_run_is_for_as_long_as_it_is_there(
    here: Path, in_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_step()
    step = world.world()
    assert isinstance(step, SlurmStep)
    heard: list[str] = []
    asks = threading.Thread(target=lambda: heard.append(step.find()))
    asks.start()
    with step.announce("10.0.0.1:5"):
        asks.join(30)
        assert heard == ["10.0.0.1:5"]
    assert list(here.iterdir()) == []
    monkeypatch.setattr(SlurmStep, "seconds", 0.1)
    with pytest.raises(RunError, match=r"\.easgd-slurm-7\.0\.0: the first task .* has not said there in 0.1 s"):
        step.find()
    (here / ".easgd-slurm-7.0.0").mkdir()
    with pytest.raises(RunError, match="start srun in a directory that all nodes share"), step.announce("10.0.0.1:5"):
        pass


def test_a_task_that_is_bound_to_its_share_of_the_cores_says_so(
    here: Path, in_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_step(SLURM_CPUS_ON_NODE="8")
    monkeypatch.setattr(devices, "cores", lambda: 4)
    step = world.world()
    assert step is not None
    with step.announce(""):
        assert "bound to 4 of the 8 cores that its node's 2 tasks have" in capsys.readouterr().err
    monkeypatch.setattr(devices, "cores", lambda: 8)
    with step.announce(""):
        assert capsys.readouterr().err == ""


def test_who_is_led_to_a_run_waits_while_somebody_listens_and_no_longer() -> None:
    """The first task listens before it loads its data; where they are not there, nobody waits for it any longer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = listener.getsockname()
        raised: list[Exception] = []

        def join() -> None:
            try:
                agent.Agent(at, b"", 1, 1, 60.0, lambda *_: pytest.fail("no run"), led=True)
            except agent.Over as e:
                raised.append(e)

        joins = threading.Thread(target=join)
        joins.start()
        called, _ = listener.accept()
        assert joins.is_alive()
    called.close()
    joins.join(30)
    assert [str(e) for e in raised] == [f"127.0.0.1:{at[1]}: the run ended before it began."]


@pytest.mark.parametrize("rank", ["0", "3"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "so a secret is needed that all machines of the run know"),
        ("workers=3", "workers=3: SLURM has started 5 processes, each the place of a worker; leave out workers=."),
        ("-m seed=0,1", "launcher=distributed -m: SLURM starts the processes of one run, and this is several"),
        ("tau=auto", "launcher=distributed tau=auto: SLURM starts the processes of one run"),
    ],
)
def test_each_task_says_what_is_wrong(
    words: str, sentence: str, rank: str, here: Path, in_step: Callable[..., None], easgd: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EASGD_SECRET", words and "between us")
    monkeypatch.delenv("EASGD_SECRET_FILE", raising=False)
    local = {"0": {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, "3": {"SLURM_LOCALID": "0", "SLURM_NODEID": "1"}}
    in_step(**{"SLURM_PROCID": rank, **local[rank]})
    monkeypatch.setattr(world.network, "towards", lambda asked, other: "10.0.0.1")
    monkeypatch.setattr(world.network, "interfaces", lambda: {"eth0": "10.0.0.1"})
    said = easgd("train", "launcher=distributed", *words.split(), *QUADRATIC)
    assert said.status == 2 and sentence in said.err and said.err.count("\n") == 1
    assert list(here.iterdir()) == []


def test_torchs_own_loops_are_not_as_many_runs(in_step: Callable[..., None], easgd: Any) -> None:
    in_step()
    said = easgd("train", "launcher=ddp", "algo=msgd")
    assert said.status == 2 and "SLURM has started 5 processes, and easgd starts those of" in said.err
    assert "in a step of one task" in said.err


NODES = "hydra.launcher.nodes=2"


@pytest.fixture
def submitted(
    easgd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Said, list[sweep.Plan]]]:
    """A sweep that is checked and not handed to SLURM: what is said, and the plan."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setattr(plugins, "check", lambda launcher, sweeper: None)
    plans: list[sweep.Plan] = []

    def run(plan: sweep.Plan, asked: Any, command: str) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr(sweep, "run", run)

    def call(*words: str) -> tuple[Said, list[sweep.Plan]]:
        return easgd("train", "-m", "hydra/launcher=submitit_slurm", *words, *QUADRATIC), plans

    return call


@pytest.mark.usefixtures("unprepared")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (f"{NODES} launcher=local seed=0,1", "a job has 2 tasks, and launcher=local makes a run of one; leave them"),
        ("launcher=distributed seed=0,1", "launcher=distributed: a job has one task, and no others would join it"),
        (
            f"{NODES} launcher=distributed workers=3 seed=0,1",
            "workers=3: a job has 2 tasks of SLURM's, each the place of a worker; leave out workers=, or change",
        ),
        (f"{NODES} launcher=distributed tau=auto seed=0,1", "tau=auto: SLURM starts the processes of one run"),
        (f"{NODES} launcher=distributed seed=0,1", "launcher=distributed: other machines reach the run, so a secret"),
    ],
)
def test_a_sweep_whose_jobs_could_not_be_runs_of_all_their_tasks_is_refused(
    words: str, sentence: str, here: Path, submitted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EASGD_SECRET", raising=False)
    monkeypatch.delenv("EASGD_SECRET_FILE", raising=False)
    said, plans = submitted(*words.split())
    assert said.status == 2 and sentence in said.err and not plans
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("unprepared")
def test_workers_of_a_job_are_its_tasks_and_interfaces_are_those_of_the_nodes(
    submitted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EASGD_SECRET", "between us")
    several = [NODES, "hydra.launcher.tasks_per_node=3", "launcher=distributed"]
    said, plans = submitted(*several, "launcher.interface=ib7", "seed=0,1")
    assert said.status == 0, said.err
    assert [job.settings.workers for job in plans[0].jobs] == [6, 6]


@pytest.fixture
def slurm(machines: Callable[[int], Machines], tmp_path: Path) -> Iterator[Slurm]:
    hosts = machines(2).hosts
    made = Slurm(tmp_path / "slurm", [(host.address, host.enter) for host in hosts])
    yield made
    made.close()


def start(slurm: Slurm, directory: Path, name: str, *words: str) -> subprocess.Popen[Any]:
    """A program with SLURM's on the path; what it says is in `name`.txt."""
    path = f"{slurm.path}:{os.environ['PATH']}"
    with open(directory / f"{name}.txt", "w") as out:
        return subprocess.Popen(
            words, cwd=directory, env=environment(PATH=path), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip


def srun(slurm: Slurm, directory: Path, name: str, *words: str) -> int:
    """One run by three tasks, two of them on the first of two nodes; its exit status."""
    tasks = ["srun", "--nodes=2", "--ntasks=3", f"--output={name}%t.txt"]
    return start(slurm, directory, name, *tasks, sys.executable, "-m", "easgd_cli", "train", *words).wait(PATIENCE)


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_srun_makes_one_run_of_its_tasks_and_goes_on_with_it(slurm: Slurm, tmp_path: Path) -> None:
    words = ["launcher=distributed", "algo=eamsgd", "tau=5", "steps=20", *SMALL, "hydra.run.dir=run"]
    assert srun(slurm, tmp_path, "begun", *words) == 0
    told = summary(tmp_path / "run")
    assert told["status"] == "completed" and told["steps"] == {f"worker_0{i}": 20 for i in range(3)}
    assert [link["workers"] for link in told["links"].values()] == [[2]]
    assert "reached at 10.9.0.1:" in (tmp_path / "begun0.txt").read_text()
    assert "offers 1 place" in (tmp_path / "begun2.txt").read_text()
    assert (tmp_path / "begun1.txt").read_text() == ""  # whose work the first of its node does
    assert srun(slurm, tmp_path, "on", "resume=run", "steps=40") == 0
    assert set(summary(tmp_path / "run")["steps"].values()) == {40}
    assert "offers 1 place" in (tmp_path / "on2.txt").read_text()
    assert not list(tmp_path.glob(".easgd*"))


@pytest.mark.parametrize("resumed", ["resume=run", "resume=auto hydra.run.dir=run launcher=distributed"])
@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("interrupted", 1)])
def test_a_task_that_nobody_leads_since_the_run_is_complete_ends_with_status_0(
    resumed: str, status: str, code: int, here: Path, in_step: Callable[..., None], easgd: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    in_step(SLURM_LOCALID="0")
    monkeypatch.setenv("EASGD_SECRET", "between us")
    monkeypatch.setattr(SlurmStep, "seconds", 0.1)
    (here / "run").mkdir()
    (here / "run/config.yaml").write_text("launcher: {name: distributed}\n")
    (here / "run/summary.json").write_text(json.dumps({"status": status}))
    assert easgd("train", *resumed.split()).status == code


def test_a_sweep_on_slurm_has_jobs_of_several_nodes_which_go_on_when_they_have_been_preempted(
    slurm: Slurm, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ["hydra/launcher=submitit_slurm", NODES, "hydra.launcher.timeout_min=60", "sweep=s", "tau=5,10"]
    words += ["launcher=distributed", "algo=eamsgd", "steps=60", *SMALL, "model=nets:Unhurried"]
    words += [f"+model.gate={tmp_path}/gate", "+model.at=20"]
    swept = start(slurm, tmp_path, "sweep", sys.executable, "-m", "easgd_cli", "train", "-m", *words)
    root = tmp_path / "runs/sweeps/s"

    def log(name: str) -> str:
        file = root / name / "logs/launcher.log"
        return file.read_text() if file.exists() else ""

    until(lambda: all("training begins" in log(name) for name in ("tau=5", "tau=10")), "training")
    slurm.preempt("101_0")
    until(lambda: "SIGTERM" in log("tau=5"), "its end")
    (tmp_path / "gate").touch()
    assert swept.wait(PATIENCE) == 0, (tmp_path / "sweep.txt").read_text()
    for name in ("tau=5", "tau=10"):
        told = summary(root / name)
        assert (told["status"], set(told["steps"].values())) == ("completed", {60})
        [link] = told["links"]
        assert "10.9.0.2" in link
        assert job_status.read(root, name).status == "completed"
    begun = {name: job_status.log(root, name).read_text().count("training begins") for name in ("tau=5", "tau=10")}
    assert begun == {"tau=5": 2, "tau=10": 1} and "going on after" in job_status.log(root, "tau=5").read_text()
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == [".submitit", "logs", "tau=10", "tau=5"]
    assert not list(tmp_path.glob(".easgd*"))
