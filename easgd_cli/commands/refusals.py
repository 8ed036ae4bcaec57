"""What was wrong with a configuration, in a sentence about the key and value as the user wrote them, on the command
line or in a file.

Hydra and OmegaConf tell what they could not do; here it becomes what to write instead.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, InterpolationResolutionError, OmegaConfBaseException, ValidationError

from easgd_cli.commands import configs, plugins
from easgd_cli.commands.arguments import GROUPS
from easgd_cli.errors import UsageError
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings

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

# Hydra's own groups, each the section of its name.
_HYDRAS_GROUPS = r"hydra\.(callbacks|env|help|hydra_help|hydra_logging|job_logging|launcher|sweeper(\.sampler)?)"


def missing(e: MissingConfigException, config_name: str) -> str:
    """A group has no such option."""
    group, _, name = (e.missing_cfg_file or "").rpartition("/")
    if e.missing_cfg_file == config_name:
        return f"--config-name {config_name}: there is no {config_name}.yaml among the configurations."
    if group in ("hydra/launcher", "hydra/sweeper"):
        plugins.refuse_missing(group.removeprefix("hydra/"), name)
    known = [o for o in (e.options or []) if ":" not in o]
    if group == "model" and "torchvision" in known:
        from easgd_cli.data.vision import torchvision  # here: it takes a second, which only a net of that name is worth

        nets = {_folded(net): net for net in torchvision().models.list_models(module=torchvision().models)}
        if net := nets.get(_folded(name)):
            return f"model={name}: is a net of torchvision; write model=torchvision model.name={net}."
    if group == "launcher" and (far := _near(name, plugins.LAUNCHERS)):
        return (
            f"launcher={name}: launcher= says where a run's processes are; the runs of a sweep are handed on with "
            f"-m hydra/launcher={far}."
        )
    listed = f" There are: {', '.join(known)}."
    if not known:
        listed = f" There is no {group} yet; add a directory of your own with --config-dir."
    example = group in GROUPS[:6] and targets.example(group)
    own = f" Your own: {example}, or {group}/{name}.yaml in a --config-dir." if example else ""
    near = _near(name, [o for o in known if o not in ("none", "own")], cutoff=0.51)
    return f"{group}={name}: there is no such {group}{f'; did you mean {near}?' if near else '.'}{listed}{own}"


def sentence(e: BaseException, overrides: Sequence[str]) -> str:
    """What `e`, raised while `overrides` were composed or resolved, says of them."""
    if in_file := re.match(r"In '([^']+)': \w+ raised while composing config", str(e)):
        assert e.__context__ is not None  # Hydra keeps only its first line
        return f"In {in_file[1]}.yaml: {_of_a_file(in_file[1].partition('/')[0], e.__context__)}"
    cause = e if isinstance(e, OmegaConfBaseException) else e.__cause__
    if isinstance(cause, InterpolationResolutionError):
        line = next((o for o in overrides if "${" in o), "A setting")
        written = _written(cause.full_key, overrides) if cause.full_key else line
        return f"{written}: its ${{...}} cannot be resolved: {first_line(cause)}."
    if isinstance(cause, ValidationError | ConfigTypeError) and cause.full_key:
        return _wrong_type(cause, overrides)
    if isinstance(cause, AttributeError | KeyError) and getattr(cause, "full_key", None):
        return _unknown(cause, overrides)
    if unknown := re.match(r"(?:In '([^']+)': )?Could not (?:override|delete from config\.) '([^'@]+)", str(e)):
        file, key = unknown.groups()
        return f"In {file}.yaml: {_no_setting(key, [])}" if file else _no_setting(key, overrides)
    if there := re.match(r"Could not append to config\. An item is already at '(.*)'", str(e)):
        return f"{(line := _written(there[1], overrides))}: is there already; write {line[1:]} without the +."
    if twice := re.match(r"Multiple values for ([\w/]+)\. To override a value use 'override [\w/]+: (.*)'", str(e)):
        return f"The defaults of a file choose {twice[1]} once more; write - override /{twice[1]}: {twice[2]} there."
    if gone := re.match(r"provider=.* path=(.*) is not available", str(e)):
        return (
            f"{_written('hydra.searchpath', overrides)}: there is no directory {gone[1]}; one that is there "
            "is written 'hydra.searchpath=[file:///path/to/it]'."
        )
    if "hydra.searchpath must be a list" in str(e):
        line = _written("hydra.searchpath", overrides)
        return f"{line}: must be a list, such as 'hydra.searchpath=[{line.partition('=')[2]}]'."
    if merging := re.match("Error merging override (.*)", str(e)):
        return no_place(merging[1])
    return f"{first_line(e)}."


def no_place(line: str) -> str:
    return f"{line}: has no place in the configuration; easgd train --cfg all shows what has one."


def not_given(key: str, overrides: Sequence[str], choices: dict[str, str | None]) -> str:
    """`key` has no value and no default."""
    line = _written(key, overrides)
    if line.partition("=")[2].strip("'\"") == "???":
        return f"{line}: ??? stands for a value that is missing; write one."
    group = key.partition(".")[0]
    if group in GROUPS and "." in key:
        return f"{group}={choices.get(group)} needs {key}, and no value was given; write {key}=."
    if key in GROUPS:
        return f"{key}=: a run needs one; write one of the names that easgd train --help lists for {key}."
    group = "problem" if choices.get("dataset") == "none" else "dataset"
    return f"There is no default {key} for algo={choices.get('algo')} with {group}={choices.get(group)}: write {key}=."


def first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")


def chosen_with_a_slash(written: str, group: str) -> str:
    """A name was given to the section that an option of `group` fills."""
    key, _, value = written.lstrip("+").partition("=")
    return f"{written}: {key} is a section; what fills it is chosen with a slash: {group}={value}."


def check_sections(cfg: DictConfig, choices: Iterable[str], overrides: Sequence[str]) -> None:
    """Raises UsageError where a value stands in the place of a section: untyped ones, which is what a plugin's are, let
    it.
    """
    for group in (group for group in choices if group.startswith("hydra/")):
        node = OmegaConf.select(cfg, group.replace("/", "."))
        if node is not None and not isinstance(node, DictConfig):
            raise UsageError(chosen_with_a_slash(_written(group.replace("/", "."), overrides), group))
    for name in (line.partition("=")[0] for line in overrides if line.startswith("+")):
        inside, _, key = name.lstrip("+").rpartition(".")
        section = OmegaConf.get_type(OmegaConf.select(cfg, inside))
        if is_dataclass(section) and key not in _types(section):
            raise UsageError(_no_setting(f"{inside}.{key}", overrides, inside, list(_types(section))))


def _of_a_file(group: str, cause: BaseException) -> str:
    """What is wrong with a file of `group`, which OmegaConf could not merge."""
    key, value = getattr(cause, "full_key", None), getattr(cause, "value", None)
    if group == key == "experiment":
        return (
            "an experiment sets what belongs to other groups, so # @package _global_ is its first line; write it there."
        )
    if key in GROUPS and value is not None:
        return f"{key}: {value}: a name is chosen in the defaults; write - override /{key}: {value} there."
    if stands := re.match(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", str(cause)):
        for name, kind in _types(Settings).items():
            if getattr(kind, "__name__", None) == stands[1]:
                return _section(f"{name}={stands[2]}", name, kind)
        part = "launcher" if "Launcher" in stands[1] else "sweeper"
        return f"{stands[2]}: a name is chosen in the defaults; write - override /hydra/{part}: {stands[2]} there."
    return sentence(cause, [])


def _unknown(cause: Any, overrides: Sequence[str]) -> str:
    full = str(cause.full_key)
    parent, _, key = full.rpartition(".")
    siblings = [str(k) for k in cause.parent_node or () if k not in ("hydra", "name", "target", "_target_")]
    written = _written(full, overrides)
    if parent in GROUPS:
        if elsewhere := _ELSEWHERE.get(full):
            return f"{written}: there is no setting {full}; did you mean {elsewhere}?"
        if key in _types(Settings):
            return f"{written}: {key} is a setting of the run, not of {parent}; write {key}=."
        others = [f"{parent}={option}" for option in configs.options(parent) if key in configs.settings(parent, option)]
        having = f"it has {', '.join(siblings)}." if siblings else "it has none of its own."
        if near := _near(key, siblings):
            having = f"did you mean {parent}.{near}?"
        elif others:
            having = f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} it."
        return f"{written}: {cause.parent_node.get('name')} has no such setting; {having}"
    if parent.startswith("hydra.") and typing.get_origin(cause.ref_type) is dict:
        return f"{written}: {parent} has no {key} yet; a + adds it: +{written}."
    chosen = f"{parent.replace('.', '/')}="
    if parent in ("hydra.launcher", "hydra.sweeper") and not any(o.startswith(chosen) for o in overrides):
        return f"{written}: easgd itself has no such setting; choose the plugin that has it with {chosen}."
    return _no_setting(full, overrides, parent, siblings)


def _no_setting(key: str, overrides: Sequence[str], parent: str = "", siblings: Sequence[str] = ()) -> str:
    """There is nothing of that name; perhaps one of those beside it is meant, or the last part of one of all."""
    written = _written(key, overrides)
    typed = written.partition("=")[0].lstrip("+~")
    if instead := _NOT_HERE.get(typed):
        return f"{written}: there is no setting {key}; {instead}."
    near = _of_a_group(typed, overrides) or _ELSEWHERE.get(typed)
    if not near and parent:
        near = (beside := _near(key.rpartition(".")[2], siblings)) and f"{parent}.{beside}"
    if not near and not parent.startswith("hydra."):
        near = _near(typed, _all_keys(), cutoff=0.6) or next((k for k in _all_keys() if k.endswith(f".{typed}")), None)
    if near:
        return f"{written}: there is no setting {key}; did you mean {near}?"
    if parent.startswith("hydra.") and siblings:
        return f"{written}: there is no setting {key}; {parent} has {', '.join(siblings)}."
    return f"{written}: there is no setting {key}; easgd train --help lists all of them."


def _of_a_group(key: str, overrides: Sequence[str]) -> str | None:
    """`model.hidden` where `hidden` is a setting of an option that was chosen."""
    chosen = {group: option for group, option in configs.defaults().items() if option is not None}
    chosen |= {group: value for group, _, value in (o.partition("=") for o in overrides) if group in GROUPS}
    for group, option in chosen.items():
        if option in configs.options(group) and key in configs.settings(group, option):
            return f"{group}.{key}"
    return None


def _wrong_type(cause: Any, overrides: Sequence[str]) -> str:
    """A value of another kind than the setting's."""
    full, item, _ = str(cause.full_key).partition("[")
    line, kind = _written(full, overrides), _kind(cause)
    key, equals, value = line.partition("=")
    if not equals and not key.startswith("~"):  # from a file
        found = re.match(r"Value '(.*)' of type", str(cause))
        value = found[1] if found else str(cause.value)
        line = f"{key}={value}"
    if key.startswith("~"):
        return f"{line}: cannot be removed; leave it out to have its default."
    if re.fullmatch(_HYDRAS_GROUPS, full):
        return chosen_with_a_slash(line, full.replace(".", "/"))
    if full.startswith("until."):
        kind = float
    if is_dataclass(kind) or typing.get_origin(kind) is dict:
        return _section(line, full, kind)
    if key.lstrip("+").startswith(full + "."):
        return f"{line}: {full} is a single value, not a section; write {full}=."
    try:
        if not item:
            targets.convert(full, value, kind)
    except UsageError as e:
        if "number" in str(e) and (united := re.fullmatch(r"([0-9.]+) ?[a-z%]+", value)):
            return f"{str(e).rstrip('.')}, without a unit: {full}={united[1]}."
        if "number" in str(e) and (several := re.fullmatch(r"\[(.*)\]", value)):
            return (
                f"{str(e).rstrip('.')}; several, of a sweep, have no brackets: -m {full}={several[1].replace(' ', '')}."
            )
        return str(e)
    if one_of := re.search(r"expected one of \[(.*)\]", str(cause)):
        return f"{line}: must be one of {one_of[1]}."
    return f"{line}: must be {targets.word(kind)}{' of texts' if item else ''}."


def _section(written: str, key: str, kind: Any) -> str:
    if is_dataclass(kind):
        return f"{written}: {key} is a section; write one of {', '.join(f'{key}.{f.name}=' for f in fields(kind))}."
    if key == "until":
        return f"{written}: until is a section; write until.METRIC=LEVEL, such as until.test_error=2."
    return f"{written}: {key} is a section; write +{key}.NAME=VALUE."


def _kind(cause: Any) -> Any:
    """The type that the schema gives the setting which could not be set, without None."""
    kind = (_types(cause.object_type) if is_dataclass(cause.object_type) else {}).get(cause.key, cause.ref_type)
    kind = cause.object_type if kind is Any else kind
    without = [k for k in typing.get_args(kind) if k is not type(None)]
    return without[0] if typing.get_origin(kind) is typing.Union and len(without) == 1 else kind


def _types(section: Any) -> dict[str, Any]:
    return typing.get_type_hints(section)


def _written(key: str, overrides: Sequence[str]) -> str:
    """The override that set `key` or something below it, as the user wrote it; `key` where a file did."""
    for line in reversed(overrides):
        name = line.partition("=")[0].lstrip("+~")
        if name == key or name.startswith(key + ".") or (key.startswith(name + ".") and name not in GROUPS):
            return line
    return key


def _all_keys() -> list[str]:
    nested = _types(Settings)
    return [f"{k}.{f.name}" for k, kind in nested.items() if is_dataclass(kind) for f in fields(kind)] + list(nested)


def _near(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of `known` that is most like `word`, whatever its capitals and hyphens."""
    folded = {_folded(k): k for k in known}
    found = difflib.get_close_matches(_folded(word), folded, 1, cutoff)
    return folded[found[0]] if found else None


def _folded(word: str) -> str:
    return re.sub("[-_]", "", word).lower()
