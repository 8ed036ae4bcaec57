"""`easgd train` as a user meets it: what it understands, what it refuses and in which words, and the directory it
makes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml
from conftest import Launcher, Said

import easgd_cli
from easgd_cli import __version__
from easgd_cli.__main__ import main
from easgd_cli.commands import arguments, compose, configs
from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.record import run_directory
from easgd_cli.settings.schema import GROUPS, Group, Settings
from easgd_cli.system import shared_memory
from easgd_cli.system.devices import deal_devices

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
    ("problem=foo", ["problem=foo: there is no such problem", "double_well, quadratic", "problem=my_module:MyProblem"]),
    ("problem=quadratic problem.dimension=0", ["problem.dimension=0: must be a whole number of at least 1"]),
    ("problem=quadratic problem.dimension=4 problem.spectrum=[1,2,3]",
    ["problem.spectrum=[1,2,3]: is a list of 3", "problem.dimension=4"]),
    ("problem=quadratic problem.spectrum=big", ["problem.spectrum=big: must be a number or a list"]),
    ("problem=double_well problem.starts=[1,-1]", ["problem.starts=[1,-1]: is a list of 2", "workers=4"]),
    ("problem=quadratic problem.nose=1", ["quadratic has no such setting; did you mean problem.noise?"]),
    ("problem=quadratic dataset=cifar10", ["problem=quadratic dataset=cifar10: this problem uses no dataset; "
    "leave out dataset="]),
    ("problem=double_well model=small",
    ["problem=double_well model=small: this problem uses no model; leave out model="]),
    ("problem=quadratic init_without=[fc]", ["init_without=[fc]: this problem has no model"]),
    ("problem=quadratic init=center.pt", ["init=center.pt: this problem has no model"]),
    ("problem=quadratic epochs=2", ["epochs=2: are passes over a data set", "use steps= or minutes="]),
    ("problem=quadratic until.test_error=3", ["until.test_error=3: problem=quadratic has no test_error"]),
    ("dataset=none eta=1 steps=20", ["problem=dataset dataset=none: this problem needs data; choose a data set"]),
    ("model=none", ["problem=dataset model=none: this problem needs a net"]),
    ("dataset=digit", ["dataset=digit: there is no such dataset; did you mean digits?"]),
    ("dataset=cifar10 dataset.root=nowhere dataset.download=false", ["nowhere"]),
    ("model=convnet7", ["convnet7", "8x8"]),
    ("experiment=fig0", ["experiment=fig0: there is no such experiment"]),
    ("tuning=foo", ["tuning=foo: there is no setting tuning"]),
    ("clip=0", ["clip=0: a greatest norm is greater than 0", "clip=null"]),
    ("clip=inf", ["clip=inf: must be a finite number"]),
    ("grad_clip=1", ["did you mean clip?"]),
    ("hidden=[3,4] model=mlp", ["hidden=[3,4]: there is no setting hidden", "did you mean model.hidden?"]),
    (
        "launcher.latency=0.1",
        ["launcher.latency=0.1: local has no such setting; launcher=", "launcher=simulated, ", "virtual_1g have it."],
    ),
    ("model=resnet18", ["model=resnet18: is a net of torchvision; write model=torchvision model.name=resnet18."]),
    ("model=cnn", ["model=cnn: there is no such model; did you mean convnet7?"]),
    ("minutes=5m", ["minutes=5m: must be a number, without a unit: minutes=5."]),
    ("epochs=0", ["epochs=0: must be greater than 0"]),
    ("epochs=2 steps=3", ["steps=3 epochs=2: give one"]),
    ("label_smoothing=0.1", ["did you mean task.label_smoothing?"]),
    ("problem.label_smoothing=1", ["did you mean task.label_smoothing?"]),
    ("task.label_smoothing=1", ["task.label_smoothing=1: ", "it lies in [0, 1)"]),
    ("task.label_smoothing=-0.1", ["task.label_smoothing=-0.1: ", "it lies in [0, 1)"]),
    ("problem.batch_norm_images=1", ["problem.batch_norm_images=1: a variance takes at least 2 images"]),
    ("problem.batch_norm=averages", ["problem.batch_norm=averages: is estimate, over training images, or average, "
    "with the workers' parameters"]),
    ("problem.batch_norm=average",
    ["problem.batch_norm=average: this net has no batch norm", "use problem.batch_norm=estimate"]),
    ("problem.batch_norm=average problem.batch_norm_images=9", ["problem.batch_norm_images=9: nothing is "
    "estimated; leave out one"]),
    ("task.top5=5", ["task.top5=5: must be true or false"]),
    ("warmup=-1", ["warmup=-1: must be a whole number of at least 0"]),
    ("warmup=100 steps=100", ["warmup=100: the run has 100 local steps; a warm-up is shorter than the run"]),
    ("warmup=900 epochs=1", ["warmup=900: the run has 43 local steps"]),
    ("schedule.warmup=5", ["warmup is a setting of the run, not of schedule; write warmup="]),
    ("schedule=cosine minutes=2",
    ["schedule=cosine minutes=2: this schedule follows the run's local steps", "give steps= or epochs="]),
    ("schedule=cosine schedule.final=2", ["schedule.final=2: ", "it lies in [0, 1]"]),
    ("profile='30 s'", ["profile=30 s: a trace is as long as a number of steps, such as profile='10 steps'"]),
    ("profile=10", ["profile=10: a trace is as long as a number of steps, such as profile='10 steps'"]),
    ("profile='10 steps' steps=14", ["profile=10 steps: the first 5 steps are not recorded, and the run has 14"]),
    ("precision=fp16", ["precision=fp16: is fp32, tf32 or bf16"]),
    ("precision=tf32 device=cpu",
    ["precision=tf32 device=cpu: tf32 is how CUDA devices multiply", "use fp32, or bf16"]),
    ("schedule=stepwise", ["schedule=stepwise needs schedule.milestones"]),
    ("schedule=stepwise schedule.milestones=5", ["schedule.milestones=5: must be a list"]),
    ("dataset=cifar100 dataset.download=false",
    ["dataset.root=data: there is no data/cifar-100-python", "dataset.download=true fetches CIFAR-100"]),
    ("dataset=mnist dataset.download=false eta=0.1 steps=99",
    ["dataset.root=data: there is no data/MNIST", "dataset.download=true fetches MNIST"]),
    ("model=torchvision dataset=synthetic", ["model=torchvision needs model.name", "write model.name="]),
    ("model=torchvision model.name=resent18 dataset=synthetic", ["model.name=resent18: is no net of torchvision; "
    "did you mean resnet18"]),
    ("model=torchvision model.name=resnet18", ["model.name=resnet18: takes images of 3 channels, and these have 1"]),
    ("model.name=resnet18", ["model.name=resnet18: model=small takes no name; write model=NAME"]),
    ("init_without=[fc]", ["init_without=[fc]: there is no file to leave these out of; give init="]),
    ("init_without=fc", ["init_without=fc: must be a list, such as 'init_without=[fc]'"]),
    ("init=nofile.pt", ["init=nofile.pt: there is no such file"]),
    ("device=tpu", ["device=tpu: is auto, cpu, cuda"]),
    ("device=cuda:7,cuda:8", ["device=cuda:7,cuda:8: this machine shows"]),
    ("center_device=cuda:1", ["center_device=cuda:1: this machine shows", "use center_device=cpu"]),
    ("=5", ["=5: there is no key before the ="]),
    ("batch_size=99999999999",
    ["batch_size=99999999999: this run needs", "for batches", "are free; use smaller batches"]),
    ("launcher=simulated launcher.compute=0", ["launcher.compute=0", "greater than 0"]),
    ("launcher=ddp", ["launcher=ddp algo=easgd: its workers take the steps of torch.optim.SGD; use algo=sgd"]),
    ("launcher=ddp algo=sgd local=adamw", ["launcher=ddp algo=sgd local=adamw: its workers"]),
    ("launcher=ddp algo=msgd average=polyak", ["launcher=ddp average=polyak: no average", "leave out average="]),
    ("launcher=post_local_sgd algo=msgd wire=int8", ["wire=int8: torch sends vectors as they are"]),
    ("launcher=post_local_sgd algo=msgd tau=auto", ["tau=auto: there are no exchanges with a center"]),
    ("launcher=ddp algo=msgd 'faults=[{worker: 1, step: 2, kind: kill}]'", ["faults=", "there is no recovery"]),
    ("launcher=ddp algo=msgd masters=2", ["launcher=ddp masters=2: there is no master; leave out masters="]),
    ("launcher=ddp algo=msgd accumulate=2", ["accumulate=2", "leave out accumulate="]),
    ("launcher=ddp algo=msgd problem.batch_norm=average", ["problem.batch_norm=average: torch averages parameters"]),
    ("launcher=ddp algo=msgd launcher.transport=collective", ["launcher.transport=collective: ddp has no"]),
    ("launcher=post_local_sgd algo=sgd launcher.ddp_steps=-1", ["launcher.ddp_steps=-1", "0 or more"]),
    ("launcher=simulated launcher.speed=[1,2]", ["launcher.speed=[1,2]: simulated has no such setting; did you "
    "mean launcher.speeds?"]),
    ("launcher=simulated launcher.speeds=4", ["launcher.speeds=4: must be a list"]),
    ("launcher=simulated launcher.latency=fast", ["launcher.latency=fast: must be"]),
    ("launcher=simulated launcher.latency=[1,2,3]", ["launcher.latency=[1.0, 2.0, 3.0]", "[up,down]"]),
    ("launcher.compute=1", ["launcher.compute=1: local has no such setting"]),
    ("average=moving average.rate=0", ["average.rate=0", "greater than 0"]),
    ("average=polyak average.start=-1", ["average.start=-1"]),
    ("average=foo", ["average=foo: there is no such average", "moving, none, polyak"]),
    ("alpha=0.1 beta=0.2", ["alpha=0.1 beta=0.2: give one of the two"]),
    ("replay=nowhere", ["replay=nowhere: there is no such directory"]),
    ("replay=.", ["replay=.: holds no exchanges.bin"]),
    ("replay=. eta=0.1", ["replay=. eta=0.1: a run is replayed with the settings it had"]),
    ("workers=9999999 launcher=simulated",
    ["workers=9999999: this run needs", "for vectors", "are free; use fewer workers"]),
    ("workers=99999999", ["workers=99999999: launcher=local starts at most 120 workers", "launcher=simulated"]),
    ("threads=100000", ["threads=100000: must be at most", "this machine has"]),
    ("dataset=synthetic dataset.shape=[3,1000000,1000000]",
    ["dataset.shape=[3, 1000000, 1000000]", "need", "are free; make them smaller or fewer"]),
    ("beta=5", ["beta=5 with workers=4 makes alpha=1.25: the moving rate", "lies in [0, 1]"]),
    ("alpha=5", ["alpha=5: the moving rate", "lies in [0, 1]"]),
    ("ümlaut=3", ["ümlaut=3: ümlaut is not a key; settings are written key=value"]),
    # half of it is in launcher
    ("colour=3", ["colour=3: there is no setting colour; easgd train --help lists all of them"]),
    ("default_steps=3",
    ["default_steps=3: default_steps is the length that configs/tuning.yaml gives", "write steps=3"]),
    ("--resolve", ["--resolve: says how --cfg prints the settings", "write --cfg job --resolve"]),
    ("--package algo", ["--package algo: says how --cfg prints the settings", "write --cfg job --package algo"]),
    ("resume=", ["resume=: names no directory; write resume=RUN_DIR"]),
    ("resume=12", ["resume=12: there is no such directory"]),
    ("replay=", ["replay=: names no directory; write replay=RUN_DIR"]),
    ("hydra.run.dir=/dev/null", ["hydra.run.dir=/dev/null: is a file, and a run needs a directory"]),
    ("+new=1", ["new=1: there is no setting new"]),
    ("+a.b=1", ["a.b=1: there is no setting a"]),
    ("~tau", ["tau=null: must be a whole number"]),
    ("~hydra.run.dir", ["~hydra.run.dir: cannot be removed; leave it out"]),
    ("hydra=3", ["hydra=3: hydra is a section"]),
    ("hydra.run.dir=", ["hydra.run.dir=: names no directory"]),
    ("hydra.job.chdir=maybe", ["hydra.job.chdir=maybe: must be true or false"]),
    ("hydra.mode=BOTH", ["hydra.mode=BOTH: must be one of RUN, MULTIRUN"]),
    ("+hydra.run.dr=x", ["+hydra.run.dr=x: there is no setting hydra.run.dr; did you mean hydra.run.dir?"]),
    ("hydra.sweep.subdir=",
    ["hydra.sweep.subdir=: is about a sweep, and this is a single run; add -m, or leave it out"]),
    ("hydra.launcher.cpus_per_task=8", ["easgd itself has no such setting; choose the plugin that has it with "
    "hydra/launcher="]),
    ("model=mlp model.hidden.x=3", ["model.hidden.x=3: has no place in the configuration"]),
    ("model=mlp model.hidden={a:3}", ["model.hidden={a:3}: must be a list"]),
    ("init_without=[null]", ["init_without=[null]: must be a list of texts"]),
    ("until=[3]", ["until=[3]: until is a section; write until.METRIC=LEVEL, such as until.test_error="]),
    ("'algo=glob(*easgd)'", ["algo=glob(*easgd): several values are a sweep, which -m asks for"]),
    ("optimizer=adam", ["optimizer=adam: there is no setting optimizer", "algo="]),
    ("nodes=2", ["nodes=2: there is no setting nodes; a run is on one machine", "workers="]),
    ("schedule=cosin", ["did you mean cosine?"]),
    ("--cfg job --package nope", ["--cfg job --package nope: package 'nope' not found"]),
    ("--config-name algo/easgd", ["--config-name algo/easgd: is an option of algo, and no root configuration; "
    "write algo=easgd"]),
    ("-sc", ["-sc: goes with install=bash"]),
    ("-sc install=tcsh", ["-sc: goes with install=bash"]),
    ("tau=1 tau=2", ["tau=1 tau=2: tau is given twice"]),
    ("algo=easgd algo=downpour", ["algo is given twice"]),
    ("tau", ["tau: settings are written key=value, such as tau=10"]),
    ("l2=a=b", ["l2=a=b: the value cannot be read", "quotes"]),
    ("--tau 10", ["--tau: there is no such option", "tau=VALUE"]),
    ("--cfg everything", ["--cfg", "invalid choice"]),
    ("--config-dir nowhere", ["--config-dir nowhere: there is no such directory"]),
    ("hydra.run.dr=x", ["did you mean hydra.run.dir?"]),
    ("hydra/launcher=slurm", ["hydra/launcher=slurm", "There are: basic"]),
    ("hydra.run.dir=/dev/null/run",
    ["hydra.run.dir=/dev/null/run: the directory of the run cannot be made", "choose another with hydra.run.dir="]),
    ("resume=nowhere", ["resume=nowhere: there is no such directory"]),
    ("algo=nomodule:M", ["algo=nomodule:M: there is no module nomodule"]),
    ("algo=easgd_cli.algorithms:EASDG eta=1 steps=1", ["did you mean easgd_cli.algorithms:EASGD?"]),
    ("algo=easgd_cli.algorithms:EASGD steps=1", ["There is no default eta for algo=easgd_cli.algorithms:EASGD "
    "with dataset=digits: write eta="]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "parts"), MISTAKES, ids=[w for w, _ in MISTAKES])
def test_a_mistake_is_one_sentence_before_anything_is_started_or_made(
    words: str, parts: list[str], easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    said = easgd("train", *shlex.split(words))
    assert said.status == 2
    assert all(part in said.err for part in parts), said.err
    assert said.err.startswith("easgd: ")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    assert launcher.jobs == []
    assert list(here.iterdir()) == []


def test_a_run_that_does_not_fit_is_told_what_takes_most(monkeypatch: pytest.MonkeyPatch) -> None:
    s = composed(
        "dataset=synthetic", "model=small", "dataset.train=9000", "workers=2", "batch_size=16", "eval.every=null"
    )
    fits = build.prepare(s).data
    assert fits is not None
    monkeypatch.setattr(shared_memory, "available_memory", lambda: fits.nbytes)
    with pytest.raises(UsageError, match=r"dataset=synthetic: this run needs .* for the copy of the data set"):
        build.prepare(s)
    one = 3 * 28 * 28 * 4 + 24  # bytes of an image in a batch
    monkeypatch.setattr(shared_memory, "available_memory", lambda: 9000 * one)
    with pytest.raises(UsageError, match=r"batch_size=9000: this run needs .* for batches"):
        build.prepare(replace(s, batch_size=9000))
    assert build.prepare(replace(s, batch_size=900)).steps


@pytest.mark.parametrize(
    ("words", "vectors"),
    [
        # workers: x, v, scratch, reply, gradient, start, what backward adds; the center; the evaluator; snapshots; at
        # the end x, v, reply, the center, its file
        (["algo=eamsgd", "workers=2", "eval.every=null"], 2 * 7 + 1 + 3 + 2 + (2 * 3 + 1 + 1)),
        (
            ["algo=easgd", "workers=2", "average=polyak", "eval.every=null"],
            2 * 5 + 2 + 3 + 2 * 2 + (2 * 2 + 2 + 1),
        ),  # no v, no scratch; center and snapshots with the average
        # eight snapshots wait, one is measured
        (["algo=easgd", "workers=2", "eval.every='1 steps'"], 2 * 5 + 1 + 3 + 9 + (2 * 2 + 1 + 1)),
        (["algo=sgd", "workers=1", "eval.every=null"], 4 + 3 + 2 + (1 + 1 + 1)),
        # x, v, scratch, gradient, start, what backward adds, and torch's parameters, velocity and buckets
        (["algo=msgd", "workers=2", "launcher=ddp", "eval.every=null"], 2 * 9 + 3 + 2 + (2 * 2 + 1 + 1)),
        # one problem for all, which is there already
        (["algo=eamsgd", "workers=2", "launcher=simulated"], 2 * 4 + 1 + 2 + (2 * 3 + 1 + 1)),
        # one of four workers computes here, and all have their vectors here
        (
            ["algo=eamsgd", "workers=4", "launcher=distributed", "launcher.here=1", "eval.every=null"],
            4 * 4 + 3 + 1 + 3 + 2 + (4 * 3 + 1 + 1),
        ),
    ],
)
def test_vectors_that_do_not_fit_are_refused(words: list[str], vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    s = composed("problem=quadratic", "problem.dimension=1000", "eta=0.1", "steps=3", *words)
    monkeypatch.setattr(shared_memory, "available_memory", lambda: vectors * 8000)
    assert build.prepare(s).size == 1000
    monkeypatch.setattr(shared_memory, "available_memory", lambda: vectors * 8000 - 1)
    with pytest.raises(
        UsageError,
        match=rf"workers={s.workers}: this run needs .* for vectors, .* use fewer "
        r"workers or a smaller model",
    ):
        build.prepare(s)


def test_a_host_that_joins_has_the_vectors_of_its_own_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["problem=quadratic", "problem.dimension=1000", "eta=0.1", "steps=3", "algo=eamsgd", "launcher=distributed"]
    s = composed(*words, "workers=9")
    monkeypatch.setattr(shared_memory, "available_memory", lambda: 2 * 7 * 8000)
    assert build.prepare(s, 2).memory == 2 * 7 * 8000
    with pytest.raises(UsageError, match="workers=3: this run needs"):
        build.prepare(s, 3)


def test_a_host_that_joins_has_the_slices_of_its_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the center, two snapshots and what is kept at the end, and of x, v, scratch and reply of each worker."""
    words = ["problem=quadratic", "problem.dimension=1000", "eta=0.1", "steps=3", "algo=eamsgd", "launcher=distributed"]
    s = composed(*words, "workers=4", "masters=2", "launcher.masters_here=1")
    monkeypatch.setattr(shared_memory, "available_memory", lambda: (4 + 4 * 4) * 4000)
    assert build.prepare(s, 0, 1).memory == (4 + 4 * 4) * 4000
    with pytest.raises(UsageError, match=r"masters=2: this run needs .* for slices of the center .* offer fewer"):
        build.prepare(s, 0, 2)


def test_a_refusal_does_not_wait_for_torch(here: Path) -> None:
    """tau=0, help and version are answered by what loads in a moment; help without a command loads not even Hydra."""
    code = (
        "import sys; from easgd_cli.__main__ import main\n"
        "assert main(['--help']) == main(['--version']) == 0 and 'hydra' not in sys.modules\n"
        "assert main(['train', '--help']) == 0 and main(['train', 'tau=0']) == 2 and main(['train', "
        "'algo=mdownpour', 'tau=4']) == 2\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(configs.directory().parent)},
    )
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout


def test_help_shows_every_setting_with_its_comment_and_every_option(easgd: Easgd) -> None:
    text = easgd("train", "--help").out
    kinds = get_type_hints(Settings)
    for f in fields(Settings):
        if is_dataclass(kinds[f.name]):
            assert all(f"{f.name}.{inner.name}=" in text for inner in fields(kinds[f.name]))
        elif kinds[f.name] != Group and f.name not in ("default_steps", "until"):
            assert re.search(rf"^  {f.name}=\S*\n? +[^ \n]", text, re.MULTILINE), f"{f.name} without a word about it"
    for group in GROUPS:
        assert all(f"    {name}" in text for name in configs.options(group))
    for comment in (
        "tau=10                    communication period",
        "precision=fp32            of a net's gradient",
        "algo=                     the method",
        "local=                    how x moves",
        "until.METRIC=             of metrics",
    ):
        assert comment in text
    assert "dataset.root=data" in text and "problem.spectrum=1.0" in text


def test_commands_are_suggested(easgd: Easgd) -> None:
    assert "did you mean easgd train?" in easgd("trian").err
    assert "write easgd train tau=10" in easgd("tau=10").err


def composed(*overrides: str) -> Settings:
    with compose.composing("config") as job:
        return job(overrides).settings


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "cifar100", "synthetic"])
@pytest.mark.parametrize("algo", ["easgd", "eamsgd", "downpour", "mdownpour", "sgd", "msgd"])
def test_every_method_has_defaults_for_every_data_set(algo: str, dataset: str) -> None:
    s = composed(f"algo={algo}", f"dataset={dataset}")
    assert s.eta > 0
    assert s.default_steps
    assert s.batch_size == (32 if dataset == "digits" else 128)
    assert s.model["name"] == ("small" if dataset == "digits" else "convnet7")
    assert s.tau == (1 if "downpour" in algo else 10)
    assert s.workers == (1 if algo in ("sgd", "msgd") else 4)


@pytest.mark.parametrize("problem", ["quadratic", "double_well"])
@pytest.mark.parametrize("algo", configs.options("algo"))
def test_every_method_has_defaults_for_every_function_and_neither_data_nor_net(algo: str, problem: str) -> None:
    s = composed(f"algo={algo}", f"problem={problem}")
    assert s.eta > 0 and s.default_steps and s.eval.every
    assert s.dataset == s.model == {"name": "none", "target": None}
    every = 1 if "downpour" in algo or algo == "allreduce" else 50 if "diloco" in algo else 10
    assert s.tau == every and s.workers == (1 if build.method(s).alone else 4)
    prepared = build.prepare(s)
    assert prepared.data is None and prepared.start.dtype == torch.float64
    if problem == "quadratic":
        assert composed(f"problem={problem}", "eta=0.5", "steps=7", f"algo={algo}").eta == 0.5


def test_experiments_of_the_paper_s_figures_have_its_rates() -> None:
    for algo in ("easgd", "eamsgd"):
        assert composed("experiment=fig9", f"algo={algo}").eta == 0.01  # Figure 9, p. 23: both methods at .01
    for figure in ("fig4", "fig7", "fig11"):  # ImageNet: eta divided by 5, then by 2
        assert composed(f"experiment={figure}", "algo=sgd").schedule["factor"] == [0.2, 0.5]
    for figure, first in (("fig7", 100092), ("fig7_small", 400)):  # averages begin when eta first falls
        for algo in ("asgd", "mvasgd"):
            s = composed(f"experiment={figure}", f"algo={algo}")
            assert (s.average["start"], s.schedule["milestones"][0]) == (first, first)


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


@pytest.mark.parametrize(
    "text", ["plain", "it's", "back\\slash", "end\\", "quote\\'s", "a=b,c", "${x}", "ümlaut #;()[]{}", '"double"']
)
def test_quoting_is_undone_by_hydra(text: str) -> None:
    [override] = arguments.parse_overrides([f"init={arguments.quote(text)}"])
    assert override.value() == text


def test_a_run_has_a_directory_of_its_own_with_its_settings(
    easgd: Easgd, launcher: Launcher, here: Path, unprepared: None
) -> None:
    for _ in range(3):
        assert easgd("train", "algo=eamsgd", "eval.every=30 s", "tau=4", "hydra.run.dir=out/run").status == 0
    assert sorted(p.name for p in (here / "out").iterdir()) == ["run", "run.2", "run.3"]
    assert [j.run_dir.name for j in launcher.jobs] == ["run", "run.2", "run.3"]
    job = launcher.jobs[0]
    assert compose.resumed("out/run/config.yaml", [], {}) == job.settings
    assert (
        yaml.safe_load((here / "out/run/overrides.yaml").read_text())
        == job.overrides
        == ["algo=eamsgd", "eval.every=30 s", "tau=4"]
    )
    assert job.command == "easgd train algo=eamsgd 'eval.every=30 s' tau=4 hydra.run.dir=out/run"


def test_the_default_directory_is_named_by_date_and_overrides(
    easgd: Easgd, launcher: Launcher, here: Path, unprepared: None
) -> None:
    said = easgd("train", "tau=4", "algo=eamsgd")
    [path] = (here / "runs").iterdir()
    assert path.name[19:] == "_algo=eamsgd,tau=4"
    assert f"tensorboard --logdir runs/{path.name}" in said.out
    easgd("train")
    assert sorted(len(p.name) for p in (here / "runs").iterdir())[0] == 19


def test_a_file_is_not_taken_for_a_directory(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    (here / "notes").write_text("mine")
    said = easgd("train", "hydra.run.dir=notes")
    assert said.status == 2
    assert "hydra.run.dir=notes: is a file" in said.err
    assert [p.name for p in here.iterdir()] == ["notes"]
    assert launcher.jobs == []


def test_a_run_may_change_into_its_directory(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    inside = []
    launcher.behave = lambda job: inside.append(Path.cwd()) or Outcome("completed", 0, {})  # type: ignore[func-returns-value]
    assert easgd("train", "hydra.job.chdir=true", "hydra.run.dir=out/run").status == 0
    assert inside == [here / "out" / "run"] == [launcher.jobs[0].run_dir]
    assert Path.cwd() == here


def test_resume_null_is_a_new_run(easgd: Easgd, launcher: Launcher, unprepared: None) -> None:
    assert easgd("train", "resume=null", "replay=null").status == 0
    assert not launcher.jobs[0].resume


def test_names_hold_what_every_file_system_takes() -> None:
    assert run_directory.named_by(["tau=4", "init='a b/ü.pt'", "eta=1e+3"]) == "eta=1e3,init=a-b-.pt,tau=4"
    long = [f"algo.parameter_{i}=0.123456789" for i in range(20)]
    drawn = [
        "eta=0.00012345678901234567",
        "tau=4",
        "l2=1.2345678901e-05",
        "model.hidden=[2.50,1234567.8901]",
        "init=a1.23456789.pt",
    ]
    assert (
        run_directory.named_by(drawn, digits=6)
        == "eta=0.000123457,init=a1.23456789.pt,l2=1.23457e-05,model.hidden=-2.50,1.23457e06-,tau=4"
    )
    assert run_directory.named_by(long) != run_directory.named_by([*long[:-1], "algo.parameter_19=0.2"])
    assert len(run_directory.named_by(long)) == 120 + 1 + 8
    assert len("2026-11-23_22-30-00" + run_directory.named_by(long, prefix="_")) == 120 + 1 + 8


def test_settings_without_effect_are_told_once(easgd: Easgd, unprepared: None) -> None:
    said = easgd("train", "algo=sgd", "tau=3", "delta=0.5", "alpha=0.2", "schedule=constant", "gamma=0.1")
    assert said.status == 0
    assert [line.split(" has no effect")[0] for line in said.err.splitlines()] == [
        "easgd: alpha=0.2",
        "easgd: delta=0.5",
        "easgd: gamma=0.1",
        "easgd: tau=3",
    ]
    assert easgd("train", "algo=eamsgd", "tau=3", "delta=0.5", "alpha=0.2", "gamma=0.1").err == ""
    simulated = easgd("train", "launcher=simulated", "profile=3 steps", "clip=1")
    assert simulated.err == "easgd: profile=3 steps has no effect: launcher=simulated has no worker processes.\n"
    assert easgd("train", "profile=3 steps", "clip=1").err == ""
    assert easgd("train", "launcher=simulated", "center_device=cuda").err == (
        "easgd: center_device=cuda has no effect: launcher=simulated keeps the center where its workers compute.\n"
    )
    assert (
        easgd("train", "problem=quadratic", "precision=bf16").err == "easgd: precision=bf16 has no effect: "
        "problem=quadratic does not use it.\n"
    )
    assert "only exchange is before the first step" in easgd("train", "steps=10", "tau=10").err


def test_a_center_on_a_gpu_is_for_workers_that_are_there(easgd: Easgd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert deal_devices("cuda, cpu,cuda:1", 4) == ["cuda:0", "cpu", "cuda:1", "cuda:0"]
    for device in ("cuda:0", "cuda:0,cuda:1", "cpu"):
        said = easgd("train", "center_device=cuda:1", f"device={device}")
        assert said.status == 2
        assert (
            said.err
            == f"easgd: center_device=cuda:1 device={device}: a center on a GPU is for workers that all compute "
            "there; write device=cuda:1.\n"
        )


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


def test_a_run_refused_by_its_launcher_leaves_no_directory_and_one_that_failed_does(
    easgd: Easgd, launcher: Launcher, here: Path, unprepared: None
) -> None:
    def refuse(job: Job) -> Outcome:
        raise UsageError("workers=4: no memory for so many.")

    def fail(job: Job) -> Outcome:
        raise RunError("the disk is full.")

    launcher.behave = refuse
    said = easgd("train", "hydra.run.dir=new/run")
    assert (said.status, said.err) == (2, "easgd: workers=4: no memory for so many.\n")
    assert list(here.iterdir()) == []
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


def test_a_configuration_that_cannot_be_written_is_a_refusal(
    easgd: Easgd, here: Path, unprepared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    said = easgd("train", "hydra.run.dir=run")
    assert said.status == 2
    assert "No space left on device" in said.err
    assert list(here.iterdir()) == []


def test_a_run_leaves_this_process_as_it_was(easgd: Easgd, launcher: Launcher, here: Path, unprepared: None) -> None:
    root = logging.getLogger()
    before = (
        list(root.handlers),
        root.level,
        list(sys.argv),
        dict(os.environ),
        os.getcwd(),
        torch.get_num_threads(),
        torch.get_rng_state(),
    )

    def untidy(job: Job) -> Outcome:
        root.addHandler(logging.FileHandler(job.run_dir / "log"))
        root.setLevel(logging.DEBUG)
        os.environ["EASGD_TEST"] = "1"
        os.chdir(job.run_dir)
        torch.set_num_threads(2)
        torch.manual_seed(5)
        return Outcome("completed", 0, {})

    launcher.behave = untidy
    assert easgd("train").status == 0
    after = (
        list(root.handlers),
        root.level,
        list(sys.argv),
        dict(os.environ),
        os.getcwd(),
        torch.get_num_threads(),
        torch.get_rng_state(),
    )
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
    labels = torch.arange(n) % 3
    return torch.rand(n, 1, side, side, generator=g), labels, torch.rand(n, 1, side, side, generator=g), labels
"""


def test_a_users_own_method_model_and_data_bring_their_settings(easgd: Easgd, launcher: Launcher, here: Path) -> None:
    (here / "mine.py").write_text(OWN)
    words = ["train", "algo=mine:Mine", "model=mine:Net", "dataset=mine:data", "eta=0.1", "steps=20"]
    said = easgd(*words, "algo.mu=0.9", "model.hidden=7", "dataset.validation=6")
    assert said.status == 0, said.err
    s = launcher.jobs[0].settings
    assert s.algo == {"name": "mine:Mine", "target": "mine:Mine", "mu": 0.9}  # alpha is the run's, not the method's own
    assert s.model == {"name": "mine:Net", "target": "mine:Net", "hidden": 7}
    assert s.dataset == {
        "name": "mine:data", "target": "mine:data", "n": 40, "side": 6, "validation": 6, "test": None, "collate": None,
        "loaders": None,
    }  # fmt: skip
    assert compose.resumed(str(launcher.jobs[0].run_dir / "config.yaml"), [], {}) == s
    assert "model=mine:Net needs model.hidden" in easgd(*words).err
    assert "algo.nu=1: mine:Mine has no such setting; did you mean algo.mu?" in easgd(*words, "algo.nu=1").err
    assert "algo.mu=high: must be a number" in easgd(*words, "model.hidden=7", "algo.mu=high").err
    assert "algo.mu=2.0: at most 1." in easgd(*words, "model.hidden=7", "algo.mu=2").err
    assert "mine has no Mien; did you mean mine:Mine?" in easgd("train", "algo=mine:Mien").err


def test_a_net_of_torchvision_is_chosen_by_its_name(easgd: Easgd, launcher: Launcher) -> None:
    words = ["train", "dataset=synthetic", "dataset.train=100", "dataset.test=100", "steps=20"]
    said = easgd("train", "-m", *words[1:], "model=torchvision", "model.name=shufflenet_v2_x0_5,squeezenet1_1")
    assert said.status == 0, said.err
    assert [job.settings.model["name"] for job in launcher.jobs] == ["shufflenet_v2_x0_5", "squeezenet1_1"]
    assert [job.run_dir.name for job in launcher.jobs] == ["model.name=shufflenet_v2_x0_5", "model.name=squeezenet1_1"]
    assert launcher.jobs[0].settings.eta == composed("dataset=synthetic").eta, (
        "rates are the data set's and the method's, whatever the net"
    )
    s = compose.resumed(str(launcher.jobs[0].run_dir / "config.yaml"), [], {})
    assert s == launcher.jobs[0].settings
    images = build.data(s)
    # 341,792 and 10 outputs of 1,025 numbers each
    assert sum(p.numel() for p in build.model(s, images).parameters()) == 352_042


def test_parameters_are_read_from_a_file_with_what_batch_norms_have_seen(here: Path) -> None:
    s = composed(
        "dataset=synthetic",
        "dataset.train=20",
        "dataset.test=20",
        "model=torchvision",
        "model.name=shufflenet_v2_x0_5",
        "init=net.pt",
    )
    images = build.data(s)
    saved = build.model(replace(s, init=None, seed=5), images)
    saved.conv1[1].running_mean.fill_(0.25)
    saved.stage4[1].branch2[4].num_batches_tracked.fill_(9)
    torch.save(saved.state_dict(), here / "net.pt")
    read = build.model(s, images).state_dict()
    assert all(torch.equal(value, read[name]) for name, value in saved.state_dict().items())
    old = saved.state_dict()
    for name in [name for name in old if name.endswith("num_batches_tracked")]:
        del old[name]
    torch.save(old, here / "net.pt")  # as torchvision's older files are
    read = build.model(s, images).state_dict()
    assert all(torch.equal(value, read[name]) for name, value in old.items())
    thousand = build.model(replace(s, init=None), replace(images, num_classes=1000))
    torch.save(thousand.state_dict(), here / "net.pt")
    sentence = (
        r"init=net.pt: fc.weight is \[1000, 1024\] in the file and \[10, 1024\] in the net: .* 1000 classes, .* "
        r"has 10; give init_without=\[fc\]"
    )
    with pytest.raises(UsageError, match=sentence):
        build.model(s, images)
    tuned, fresh = (
        build.model(with_init, images).state_dict()
        for with_init in (replace(s, init_without=["fc"]), replace(s, init=None))
    )
    assert all(
        torch.equal(value, (fresh if name.startswith("fc.") else thousand.state_dict())[name])
        for name, value in tuned.items()
    )
    torch.save(thousand.state_dict() | {"aux.weight": torch.ones(3)}, here / "net.pt")
    assert torch.equal(
        build.model(replace(s, init_without=["fc.weight", "fc.bias", "aux"]), images).state_dict()["fc.weight"],
        fresh["fc.weight"],
    )
    with pytest.raises(
        UsageError,
        match=r"init_without=\[head\]: neither init=net.pt nor the net has .* head; "
        r"the net's are conv1, .* conv5, fc",
    ):
        build.model(replace(s, init_without=["head"]), images)
    torch.save({**saved.state_dict(), "fc.bias": torch.tensor(0.0)}, here / "net.pt")
    with pytest.raises(UsageError, match=r"init=net.pt: fc.bias is \[\] in the file and \[10\] in the model"):
        build.model(s, images)


OWN_PROBLEM = """
import torch

class Bowl:
    batch_size = 5
    def __init__(self, width: float, l2: float, workers: int):
        self.width = width
    def start(self, worker=None):
        return torch.ones(3)
    def load(self, worker, t):
        pass
    def gradient(self, x):
        self.loss = (x @ x).detach() / self.width
        return 2 * x / self.width
    def evaluate(self, x):
        return {"train_loss": float(x @ x) / self.width, "roundness": 1.0}
    def state_dict(self, x):
        return {"bowl": x.clone()}

class OnImages(Bowl):
    def __init__(self, images, width: float = 1.0):
        self.width = width * len(images.train)

class OnNet(Bowl):
    def __init__(self, images, model, train_images, device, batch_size):
        self.width = sum(p.numel() for p in model.parameters())

class OnNetAlone(Bowl):
    def __init__(self, model):
        self.width = sum(p.numel() for p in model.parameters())

class Words(torch.nn.Module):
    def __init__(self, words: int = 7):
        super().__init__()
        self.table = torch.nn.Embedding(words, 2)
    def forward(self, indices):
        return self.table(indices)  # of images it can make nothing

class Wide(Bowl):
    def __init__(self):
        self.width = 1.0
    def gradient(self, x):
        super().gradient(x)
        return torch.ones(4)
"""


def test_a_users_own_problem_brings_its_settings_and_only_what_it_asks_for(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    (here / "mine.py").write_text(OWN_PROBLEM)
    words = ["train", "eta=0.1", "steps=20"]
    said = easgd(*words, "problem=mine:Bowl", "problem.width=2", "batch_size=7", "l2=0.1")
    assert said.status == 0, said.err
    assert said.err == "easgd: batch_size=7 has no effect: problem=mine:Bowl does not use it.\n"
    s = launcher.jobs[0].settings
    assert s.problem == {"name": "mine:Bowl", "target": "mine:Bowl", "width": 2}  # l2 and workers are the run's
    assert (s.dataset["name"], s.model["name"]) == ("none", "none")
    assert compose.resumed(str(launcher.jobs[0].run_dir / "config.yaml"), [], {}) == s
    assert (
        easgd(*words, "problem=mine:OnImages").status
        == easgd(*words, "problem=mine:OnNet", "dataset=digits").status
        == 0
    )
    on_images, on_net = (job.settings for job in launcher.jobs[1:])
    assert (on_images.dataset["name"], on_images.model["name"]) == ("digits", "none")
    assert (on_net.dataset["name"], on_net.model["name"]) == ("digits", "small")
    assert easgd(*words, "problem=mine:OnNetAlone", "model=mine:Words", "model.words=9").status == 0
    assert (launcher.jobs[-1].settings.dataset["name"], launcher.jobs[-1].settings.model["words"]) == ("none", 9)
    assert easgd(*words, "problem=mine:OnNetAlone", "dataset=digits").status == 0  # whose shape `small` asks for
    for more, sentence in {
        "problem=mine:OnNetAlone": "problem=mine:OnNetAlone model=small: this net asks for the shape of data, "
        "and there are none",
        "problem=mine:OnNetAlone model=mine:Nothing": "mine has no Nothing",
        "problem=mine:Bowl": "problem=mine:Bowl needs problem.width",
        "problem=mine:Wide": "problem=mine:Wide: gradient(x) returned a tensor [4] of type torch.float32, where "
        "start() returned "
        "a tensor [3]",
        "problem=mine:Nothing": "problem=mine:Nothing: mine has no Nothing",
        "problem=mine:Bowls": "mine has no Bowls; did you mean mine:Bowl?",
        "problem=mine:OnImages model=small": "problem=mine:OnImages model=small: this problem uses no model",
        "problem=mine:Wide until.test_error=3": "problem=mine:Wide: gradient(x)",
        "problem=mine:OnImages until.test_error=3": "until.test_error=3: problem=mine:OnImages has no test_error",
    }.items():
        said = easgd(*words, *more.split())
        assert (said.status, len(said.err.splitlines())) == (2, 1) and sentence in said.err, said.err
    assert (
        "There is no default eta for algo=easgd with problem=mine:Wide: write eta=."
        in easgd("train", "problem=mine:Wide", "steps=1").err
    )


def test_the_problem_of_the_documentation_runs_in_processes_of_its_own_and_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (configs.directory().parent / "docs" / "algorithms.md").read_text()
    found = re.search(
        r"\n((?:    import torch\n)(?:    .*\n|\n)*?)    \$ (easgd train problem=my_module:Rosenbrock .*)\n", text
    )
    assert found is not None
    (here / "my_module.py").write_text(textwrap.dedent(found[1]))
    run = here / "run"

    first = [*[w for w in found[2].split()[2:] if not w.startswith("steps=")], "steps=250"]
    first += ["workers=2", "problem.noise=0.2", "hydra.run.dir=run", "eval.every=100 steps"]
    for words in (first, ["resume=run", "steps=400"]):
        assert main(["train", *words]) == 0
        said = capsys.readouterr().out
        assert "distance to optimum" in said and "test error" not in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [r for r in rows if r["party"] == "center"]
    steps = [r["step"] for r in measured]  # each at the first exchange at which the mean of both workers is there
    assert [step // 100 * 100 for step in steps] == [0, 100, 200, 200, 300, 400] and (steps[0], steps[3], steps[5]) == (
        0,
        250,
        400,
    )
    x = torch.load(run / "center.pt", weights_only=True)["x"]
    loss = float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)
    assert measured[-1]["train_loss"] == pytest.approx(loss, rel=1e-12) and loss < measured[0]["train_loss"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["center"] == {name: measured[-1][name] for name in ("train_loss", "distance_to_optimum")}
    assert (summary["problem"], summary["dataset"]) == ("my_module:Rosenbrock", "none")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (
            "model=broken:Net",
            "import sys\nsys.exit(3)\n",
            "model=broken:Net: importing broken raised SystemExit: 3 ({file}, line 2).",
        ),
        (
            "model=broken:Net",
            "def f(:\n    pass\n",
            "model=broken:Net: importing broken raised SyntaxError: invalid syntax ({file}, line 1).",
        ),
        (
            "dataset=broken:f eta=1 steps=20",
            "def f():\n    raise SystemExit(4)\n",
            "dataset=broken:f: calling it raised SystemExit: 4 ({file}, line 2).",
        ),
    ],
)
def test_whatever_an_own_module_raises_is_one_sentence(
    words: str, code: str, sentence: str, easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    (here / "broken.py").write_text(code)
    said = easgd("train", *words.split())
    assert (said.status, said.err) == (2, f"easgd: {sentence.format(file=here / 'broken.py')}\n")
    assert launcher.jobs == []
    assert not (here / "runs").exists()


def documented(name: str) -> str:
    """The code block of docs/algorithms.md that defines `name`."""
    text = (configs.directory().parent / "docs" / "algorithms.md").read_text()
    [block] = [b for b in re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE) if f"def {name}(" in b]
    return textwrap.dedent(block.partition("    $ ")[0])


def test_the_documented_data_set_runs_as_it_is_printed_and_follows_from_the_seed(
    easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    (here / "my_module.py").write_text(documented("my_data"))
    for seed in (0, 0, 1):
        said = easgd("train", "dataset=my_module:my_data", "eta=0.05", "steps=500", f"seed={seed}")
        assert said.status == 0, said.err
    first, again, other = (build.data(job.settings) for job in launcher.jobs)
    assert torch.equal(first.train, again.train) and torch.equal(first.test_labels, again.test_labels)
    assert not torch.equal(first.train, other.train)


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


def test_the_documented_configurations_of_ones_own_are_what_they_are_said_to_be(
    easgd: Easgd, launcher: Launcher, here: Path, unprepared: None
) -> None:
    text = (configs.directory().parent / "docs" / "configuration.md").read_text()
    files = re.findall(r"^    # ([\w/]+\.(?:py|yaml))\n((?:(?!    # [\w/]+\.)(?:    .*)?\n)*)", text, re.MULTILINE)
    assert [name for name, _ in files] == [
        "stripes.py",
        "mine/dataset/stripes.yaml",
        "mine/tuning/eamsgd_stripes.yaml",
        "mine/experiment/noise.yaml",
    ]
    for name, block in files:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(textwrap.dedent(block))
    commands = re.findall(r"^    \$ easgd (train --config-dir .*)$", text, re.MULTILINE)
    counts = []
    for words in commands:
        before = len(launcher.jobs)
        said = easgd(*words.split())
        assert said.status == 0, said.err
        counts.append(len(launcher.jobs) - before)
    assert counts == [1, 6, 3]
    first, last = launcher.jobs[0].settings, launcher.jobs[-1].settings
    assert (first.eta, first.delta, first.batch_size, first.default_steps, first.workers) == (0.01, 0.9, 32, 200, 4)
    assert (last.tau, last.workers, last.dataset["noise"], last.eta) == (4, 2, 1.5, 0.01)
    assert launcher.jobs[1].run_dir.parent == here / "runs" / "sweeps" / "noise"
    images = build.data(first)
    assert (images.count("train"), images.count("test"), images.num_classes, images.input_shape) == (
        600,
        300,
        3,
        (1, 8, 8),
    )


def test_own_tuning_lies_over_a_shipped_row_and_below_experiments(
    easgd: Easgd, launcher: Launcher, here: Path, unprepared: None
) -> None:
    for name, text in {
        "tuning/eamsgd_digits.yaml": "eta: 0.031\ntau: 3\n",
        "tuning/easgd_mnist.yaml": "defaults: [table/sgd_cifar10@_global_, _self_]\neta: 0.032\n",
        "tuning/experiment/mine_eamsgd.yaml": "delta: 0.8\ntau: 4\n",
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /algo: eamsgd\ntau: 6\n",
    }.items():
        (here / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "own" / name).write_text(text)
    for words in (["experiment=mine", "batch_size=8"], ["algo=easgd", "dataset=mnist"], ["algo=sgd"]):
        said = easgd("train", "--config-dir", "own", *words)
        assert (said.status, said.err) == (0, "")
    over, taken, shipped = [job.settings for job in launcher.jobs]
    assert (over.eta, over.tau, over.batch_size, over.delta, over.default_steps) == (0.031, 6, 8, 0.8, 1500)
    assert (taken.eta, taken.l2, taken.default_steps) == (0.032, 1e-4, 3900)
    assert shipped.eta == 0.2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tua: 3", "tua: there is no setting tua; did you mean tau?"),
        ("eta: fast", "eta=fast: must be a number."),
        ("eval:\n  evry: 30 s", "eval.evry: there is no setting eval.evry; did you mean eval.every?"),
        ("until: 5", "until=5: until is a section; write until.METRIC=LEVEL, such as until.test_error=2."),
        ("tau: {a: 1}", "tau={'a': 1}: must be a whole number, or auto."),
    ],
)
def test_a_mistake_in_an_own_configuration_is_told_with_its_file(
    text: str, sentence: str, easgd: Easgd, launcher: Launcher, here: Path
) -> None:
    (here / "own" / "experiment").mkdir(parents=True)
    (here / "own" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    said = easgd("train", "experiment=mine", "--config-dir", "own", "eta=0.1")
    assert (said.status, said.err) == (2, f"easgd: In experiment/mine.yaml: {sentence}\n")
    assert launcher.jobs == []


def test_hydra_shows_the_composed_settings(easgd: Easgd, launcher: Launcher) -> None:
    shown = yaml.safe_load(easgd("train", "--cfg", "job", "tau=4", "algo=eamsgd").out)
    assert (shown["tau"], shown["algo"]["name"]) == (4, "eamsgd")
    assert easgd("train", "--cfg", "job", "tua=4").status == 2
    assert launcher.jobs == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("easgd train algo=eam", "algo=eamsgd"),
        ("easgd train tau=3 eval.ev", "eval.every="),
        ("easgd train -m --config-dir own experiment=mi", "experiment=mine"),
        ("easgd tr", "train"),
        ("easgd train --config-", "--config-dir --config-name"),
        ("easgd train resume=runs/a", "resume=runs/a,tau=1/"),
        ("easgd train init=runs/a,tau=1/", "init=runs/a,tau=1/center.pt"),
        ("easgd train --no-such-option algo=eam", ""),
        ("easgd report runs/", ""),  # then the shell offers files
        ("", ""),
    ],
)
def test_completion(typed: str, offered: str, easgd: Easgd, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("runs/a,tau=1", "own/experiment"):
        (here / path).mkdir(parents=True)
    for file in ("runs/a,tau=1/center.pt", "runs/a,tau=1/.lock", "runs/b c", "own/experiment/mine.yaml"):
        (here / file).touch()
    monkeypatch.setenv("COMP_LINE", typed)
    monkeypatch.setenv("COMP_POINT", str(len(typed)))
    said = easgd("-sc", "query=bash")
    assert (said.status, said.out.split(), said.err) == (0, offered.split(), "")


def test_completion_in_a_shell_that_has_just_started(here: Path) -> None:
    """In this process others have told Hydra of the settings already."""

    def offered(typed: str) -> list[str]:
        line = os.environ | {
            "COMP_LINE": typed,
            "COMP_POINT": str(len(typed)),
            "PYTHONPATH": str(Path(easgd_cli.__file__).parent.parent),
        }
        asked = subprocess.run(
            [sys.executable, "-m", "easgd_cli", "-sc", "query=bash"],
            env=line,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return asked.stdout.split()

    assert offered("easgd train t") == ["task.", "task=", "tau=", "threads="]
    assert offered("easgd train eval.") == ["eval.device=", "eval.every=", "eval.train_images=", "eval.when="]
    assert offered("easgd train model=torchvision model.") == ["model.name="]  # model.target= is the program's own


INTERRUPTED = """
import json, os, signal
from mine import data as own_data

def data():
    try:
        os.kill(os.getpid(), signal.{number})
    except BaseException:
        pass  # as a library's callback loses it
    return own_data()

class AtOnce:
    def begin(self):
        pass

    def __call__(self, job, prepared):
        os.kill(os.getpid(), signal.{number})

class Late(AtOnce):
    def __call__(self, job, prepared):
        (job.run_dir / "summary.json").write_text(json.dumps({{"status": "running"}}))
        super().__call__(job, prepared)
"""


@pytest.mark.parametrize(
    ("word", "number", "status", "line", "left"),
    [
        ("dataset=interrupted:data", "SIGINT", 130, "interrupted", False),
        ("launcher=interrupted:AtOnce", "SIGTERM", 143, "terminated", False),
        ("launcher=interrupted:Late", "SIGINT", 130, "interrupted", True),
    ],
)
def test_a_signal_before_training_ends_the_command(
    word: str, number: str, status: int, line: str, left: bool, here: Path
) -> None:
    """While data are loaded, when the directory has been made, and once a summary in it says that a run has begun."""
    (here / "mine.py").write_text(OWN)
    (here / "interrupted.py").write_text(INTERRUPTED.format(number=number))
    words = [word] if word.startswith("dataset") else ["dataset=mine:data", word]
    command = [sys.executable, "-m", "easgd_cli", "train", *words, "eta=0.1", "steps=50", "hydra.run.dir=run"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(configs.directory().parent)},
    )
    assert (done.returncode, done.stderr) == (status, f"easgd: {line}.\n")
    assert (here / "run").exists() == left
