"""Habits and mistakes of Hydra's users: what works as they write it, and that every remedy which a sentence proposes is
one.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher, Said
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

import easgd_cli
from easgd_cli.commands import configs, plugins, sweep
from easgd_cli.sweeps.executor import Begin, Tell
from easgd_cli.sweeps.hydra_executor import HydraExecutor
from easgd_cli.sweeps.job_status import JobStatus
from easgd_cli.sweeps.plan import Plan, SweepJob

Easgd = Callable[..., Said]


@pytest.fixture
def handed(here: Path, monkeypatch: pytest.MonkeyPatch, unprepared: None) -> list[list[str]]:
    """Hydra's basic plugins under the names of others, so that no test needs one. What they were asked to run, which is
    dropped.
    """
    Plugins.instance()  # stores those that are installed
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
    basic = "hydra._internal.core_plugins.basic_"
    for name in ("submitit_slurm", "joblib"):
        store.store(name, {"_target_": f"{basic}launcher.BasicLauncher", "n_jobs": 1}, group="hydra/launcher")
    store.store(
        "optuna",
        {"_target_": f"{basic}sweeper.BasicSweeper", "params": None, "max_batch_size": None},
        group="hydra/sweeper",
    )
    monkeypatch.setattr(plugins, "_installed", lambda module: True)
    monkeypatch.setattr(plugins.shutil, "which", lambda program: program)  # type: ignore[attr-defined]
    asked: list[list[str]] = []

    class Noting(HydraExecutor):
        def __init__(self, plan: Plan, words: Sequence[str], *others: Any):
            asked.append(list(words))
            super().__init__(plan, words, *others)

        def run(self, jobs: Sequence[SweepJob], begin: Begin, on_change: Tell, look: Callable[[], None]) -> int:
            for job in jobs:
                on_change(job.name, JobStatus("completed"))
            return 0

    monkeypatch.setattr(sweep, "HydraExecutor", Noting)
    return asked


# What is typed, what the answer proposes, and what is typed then: the mistake mended as it says.
REMEDIES = [
    ("tua=3", "did you mean tau?", "tau=3"),
    ("lr=0.1", "did you mean eta?", "eta=0.1"),
    ("eval.evry='30 s'", "did you mean eval.every?", "eval.every='30 s'"),
    ("test_error=3", "did you mean until.test_error?", "until.test_error=3"),
    ("algo=EASGD", "did you mean easgd?", "algo=easgd"),
    ("dataset=CIFAR10", "did you mean cifar10?", "dataset=cifar10"),
    ("dataset=fashion-mnist eta=1 steps=99", "did you mean fashion_mnist?", "dataset=fashion_mnist eta=1 steps=99"),
    ("model=ResNet-18", "write model=torchvision model.name=resnet18", "model=torchvision model.name=resnet18"),
    ("optimizer=adam", "such as algo=easgd local=adamw", "algo=easgd local=adamw"),
    ("gpus=2", "did you mean device?", "device=cpu"),
    ("run_dir=out", "did you mean hydra.run.dir?", "hydra.run.dir=out"),
    ("nodes=2 tau=1,2", "-m hydra/launcher=submitit_slurm", "-m hydra/launcher=submitit_slurm tau=1,2"),
    ("sweeper=optuna", "did you mean hydra/sweeper?", "-m hydra/sweeper=optuna tau=1,2 dataset.validation=9"),
    ("launcher=slurm tau=1,2", "-m hydra/launcher=submitit_slurm", "-m hydra/launcher=submitit_slurm tau=1,2"),
    (
        "-m tau=1,2 hydra.launcher=submitit_slurm",
        "with a slash: hydra/launcher=submitit_slurm",
        "-m tau=1,2 hydra/launcher=submitit_slurm",
    ),
    (
        "-m tau=1,2 hydra.sweeper=optuna dataset.validation=9",
        "with a slash: hydra/sweeper=optuna",
        "-m tau=1,2 hydra/sweeper=optuna dataset.validation=9",
    ),
    ("hydra.job_logging=disabled", "with a slash: hydra/job_logging=disabled", "hydra/job_logging=disabled"),
    ("hydra.env=default", "with a slash: hydra/env=default", "hydra/env=default"),
    ("hydra.run=out", "write one of hydra.run.dir=", "hydra.run.dir=out"),
    ("hydra.run.dr=out", "did you mean hydra.run.dir?", "hydra.run.dir=out"),
    ("+hydra.run.dir=out", "write hydra.run.dir=out without the +", "hydra.run.dir=out"),
    ("hydra.job.env_set.A=1", "a + adds it: +hydra.job.env_set.A=1", "+hydra.job.env_set.A=1"),
    ("'hydra.job.env_set={A: 1}'", "a + adds it: +hydra.job.env_set={A: 1}", "'+hydra.job.env_set={A: 1}'"),
    ("hydra.job.env_set=1", "write +hydra.job.env_set.NAME=VALUE", "+hydra.job.env_set.A=1"),
    (
        "-m hydra.launcher.n_jobs=2 tau=1,2",
        "with hydra/launcher=",
        "-m hydra.launcher.n_jobs=2 tau=1,2 hydra/launcher=joblib",
    ),
    ("hydra.searchpath=own", "such as 'hydra.searchpath=[own]'", "'hydra.searchpath=[own]'"),
    (
        "'hydra.searchpath=[nowhere]'",
        "'hydra.searchpath=[file:///path/to/it]'",
        "'hydra.searchpath=[file://{here}/own]'",
    ),
    ("hydra.sweep.dir=x tau=1,2", "-m", "-m hydra.sweep.dir=x tau=1,2"),
    ("algo@x=easgd", "write algo=easgd without the @", "algo=easgd"),
    ("--config-name experiment/fig2_small", "write experiment=fig2_small", "experiment=fig2_small hydra.mode=RUN"),
    ("-m 'hydra.sweeper.params={{tau: [1,2]}}'", "have no brackets: -m tau=1,2", "-m tau=1,2"),
    ("-m 'tau=[1,2]'", "have no brackets: -m tau=1,2", "-m tau=1,2"),
    ("tau=1,2", "-m asks for", "-m tau=1,2"),
    ("model=mlp model.hidden=3 init_without=fc", "such as 'init_without=[fc]'", ""),
    ("minutes=5m", "without a unit: minutes=5", "minutes=5"),
    ("algo.tau=3", "write tau=", "tau=3"),
    ("launcher.latency=0.1", "launcher=simulated", "launcher.latency=0.1 launcher=simulated"),
    ("'l2=a=b'", "'l2='\"'\"'a=b'\"'\"''", ""),
]


@pytest.mark.parametrize(("mistake", "proposed", "mended"), REMEDIES, ids=[m for m, _, _ in REMEDIES])
def test_every_remedy_is_one(
    mistake: str, proposed: str, mended: str, easgd: Easgd, launcher: Launcher, here: Path, handed: object
) -> None:
    (here / "own").mkdir()
    mistake = mistake.replace("{{", "{").replace("}}", "}")
    said = easgd("train", *shlex.split(mistake))
    assert (said.status, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert proposed in said.err, said.err
    assert launcher.jobs == []
    if mended:
        said = easgd("train", *shlex.split(mended.replace("{here}", str(here))))
        assert (said.status, said.err) == (0, "")


IN_FILES = [
    ("tau: 3\n", "# @package _global_ is its first line", "# @package _global_\ntau: 3\n"),
    (
        "algo: eamsgd\n",
        "# @package _global_ is its first line",
        "# @package _global_\ndefaults:\n  - override /algo: eamsgd\n",
    ),
    (
        "# @package _global_\nalgo: eamsgd\n",
        "write - override /algo: eamsgd there",
        "# @package _global_\ndefaults:\n  - override /algo: eamsgd\n",
    ),
    (
        "# @package _global_\ndefaults:\n  - /algo: eamsgd\n",
        "write - override /algo: eamsgd there",
        "# @package _global_\ndefaults:\n  - override /algo: eamsgd\n",
    ),
    (
        "# @package _global_\ndefaults:\n  - override /algos: eamsgd\n",
        "algos: there is no setting algos; did you mean algo?",
        "# @package _global_\ndefaults:\n  - override /algo: eamsgd\n",
    ),
    (
        "# @package _global_\nhydra:\n  launcher: joblib\n",
        "write - override /hydra/launcher: joblib there",
        "# @package _global_\ndefaults:\n  - override /hydra/launcher: joblib\nhydra:\n  mode: MULTIRUN\n",
    ),
]


@pytest.mark.parametrize(("text", "proposed", "mended"), IN_FILES)
def test_every_remedy_for_a_file_is_one(
    text: str, proposed: str, mended: str, easgd: Easgd, launcher: Launcher, here: Path, handed: object
) -> None:
    file = here / "own/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    words = ["train", "--config-dir", "own", "experiment=mine"]
    said = easgd(*words)
    assert (said.status, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert proposed in said.err, said.err
    assert launcher.jobs == []
    file.write_text(mended)
    assert easgd(*words).status == 0
    if "algo" in mended:
        assert launcher.jobs[0].settings.algo["name"] == "eamsgd"


@pytest.mark.usefixtures("unprepared")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["++steps=20"], {"steps": 20}),
        (["+tau=3"], {"tau": 3}),
        (["~clip"], {"clip": None}),
        (["~clip=2"], {"clip": None}),
        (["~experiment"], {"tau": 10}),
        (["experiment=null"], {"tau": 10}),
        (["~hydra/launcher"], {"tau": 10}),
        (["++hydra.run.dir=out"], {"tau": 10}),
        (["hydra.sweeper.params.tau=3"], {"tau": 3}),
    ],
)
def test_what_hydra_tells_apart_and_settings_do_not(
    words: list[str], expected: dict[str, object], easgd: Easgd, launcher: Launcher
) -> None:
    said = easgd("train", *words)
    assert (said.status, said.err) == (0, "")
    assert {key: getattr(launcher.jobs[0].settings, key) for key in expected} == expected


@pytest.mark.usefixtures("unprepared", "straight")
@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["schedule=glob(c*)"], ["schedule=constant", "schedule=cosine"]),
        (["schedule=glob(*,exclude=c*)", "schedule.milestones=[5]"], ["schedule=stepwise"]),
        (["experiment=glob(min*)", "--config-dir", "own"], ["experiment=mine"]),
        (["hydra.sweeper.params.tau=1,4"], ["tau=1", "tau=4"]),
        (['hydra.sweeper.params.tau="1,4"'], ["tau=1", "tau=4"]),
        (['+hydra.sweeper.params.tau="1,4"'], ["tau=1", "tau=4"]),
        (['++hydra.sweeper.params.tau="1,4"'], ["tau=1", "tau=4"]),
        (['hydra.sweeper.params={tau: "1,4"}'], ["tau=1", "tau=4"]),
        (['+hydra.sweeper.params={tau: "1,4", dataset.validation: 9}'], ["tau=1", "tau=4"]),
        (["experiment=mine", "~hydra.sweeper.params.eta", "--config-dir", "own"], ["tau=2", "tau=3"]),
        (["+experiment=mine", "hydra.sweeper.params.eta=0.5", "--config-dir", "own"], ["tau=2", "tau=3"]),
    ],
)
def test_values_of_a_sweep_in_every_form(
    words: list[str], values: list[str], easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    (here / "own/experiment").mkdir(parents=True)
    text = (
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      tau: 2,3\n      eta: 0.1,0.2\n"
    )
    (here / "own/experiment/mine.yaml").write_text(text if "glob" not in words[0] else "# @package _global_\ntau: 3\n")
    said = easgd("train", "-m", *words)
    if values == ["schedule=stepwise"]:  # decay takes no milestones, and is left out
        assert "left out: schedule=decay" in said.err
        values = ["default"] if launcher.jobs and launcher.jobs[0].run_dir.name == "default" else values
    else:
        assert (said.status, said.err) == (0, "")
    assert [job.run_dir.name for job in launcher.jobs] == values


@pytest.mark.parametrize(
    "form", ["params.eta=interval(0.1,0.2)", '++params.eta="interval(0.1,0.2)"', 'params={eta: "interval(0.1,0.2)"}']
)
def test_a_search_takes_its_values_in_every_form(form: str, easgd: Easgd, handed: list[list[str]]) -> None:
    said = easgd(
        "train", "-m", "hydra/sweeper=optuna", "dataset.validation=9", form.replace("params", "hydra.sweeper.params")
    )
    assert (said.status, said.err) == (0, "")
    assert "eta=interval(0.1,0.2)" in handed[0]


def test_nothing_has_no_values(easgd: Easgd, launcher: Launcher) -> None:
    for word in ("algo=glob(nothing*)", "tau=glob(*)"):
        assert easgd("train", "-m", word).err == f"easgd: {word}: has no values, so there is nothing to run.\n"


@pytest.mark.usefixtures("unprepared")
def test_a_run_is_composed_once(easgd: Easgd, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    real, composed = Hydra.compose_config, []
    monkeypatch.setattr(
        Hydra,
        "compose_config",
        lambda self, *args, **kwargs: (composed.append(kwargs or args), real(self, *args, **kwargs))[1],
    )
    assert easgd("train", "tau=3").status == 0
    assert len(launcher.jobs) == len(composed) == 1


CALLBACK = """
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback

class Noting(Callback):
    def on_run_start(self, config, **kwargs):
        self._note("run start")
    def on_job_start(self, config, **kwargs):
        import os
        self._note(f"job start {os.path.basename(HydraConfig.get().runtime.output_dir)} {os.environ['GIVEN']}")
    def on_job_end(self, config, job_return, **kwargs):
        self._note("job end")
    def on_run_end(self, config, **kwargs):
        self._note("run end")
    def _note(self, text):
        with open("noted", "a") as f:
            print(text, file=f)
"""


@pytest.mark.usefixtures("unprepared")
def test_a_run_is_a_job_of_hydras(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    """Its callbacks are called, in the environment that was asked for, which is gone afterwards."""
    (here / "noting.py").write_text(CALLBACK)
    said = easgd(
        "train",
        "hydra.run.dir=out",
        "+hydra.callbacks={noting: {_target_: noting.Noting}}",
        "+hydra.job.env_set.GIVEN=yes",
    )
    assert said.status == 0, said.err
    assert (here / "noted").read_text().splitlines() == ["run start", "job start out yes", "job end", "run end"]
    assert "GIVEN" not in os.environ


def test_where_a_refusal_comes_from_is_shown_to_who_asks_as_hydra_has_it(
    easgd: Easgd, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Traceback" not in easgd("train", "tua=3").err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    said = easgd("train", "tua=3")
    assert "Could not override 'tua'" in said.err and said.err.endswith(
        "\neasgd: tua=3: there is no setting tua; did you mean tau?\n"
    )


@pytest.mark.usefixtures("unprepared")
def test_verbose_is_said_to_have_no_effect(easgd: Easgd, launcher: Launcher) -> None:
    said = easgd("train", "hydra.verbose=true")
    assert said.status == 0 and said.err.startswith("easgd: hydra.verbose=true has no effect")


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(easgd_cli.__file__).parent.parent)}


def test_a_reader_that_leaves_costs_no_error(here: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m easgd_cli train --info | head -1"
    said = subprocess.run(
        ["bash", "-c", command], cwd=here, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )
    assert (said.stdout.splitlines()[0].startswith("Hydra"), said.stderr) == (True, "")


ROOT = configs.directory().parent


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="documentation is in a source tree")
def test_what_is_to_be_typed_can_be_typed_in_zsh() -> None:
    """Which takes an unquoted bracket, brace or parenthesis for a pattern. Not so what is Python."""
    wrong = []
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "python.md"]
    for path in [ROOT / "README.md", *pages, *(ROOT / "configs").rglob("*.yaml")]:
        text = path.read_text(encoding="utf-8")
        commands = re.findall(
            r"^(?:    |# Command: +)\$? ?((?:scripts/)?easgd [a-z].*?)(?: {2,}[#(].*)?$", text, re.MULTILINE
        )
        inline = [i for i in re.findall(r"`([^`\n]+)`", text) if re.match(r"'?[\w./+]+=", i) or i.startswith("easgd ")]
        for command in [*(c.partition(" #")[0] for c in commands), *inline]:
            unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
            if re.search(r"=[^ ]*[][(){}*?]", unquoted) and "..." not in command:
                wrong.append(f"{path.name}: {command}")
    assert wrong == []


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_completion_in_zsh(here: Path) -> None:
    """What it offers for the words before the cursor, where its own completion system only notes it."""
    (here / "easgd").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m easgd_cli "$@"\n')
    (here / "easgd").chmod(0o755)
    script = """
    compdef() { print -r -- compdef $@ }
    compadd() { print -r -- $@ }
    _files() { print -r -- files }
    eval "$(easgd train -sc install=zsh)"
    words=(easgd train algo=eam) CURRENT=3 PREFIX=algo=eam; _easgd
    words=(easgd report runs/) CURRENT=3 PREFIX=runs/; _easgd
    compdef() { : }
    eval "$(easgd train -sc uninstall=zsh)"
    whence _easgd || print -r -- gone
    """
    environment = ENVIRONMENT | {"PATH": f"{here}:{os.environ['PATH']}"}
    said = subprocess.run(
        ["zsh", "-f", "-c", textwrap.dedent(script)],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (said.stdout.splitlines(), said.stderr) == (
        ["compdef _easgd easgd", "-S -- algo=eamsgd", "files", "gone"],
        "",
    )
