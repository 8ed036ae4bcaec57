"""Sweeps through Hydra's plugins: what is refused, what a search minimises, and real jobs in the hands of launchers and
sweepers.

Hydra's own basic launcher and sweeper under other names stand for plugins, so that no test but the last two needs one.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import Said
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from easgd_cli.commands import configs, plugins, sweep, sweep_job
from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.classification import METRICS
from easgd_cli.record import reader
from easgd_cli.settings.schema import NO_AVERAGE, Settings
from easgd_cli.sweeps import hydra_executor, job_directory, job_status, job_watch, objective
from easgd_cli.sweeps.hydra_executor import HydraExecutor, HydraJob
from easgd_cli.sweeps.job_directory import JobDirectory
from easgd_cli.sweeps.job_status import ELSEWHERE, FAILED, JobStatus
from easgd_cli.sweeps.job_watch import JobWatch
from easgd_cli.sweeps.objective import Objective
from easgd_cli.sweeps.plan import Plan

CLASSIFICATION = {
    "name": "classification", "target": "easgd_cli.problems.tasks.classification:Classification"
}  # fmt: skip
ON_DIGITS = Settings(eta=0.1, dataset={"name": "digits", "validation": 200}, task=CLASSIFICATION)
QUICK = ["launcher=simulated", "threads=1", "problem=quadratic", "workers=2", "steps=40"]
NOTING = """
from easgd_cli.launcher.job import Outcome

class Noting:
    def begin(self): pass

    def __call__(self, job, experiment):
        with open(job.run_dir.parent / "ran", "a") as f:
            f.write(f"{job.run_dir.name}\\n")
        status = "completed" if experiment.settings.tau > 3 else "failed"
        (job.run_dir / "summary.json").write_text(f'{{"status": "{status}"}}')
        return Outcome(status, int(status == "failed"), {}, None if status == "completed" else "tau is too short")
"""


@pytest.fixture
def elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of configurations with Hydra's basic launcher and sweeper as `mine`, for jobs that find
    this package.
    """
    monkeypatch.setenv("PYTHONPATH", str(configs.directory().parent))
    for part, target, rest in (
        ("launcher", "basic_launcher.BasicLauncher", ""),
        ("sweeper", "basic_sweeper.BasicSweeper", "max_batch_size: null\nparams: null\n"),
    ):
        (here / "own/hydra" / part).mkdir(parents=True)
        (here / "own/hydra" / part / "mine.yaml").write_text(f"_target_: hydra._internal.core_plugins.{target}\n{rest}")
    (here / "own/launcher").mkdir()
    (here / "own/launcher/noting.yaml").write_text("name: noting\ntarget: noting:Noting\n")
    (here / "noting.py").write_text(NOTING)
    return here


def left(path: Path, errors: list[float], status: str = "completed", average: str = "none") -> Path:
    """The record of a run with these held-out errors, one at each second; test errors are higher by 1."""
    path.mkdir(parents=True)
    config = {"workers": 2, "steps": 10, "average": NO_AVERAGE | {"name": average}, "launcher": {"name": "local"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "summary.json").write_text(json.dumps({"status": status}))
    rows = [
        {
            "seconds": float(i),
            "step": i,
            "exchanges": i,
            "party": party,
            "train_loss": e / 100 + worse,
            "validation_error": e + worse,
            "test_error": e + 1 + worse,
        }
        for i, e in enumerate(errors)
        for party, worse in (("center", 0), ("average", 5))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("text", "value", "errors"),
    [
        (None, 3.0, (3, 4)),
        ("best_error", 3.0, (3, 4)),
        ("test:best_error", 4.0, (3, 4)),
        ("final_error", 6.0, (6, 7)),
        ("test:final_error", 7.0, (6, 7)),
        ("seconds_to_error:8", 1.0, (8, 9)),
        ("test:seconds_to_error:8", 2.0, (3, 4)),
        ("seconds_to_error:2.5", math.inf, ()),
        ("train_loss", 0.06, (6, 7)),
    ],
)
def test_the_value_of_a_run_is_that_of_its_record(
    text: str | None, value: float, errors: tuple[float, ...], tmp_path: Path
) -> None:
    asked = objective.of(replace(ON_DIGITS, objective=text))
    run = left(tmp_path / "run", [90.0, 8.0, 3.0, 6.0])
    assert asked.value(run) == pytest.approx(value)
    assert asked.shown(value).startswith(f"{asked}") and ("never" in asked.shown(value)) == math.isinf(value)
    assert asked.errors(run) == dict(zip(("held-out error", "test error"), map(float, errors), strict=False))
    assert asked.value(left(tmp_path / "diverged", [90.0, 1.0], status="diverged")) == math.inf


def test_where_an_average_is_kept_it_is_judged(tmp_path: Path) -> None:
    assert Objective("best", METRICS.primary).value(left(tmp_path / "run", [90.0, 3.0], average="polyak")) == 8.0


def test_a_run_without_what_is_asked_for_is_no_trial(tmp_path: Path) -> None:
    run = left(tmp_path / "run", [])
    (run / "metrics.jsonl").write_text(
        '{"seconds": 0.0, "step": 0, "exchanges": 0, "party": "center", "train_loss": 1.0}\n'
    )
    with pytest.raises(RunError, match="no evaluation has a validation_error"):
        Objective("best", METRICS.primary).value(run)
    assert Objective("train_loss").value(run) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "best",
        "error",
        "seconds_to_error",
        "seconds_to_error:x",
        "seconds_to_error:1.2.3",
        "test:train_loss",
        "validation:best_error",
    ],
)
def test_an_objective_is_one_of_a_few(text: str) -> None:
    with pytest.raises(UsageError, match=f"objective={text}: is best_error, final_error"):
        objective.of(replace(ON_DIGITS, objective=text))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "hydra/sweeper=mine eta=0.1,0.2",
            "dataset.validation=0: a search chooses settings by what is held out of training",
        ),
        ("hydra/sweeper=mine eta=0.1,0.2 objective=best", "objective=best: is best_error, final_error"),
        ("hydra/sweeper=mine eta=0.1,0.2 problem=quadratic objective=best_error", "problem=quadratic has no data set"),
        (
            "hydra/sweeper=mine eta=interval(-1,0.1) objective=test:best_error",
            "eta=-1: a learning rate is not negative",
        ),
        ("hydra/sweeper=mine tau=4 algo=easgd,mdownpuor objective=test:best_error", "did you mean mdownpour?"),
        ("hydra/sweeper=mine eta=0.1 objective=test:best_error", "hydra/sweeper=mine: there is nothing to draw"),
        (
            "hydra/sweeper=mine eta=0.1 hydra.sweeper.direction=maximize",
            "hydra.sweeper.direction=maximize: every objective= is to be small",
        ),
        (
            "eta=0.1,0.2 objective=best_error",
            "objective=best_error: is what a search minimises; add hydra/sweeper=optuna",
        ),
        ("hydra/launcher=mine eta=0.1,0.2 jobs=2", "jobs=2: is for jobs that easgd runs itself"),
        (
            "hydra/launcher=mine eta=0.1,0.2 hydra.sweep.subdir=x",
            "hydra.sweep.subdir=x: runs of a sweep are named by the values",
        ),
        (
            "hydra/launcher=mine eta=0.1,0.2 launcher=distributed",
            "launcher=distributed: hosts stay from job to job only where easgd runs the sweep itself",
        ),
        (
            "hydra/sweeper=mine eta=0.1,0.2 objective=test:best_error launcher=distributed",
            "launcher=distributed: hosts stay from job to job only where easgd runs the sweep itself",
        ),
        ("launcher=distributed eta=0.1,0.2 jobs=2", "launcher=distributed jobs=2: a host takes part in one run at a"),
        (
            "launcher=local,distributed eta=0.1,0.2",
            "launcher=distributed: hosts wait for the next job of a sweep",
        ),
        ("hydra/launcher=mine eta=-1,0.2", "eta=-1: a learning rate is not negative"),
        ("hydra/launcher=myne eta=0.1,0.2", "hydra/launcher=myne: there is no such hydra/launcher; did you mean mine?"),
    ],
)
def test_a_mistake_has_its_sentence_before_anything_is_made(
    words: str, sentence: str, elsewhere: Path, easgd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "experiment", lambda outline: SimpleNamespace(steps=None, memory=0))
    said = easgd("train", "-m", "-cd", "own", *words.split())
    assert said.status == 2
    assert sentence in said.err
    assert not (elsewhere / "runs").exists()


@pytest.mark.parametrize("words", ["hydra/sweeper=mine", "hydra/launcher=mine"])
def test_what_runs_the_jobs_of_a_sweep_is_refused_for_a_single_run(
    words: str, elsewhere: Path, easgd: Callable[..., Said]
) -> None:
    said = easgd("train", "-cd", "own", words, "eta=0.1")
    assert (said.status, said.err) == (
        2,
        f"easgd: {words}: is about a sweep, and this is a single run; add -m, or leave it out.\n",
    )


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_local", "slurm"),
        ("hydra/sweeper=optuna", "optuna"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(
    words: str, extra: str, easgd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_installed", lambda module: False)
    said = easgd("train", "-m", "eta=interval(0.1,1)", words)
    assert said.status == 2
    assert (
        said.err == f"easgd: {words}: needs a plugin of Hydra's that is not installed; install it with pip install "
        f"'easgd[{extra}]'.\n"
    )


def test_slurm_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_installed", lambda module: True)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="there is no sbatch on this machine"):
        plugins.check("submitit_slurm", "basic")
    plugins.check("submitit_local", "optuna")


@pytest.mark.usefixtures("unprepared")
def test_a_launcher_gets_the_jobs_that_can_run_and_have_not_ended(elsewhere: Path, easgd: Callable[..., Said]) -> None:
    words = [
        "train",
        "-m",
        "-cd",
        "own",
        "launcher=noting",
        "hydra/launcher=mine",
        "hydra.sweep.dir=swept",
        "algo=easgd,mdownpour",
    ]
    said = easgd(*words, "tau=3,4")
    root = elsewhere / "swept"
    assert said.status == 1
    assert "left out: launcher=noting algo=mdownpour tau=3. tau=3: MDOWNPOUR" in said.err
    assert "algo=easgd,tau=3: failed: tau is too short" in said.out
    assert (root / "ran").read_text().splitlines() == ["algo=easgd,tau=3", "algo=easgd,tau=4"]
    jobs = json.loads((root / "sweep.json").read_text())["jobs"]
    assert {name: job["status"] for name, job in jobs.items()} == {
        "algo=easgd,tau=3": "failed",
        "algo=easgd,tau=4": "completed",
    }
    said = easgd(*words, "tau=4,5")  # as without a launcher, the same sweep with one more value
    assert (said.status, said.out.count("already done")) == (0, 1)
    assert (root / "ran").read_text().splitlines()[2:] == ["algo=easgd,tau=5"]


def test_a_sweeper_is_told_what_came_of_its_jobs_and_the_best_is_shown(
    elsewhere: Path, easgd: Callable[..., Said]
) -> None:
    said = easgd(
        "train", "-m", "-cd", "own", "hydra/sweeper=mine", "sweep=search", "eta=0.412345678901,0.41234567", *QUICK
    )
    assert said.status == 0, said.err
    root = elsewhere / "runs/sweeps/search"
    losses = {
        path.parent.name: json.loads(path.read_text())["center"]["train_loss"] for path in root.glob("*/summary.json")
    }
    exact = {name: next(o for o in reader.overrides_of(root / name) if o.startswith("eta=")) for name in losses}
    # which the name of one and the other is
    assert sorted(losses) == ["eta=0.412346", next(name for name in losses if name.startswith("eta=0.412346-"))]
    assert sorted(exact.values()) == ["eta=0.41234567", "eta=0.412345678901"]
    told = json.loads((root / "sweep.json").read_text())
    best = min(losses, key=lambda name: losses[name])
    assert told["best"] == {"job": best, "objective": "train loss at the end", "value": losses[best], "errors": {}}
    assert told["jobs"][best] == {"status": "completed", "value": losses[best]}
    assert f"  {exact[best]}\n  train loss at the end {losses[best]:.4g}\n  runs/sweeps/search/{best}\n" in said.out


def test_of_runs_with_the_same_value_all_are_named_and_what_a_kill_left_is_no_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by = Objective("best", METRICS.primary)
    for name, error in (("eta=1", 4.0), ("eta=2", 3.0), ("eta=3", 3.0), (".7.eta=4", 2.0)):
        said = JobStatus("completed", path=str(left(tmp_path / name, [90.0, error])), objective=str(by), value=error)
        job_status.write(tmp_path, name, said)
    plan = Plan(tmp_path, {}, ["eta"], False, "1", False, None, [], [], "basic", "optuna", by)
    best = sweep.tell_best(plan, by)
    assert best is not None and (best["job"], best["value"]) == ("eta=2", 3.0)
    assert "The best of 3 by" in (out := capsys.readouterr().out)
    assert "The same value have eta=3; the first that reached it is taken." in out


def test_a_killed_job_is_told_and_a_terminated_sweep_ends_its_jobs_which_leave_checkpoints(elsewhere: Path) -> None:
    words = [
        "-m",
        "-cd",
        "own",
        "hydra/launcher=mine",
        "sweep=long",
        "seed=0,1,2",
        *QUICK[:-1],
        "steps=100000000",
        "eval.every=1000000 steps",
    ]
    begun_sweep = subprocess.Popen(
        [sys.executable, "-m", "easgd_cli", "train", *words], stdout=subprocess.PIPE, text=True
    )
    root = elsewhere / "runs/sweeps/long"

    def begun(seed: int) -> int:
        for _ in range(1200):
            if (root / f"seed={seed}/metrics.jsonl").exists():
                return job_status.read(root, f"seed={seed}").pid or 0
            time.sleep(0.05)
        raise AssertionError("it has not begun for a minute")

    os.kill(begun(0), signal.SIGKILL)
    begun(1)
    begun_sweep.send_signal(signal.SIGTERM)
    out, _ = begun_sweep.communicate(timeout=60)
    assert begun_sweep.returncode == 143
    assert "seed=0: killed: its process was ended by SIGKILL" in out
    assert job_status.read(root, "seed=1").status == "interrupted"
    assert any((root / "seed=1/checkpoint").iterdir())
    assert "seed=2  not started" in out and not (root / "seed=2").exists()
    assert "To go on with it, give the same command again." in out


def test_a_sweep_that_is_terminated_while_a_job_starts_interrupts_it_at_once(elsewhere: Path) -> None:
    # no run listens to signals yet
    (elsewhere / "noting.py").write_text("import time\n\nclass Noting:\n    def begin(self): time.sleep(600)\n")
    words = ["-m", "-cd", "own", "hydra/launcher=mine", "sweep=slow", "seed=0,1", "launcher=noting", *QUICK[1:]]
    begun_sweep = subprocess.Popen(
        [sys.executable, "-m", "easgd_cli", "train", *words], stdout=subprocess.PIPE, text=True
    )
    root = elsewhere / "runs/sweeps/slow"
    while begun_sweep.poll() is None and job_status.read(root, "seed=0").status != "running":
        time.sleep(0.05)
    begun_sweep.send_signal(signal.SIGTERM)
    # not as long as one waits for a process that does not end
    out, _ = begun_sweep.communicate(timeout=job_watch._PATIENCE_SECONDS / 2)
    assert begun_sweep.returncode == 143
    assert job_status.read(root, "seed=0").status == "interrupted"
    assert "seed=0  interrupted" in out and "seed=1  not started" in out


@pytest.mark.usefixtures("unprepared")
def test_a_job_that_says_nothing_has_failed_whatever_an_earlier_start_of_it_said(
    elsewhere: Path, easgd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = elsewhere / "swept"
    words = ["train", "-m", "-cd", "own", "launcher=noting", "hydra/launcher=mine", "hydra.sweep.dir=swept", "tau=4,5"]
    job_status.write(root, "tau=4", JobStatus("completed"))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # in place of the job's program
    said = easgd(*words)
    assert said.status == 1
    assert all(f"{name}: failed: its process ended with status 1" in said.out for name in ("tau=4", "tau=5"))
    job_status.file(root, "tau=5").unlink()
    (root / "logs/tau=5.json").mkdir()
    said = easgd(*words, "retry=true")
    assert said.status == 1
    assert (
        f"easgd: hydra/launcher=mine: {root}/logs/tau=5.json: how the job stands cannot be written there (Is a "
        "directory)" in said.err
    )


@pytest.mark.usefixtures("unprepared")
def test_a_search_ends_with_status_1_where_a_job_cannot_say_how_it_stands(
    elsewhere: Path, easgd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeper takes every Exception for a failed trial and goes on, as optuna does."""

    def sweep(sweeper: Any, arguments: list[str]) -> None:
        for eta in ("0.1", "0.2"):
            with suppress(Exception):
                for done in sweeper.launcher.launch([["launcher=noting", "tau=4", f"eta={eta}"]], initial_job_idx=0):
                    _ = done.return_value

    # Hydra loads it once more
    basic = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"]
    monkeypatch.setattr(basic, "sweep", sweep)
    (elsewhere / "swept").mkdir()
    (elsewhere / "swept/logs").touch()  # no directory
    said = easgd(
        "train",
        "-m",
        "-cd",
        "own",
        "launcher=noting",
        "hydra/sweeper=mine",
        "hydra.sweep.dir=swept",
        "tau=4",
        "eta=0.1,0.2",
        "problem=quadratic",
    )
    assert said.status == 1
    assert (
        "easgd: hydra/sweeper=mine: " in said.err
        and "how the job stands cannot be written there (File exists)" in said.err
    )
    assert "No run has a value to choose by." in said.out


@pytest.mark.usefixtures("unprepared")
def test_a_sweep_whose_output_nobody_reads_any_more_goes_on(
    elsewhere: Path, easgd: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # in place of the job's program
    reader, writer = os.pipe()
    begin = HydraExecutor.run

    def run(*given: Any) -> int:
        os.close(reader)  # not before the sweep has said what it is
        return begin(*given)

    monkeypatch.setattr(HydraExecutor, "run", run)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        said = easgd(
            "train", "-m", "-cd", "own", "launcher=noting", "hydra/launcher=mine", "hydra.sweep.dir=swept", "tau=4,5"
        )
    assert (said.status, "Traceback" in said.err) == (1, False)
    jobs = json.loads((elsewhere / "swept/sweep.json").read_text())["jobs"]
    assert {name: job["status"] for name, job in jobs.items()} == {"tau=4": "failed", "tau=5": "failed"}


@pytest.mark.parametrize(
    ("found", "said", "code"),
    [
        (JobDirectory(Path("run"), "completed"), "already done", 0),
        (
            JobDirectory(Path("run"), FAILED, "no memory."),
            "failed: no memory. That was before; retry=true tries it again.",
            1,
        ),
        (JobDirectory(Path("run"), ELSEWHERE), "running elsewhere", 0),
    ],
)
def test_a_job_that_has_ended_before_it_begins_says_that_it_was_before(
    found: JobDirectory, said: str, code: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_directory, "find", lambda path, settings, retry: found)
    assert sweep_job.main([str(here), "tau=4", "tau=4"]) == code
    assert sweep.line(job_status.settle(here, "tau=4", os.getpid(), code)) == said


def test_a_job_that_two_sweeps_take_at_once_is_told_as_done_by_the_one_that_ran_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's job finds it while it runs, or just after its end, and says nothing over what it said."""
    job_status.write(here, "tau=4", JobStatus("running", pid=1))
    monkeypatch.setattr(job_directory, "find", lambda path, settings, retry: JobDirectory(path, ELSEWHERE))
    assert sweep_job.main([str(here), "tau=4", "tau=4"]) == 0
    assert job_status.settle(here, "tau=4", os.getpid(), 0).status == ELSEWHERE
    job_status.write(here, "tau=4", JobStatus("completed", pid=1))
    monkeypatch.setattr(job_directory, "find", lambda path, settings, retry: JobDirectory(path, "completed"))
    assert sweep_job.main([str(here), "tau=4", "tau=4"]) == 0
    assert job_status.settle(here, "tau=4", os.getpid(), 0).before
    assert not job_status.settle(here, "tau=4", 1, 0).before


def test_a_job_that_is_refused_has_failed_and_says_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_job.main([str(here), "tau=0", "tau=0"]) == 2
    told = job_status.read(here, "tau=0")
    assert told.status == "failed" and str(told.reason).startswith("tau=0: must be a whole number of at least 1")
    assert capsys.readouterr().err == f"easgd: {told.reason}\n"


def test_a_trial_whose_record_cannot_be_read_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(tmp_path / "eta=1", [90.0])
    (tmp_path / "eta=1/config.yaml").write_text("- no settings")
    told = SimpleNamespace(
        sweep=SimpleNamespace(subdir="eta=1"),
        runtime=SimpleNamespace(output_dir=str(tmp_path / "eta=1"), cwd=str(tmp_path)),
        job=SimpleNamespace(config_name="config"), overrides=SimpleNamespace(task=["eta=1"]), searchpath=[],
    )  # fmt: skip
    monkeypatch.setattr(hydra_executor.HydraConfig, "get", lambda: told)
    monkeypatch.setattr(HydraJob, "_run", lambda *_: JobStatus("completed", path=str(tmp_path / "eta=1")))
    with pytest.raises(RunError, match=r"config\.yaml: is not a dictionary of settings"):
        HydraJob(tmp_path, sweep.PROGRAM, Objective("best", METRICS.primary))(OmegaConf.create())
    said = job_status.read(tmp_path, "eta=1")
    assert said.status == "failed" and "config.yaml: is not" in str(said.reason)


def test_what_a_launcher_begins_while_the_sweep_is_ended_and_then_kills_is_interrupted(tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    told: list[tuple[str, str]] = []
    watch = JobWatch(tmp_path, lambda name, said: told.append((name, said.status)))
    with watch.watching():
        job_status.write(tmp_path, "before", JobStatus("running", pid=killed.pid))
        while ("before", "running") not in told:
            time.sleep(0.01)
        watch.end()
        job_status.write(tmp_path, "begun", JobStatus("running", pid=killed.pid))
        # by what began it
        job_status.write(tmp_path, "noticed", JobStatus("killed", reason="its process was ended by SIGKILL"))
    assert {name: said.status for name, said in watch.said.items()} == {
        "before": "killed",
        "begun": "interrupted",
        "noticed": "interrupted",
    }
    assert watch.said["noticed"].reason is None
    assert told[-1][1] != "running"


def test_a_sweep_that_is_ended_ends_the_jobs_that_it_has_begun_on_this_machine_and_no_others(tmp_path: Path) -> None:
    with ExitStack() as ending:
        ours, anothers = (ending.enter_context(subprocess.Popen(["sleep", "600"])) for _ in range(2))
        ending.callback(ours.kill)
        ending.callback(anothers.kill)
        job_status.write(tmp_path, "another's", JobStatus("running", pid=anothers.pid))
        watch = JobWatch(tmp_path, lambda name, said: None)
        with watch.watching():
            job_status.write(tmp_path, "ours", JobStatus("running", pid=ours.pid))
            while "ours" not in watch.said:
                time.sleep(0.01)
            watch.end()
        assert (ours.poll(), anothers.poll()) == (-signal.SIGTERM, None)


@pytest.mark.filterwarnings("ignore:Deprecated API features detected")
def test_optuna_searches_through_joblib_and_finds_its_runs_again(elsewhere: Path, easgd: Callable[..., Said]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "hydra/sweeper=optuna", "sweep=search", "eta=tag(log,interval(0.05,0.5))", *QUICK]
    once = easgd("train", *words, "hydra.sweeper.n_trials=1")
    assert once.status == 0, once.err
    root = elsewhere / "runs/sweeps/search"
    first = values(root)
    assert len(first) == 1
    result = yaml.safe_load((root / "optimization_results.yaml").read_text())
    assert result["best_value"] == min(first.values())
    when = {name: (root / name / "summary.json").stat().st_mtime_ns for name in first}
    # draws the first again, then another; other processes have them
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    twice = easgd("train", *words, *joblib, "hydra.sweeper.n_trials=2")
    importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)
    assert twice.status == 0, twice.err
    assert len(values(root)) == 2
    assert {name: (root / name / "summary.json").stat().st_mtime_ns for name in first} == when


def values(root: Path) -> dict[str, Any]:
    return {name: job["value"] for name, job in json.loads((root / "sweep.json").read_text())["jobs"].items()}


def test_submitit_runs_jobs_in_processes_of_its_own(elsewhere: Path, easgd: Callable[..., Said]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    said = easgd("train", "-m", "hydra/launcher=submitit_local", "sweep=handed", "seed=0", *QUICK)
    assert said.status == 0, said.err
    root = elsewhere / "runs/sweeps/handed"
    [job] = json.loads((root / "sweep.json").read_text())["jobs"].items()
    assert job[1] == {"status": "completed"}
    assert "completed" in job_status.log(root, job[0]).read_text()
