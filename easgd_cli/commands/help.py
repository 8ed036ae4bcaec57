"""`easgd train --help`, made from the comments in schema.py and configs/, so that it is never out of date."""

from __future__ import annotations

import inspect
import io
import textwrap
import tokenize
import typing
from dataclasses import MISSING, Field, fields, is_dataclass

from easgd_cli.commands import configs
from easgd_cli.settings import schema

_OPENING = """usage: easgd train [KEY=VALUE ...]       one run
       easgd train -m [KEY=V1,V2 ...]    a sweep: every combination, one after another
       easgd train resume=RUN_DIR        go on with a run that was stopped

  easgd train algo=eamsgd tau=10
  easgd train -m algo=easgd,eamsgd,downpour tau=1,4,16
  easgd train algo=eamsgd dataset=cifar10 workers=2 steps=390
  easgd train algo=sync_easgd tau=1 problem=quadratic problem.noise=10
  easgd train -m jobs=2 tau=1,4 seed=0,1,2
  easgd train -m hydra/launcher=submitit_slurm hydra.launcher.cpus_per_task=8 tau=1,4 workers=8
  easgd train -m hydra/launcher=submitit_slurm hydra.launcher.nodes=4 launcher=distributed tau=1,4
  srun --nodes=4 --ntasks-per-node=1 easgd train launcher=distributed algo=eamsgd tau=10
  easgd train -m hydra/sweeper=optuna hydra.sweeper.n_trials=20 'eta=interval(0.05,0.5)' dataset.validation=300
"""

_OPTIONS = """Options (Hydra's)
  -m, --multirun            sweep over values separated by commas
  --cfg job                 print the settings instead of running
  --info                    print how they are composed
  --config-dir DIR          add your own configurations: docs/configuration.md
  --config-name NAME        start from another root configuration
  --shell-completion        `eval "$(easgd train -sc install=bash)"`, then TAB completes commands, settings, options and
                            paths
  --hydra-help              more about Hydra; hydra.run.dir=PATH and hydra.sweep.dir=PATH choose the directory
  hydra/launcher=           with -m: joblib (extra joblib), submitit_slurm, submitit_local (extra slurm); their settings
                            are hydra.launcher.*
  hydra/sweeper=optuna      with -m: draws the values of intervals and lists to make objective= small (extra optuna);
                            hydra.sweeper.*
"""

_OWN = """Your own code comes in as module:callable, from the working directory or an installed package:
algo=my_module:MyMethod, model=my_module:MyNet, dataset=my_module:my_data, problem=my_module:MyProblem.
Its own parameters are settings: algo.mu=0.9."""

_SETTINGS = (
    "Settings (eta, delta, batch_size and steps have defaults for each method and data set, in "
    "configs/tuning.yaml, or problem)"
)

_WIDTH, _INDENT = 120, 28


def train() -> str:
    """Returns the whole help text."""
    groups = ["Groups (the first is the default)", *_groups(), ""]
    settings = [_SETTINGS, *_settings(schema.Settings, ""), ""]
    return "\n".join([_OPENING, *groups, _OWN, "", *settings, _OPTIONS])


def _groups() -> list[str]:
    lines = []
    comments = _comments(schema.Settings)
    defaults = configs.defaults()
    for group, default in defaults.items():
        names = configs.options(group)
        if not names:
            continue
        ordered = sorted(names, key=lambda n: n != default)
        lines += _entry(f"{group}=", comments.get(group) or "a figure: method, data and sweep in one")
        for name in ordered:
            lines += _entry(f"  {name}", names[name])
            for key, (value, what) in configs.settings(group, name).items():
                lines += _entry(f"    {group}.{key}={value}", what)
    return lines


def _settings(section: type, prefix: str) -> list[str]:
    lines: list[str] = []
    comments = _comments(section)
    kinds = typing.get_type_hints(section)
    for f in fields(section):
        kind = kinds[f.name]
        if kind == schema.Group or f.name == "default_steps":
            continue
        if f.name == "until":
            lines += _entry("until.METRIC=", comments[f.name])
        elif is_dataclass(kind):
            lines += _settings(typing.cast(type, kind), f"{prefix}{f.name}.")
        else:
            lines += _entry(f"{prefix}{f.name}={_default(f)}", comments.get(f.name, ""))
    return lines


def _default(f: Field[typing.Any]) -> str:
    if f.default is MISSING or f.default in (schema.MISSING, None):
        return ""
    return str(f.default).lower() if isinstance(f.default, bool) else str(f.default)


def _entry(left: str, right: str) -> list[str]:
    wrapped = textwrap.wrap(right, _WIDTH - _INDENT) or [""]
    start = f"  {left:<{_INDENT - 3}} "
    if len(start) > _INDENT:
        return [start.rstrip(), *(" " * _INDENT + w for w in wrapped)]
    return [(start + wrapped[0]).rstrip(), *(" " * _INDENT + w for w in wrapped[1:])]


def _comments(section: type) -> dict[str, str]:
    """Returns each field of a class with the comment at the end of its line, or in the lines above it."""
    found: dict[str, str] = {}
    name = ""
    above: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(inspect.getsource(section))).readline):
        if token.type == tokenize.NAME and token.start[1] == 4:
            name = token.string
            found[name] = " ".join(above)
            above = []
        elif token.type == tokenize.COMMENT and token.start[1] == 4:
            above.append(token.string.lstrip("# "))
        elif token.type == tokenize.COMMENT and name:
            found[name] = token.string.lstrip("# ")
    return found
