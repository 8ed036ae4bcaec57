"""`easgd train -m`: what is refused, what is left out, what runs, and what the same command finds when it is given
again.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Launcher, Said, leave_checkpoint

from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.record import run_directory
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps.job_status import JobStatus
from easgd_cli.sweeps.plan import Plan
from easgd_cli.sweeps.sweep_file import SweepFile

Easgd = Callable[..., Said]
pytestmark = pytest.mark.usefixtures("unprepared")


def names(launcher: Launcher) -> list[str]:
    return [job.run_dir.name for job in launcher.jobs]


def finish(job: Job, status: str = "completed", code: int = 0, reason: str | None = None) -> Outcome:
    """Leaves what a run that ended leaves."""
    summary = {"status": status, "wall_seconds": 3.0, "center": {"test_error": 2.5, "best_test_error": 2.0}}
    (job.run_dir / "summary.json").write_text(json.dumps(summary))
    return Outcome(status, code, summary, reason)


def test_every_combination_runs_in_a_directory_named_by_what_differs(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    said = easgd("train", "-m", "algo=easgd,downpour", "tau=1,4", "steps=50")
    assert said.status == 0, said.err
    assert names(launcher) == ["algo=easgd,tau=1", "algo=easgd,tau=4", "algo=downpour,tau=1", "algo=downpour,tau=4"]
    assert len({job.run_dir.parent for job in launcher.jobs}) == 1
    assert launcher.jobs[0].run_dir.parent.parent == here / "runs" / "sweeps"
    assert [(j.settings.algo["name"], j.settings.tau, j.settings.steps) for j in launcher.jobs][1] == ("easgd", 4, 50)
    assert all(name in said.out for name in names(launcher))
    assert "tensorboard --logdir runs/sweeps/" in said.out


@pytest.mark.usefixtures("straight")
@pytest.mark.parametrize(
    "words", ["tau=5 -m eta=1,2", "-m tau=5 eta=1,2", "tau=5 eta=1,2 --multirun", "tau=5 eta=1,2 hydra.mode=MULTIRUN"]
)
def test_options_stand_anywhere(words: str, easgd: Easgd, launcher: Launcher) -> None:
    assert easgd("train", *words.split()).status == 0
    assert names(launcher) == ["eta=1", "eta=2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tau=0,4", "tau=0: must be a whole number of at least 1."),
        ("algo=easgd,foo tau=1,2", "algo=foo: there is no such algo."),
        ("tua=1,2", "there is no setting tua; did you mean tau?"),
        ("tau=1,two", "tau=two: must be a whole number, or auto."),
        ("tau=4,4", "tau=4 is in it twice"),
        ("steps=5 epochs=2 seed=0,1", "give one of steps, epochs and minutes"),
        ("algo=mdownpour tau=4 seed=0,1", "MDOWNPOUR is defined for tau = 1 only"),
        ("hydra.verbose=true,false", "cannot be swept"),
        ("seed=0,1 hydra.run.dir=here", "hydra.run.dir=here: names the directory of one run"),
        ("eta=interval(0,1)", "an interval has no end of values"),
        ("resume=x tau=1,2", "one run is resumed at a time"),
        ("seed=0,1 hydra.sweep.dir=/dev/null/x", "the sweep's directory cannot be made"),
        ("seed=0,1 report=--row", "report=--row: --row: there is no such option; did you mean --rows?"),
        ("seed=0,1 report=yes", "report=yes: yes is no option; write those of easgd report"),
    ],
)
def test_what_is_wrong_by_itself_refuses_the_whole_sweep(
    words: str, sentence: str, easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    said = easgd("train", "-m", *words.split())
    assert said.status == 2
    assert sentence in said.err
    assert launcher.jobs == []
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("straight")
def test_combinations_that_cannot_run_are_listed_and_left_out(easgd: Easgd, launcher: Launcher) -> None:
    said = easgd("train", "-m", "algo=easgd,mdownpour,sgd", "tau=1,4", "workers=2")
    assert said.status == 0
    assert "left out: algo=mdownpour tau=4 workers=2. tau=4: MDOWNPOUR" in said.err
    assert "left out: algo=sgd tau=1 workers=2. algo=sgd workers=2: sgd is one worker" in said.err
    assert said.err.count("left out") == 3
    assert names(launcher) == ["algo=easgd,tau=1", "algo=easgd,tau=4", "algo=mdownpour,tau=1"]
    said = easgd("train", "-m", "algo=easgd,mdownpour", "tau=4", "seed=0,1,2")
    assert said.err.count("left out") == 1
    assert "left out, for every seed: algo=mdownpour tau=4. tau=4: MDOWNPOUR" in said.err


@pytest.mark.usefixtures("straight")
def test_data_and_models_are_tried_before_the_first_run(
    easgd: Easgd, launcher: Launcher, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Settings] = []

    def experiment(outline: build.Outline) -> SimpleNamespace:
        s = outline.settings
        prepared.append(s)
        if s.dataset["name"] == "cifar10":
            raise UsageError("dataset.root=data: no such data.")
        if s.model["name"] == "convnet7" and s.dataset["name"] == "digits":
            raise UsageError("model=convnet7: the images are too small.")
        return SimpleNamespace(settings=s, steps=s.steps, memory=0)

    monkeypatch.setattr(build, "experiment", experiment)
    said = easgd("train", "-m", "dataset=digits,cifar10", "seed=0,1")
    assert (said.status, said.err) == (2, "easgd: dataset.root=data: no such data.\n")
    assert len(prepared) == 2  # one for each data set, not for each job
    assert list(here.iterdir()) == []
    said = easgd("train", "-m", "model=small,convnet7", "dataset=digits,synthetic")
    assert said.status == 0
    assert "left out: model=convnet7 dataset=digits. model=convnet7: the images are too small." in said.err
    assert names(launcher) == [
        "dataset=digits,model=small",
        "dataset=synthetic,model=small",
        "dataset=synthetic,model=convnet7",
    ]
    prepared.clear()
    assert easgd("train", "-m", "local=sgd,adam", "seed=0,1").status == 0
    assert [s.local["name"] for s in prepared[:2]] == ["sgd", "adam"]  # whose state takes memory


@pytest.mark.usefixtures("straight")
def test_a_failing_job_neither_stops_the_rest_nor_hides_its_reason(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    def behave(job: Job) -> Outcome:
        match job.settings.seed:
            case 0:
                raise RunError("the disk is full.")
            case 1:
                raise ZeroDivisionError("a defect")
            case 2:
                return finish(job, "failed", 1, "every worker has died")
            case 3:
                raise UsageError("no memory.")
            case _:
                return finish(job)

    launcher.behave = behave
    said = easgd("train", "-m", "seed=range(0,5)", "hydra.sweep.dir=mine")
    assert said.status == 1
    assert len(launcher.jobs) == 5
    reasons = ("the disk is full.", "ZeroDivisionError: a defect", "every worker has died", "no memory.")
    for seed, reason in enumerate(reasons):
        assert said.out.count(f"seed={seed}: failed: {reason}") == 2  # its line, and the closing table
        assert reason in (here / f"mine/logs/seed={seed}.log").read_text()
    assert said.out.count("[5/5] seed=4: completed, test error 2.50 %") == 1
    assert "Traceback" in (here / "mine/logs/seed=1.log").read_text()


@pytest.mark.usefixtures("straight")
def test_divergence_is_a_result(easgd: Easgd, launcher: Launcher) -> None:
    launcher.behave = lambda job: finish(job, "diverged", 0, "not finite at step 3")
    said = easgd("train", "-m", "eta=100,1000")
    assert said.status == 0
    assert said.out.count("diverged") >= 2


@pytest.mark.usefixtures("straight")
def test_an_interrupted_sweep_stops_and_goes_on_when_asked_again(easgd: Easgd, launcher: Launcher) -> None:
    def interrupt_second(job: Job) -> Outcome:
        if job.settings.seed == 1:
            leave_checkpoint(job.run_dir, 5)
            return finish(job, "interrupted", 143)
        return finish(job)

    launcher.behave = interrupt_second
    said = easgd("train", "-m", "seed=0,1,2")
    assert said.status == 143
    assert names(launcher) == ["seed=0", "seed=1"]
    assert "not started" in said.out

    launcher.jobs.clear()
    launcher.behave = finish
    assert easgd("train", "-m", "seed=0,1,2,3").status == 0  # more values are the same sweep
    assert [(job.run_dir.name, job.resume) for job in launcher.jobs] == [
        ("seed=1", True),
        ("seed=2", False),
        ("seed=3", False),
    ]
    launcher.jobs.clear()
    said = easgd("train", "-m", "seed=0,1,2,3")
    assert said.status == 0
    assert launcher.jobs == []
    assert said.out.count("already done") == 4


@pytest.mark.usefixtures("straight")
def test_jobs_that_failed_are_told_again_and_tried_again_only_if_asked(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    def behave(job: Job) -> Outcome:
        if job.settings.seed == 1:
            raise UsageError("there is no memory.")  # so no directory was left
        return finish(job, "failed" if job.settings.seed == 2 else "completed", 0, "every worker has died")

    launcher.behave = behave
    assert easgd("train", "-m", "seed=0,1,2", "hydra.sweep.dir=mine").status == 1
    launcher.behave = finish
    launcher.jobs.clear()
    said = easgd("train", "-m", "seed=0,1,2", "hydra.sweep.dir=mine")
    assert (said.status, launcher.jobs) == (1, [])
    for job, reason in (("seed=1", "there is no memory"), ("seed=2", "every worker has died")):
        assert f"{job}: failed: {reason}. That was before; retry=true tries it again." in said.out
    assert json.loads((here / "mine/sweep.json").read_text())["jobs"]["seed=1"] == {
        "status": "failed",
        "reason": "there is no memory.",
    }
    assert easgd("train", "-m", "seed=0,1,2", "hydra.sweep.dir=mine", "retry=true").status == 0
    assert names(launcher) == ["seed=1", "seed=2"]
    assert sorted(p.name for p in (here / "mine").iterdir() if p.is_dir()) == ["logs", "seed=0", "seed=1", "seed=2"]


@pytest.mark.usefixtures("straight")
def test_a_job_of_other_settings_has_a_directory_of_its_own(easgd: Easgd, launcher: Launcher) -> None:
    launcher.behave = finish
    assert easgd("train", "-m", "seed=0,1", "hydra.sweep.dir=mine").status == 0
    launcher.jobs.clear()
    assert easgd("train", "-m", "seed=0,1", "steps=7", "hydra.sweep.dir=mine").status == 0
    assert names(launcher) == ["seed=0.2", "seed=1.2"]
    launcher.jobs.clear()
    assert easgd("train", "-m", "seed=0,1", "hydra.sweep.dir=mine").status == 0
    assert launcher.jobs == []


@pytest.mark.usefixtures("straight")
def test_two_sweeps_at_once_share_the_jobs(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    easgd("train", "-m", "seed=0,1", "hydra.sweep.dir=mine")
    launcher.jobs.clear()
    with run_directory.held(here / "mine" / "seed=0"):
        said = easgd("train", "-m", "seed=0,1,2", "hydra.sweep.dir=mine")
    assert "running elsewhere" in said.out
    assert "seed=2" in names(launcher)
    jobs = json.loads((here / "mine/sweep.json").read_text())["jobs"]
    assert jobs == {f"seed={i}": {"status": "completed"} for i in range(3)}  # what the other has told of its job stands
    assert not (here / "mine" / "seed=0.2").exists()


@pytest.mark.usefixtures("straight")
def test_other_settings_are_another_sweep(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    for fixed in ([], ["steps=7"], ["steps=8"]):
        assert easgd("train", "-m", "seed=0,1", *fixed).status == 0
    assert len(list((here / "runs" / "sweeps").iterdir())) == 3


@pytest.mark.usefixtures("straight")
def test_an_experiment_sweeps_by_itself_and_the_command_line_replaces_its_values(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    (here / "own/experiment").mkdir(parents=True)
    (here / "own/experiment/fig.yaml").write_text(
        "# @package _global_\nsteps: 9\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      algo: "
        "easgd,eamsgd\n      tau: 1,4\n"
    )
    assert easgd("train", "experiment=fig", "-cd", "own").status == 0
    assert names(launcher) == ["algo=easgd,tau=1", "algo=easgd,tau=4", "algo=eamsgd,tau=1", "algo=eamsgd,tau=4"]
    assert launcher.jobs[0].run_dir.parent == here / "runs" / "sweeps" / "fig"
    assert launcher.jobs[0].settings.steps == 9
    launcher.jobs.clear()
    assert easgd("train", "experiment=fig", "tau=2", "-cd", "own").status == 0
    assert [(job.run_dir.name, job.settings.tau) for job in launcher.jobs] == [("algo=easgd", 2), ("algo=eamsgd", 2)]


def leave_a_record(job: Job) -> Outcome:
    """Leaves what a run of two evaluations leaves for a report."""
    rows = [
        {"seconds": float(s), "step": s, "exchanges": s, "party": "center", "test_error": 90.0 / job.settings.tau**s}
        for s in (0, 1)
    ]
    (job.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return finish(job)


@pytest.mark.usefixtures("straight")
@pytest.mark.usefixtures("undrawn")
def test_a_report_at_the_end_of_a_sweep_belongs_to_the_sweep_alone(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    (here / "own/experiment").mkdir(parents=True)
    (here / "own/experiment/fig.yaml").write_text(
        "# @package _global_\nreport: --levels 20,30\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n    "
        "  tau: 2,4\n"
    )
    launcher.behave = leave_a_record
    words, made = ("train", "experiment=fig", "-cd", "own"), here / "runs/sweeps/fig/report/report.html"
    said = easgd(*words, "report=null")
    assert said.status == 0 and not made.exists()
    said = easgd(*words)
    assert said.status == 0 and len(launcher.jobs) == 2  # the same sweep and the same runs: only the report is new
    assert made.is_file() and "22.5" in said.out and "Seconds to a test error of" in said.out
    made.unlink()
    assert easgd(*words, "report=--metric accuracy --levels 3,4").status == 0 and not made.exists()
    assert all(job.settings.report is None for job in launcher.jobs)
    said = easgd(*words, "tau=8,16", "hydra.sweep.dir=mine", "report='--levels 4'")
    assert said.status == 0 and (here / "mine/report/report.html").is_file()
    assert easgd("train", "experiment=fig", "-cd", "own", "hydra.mode=RUN", "hydra.run.dir=one").status == 0
    assert launcher.jobs[-1].settings.report is None and not (here / "one/report").exists()


@pytest.mark.usefixtures("straight")
def test_a_report_that_cannot_be_made_costs_a_sentence_and_an_interrupted_sweep_has_none(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    said = easgd("train", "-m", "seed=0,1", "report=", "hydra.sweep.dir=mine")  # this launcher leaves no record
    assert said.status == 0 and said.err.count("\n") == 1
    assert "the report on the sweep could not be made: " in said.err and "easgd report mine tries again" in said.err
    launcher.behave = lambda job: finish(job, "interrupted", 130)
    said = easgd("train", "-m", "seed=2,3", "report=", "hydra.sweep.dir=other")
    assert said.status == 130 and "report" not in said.err and not (here / "other/report").exists()


@pytest.mark.usefixtures("straight")
def test_a_setting_without_effect_is_told_once_for_each_method(easgd: Easgd) -> None:
    said = easgd("train", "-m", "algo=easgd,eamsgd", "delta=0.5", "tau=1,2", "seed=0,1")
    assert said.err == "easgd: delta=0.5 has no effect: algo=easgd has no momentum.\n"


def test_jobs_leave_no_state_in_each_other(easgd: Easgd, launcher: Launcher) -> None:
    drawn: list[float] = []

    def behave(job: Job) -> Outcome:
        drawn.append(random.random())
        return finish(job)

    launcher.behave = behave
    assert easgd("train", "-m", "seed=0,1").status == 0
    assert drawn[0] == drawn[1]


def test_two_sweeps_that_share_the_jobs_lose_no_word_of_each_other(tmp_path: Path) -> None:
    plan = Plan(tmp_path, {"tau": "tau=4"}, ["seed"], True, "1", False, None, [], [], "basic", "basic", None)
    one, other = SweepFile(plan, "easgd train -m"), SweepFile(plan, "easgd train -m")
    with one._alone() as jobs:  # between its reading and its writing
        meanwhile = threading.Thread(target=other.note, args=("seed=1", JobStatus("completed")))
        meanwhile.start()
        meanwhile.join(0.2)
        jobs["seed=0"] = {"status": "completed"}
    meanwhile.join()
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"].keys() == {"seed=0", "seed=1"}
