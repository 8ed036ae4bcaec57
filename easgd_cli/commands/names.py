"""Sentences on a wrong name or value of a setting. Without Hydra, so that all that take settings can use them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from easgd_cli.commands import configs
from easgd_cli.settings import targets
from easgd_cli.settings.schema import GROUPS, Settings

# What other programs call our settings.
_ELSEWHERE = {
    "lr": "eta", "learning_rate": "eta", "momentum": "delta", "mu": "delta", "weight_decay": "l2", "wd": "l2",
    "gradient_accumulation": "accumulate", "gradient_accumulation_steps": "accumulate", "grad_accum": "accumulate",
    "accumulate_grad_batches": "accumulate", "param_groups": "groups", "parameter_groups": "groups",
    "period": "tau", "moving_rate": "alpha",
    "warmup_steps": "warmup", "max_norm": "clip", "clip_norm": "clip", "grad_clip": "clip",
    "label_smoothing": "task.label_smoothing", "top5": "task.top5",
    "problem.label_smoothing": "task.label_smoothing", "problem.top5": "task.top5",
    "loss": "task", "test_error": "until.test_error",
    "p": "workers", "num_workers": "workers", "nproc": "workers", "nproc_per_node": "workers", "batch": "batch_size",
    "bs": "batch_size",
    "max_steps": "steps", "iterations": "steps", "max_epochs": "epochs", "algorithm": "algo", "method": "algo",
    "data": "dataset", "net": "model",
    "gpu": "device", "gpus": "device", "num_gpus": "device", "cuda": "device", "sweeper": "hydra/sweeper",
    "dir": "hydra.run.dir", "run_dir": "hydra.run.dir", "out": "hydra.run.dir", "output_dir": "hydra.run.dir",
}  # fmt: skip
_NO_OPTIMIZER = "how a worker moves between exchanges is chosen with local=, such as algo=easgd local=adamw"
_ONE_MACHINE = (
    "a run is on one machine, with workers= processes; the runs of a sweep go to others with -m "
    "hydra/launcher=submitit_slurm"
)
_NOT_HERE = {"optimizer": _NO_OPTIMIZER, "optim": _NO_OPTIMIZER} | dict.fromkeys(
    ("nodes", "nnodes", "num_nodes", "machines", "hosts", "world_size"), _ONE_MACHINE
)


def not_given(key: str, overrides: Sequence[str], choices: dict[str, str | None]) -> str:
    """Returns the sentence on a `key` that has no value and no default."""
    line = written_as(key, overrides)
    if line.partition("=")[2].strip("'\"") == "???":
        return f"{line}: ??? stands for a value that is missing; write one."
    group = key.partition(".")[0]
    if group in GROUPS and "." in key:
        return f"{group}={choices.get(group)} needs {key}, and no value was given; write {key}=."
    if key in GROUPS:
        return f"{key}=: a run needs one; write one of the names that easgd train --help lists for {key}."
    group = "problem" if choices.get("dataset") == "none" else "dataset"
    return f"There is no default {key} for algo={choices.get('algo')} with {group}={choices.get(group)}: write {key}=."


def no_such_option(group: str, name: str, known: Sequence[str]) -> str:
    """Returns the sentence on an option `name` that is not one of the options `known` of `group`."""
    listed = f" There are: {', '.join(known)}."
    if not known:
        listed = f" There is no {group} yet; add a directory of your own with --config-dir."
    example = group in GROUPS[:6] and targets.example(group)
    own = f" Your own: {example}, or {group}/{name}.yaml in a --config-dir." if example else ""
    near = near_to(name, [o for o in known if o not in ("none", "own")], cutoff=0.51)
    return f"{group}={name}: there is no such {group}{f'; did you mean {near}?' if near else '.'}{listed}{own}"


def no_option(full: str, written: str, name: str, siblings: Sequence[str]) -> str:
    """Returns the sentence on a setting `full` of a group, whose option `name` has the settings `siblings` and not this
    one. Suggests a similar one, or the options that have it.
    """
    parent, _, key = full.partition(".")
    if elsewhere := _ELSEWHERE.get(full):
        return f"{written}: there is no setting {full}; did you mean {elsewhere}?"
    if key in get_type_hints(Settings):
        return f"{written}: {key} is a setting of the run, not of {parent}; write {key}=."
    others = [option for option in configs.options(parent) if key in configs.settings(parent, option)]
    having = f"it has {', '.join(siblings)}." if siblings else "it has none of its own."
    if near := near_to(key, siblings):
        having = f"did you mean {parent}.{near}?"
    elif others:
        having = f"{', '.join(f'{parent}={option}' for option in others)} {'has' if len(others) == 1 else 'have'} it."
    return f"{written}: {name} has no such setting; {having}"


def no_setting(key: str, overrides: Sequence[str], parent: str = "", siblings: Sequence[str] = ()) -> str:
    """Returns the sentence on a `key` that is no setting. Suggests one of the `siblings` in its section `parent`, a
    similar setting, or one whose last part is `key`.
    """
    written = written_as(key, overrides)
    typed = written.partition("=")[0].lstrip("+~")
    if instead := _NOT_HERE.get(typed):
        return f"{written}: there is no setting {key}; {instead}."
    near = _of_a_group(typed, overrides) or _ELSEWHERE.get(typed)
    if not near and parent:
        near = (beside := near_to(key.rpartition(".")[2], siblings)) and f"{parent}.{beside}"
    if not near and not parent.startswith("hydra."):
        near = near_to(typed, _all_keys(), cutoff=0.6) or next(
            (k for k in _all_keys() if k.endswith(f".{typed}")), None
        )
    if near:
        return f"{written}: there is no setting {key}; did you mean {near}?"
    if parent.startswith("hydra.") and siblings:
        return f"{written}: there is no setting {key}; {parent} has {', '.join(siblings)}."
    return f"{written}: there is no setting {key}; easgd train --help lists all of them."


def _of_a_group(key: str, overrides: Sequence[str]) -> str | None:
    """Returns `model.hidden` for `hidden` where the chosen option of `model` has that setting; None for no group."""
    chosen = {group: option for group, option in configs.defaults().items() if option is not None}
    chosen |= {group: value for group, _, value in (o.partition("=") for o in overrides) if group in GROUPS}
    for group, option in chosen.items():
        if option in configs.options(group) and key in configs.settings(group, option):
            return f"{group}.{key}"
    return None


def section(written: str, key: str, kind: Any) -> str:
    if is_dataclass(kind):
        return f"{written}: {key} is a section; write one of {', '.join(f'{key}.{f.name}=' for f in fields(kind))}."
    if key == "until":
        return f"{written}: until is a section; write until.METRIC=LEVEL, such as until.test_error=2."
    return f"{written}: {key} is a section; write +{key}.NAME=VALUE."


def written_as(key: str, overrides: Sequence[str]) -> str:
    """Returns the override that set `key`, a setting in it or its section; `key` itself where a file has set it."""
    for line in reversed(overrides):
        name = line.partition("=")[0].lstrip("+~")
        if name == key or name.startswith(key + ".") or (key.startswith(name + ".") and name not in GROUPS):
            return line
    return key


def _all_keys() -> list[str]:
    nested = get_type_hints(Settings)
    return [f"{k}.{f.name}" for k, kind in nested.items() if is_dataclass(kind) for f in fields(kind)] + list(nested)


def near_to(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Returns the name in `known` that is most like `word`, capitals and hyphens aside; None where none is close."""
    by_letters = {folded(k): k for k in known}
    found = difflib.get_close_matches(folded(word), by_letters, 1, cutoff)
    return by_letters[found[0]] if found else None


def folded(word: str) -> str:
    return re.sub("[-_]", "", word).lower()
