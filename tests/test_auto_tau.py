"""tau=auto: the smallest period with which workers wait for a small share of their time, found by short runs before the
run, which then is the run with that number.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import easgd_cli
from easgd_cli.errors import UsageError

Easgd = Callable[..., Any]

QUADRATIC = ("problem=quadratic", "threads=1")
VIRTUAL = (*QUADRATIC, "launcher=simulated", "launcher.compute=0.001")
OVER = ("until.train_loss=1e9",)  # when it begins: for tests of what comes before


@pytest.fixture
def launcher() -> None:
    """The real one."""


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, and nothing may be left."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path


def config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def center(run: Path) -> torch.Tensor:
    found: torch.Tensor = torch.load(run / "center.pt", weights_only=True)["x"]
    return found


@pytest.mark.parametrize(
    ("words", "share", "tau"),
    [
        # DOWNPOUR waits for its exchange: w = 2 ms after tau gradients of 1 ms, w / (tau + w) <= share
        (("algo=downpour", "workers=1", "launcher.latency=0.001"), 0.02, 98),
        (("algo=downpour", "workers=1", "launcher.latency=0.001"), 0.5, 2),
        (("algo=downpour", "workers=1", "launcher.latency=0.001"), 0.51, 2),
        (("algo=downpour", "workers=1", "launcher.latency=0.001"), 0.4, 3),
        # 8 kB over 8 MB/s each way, and a service of 1 ms: w = 3 ms
        (("algo=downpour", "workers=1", "problem.dimension=1000", "launcher.bandwidth=8e6", "launcher.service=0.001"),
         0.1, 27),
        # EASGD's exchange overlaps the gradient: of 2 ms one is seen
        (("algo=easgd", "workers=1", "launcher.latency=0.001"), 0.1, 9),
        # and of 1 ms nothing
        (("algo=easgd", "workers=1", "launcher.latency=0.0005"), 0.001, 1),
        # in rounds everybody waits for the services of all: 4 x 0.5 ms, of which a gradient hides 1
        (("algo=sync_easgd", "workers=4", "launcher.service=0.0005"), 0.1, 9),
        # two fragments, each waited for: 2 x 2 ms
        (("algo=downpour", "workers=1", "problem.dimension=2", "launcher.latency=0.001", "fragments=2"), 0.1, 36),
        # a method that needs a period longer than its delay begins there
        (("algo=streaming_diloco", "algo.delay=5", "workers=1"), 0.1, 6),
    ],
)  # fmt: skip
def test_it_is_the_smallest_period_within_the_bound(
    easgd: Easgd, here: Path, words: tuple[str, ...], share: float, tau: int
) -> None:
    said = easgd("train", *VIRTUAL, *words, "tau=auto", f"auto.share={share}", "eta=0.001", "steps=400", *OVER,
                 "hydra.run.dir=run")  # fmt: skip
    assert said.status == 0, said.err
    assert config(here / "run")["tau"] == tau
    assert f"tau=auto: tau={tau};" in said.err
    chosen = json.loads((here / "run" / "summary.json").read_text())["tau_chosen"]
    assert [p["share"] <= share + 1e-9 for p in chosen["probes"] if p["tau"] == tau] == [True]


def test_a_queue_at_the_first_period_is_not_taken_for_the_cost_of_an_exchange(easgd: Easgd, here: Path) -> None:
    """At tau = 1 all 16 wait for one master, so a period of 135 would follow, more than a quarter of the run."""
    said = easgd("train", *VIRTUAL, "launcher.spread=0.2", "algo=downpour", "workers=16", "launcher.service=0.001",
                 "tau=auto", "auto.share=0.1", "eta=0.0001", "steps=400", *OVER, "hydra.run.dir=run")  # fmt: skip
    assert said.status == 0, said.err
    tau = config(here / "run")["tau"]
    probes = json.loads((here / "run" / "summary.json").read_text())["tau_chosen"]["probes"]
    assert probes[0]["tau"] == 1 and probes[0]["share"] > 0.9
    assert 16 < tau < 100 and next(p["share"] for p in probes if p["tau"] == tau) <= 0.1


def test_the_run_is_the_run_with_that_number(easgd: Easgd, here: Path) -> None:
    """Also replayed, and resumed with more steps."""
    words = ("train", *VIRTUAL, "launcher.spread=0.3", "launcher.latency=0.002", "workers=3", "eta=0.01")
    assert easgd(*words, "tau=auto", "auto.share=0.2", "steps=150", "hydra.run.dir=chosen").status == 0
    tau = config(here / "chosen")["tau"]
    assert tau > 1
    assert easgd(*words, f"tau={tau}", "steps=150", "hydra.run.dir=number").status == 0
    assert torch.equal(center(here / "chosen"), center(here / "number"))
    for file in ("metrics.jsonl", "exchanges.bin"):
        assert (here / "chosen" / file).read_bytes() == (here / "number" / file).read_bytes()
    again = easgd("train", "replay=chosen", "launcher.latency=0", "hydra.run.dir=again")
    assert again.status == 0 and "bit for bit" in again.out and "tau=auto" not in again.err
    for run in ("chosen", "number"):
        assert easgd("train", f"resume={run}", "steps=300").status == 0
    assert config(here / "chosen")["tau"] == tau
    assert torch.equal(center(here / "chosen"), center(here / "number"))
    assert json.loads((here / "chosen" / "summary.json").read_text())["tau_chosen"]["probes"]


@pytest.mark.usefixtures("undrawn")
def test_resume_auto_and_sweeps_find_what_they_have_begun(easgd: Easgd, here: Path, scratch: Path) -> None:
    words = ("train", *VIRTUAL, "launcher.latency=0.002", "workers=2", "eta=0.01", "steps=200", "auto.share=0.1")
    assert easgd(*words, "tau=auto", "resume=auto").status == 0
    said = easgd(*words, "tau=auto", "resume=auto")
    assert said.status == 0 and "nothing is left to do" in said.out
    [run] = (here / "runs" / "auto").iterdir()
    assert "tau=auto" in run.name
    for _ in range(2):
        assert easgd(*words, "-m", "tau=5,auto", "sweep=s", "report=--rows tau").status == 0
    sweep = here / "runs" / "sweeps" / "s"
    runs = {path.parent.name for path in sweep.glob("*/summary.json")}
    assert runs == {"tau=auto", "tau=5"}
    said = easgd("report", str(sweep))
    assert "tau=auto has chosen" in said.out and not list(scratch.iterdir())


def test_processes(easgd: Easgd, here: Path, scratch: Path) -> None:
    """The record of the run has nothing of the probes, which are gone. A period up to 100 is found, though a busy
    machine keeps an exchange waiting for seconds.
    """
    words = ("problem=nets:TakesItsTime", "+problem.seconds=0.005", "threads=1", "workers=2", "eta=0.001", "steps=400")
    said = easgd("train", *words, "tau=auto", "auto.seconds=0.3", "auto.share=0.9", "hydra.run.dir=run")
    assert said.status == 0, said.err
    summary, tau = json.loads((here / "run" / "summary.json").read_text()), config(here / "run")["tau"]
    assert summary["tau"] == tau and summary["exchanges"] == 2 * -(-400 // tau)
    assert all(p["seconds"] > 0.2 for p in summary["tau_chosen"]["probes"])
    again = easgd("train", "replay=run", "hydra.run.dir=again")
    assert again.status == 0 and "bit for bit" in again.out
    # torch._dynamo makes a directory, which the tests' processes import and a user's do not (conftest.py)
    assert not [path for path in scratch.iterdir() if not path.name.startswith("torchinductor")]


def test_from_python(here: Path) -> None:
    words: dict[str, Any] = {"launcher": "simulated", "launcher.compute": 0.001, "launcher.latency": 0.001}
    words |= {"problem": "quadratic", "algo": "downpour", "workers": 1, "eta": 0.001, "steps": 400, "threads": 1}
    run = easgd_cli.train(tau="auto", **words, progress=False)
    assert run.settings.tau == config(run.directory)["tau"] == 98
    assert run.summary["tau_chosen"]["probes"][1]["tau"] == 98
    run = easgd_cli.train(resume=run, steps=500, progress=False)
    assert run.settings.tau == 98
    with pytest.raises(UsageError, match="tau=aut: must be a whole number, or auto"):
        easgd_cli.train(tau="aut", **words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("tau=aut",), "tau=aut: must be a whole number, or auto."),
        (("tau=auto", "auto.share=0"), "auto.share=0: the share of its time that a worker waits"),
        (("tau=auto", "auto.share=1"), "auto.share=1: the share of its time that a worker waits"),
        (("tau=auto", "auto.seconds=0"), "auto.seconds=0: the length of a probe is more than 0 seconds."),
        (("tau=auto", "algo=mdownpour"), "tau=auto: MDOWNPOUR is defined for tau = 1 only"),
        (("tau=auto", "algo=allreduce"), "tau=auto: all-reduce SGD averages the gradients of every step"),
        (("tau=auto", "algo=sync_easgd", "launcher.speeds=[1,0.5]"), "in rounds all wait for the slowest"),
        (("tau=auto", "launcher.latency=1"), "no period up to 25 steps, a quarter of the run, keeps to it"),
    ],
)
def test_mistakes_are_one_sentence(
    easgd: Easgd, here: Path, scratch: Path, words: tuple[str, ...], sentence: str
) -> None:
    said = easgd("train", *VIRTUAL, "eta=0.001", "steps=100", *words)
    assert said.status == 2 and sentence in said.err and said.err.count("\n") == 1
    assert not (here / "runs").exists() and not list(scratch.iterdir())


def test_a_method_alone_has_no_use_for_it(easgd: Easgd, here: Path) -> None:
    said = easgd("train", *VIRTUAL, "algo=sgd", "tau=auto", "eta=0.001", "steps=20", "hydra.run.dir=run")
    assert said.status == 0 and "tau=auto has no effect: algo=sgd never exchanges." in said.err
    assert not config(run := here / "run")["auto"]["probes"] and (run / "summary.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_probe_leaves_nothing(here: Path, scratch: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "easgd_cli", "train", *QUADRATIC, "workers=2", "tau=auto", "auto.seconds=60",
               "eta=0.001", "steps=4000"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not [*scratch.glob("easgd-tau-*/logs/worker_01.log")]:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == code, process.stderr.read()
    assert not list(scratch.iterdir()) and not (here / "runs").exists()
    assert not list(here.iterdir())
