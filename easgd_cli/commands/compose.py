"""From overrides to typed settings: Hydra composes, and each of its refusals becomes a sentence about the key.

Hydra stops here. What leaves this file is `Settings` and plain strings.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException, ValidationError

from easgd_cli.commands import configs, plugins
from easgd_cli.commands.arguments import GROUPS
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.record import reader
from easgd_cli.record import run_directory as rundir
from easgd_cli.settings import targets as makers
from easgd_cli.settings.schema import Settings

ConfigStore.instance().store(name="easgd_settings", node=Settings)
for _pair, _row in configs.tuning().items():
    ConfigStore.instance().store(group="tuning/table", name=_pair, node=_row)
OmegaConf.register_new_resolver("named_by", lambda prefix, overrides, but=(), digits=None: _named_by(prefix, overrides, but, digits), replace=True)


def _named_by(prefix: str, overrides: typing.Iterable[str], but: typing.Iterable[str], digits: int | None) -> str:
    """A directory's name after `prefix`, by all overrides but those of the keys in `but`."""
    left_out = set(but)
    return rundir.named_by([o for o in overrides if o.partition("=")[0] not in left_out], prefix, digits)


@dataclass(frozen=True)
class Composed:
    """One job: its settings, and what Hydra's own part of the configuration says about it."""

    settings: Settings
    run_dir: str
    sweep_dir: str  # empty unless chosen
    multirun: bool  # an experiment may sweep by itself
    swept: dict[str, str]  # parameters of a sweep that an experiment brings, as key -> values
    choices: dict[str, str | None]  # which option of each group was taken


@contextmanager
def composing(config_name: str) -> Iterator[typing.Callable[[Sequence[str]], Composed]]:
    """A function from overrides (without sweeps) to a job, for as long as the context lasts. It raises UsageError."""
    with initialize_config_dir(str(configs.directory()), job_name="train", version_base="1.3"):
        yield lambda overrides: _compose(config_name, list(overrides))


def _compose(config_name: str, overrides: list[str]) -> Composed:
    try:
        cfg = compose(config_name, overrides, return_hydra_config=True)
    except MissingConfigException as e:
        group, _, name = (e.missing_cfg_file or "").partition("/")
        if group in _OFFERED and ":" in name and f"{name}.yaml" not in ConfigStore.instance().repo.get(group, {}):
            _store(group, name)
            return _compose(config_name, overrides)
        raise UsageError(_missing(e, overrides)) from e
    except (HydraException, OmegaConfBaseException, ValueError) as e:
        raise UsageError(_sentence(e, overrides)) from e
    except yaml.YAMLError as e:
        raise UsageError(f"A configuration file is not YAML: {' '.join(str(e).split())}.") from e
    hydra = cfg.hydra
    choices = {str(k): v for k, v in hydra.runtime.choices.items()}
    plain = copy.deepcopy(cfg)
    with open_dict(plain):
        del plain["hydra"]
    settings = typed(plain, overrides, choices)
    _refuse_labels(settings, overrides, choices)
    try:
        multirun = hydra.mode is not None and hydra.mode.name == "MULTIRUN"
        swept = {str(k): str(v) for k, v in (OmegaConf.select(cfg, "hydra.sweeper.params") or {}).items()}
        return Composed(settings, str(hydra.run.dir), str(hydra.sweep.dir), multirun, swept, choices)
    except OmegaConfBaseException as e:
        raise UsageError(_sentence(e, overrides)) from e


def typed(cfg: DictConfig, overrides: Sequence[str], choices: dict[str, str | None]) -> Settings:
    """The dataclasses, every interpolation resolved. Raises UsageError for values that are missing or do not resolve."""
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as e:
        raise UsageError(_sentence(e, overrides)) from e
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UsageError(_not_given(missing[0], overrides, choices))
    return typing.cast(Settings, OmegaConf.to_object(cfg))


def resumed(path: str, overrides: Sequence[str], changes: dict[str, Any]) -> Settings:
    """The settings of the config.yaml at `path` with `changes` made to them. Raises UsageError."""
    try:
        saved = OmegaConf.create(reader.read_text(Path(path)))
    except reader.MissingFile as e:
        raise UsageError(f"{path}: there is no such file, so this is not the directory of a run.") from e
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as e:
        raise UsageError(f"{path}: cannot be read: {' '.join(str(e).split())}.") from e
    try:
        cfg = typing.cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Settings), saved))
    except (OmegaConfBaseException, TypeError, ValueError) as e:
        raise UsageError(f"{path}: is not a configuration of this version of easgd: {_first_line(e)}.") from e
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UsageError(f"{path}: is not a configuration of this version of easgd: it says nothing of {missing[0]}; start the run again instead.")
    for key, value in changes.items():
        try:
            OmegaConf.update(cfg, key, value)
        except OmegaConfBaseException as e:
            raise UsageError(_sentence(e, overrides)) from e
    return typed(cfg, overrides, {g: cfg[g].name for g in GROUPS if g in cfg})


# What a maker of each group is given by name (experiment/build.py), and so is no setting of its own.
_SYMBOLS = list(build.symbols(Settings(eta=0.0)))
_OFFERED = {
    "algo": _SYMBOLS,
    "schedule": [*_SYMBOLS, *build.OFFERED_TO_SCHEDULES],
    "average": [],
    "problem": list(build.OFFERED_TO_PROBLEMS),
    "dataset": ["seed"],
    "model": ["num_classes", "input_shape"],
    "launcher": _SYMBOLS,
}


def _store(group: str, target: str) -> None:
    """Makes `module:callable` an option of `group`, with the callable's own parameters as its settings. Raises UsageError."""
    parameters = makers.signature(makers.locate(group, target))
    node: dict[str, Any] = {"name": target, "target": target}
    for name, parameter in parameters.items():
        if name in _OFFERED[group]:
            continue
        if parameter.default is inspect.Parameter.empty:
            node[name] = "???"
        elif isinstance(parameter.default, int | float | str | list | tuple | dict | None):
            node[name] = parameter.default
    if group == "dataset":
        node["validation"] = 0
    if group == "problem":  # what it does not ask for is none, and brings no learning rate with it
        unused = [] if "model" in parameters else ["model"] if "images" in parameters else ["dataset", "model"]
        node["defaults"] = [{f"override /{other}@_global_.{other}": "none"} for other in unused] + ["_self_"]
    ConfigStore.instance().store(group=group, name=target, node=node)


# What other programs call our settings.
_ELSEWHERE = {
    "lr": "eta", "learning_rate": "eta", "momentum": "delta", "mu": "delta", "weight_decay": "l2", "wd": "l2", "period": "tau", "moving_rate": "alpha",
    "warmup_steps": "warmup", "max_norm": "clip", "clip_norm": "clip", "grad_clip": "clip",
    "label_smoothing": "problem.label_smoothing", "top5": "problem.top5",
    "p": "workers", "num_workers": "workers", "nproc": "workers", "batch": "batch_size", "bs": "batch_size", "max_steps": "steps", "iterations": "steps",
    "max_epochs": "epochs", "optimizer": "algo", "algorithm": "algo", "method": "algo", "data": "dataset", "net": "model",
}  # fmt: skip


# --- sentences -------------------------------------------------------------------------------------------------------


def _missing(e: MissingConfigException, overrides: Sequence[str]) -> str:
    """A group has no such option."""
    group, _, name = (e.missing_cfg_file or "").rpartition("/")
    if not group:
        return f"--config-name {name}: there is no {name}.yaml among the configurations."
    if group in ("hydra/launcher", "hydra/sweeper"):
        plugins.refuse_missing(group.removeprefix("hydra/"), name)
    known = [o for o in (e.options or []) if ":" not in o]
    if group == "model" and "torchvision" in known:
        from easgd_cli.data.vision import torchvision  # here: it takes a second, which only a net of that name is worth

        if name in torchvision().models.list_models(module=torchvision().models):
            return f"model={name}: is a net of torchvision; write model=torchvision model.name={name}."
    listed = f" There are: {', '.join(known)}." if known else f" There is no {group} yet; add a directory of your own with --config-dir."
    own = f" Your own: {makers.example(group)}, or {group}/{name}.yaml in a --config-dir." if group in GROUPS[:5] else ""
    near = _near(name, [o for o in known if o != "none"])
    return f"{group}={name}: there is no such {group}{f'; did you mean {near}?' if near else '.'}{listed}{own}"


def _sentence(e: BaseException, overrides: Sequence[str]) -> str:
    """What was wrong, about the key and value as the user wrote them, on the command line or in a file."""
    if in_file := re.match(r"In '([^']+)': \w+ raised while composing config", str(e)):
        assert e.__context__ is not None  # Hydra keeps only its first line
        return f"In {in_file[1]}.yaml: {_sentence(e.__context__, [])}"
    cause = e if isinstance(e, OmegaConfBaseException) else e.__cause__
    if isinstance(cause, InterpolationResolutionError):
        written = _written(cause.full_key, overrides) if cause.full_key else next((o for o in overrides if "${" in o), "A setting")
        return f"{written}: its ${{...}} cannot be resolved: {_first_line(cause)}."
    if isinstance(cause, ValidationError) and cause.full_key:
        return _wrong_type(cause.full_key, overrides, cause)
    if mixed := re.match(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", str(cause)):
        for f in fields(Settings):
            if is_dataclass(_kind(f.name)) and _kind(f.name).__name__ == mixed[1]:
                return _section(f"{f.name}={mixed[2]}", f.name)
    if isinstance(cause, AttributeError | KeyError) and getattr(cause, "full_key", None):
        return _unknown(cause, overrides)
    if refused := re.match(r"Could not override '([^'@]+)", str(e)):
        return _no_setting(refused[1], overrides, _all_keys())
    return f"{_first_line(e)}."


def _refuse_labels(settings: Settings, overrides: Sequence[str], choices: dict[str, str | None]) -> None:
    """Refuses `model.name=` and the like for all but makers that take a name: for others it would be a label that misleads."""
    for line in overrides:
        group, _, key = line.partition("=")[0].lstrip("+~").partition(".")
        if group not in GROUPS or key != "name":
            continue
        target = getattr(settings, group)["target"]
        if target is not None and "name" not in makers.signature(makers.locate(group, target)):
            raise UsageError(f"{line}: {group}={choices.get(group)} takes no name; write {group}=NAME to choose another.")


def _unknown(cause: Any, overrides: Sequence[str]) -> str:
    full = str(cause.full_key)
    parent, _, key = full.rpartition(".")
    siblings = [str(k) for k in cause.parent_node if k not in ("hydra", "name", "target")] if cause.parent_node is not None else []
    written = _written(full, overrides)
    if parent in GROUPS:
        if key in _root_keys():
            return f"{written}: {key} is a setting of the run, not of {parent}; write {key}=."
        others = [option for option in configs.options(parent) if key in configs.settings(parent, option)]
        if others and not _near(key, siblings):
            having = f"{' and '.join(f'{parent}={o}' for o in others)} {'has' if len(others) == 1 else 'have'} it"
            return f"{written}: {cause.parent_node.get('name')} has no such setting; {having}."
        having = f"it has {', '.join(siblings)}" if siblings else "it has none of its own"
        near = _near(key, siblings)
        return f"{written}: {cause.parent_node.get('name')} has no such setting; " + (f"did you mean {parent}.{near}?" if near else f"{having}.")
    return _no_setting(full, overrides, [f"{parent}.{s}" for s in siblings] if parent else _all_keys())


def _no_setting(key: str, overrides: Sequence[str], known: Sequence[str]) -> str:
    """There is nothing of that name; perhaps one of `known` is meant, or the last part of one of them."""
    written = _written(key, overrides)
    typed = written.partition("=")[0]
    near = (
        _of_a_group(typed, overrides) or _ELSEWHERE.get(typed) or _near(typed, known, cutoff=0.6) or next((k for k in known if k.endswith(f".{typed}")), None)
    )
    return f"{written}: there is no setting {key}" + (f"; did you mean {near}?" if near else "; easgd train --help lists all of them.")


def _of_a_group(key: str, overrides: Sequence[str]) -> str | None:
    """`model.hidden` where `hidden` is a setting of an option that was chosen."""
    chosen = {group: option for group, option in configs.defaults().items() if option is not None}
    chosen |= {group: value for group, _, value in (o.partition("=") for o in overrides) if group in GROUPS}
    for group, option in chosen.items():
        if option in configs.options(group) and key in configs.settings(group, option):
            return f"{group}.{key}"
    return None


def _wrong_type(full: str, overrides: Sequence[str], cause: Exception) -> str:
    line = _written(full, overrides)
    kind = _kind(full)
    if is_dataclass(kind):
        return _section(line, full)
    key, equals, value = line.partition("=")
    if not equals and (found := re.match(r"Value '(.*)' of type", str(cause))):  # from a file
        value = found[1]
        line = f"{key}={value}"
    if key.startswith(full + "."):
        return f"{line}: {full} is a single value, not a section; write {full}=."
    if kind is not None:
        try:
            makers.convert(full, value, kind)
        except UsageError as e:
            united = re.fullmatch(r"([0-9.]+) ?[a-z%]+", value) if "number" in str(e) else None
            return f"{str(e).rstrip('.')}, without a unit: {full}={united[1]}." if united else str(e)
    return f"{line}: {_first_line(cause)}."


def _section(written: str, key: str) -> str:
    kind = _kind(key)
    return f"{written}: {key} is a section; write one of {', '.join(f'{key}.{f.name}=' for f in fields(kind))}."


def _not_given(key: str, overrides: Sequence[str], choices: dict[str, str | None]) -> str:
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


def _written(key: str, overrides: Sequence[str]) -> str:
    """The override that set `key` or something below it, as the user wrote it; `key` where a file did."""
    for line in reversed(overrides):
        name = line.partition("=")[0].lstrip("+~")
        if name == key or name.startswith(key + ".") or (key.startswith(name + ".") and name not in GROUPS):
            return line
    return key


def _kind(key: str) -> Any:
    """The type of a root or nested setting, None where the schema leaves it open."""
    kind: Any = Settings
    for part in key.split("."):
        if not is_dataclass(kind):
            return None
        kind = typing.get_type_hints(kind).get(part)
    return kind


def _root_keys() -> list[str]:
    return [f.name for f in fields(Settings)]


def _all_keys() -> list[str]:
    nested = {f.name: typing.get_type_hints(Settings)[f.name] for f in fields(Settings)}
    return [f"{k}.{f.name}" for k, kind in nested.items() if is_dataclass(kind) for f in fields(kind)] + list(nested)


def _near(word: str, known: typing.Iterable[str], cutoff: float = 0.5) -> str | None:
    found = difflib.get_close_matches(word, list(known), 1, cutoff)
    return found[0] if found else None


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")
