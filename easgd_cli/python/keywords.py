"""Settings from keyword arguments: the command line's configurations, composed in the same order without Hydra."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from easgd_cli.commands import configs, names, own_option
from easgd_cli.errors import UsageError
from easgd_cli.record import reader
from easgd_cli.settings import faults, schema, targets
from easgd_cli.settings.overrides import quote
from easgd_cli.settings.schema import GROUPS, Group, Settings

_KINDS: dict[str, Any] = get_type_hints(Settings)
_SECTIONS: dict[str, Any] = {key: kind for key, kind in _KINDS.items() if is_dataclass(kind)}
_DICTIONARIES = {"until", *_SECTIONS, *GROUPS}  # keywords that may be given as dictionaries of their parts
_NOT_HERE = dict.fromkeys(schema.OF_SWEEPS, "is of a sweep; from Python that is a loop, or easgd train -m") | {
    "replay": "goes through a run again; that is easgd train replay=RUN",
    "experiment": "is a sweep of the paper's; that is easgd train experiment=NAME",
    "default_steps": "is the length of configs/tuning.yaml; write steps=",
}


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings by dotted names: `eval={"every": "100 steps"}` becomes `eval.every`. Raises UsageError."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        parts = key in _DICTIONARIES and isinstance(value, Mapping)
        for name, part in {f"{key}.{k}": v for k, v in value.items()}.items() if parts else ((key, value),):
            if name in found:
                raise UsageError(f"{name}: is given twice; keep one of the two.")
            if name in _NOT_HERE:
                raise UsageError(f"{name}={part}: {_NOT_HERE[name]}.")
            if isinstance(part, Mapping) and name not in ("faults",):
                raise UsageError(names.no_setting(f"{name}.{next(iter(part), '')}", [f"{name}={part}"]))
            found[name] = _plain(part)
    return found


def lines(given: Mapping[str, Any]) -> list[str]:
    """Returns the settings as they are written on the command line."""
    return [f"{key}={_written(value)}" for key, value in given.items()]


def composed(given: Mapping[str, Any], handed: Mapping[str, Group]) -> Settings:
    """Returns the settings of a new run. `given`: settings by dotted names; `handed`: groups handed over as objects.

    Raises UsageError.
    """
    written = lines(given)
    if given.get("tau") == "auto":
        given = {key: value for key, value in given.items() if key != "tau"} | {"auto.tau": True}
    asked = {key: _choice(key, value) for key, value in given.items() if key in GROUPS}
    chosen = _chosen(asked | {group: str(node["name"]) for group, node in handed.items()}, set(handed))
    root: dict[str, Any] = {}
    for group, option in chosen.items():
        _merge(root, {group: dict(handed[group])} if group in handed else _option(group, option)[0])
    for kind, row in (("table", chosen["algo"]), ("local", chosen["local"])):
        _merge(root, configs.tuning().get((f"tuning/{kind}", f"{row}_{chosen['dataset']}"), {}))
    for key, value in given.items():
        if key not in GROUPS:
            _set(root, key, value, written)
    workers = root.get("workers", Settings.workers)
    if root["dataset"]["target"] is not None and isinstance(workers, int):
        lacking = {key for key in ("eta", "default_steps", "eval.every") if _get(root, key) is None}
        about = (root["algo"]["name"], root["local"]["name"], root["dataset"]["name"])
        for key, value in configs.started_with(*about, workers, lacking, set(given)).items():
            _set(root, key, value, [])
    return _typed(root, written, chosen)


def resumed(
    run: Path, given: Mapping[str, Any], handed: Mapping[str, Group], doubts: list[str] | None = None
) -> Settings:
    """Returns a run's settings, the `given` ones changed, with objects `handed` over once more. Raises UsageError."""
    path = run / "config.yaml"
    root = configs.of_today(reader.config_of(run, doubts))
    if root is None:
        raise UsageError(f"{path}: there is no such file, so this is not the directory of a run.")
    for group, node in handed.items():
        before, now = (root.get(group) or {}).get("target"), node["target"]
        if before != now:
            raise UsageError(
                f"resume={run}: its {group} was {_named(before)}, and {_named(now)} is given; a run goes on with what "
                "it had."
            )
        root[group] = root[group] | {"target": now}
    for key, value in given.items():
        _set(root, key, value, lines(given))
    return _typed(root, lines(given), {group: (root.get(group) or {}).get("name") for group in GROUPS})


def _named(target: Any) -> str:
    return str(target).removeprefix(targets.HANDED)


def _plain(value: Any) -> Any:
    """Returns the value as YAML can hold it: numbers of numpy or torch as Python's, tuples as lists, paths as text."""
    if isinstance(value, Path):
        return os.fspath(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if not isinstance(value, str | int | float) and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value


def _written(value: Any) -> str:
    """Returns a value as it is written in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}: {_written(v)}' for k, v in value.items())}}}"
    text = str(value)
    plain = not isinstance(value, str) or re.fullmatch(r"[\w./:-]([\w ./:-]*[\w./:-])?", text, re.ASCII)
    return text if plain else quote(text)


def _choice(group: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(
            f"{group}={value!r}: is chosen by its name, such as {targets.example(group)}; what belongs to it is "
            f'written **{{"{group}.NAME": value}}.'
        )
    return value


def _chosen(asked: Mapping[str, str], handed: set[str]) -> dict[str, str]:
    """Returns the option of every group: as asked for, else as another group's option brings it, else the default."""
    groups = {group: option for group, option in configs.defaults().items() if option is not None}
    now = groups | dict(asked)
    for _ in GROUPS:  # each round settles one more group that follows from another
        before, now = now, dict(groups)
        for group in sorted(before.keys() - handed, key=lambda g: g == "problem"):
            now |= _option(group, before[group])[1]
        now |= asked
        if now == before:
            break
    return now


def _option(group: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns an option's settings, from the root on, and the options of other groups that it brings.

    Raises UsageError.
    """
    if ":" in name:
        node, unused = own_option.of(group, name)
        return {group: node}, dict.fromkeys(unused, "none")
    path = configs.directory() / group / f"{name}.yaml"
    if name not in configs.options(group):
        raise UsageError(names.no_such_option(group, name, list(configs.options(group))))
    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    found: dict[str, Any] = {}
    brings: dict[str, str] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):  # `override /task@_global_.task: classification`
            [(key, option)] = entry.items()
            brings[key.split("/")[1].partition("@")[0]] = option
        elif entry != "_self_":
            base, more = _option(group, entry)
            _merge(found, base)
            brings = more | brings
    _merge(found, content if text.startswith("# @package _global_") else {group: content})
    return found, brings


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, dict) else value


def _get(root: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return root.get(section, {}).get(name) if section else root.get(key)


def _set(root: dict[str, Any], key: str, value: Any, written: list[str]) -> None:
    """Sets one setting in `root` by its dotted name. Raises UsageError for an unknown name."""
    line = names.written_as(key, written)
    section, _, name = key.partition(".")
    if not name:
        if key not in _KINDS:
            raise UsageError(names.no_setting(key, written))
        if key in _DICTIONARIES:
            raise UsageError(names.section(line, key, _KINDS[key]))
        root[key] = value
        return
    if section in GROUPS:
        node = root[section]
        siblings = [k for k in node if k not in ("name", "target")]
        maker = None if node["target"] is None else targets.locate(section, node["target"])
        takes_a_name = maker is not None and "name" in targets.signature(maker)
        if name not in siblings and not (name == "name" and takes_a_name):
            raise UsageError(names.no_option(key, line, str(node["name"]), siblings))
    elif section in _SECTIONS:
        siblings = [f.name for f in fields(_SECTIONS[section])]
        if name not in siblings:
            raise UsageError(names.no_setting(key, written, section, siblings))
    elif section != "until":
        raise UsageError(names.no_setting(key, written))
    root.setdefault(section, {})[name] = value


def _typed(root: dict[str, Any], written: list[str], chosen: Mapping[str, str | None]) -> Settings:
    """Returns the settings as dataclasses. Raises UsageError for a missing value and for a value of another type."""
    choices = dict(chosen)
    for key in GROUPS:
        for part in ("name", "target"):
            if part not in (root.get(key) or {}) and key in root:
                raise UsageError(f"{key}: its {part} is not said in this configuration; start the run again instead.")
        missing = [f"{key}.{part}" for part, value in root.get(key, {}).items() if value == schema.MISSING]
        if missing:
            raise UsageError(names.not_given(missing[0], written, choices))
    for key in ("algo", "dataset", "model", "schedule", "launcher", "eta"):
        if key not in root or root[key] == schema.MISSING:
            raise UsageError(names.not_given(key, written, choices))
    values: dict[str, Any] = {}
    for key, value in root.items():
        if key not in _KINDS:
            raise UsageError(names.no_setting(key, written))
        if key in _SECTIONS:
            kinds = get_type_hints(_SECTIONS[key])
            values[key] = _SECTIONS[key](**{k: _converted(f"{key}.{k}", v, kinds[k]) for k, v in value.items()})
        else:
            values[key] = _converted(key, value, _KINDS[key])
    settings = Settings(**values)
    settings.faults = faults.named(settings.faults)
    return settings


def _converted(key: str, value: Any, kind: Any) -> Any:
    if key == "device" and isinstance(value, list):
        value = ",".join(map(str, value))
    texts = kind is str or str in getattr(kind, "__args__", ())
    if texts and isinstance(value, int | float) and not isinstance(value, bool):  # as on the command line
        value = str(value)
    return targets.convert(key, value, kind)
