"""`easgd train -m`: what is refused, what is left out, what runs, and what the same command finds when it is given again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Launcher, Said, leave_checkpoint

from easgd_cli import build, rundir
from easgd_cli.commands import configs
from easgd_cli.config import Settings
from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher.job import Job, Outcome

Easgd = Callable[..., Said]
pytestmark = pytest.mark.usefixtures("unprepared")


def names(launcher: Launcher) -> list[str]:
    return [job.run_dir.name for job in launcher.jobs]


def finish(job: Job, status: str = "completed", code: int = 0, reason: str | None = None) -> Outcome:
    """Leaves what a run that ended leaves."""
    summary = {"status": status, "wall_seconds": 3.0, "center": {"test_error": 2.5, "best_test_error": 2.0}}
    (job.run_dir / "summary.json").write_text(json.dumps(summary))
    return Outcome(status, code, summary, reason)


def test_every_combination_runs_in_a_directory_named_by_what_differs(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    said = easgd("train", "-m", "algo=easgd,downpour", "tau=1,4", "steps=50")
    assert said.status == 0, said.err
    assert names(launcher) == ["algo=easgd,tau=1", "algo=easgd,tau=4", "algo=downpour,tau=1", "algo=downpour,tau=4"]
    assert len({job.run_dir.parent for job in launcher.jobs}) == 1
    assert launcher.jobs[0].run_dir.parent.parent == here / "runs" / "sweeps"
    assert [(j.settings.algo["name"], j.settings.tau, j.settings.steps) for j in launcher.jobs][1] == ("easgd", 4, 50)
    assert all(name in said.out for name in names(launcher))
    assert "tensorboard --logdir runs/sweeps/" in said.out


@pytest.mark.usefixtures("straight")
@pytest.mark.parametrize("words", ["tau=5 -m eta=1,2", "-m tau=5 eta=1,2", "tau=5 eta=1,2 --multirun", "tau=5 eta=1,2 hydra.mode=MULTIRUN"])
def test_options_stand_anywhere(words: str, easgd: Easgd, launcher: Launcher) -> None:
    assert easgd("train", *words.split()).status == 0
    assert names(launcher) == ["eta=1", "eta=2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tau=0,4", "tau=0: must be a whole number of at least 1."),
        ("algo=easgd,foo tau=1,2", "algo=foo: there is no such algo."),
        ("tua=1,2", "there is no setting tua; did you mean tau?"),
        ("tau=1,two", "tau=two: must be a whole number."),
        ("tau=4,4", "tau=4 is in it twice"),
        ("steps=5 epochs=2 seed=0,1", "give one of steps, epochs and minutes"),
        ("algo=mdownpour tau=4 seed=0,1", "MDOWNPOUR is defined for tau = 1 only"),
        ("hydra.verbose=true,false", "cannot be swept"),
        ("seed=0,1 hydra.run.dir=here", "hydra.run.dir=here: names the directory of one run"),
        ("eta=interval(0,1)", "an interval has no end of values"),
        ("resume=x tau=1,2", "one run is resumed at a time"),
        ("seed=0,1 hydra.sweep.dir=/dev/null/x", "the sweep's directory cannot be made"),
    ],
)
def test_what_is_wrong_by_itself_refuses_the_whole_sweep(words: str, sentence: str, easgd: Easgd, launcher: Launcher, here: Path) -> None:
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


@pytest.mark.usefixtures("straight")
def test_data_and_models_are_tried_before_the_first_run(easgd: Easgd, launcher: Launcher, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Settings] = []

    def prepare(s: Settings) -> None:
        prepared.append(s)
        if s.dataset["name"] == "cifar10":
            raise UsageError("dataset.root=data: no such data.")
        if s.model["name"] == "convnet7" and s.dataset["name"] == "digits":
            raise UsageError("model=convnet7: the images are too small.")

    monkeypatch.setattr(build, "prepare", prepare)
    said = easgd("train", "-m", "dataset=digits,cifar10", "seed=0,1")
    assert (said.status, said.err) == (2, "easgd: dataset.root=data: no such data.\n")
    assert len(prepared) == 2  # one for each data set, not for each job
    assert list(here.iterdir()) == []
    said = easgd("train", "-m", "model=small,convnet7", "dataset=digits,synthetic")
    assert said.status == 0
    assert "left out: model=convnet7 dataset=digits. model=convnet7: the images are too small." in said.err
    assert names(launcher) == ["dataset=digits,model=small", "dataset=synthetic,model=small", "dataset=synthetic,model=convnet7"]


@pytest.mark.usefixtures("straight")
def test_a_failing_job_neither_stops_the_rest_nor_hides_its_reason(easgd: Easgd, launcher: Launcher, capsys: pytest.CaptureFixture[str]) -> None:
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
    said = easgd("train", "-m", "seed=range(0,5)")
    assert said.status == 1
    assert len(launcher.jobs) == 5
    for reason in ("the disk is full.", "ZeroDivisionError", "every worker has died", "no memory."):
        assert reason in said.err
        assert reason.rstrip(".") in said.out  # the closing table
    assert "Traceback" in said.err


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
    assert [(job.run_dir.name, job.resume) for job in launcher.jobs] == [("seed=1", True), ("seed=2", False), ("seed=3", False)]
    launcher.jobs.clear()
    said = easgd("train", "-m", "seed=0,1,2,3")
    assert said.status == 0
    assert launcher.jobs == []
    assert said.out.count("already done") == 4


@pytest.mark.usefixtures("straight")
def test_a_job_that_failed_or_had_other_settings_gets_a_new_directory(easgd: Easgd, launcher: Launcher) -> None:
    launcher.behave = lambda job: finish(job, "failed", 1, "no")
    assert easgd("train", "-m", "seed=0,1", "hydra.sweep.dir=mine").status == 1
    launcher.behave = finish
    launcher.jobs.clear()
    assert easgd("train", "-m", "seed=0,1", "hydra.sweep.dir=mine").status == 0
    assert names(launcher) == ["seed=0.2", "seed=1.2"]
    launcher.jobs.clear()
    assert easgd("train", "-m", "seed=0,1", "steps=7", "hydra.sweep.dir=mine").status == 0
    assert names(launcher) == ["seed=0.3", "seed=1.3"]
    launcher.jobs.clear()
    assert easgd("train", "-m", "seed=0,1", "hydra.sweep.dir=mine").status == 0
    assert launcher.jobs == []


@pytest.mark.usefixtures("straight")
def test_two_sweeps_at_once_share_the_jobs(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    easgd("train", "-m", "seed=0,1", "hydra.sweep.dir=mine")
    launcher.jobs.clear()
    with rundir.held(here / "mine" / "seed=0"):
        said = easgd("train", "-m", "seed=0,1,2", "hydra.sweep.dir=mine")
    assert "running elsewhere" in said.out
    assert "seed=2" in names(launcher)
    assert not (here / "mine" / "seed=0.2").exists()


@pytest.mark.usefixtures("straight")
def test_other_settings_are_another_sweep(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    for fixed in ([], ["steps=7"], ["steps=8"]):
        assert easgd("train", "-m", "seed=0,1", *fixed).status == 0
    assert len(list((here / "runs" / "sweeps").iterdir())) == 3


@pytest.mark.usefixtures("straight")
def test_an_experiment_sweeps_by_itself_and_the_command_line_replaces_its_values(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    (here / "own/experiment").mkdir(parents=True)
    (here / "own/experiment/fig.yaml").write_text(
        "# @package _global_\nsteps: 9\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      algo: easgd,eamsgd\n      tau: 1,4\n"
    )
    assert easgd("train", "experiment=fig", "-cd", "own").status == 0
    assert names(launcher) == ["algo=easgd,tau=1", "algo=easgd,tau=4", "algo=eamsgd,tau=1", "algo=eamsgd,tau=4"]
    assert launcher.jobs[0].run_dir.parent == here / "runs" / "sweeps" / "fig"
    assert launcher.jobs[0].settings.steps == 9
    launcher.jobs.clear()
    assert easgd("train", "experiment=fig", "tau=2", "-cd", "own").status == 0
    assert [(job.run_dir.name, job.settings.tau) for job in launcher.jobs] == [("algo=easgd", 2), ("algo=eamsgd", 2)]


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


def test_another_sweeper_or_launcher_of_hydras_gets_the_jobs(easgd: Easgd, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is then a run in a process of its own. The sweeper here is Hydra's basic one under another name."""
    monkeypatch.setenv("PYTHONPATH", str(configs.directory().parent))
    (here / "own/hydra/sweeper").mkdir(parents=True)
    (here / "own/hydra/sweeper/mine.yaml").write_text("_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper\nmax_batch_size: null\nparams: null\n")
    (here / "own/launcher").mkdir()
    (here / "own/launcher/noting.yaml").write_text("name: noting\ntarget: noting:Noting\n")
    (here / "noting.py").write_text(
        "from easgd_cli.launcher.job import Outcome\n"
        "class Noting:\n"
        "    def begin(self): pass\n"
        "    def __call__(self, job, prepared):\n"
        "        (job.run_dir / 'ran').write_text(str(job.settings.tau))\n"
        "        return Outcome('completed', 0, {}) if job.settings.tau > 3 else Outcome('failed', 1, {}, 'too short')\n"
    )
    words = ["train", "-m", "launcher=noting", "hydra/sweeper=mine", "-cd", "own", "hydra.sweep.dir=swept"]
    assert easgd(*words, "tau=4").status == 0
    [ran] = (here / "swept").glob("*/ran")
    assert ran.read_text() == "4"
    said = easgd(*words, "tau=3")
    assert said.status == 1
    assert "ended with status 1" in said.err
