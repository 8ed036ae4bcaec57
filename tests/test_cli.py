"""`easgd train` as a user meets it: what it understands, what it refuses and in which words, and the directory it makes."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml
from conftest import Launcher, Said

from easgd_cli import __version__, rundir
from easgd_cli.commands import arguments, compose, configs
from easgd_cli.config import Group, Settings
from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher.job import Job, Outcome

Easgd = Callable[..., Said]

# What is typed, and what the answer must name: the key and value, the rule, the remedy.
MISTAKES = [
    ("tua=10", ["tua=10: there is no setting tua", "did you mean tau?"]),
    ("tau=ten", ["tau=ten: must be a whole number"]),
    ("tau=0", ["tau=0: must be a whole number of at least 1"]),
    ("tau=1.5", ["tau=1.5: must be a whole number"]),
    ("tau=", ["tau=: must be a whole number"]),
    ("seed=null", ["seed=null: must be a whole number"]),
    ("workers=0", ["workers=0: must be a whole number of at least 1"]),
    ("batch_size=-3", ["batch_size=-3: must be a whole number of at least 1"]),
    ("eta=true", ["eta=true: must be a number"]),
    ("eta=nan", ["eta=nan: must be a finite number"]),
    ("eta=???", ["eta=???", "a value that is missing"]),
    ("eta=${nope}", ["eta=${nope}", "cannot be resolved", "'nope' not found"]),
    ("eta=0,1", ["eta=0,1: several values are a sweep", "-m"]),
    ("lr=0.1", ["lr=0.1: there is no setting lr", "did you mean eta?"]),
    ("eval.evry='30 s'", ["eval.evry=30 s: there is no setting eval.evry", "did you mean eval.every?"]),
    ("test_error=3", ["did you mean until.test_error?"]),
    ("tau.x=1", ["tau.x=1: tau is a single value"]),
    ("until=5", ["until=5: until is a section", "until.test_error="]),
    ("eval.every=30", ["eval.every=30: an interval is a positive number with a unit"]),
    ("steps=5 epochs=2", ["give one of steps, epochs and minutes"]),
    ("alpha=0.1 beta=0.9", ["alpha=0.1 beta=0.9: give one of the two"]),
    ("algo=foo", ["algo=foo: there is no such algo", "downpour, eamsgd, easgd", "algo=my_module:MyMethod"]),
    ("algo=eamsdg", ["algo=eamsdg: there is no such algo; did you mean eamsgd?"]),
    ("algo=", ["algo=: there is no such algo"]),
    ("algo=null", ["algo=null: is not a name"]),
    ("algo.mu=1", ["algo.mu=1: easgd has no such setting"]),
    ("algo.tau=3", ["algo.tau=3: tau is a setting of the run", "write tau="]),
    ("algo=mdownpour tau=4", ["tau=4: MDOWNPOUR is defined for tau = 1 only", "write tau=1"]),
    ("algo=sgd workers=4", ["algo=sgd workers=4: sgd is one worker without exchange; use workers=1"]),
    ("dataset=digit", ["dataset=digit: there is no such dataset; did you mean digits?"]),
    ("dataset=cifar10 dataset.root=nowhere dataset.download=false", ["nowhere"]),
    ("model=convnet7", ["convnet7", "8x8"]),
    ("experiment=fig0", ["experiment=fig0: there is no such experiment"]),
    ("tuning=foo", ["tuning=foo: there is no setting tuning"]),
    ("schedule=stepwise", ["schedule=stepwise needs schedule.milestones"]),
    ("schedule=stepwise schedule.milestones=5", ["schedule.milestones=5: must be a list"]),
    ("init=nofile.pt", ["init=nofile.pt: there is no such file"]),
    ("device=tpu", ["device=tpu: is auto, cpu, cuda"]),
    ("device=cuda:7,cuda:8", ["device=cuda:7,cuda:8: this machine shows"]),
    ("=5", ["=5: there is no key before the ="]),
    ("+new=1", ["+new=1: settings cannot be added"]),
    ("~tau", ["~tau: a setting cannot be removed"]),
    ("tau=1 tau=2", ["tau=1 tau=2: tau is given twice"]),
    ("algo=easgd algo=downpour", ["algo is given twice"]),
    ("tau", ["tau: settings are written key=value, such as tau=10"]),
    ("l2=a=b", ["l2=a=b: the value cannot be read", "quotes"]),
    ("--tau 10", ["--tau: there is no such option", "tau=VALUE"]),
    ("--cfg everything", ["--cfg", "invalid choice"]),
    ("--config-dir nowhere", ["--config-dir nowhere: there is no such directory"]),
    ("hydra.run.dr=x", ["did you mean hydra.run.dir?"]),
    ("hydra/launcher=slurm", ["hydra/launcher=slurm", "There are: basic"]),
    ("hydra.run.dir=/dev/null/run", ["hydra.run.dir=/dev/null/run: the directory of the run cannot be made", "choose another with hydra.run.dir="]),
    ("resume=nowhere", ["resume=nowhere: there is no such directory"]),
    ("algo=nomodule:M", ["algo=nomodule:M: there is no module nomodule"]),
    ("algo=easgd_cli.algorithms:EASDG eta=1 steps=1", ["did you mean easgd_cli.algorithms:EASGD?"]),
    ("algo=easgd_cli.algorithms:EASGD steps=1", ["There is no default eta for algo=easgd_cli.algorithms:EASGD with dataset=digits: write eta="]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "parts"), MISTAKES, ids=[w for w, _ in MISTAKES])
def test_a_mistake_is_one_sentence_before_anything_is_started_or_made(words: str, parts: list[str], easgd: Easgd, launcher: Launcher, here: Path) -> None:
    said = easgd("train", *shlex.split(words))
    assert said.status == 2
    assert all(part in said.err for part in parts), said.err
    assert said.err.startswith("easgd: ")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    assert launcher.jobs == []
    assert list(here.iterdir()) == []


def test_a_refusal_does_not_wait_for_torch(here: Path) -> None:
    """tau=0, help and version are answered by what loads in a moment; help without a command loads not even Hydra."""
    code = (
        "import sys; from easgd_cli.__main__ import main\n"
        "assert main(['--help']) == main(['--version']) == 0 and 'hydra' not in sys.modules\n"
        "assert main(['train', '--help']) == 0 and main(['train', 'tau=0']) == 2 and main(['train', 'algo=mdownpour', 'tau=4']) == 2\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=here, env={**os.environ, "PYTHONPATH": str(configs.directory().parent)}
    )
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout


def test_help_shows_every_setting_with_its_comment_and_every_option(easgd: Easgd) -> None:
    text = easgd("train", "--help").out
    kinds = get_type_hints(Settings)
    for f in fields(Settings):
        if is_dataclass(kinds[f.name]):
            assert all(f"{f.name}.{inner.name}=" in text for inner in fields(kinds[f.name]))
        elif kinds[f.name] != Group and f.name != "default_steps":
            assert f"  {f.name}=" in text
    for group in ("algo", "dataset", "model", "schedule", "launcher"):
        assert all(f"    {name}" in text for name in configs.options(group))
    assert "communication period" in text
    assert "dataset.root=data" in text


def test_commands_are_suggested(easgd: Easgd) -> None:
    assert "did you mean easgd train?" in easgd("trian").err
    assert "write easgd train tau=10" in easgd("tau=10").err


def composed(*overrides: str) -> Settings:
    with compose.composing("config") as job:
        return job(overrides).settings


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "synthetic"])
@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour", "sgd", "msgd"])
def test_every_method_has_defaults_for_every_data_set(algo: str, dataset: str) -> None:
    s = composed(f"algo={algo}", f"dataset={dataset}")
    assert s.eta > 0
    assert s.default_steps
    assert s.batch_size == (32 if dataset == "digits" else 128)
    assert s.model["name"] == ("small" if dataset == "digits" else "convnet7")
    assert s.tau == (1 if "downpour" in algo else 10)
    assert s.workers == (1 if algo in ("sgd", "msgd") else 4)


def test_the_command_line_wins_over_what_methods_data_sets_and_tuning_set() -> None:
    s = composed("algo=downpour", "dataset=cifar10", "tau=7", "model=small", "eta=0.5", "batch_size=3", "workers=2")
    assert (s.tau, s.model["name"], s.eta, s.batch_size, s.workers) == (7, "small", 0.5, 3, 2)


def test_paths_need_no_quotes(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    said = easgd("train", "init=runs/a=b,c d/center.pt", "hydra.run.dir=out/x=1,y=(2) # z", "device=cuda:0,cuda:1")
    assert said.status == 0
    [job] = launcher.jobs
    assert job.settings.init == "runs/a=b,c d/center.pt"
    assert job.settings.device == "cuda:0,cuda:1"
    assert job.run_dir == here / "out" / "x=1,y=(2) # z"


@pytest.mark.parametrize("text", ["plain", "it's", "back\\slash", "end\\", "quote\\'s", "a=b,c", "${x}", "ümlaut #;()[]{}", '"double"'])
def test_quoting_is_undone_by_hydra(text: str) -> None:
    [override] = arguments.parse_overrides([f"init={arguments.quote(text)}"])
    assert override.value() == text


def test_a_run_has_a_directory_of_its_own_with_its_settings(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    for _ in range(3):
        assert easgd("train", "algo=eamsgd", "eval.every=30 s", "tau=4", "hydra.run.dir=out/run").status == 0
    assert sorted(p.name for p in (here / "out").iterdir()) == ["run", "run.2", "run.3"]
    assert [j.run_dir.name for j in launcher.jobs] == ["run", "run.2", "run.3"]
    job = launcher.jobs[0]
    assert compose.resumed("out/run/config.yaml", [], {}) == job.settings
    assert yaml.safe_load((here / "out/run/overrides.yaml").read_text()) == job.overrides == ["algo=eamsgd", "eval.every=30 s", "tau=4"]
    assert job.command == "easgd train algo=eamsgd 'eval.every=30 s' tau=4 hydra.run.dir=out/run"


def test_the_default_directory_is_named_by_date_and_overrides(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    said = easgd("train", "tau=4", "algo=eamsgd")
    [path] = (here / "runs").iterdir()
    assert path.name[19:] == "_algo=eamsgd,tau=4"
    assert f"tensorboard --logdir runs/{path.name}" in said.out
    easgd("train")
    assert sorted(len(p.name) for p in (here / "runs").iterdir())[0] == 19


def test_names_hold_what_every_file_system_takes() -> None:
    assert rundir.named_by(["tau=4", "init='a b/ü.pt'", "eta=1e+3"]) == "eta=1e3,init=a-b-.pt,tau=4"
    long = [f"algo.parameter_{i}=0.123456789" for i in range(20)]
    assert rundir.named_by(long) != rundir.named_by([*long[:-1], "algo.parameter_19=0.2"])
    assert len(rundir.named_by(long)) == 120 + 1 + 8
    assert len("2026-11-23_22-30-00" + rundir.named_by(long, prefix="_")) == 120 + 1 + 8


def test_settings_without_effect_are_told_once(easgd: Easgd, unprepared: None) -> None:
    said = easgd("train", "algo=sgd", "tau=3", "delta=0.5", "alpha=0.2", "schedule=constant", "gamma=0.1")
    assert said.status == 0
    assert [line.split(" has no effect")[0] for line in said.err.splitlines()] == ["easgd: alpha=0.2", "easgd: delta=0.5", "easgd: gamma=0.1", "easgd: tau=3"]
    assert easgd("train", "algo=eamsgd", "tau=3", "delta=0.5", "alpha=0.2", "gamma=0.1").err == ""
    assert "only exchange is before the first step" in easgd("train", "steps=10", "tau=10").err


def test_the_exit_status_is_the_launchers(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    for status, code in (("completed", 0), ("diverged", 0), ("failed", 1), ("interrupted", 130), ("interrupted", 143)):
        launcher.behave = lambda job, status=status, code=code: Outcome(status, code, {}, "the reason")  # type: ignore[misc]
        said = easgd("train", "hydra.run.dir=run")
        assert said.status == code
        assert ("the reason" in said.err) == (status == "failed")
        assert "resume=" not in said.out  # there is no checkpoint to go on from


def test_an_interrupted_run_says_how_to_go_on(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    def interrupted(job: Job) -> Outcome:
        (job.run_dir / "checkpoint").mkdir()
        return Outcome("interrupted", 130, {}, "SIGINT received")

    launcher.behave = interrupted
    assert "train resume=run" in easgd("train", "hydra.run.dir=run").out


def test_a_run_refused_by_its_launcher_leaves_no_directory_and_one_that_failed_does(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    def refuse(job: Job) -> Outcome:
        raise UsageError("workers=4: no memory for so many.")

    def fail(job: Job) -> Outcome:
        raise RunError("the disk is full.")

    launcher.behave = refuse
    said = easgd("train", "hydra.run.dir=run")
    assert (said.status, said.err) == (2, "easgd: workers=4: no memory for so many.\n")
    assert not (here / "run").exists()
    launcher.behave = fail
    said = easgd("train", "hydra.run.dir=run")
    assert (said.status, said.err) == (1, "easgd: the disk is full.\n")
    assert (here / "run" / "config.yaml").exists()


def test_a_defect_shows_where_it_is(easgd: Easgd, launcher: Launcher, unprepared: None) -> None:
    def stumble(job: Job) -> Outcome:
        raise ZeroDivisionError

    launcher.behave = stumble
    with pytest.raises(ZeroDivisionError):
        easgd("train")


def test_a_configuration_that_cannot_be_written_is_a_refusal(easgd: Easgd, here: Path, unprepared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    said = easgd("train", "hydra.run.dir=run")
    assert said.status == 2
    assert "No space left on device" in said.err
    assert list(here.iterdir()) == []


def test_a_run_leaves_this_process_as_it_was(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, list(sys.argv), dict(os.environ), os.getcwd(), torch.get_num_threads(), torch.get_rng_state())

    def untidy(job: Job) -> Outcome:
        root.addHandler(logging.FileHandler(job.run_dir / "log"))
        root.setLevel(logging.DEBUG)
        os.environ["EASGD_TEST"] = "1"
        os.chdir(job.run_dir)
        torch.set_num_threads(1 if before[5] > 1 else 2)
        torch.manual_seed(5)
        return Outcome("completed", 0, {})

    launcher.behave = untidy
    assert easgd("train").status == 0
    after = (list(root.handlers), root.level, list(sys.argv), dict(os.environ), os.getcwd(), torch.get_num_threads(), torch.get_rng_state())
    assert after[:-1] == before[:-1]
    assert torch.equal(after[-1], before[-1])


OWN = """
from dataclasses import dataclass
import torch
from easgd_cli.algorithms import Exchange, Gradient, Method

@dataclass(frozen=True)
class Mine(Method):
    alpha: float
    mu: float = 0.5
    def __post_init__(self):
        if self.mu > 1:
            raise ValueError(f"algo.mu={self.mu}: at most 1.")
    def step(self, w):
        g, center = yield Gradient(w.x), Exchange(w.x) if w.due else None
        w.x.sub_(g, alpha=w.eta)
    def receive(self, center, m, reply, n):
        reply.copy_(center.x)

class Net(torch.nn.Sequential):
    def __init__(self, num_classes: int, input_shape, hidden: int):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(36, hidden), torch.nn.Linear(hidden, num_classes))

def data(n: int = 40, side: int = 6):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, side, side, generator=g), torch.arange(n) % 3, torch.rand(n, 1, side, side, generator=g), torch.arange(n) % 3
"""


def test_a_users_own_method_model_and_data_bring_their_settings(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    (here / "mine.py").write_text(OWN)
    words = ["train", "algo=mine:Mine", "model=mine:Net", "dataset=mine:data", "eta=0.1", "steps=20"]
    said = easgd(*words, "algo.mu=0.9", "model.hidden=7", "dataset.validation=6")
    assert said.status == 0, said.err
    s = launcher.jobs[0].settings
    assert s.algo == {"name": "mine:Mine", "target": "mine:Mine", "mu": 0.9}  # alpha is the run's, not the method's own
    assert s.model == {"name": "mine:Net", "target": "mine:Net", "hidden": 7}
    assert s.dataset == {"name": "mine:data", "target": "mine:data", "n": 40, "side": 6, "validation": 6}
    assert compose.resumed(str(launcher.jobs[0].run_dir / "config.yaml"), [], {}) == s
    assert "model=mine:Net needs model.hidden" in easgd(*words).err
    assert "algo.nu=1: mine:Mine has no such setting; did you mean algo.mu?" in easgd(*words, "algo.nu=1").err
    assert "algo.mu=high: must be a number" in easgd(*words, "model.hidden=7", "algo.mu=high").err
    assert "algo.mu=2.0: at most 1." in easgd(*words, "model.hidden=7", "algo.mu=2").err
    assert "mine has no Mien; did you mean mine:Mine?" in easgd("train", "algo=mine:Mien").err


def test_a_directory_of_own_configurations(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    for name, text in {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /algo: downpour\ntau: 6\nsteps: 77\n",
        "algo/easgd.yaml": "name: shadow\ntarget: nowhere:nothing\n",
    }.items():
        (here / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "own" / name).write_text(text)
    said = easgd("train", "experiment=mine", "seed=3", "--config-dir", "own")
    assert said.status == 0, said.err
    assert "its algo/easgd.yaml is not used" in said.err
    s = launcher.jobs[0].settings
    assert (s.algo["name"], s.tau, s.steps, s.seed, s.eta) == ("downpour", 6, 77, 3, composed("algo=downpour").eta)


def test_hydra_shows_the_composed_settings(easgd: Easgd, launcher: Launcher) -> None:
    shown = yaml.safe_load(easgd("train", "--cfg", "job", "tau=4", "algo=eamsgd").out)
    assert (shown["tau"], shown["algo"]["name"]) == (4, "eamsgd")
    assert easgd("train", "--cfg", "job", "tua=4").status == 2
    assert launcher.jobs == []


def test_completion_knows_keys_and_options(easgd: Easgd, monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, offered in {"easgd train algo=eam": "algo=eamsgd", "easgd train tau=3 eval.ev": "eval.every="}.items():
        monkeypatch.setenv("COMP_LINE", typed)
        monkeypatch.setenv("COMP_POINT", str(len(typed)))
        assert easgd("-sc", "query=bash").out.split() == offered.split()


INTERRUPTED = """
import json, os, signal
from mine import data as own_data

def data():
    try:
        os.kill(os.getpid(), signal.{number})
    except BaseException:
        pass  # as a library's callback loses it
    return own_data()

def at_once(job, prepared):
    os.kill(os.getpid(), signal.{number})

def late(job, prepared):
    (job.run_dir / "summary.json").write_text(json.dumps({{"status": "running"}}))
    at_once(job, prepared)
"""


@pytest.mark.parametrize(
    ("word", "number", "status", "line", "left"),
    [
        ("dataset=interrupted:data", "SIGINT", 130, "interrupted", False),
        ("launcher=interrupted:at_once", "SIGTERM", 143, "terminated", False),
        ("launcher=interrupted:late", "SIGINT", 130, "interrupted", True),
    ],
)
def test_a_signal_before_training_ends_the_command(word: str, number: str, status: int, line: str, left: bool, here: Path) -> None:
    """While data are loaded, when the directory has been made, and once a summary in it says that a run has begun."""
    (here / "mine.py").write_text(OWN)
    (here / "interrupted.py").write_text(INTERRUPTED.format(number=number))
    words = [word] if word.startswith("dataset") else ["dataset=mine:data", word]
    command = [sys.executable, "-m", "easgd_cli", "train", *words, "eta=0.1", "steps=50", "hydra.run.dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env={**os.environ, "PYTHONPATH": str(configs.directory().parent)})
    assert (done.returncode, done.stderr) == (status, f"easgd: {line}.\n")
    assert (here / "run").exists() == left
