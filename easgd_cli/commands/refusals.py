"""Sentences on a wrong configuration, with the key and value as the user wrote them, on the command line or in a file.

Hydra's and OmegaConf's errors say what they could not do; these sentences say what to write instead.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, InterpolationResolutionError, OmegaConfBaseException, ValidationError

from easgd_cli.commands import names, plugins
from easgd_cli.commands.configs import GROUPS
from easgd_cli.errors import UsageError
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings

# Hydra's own groups; an option of each fills the section of the same name.
_HYDRAS_GROUPS = r"hydra\.(callbacks|env|help|hydra_help|hydra_logging|job_logging|launcher|sweeper(\.sampler)?)"


def missing(e: MissingConfigException, config_name: str) -> str:
    """Returns the sentence on an option that its group does not have, or a root configuration that does not exist."""
    group, _, name = (e.missing_cfg_file or "").rpartition("/")
    if e.missing_cfg_file == config_name:
        return f"--config-name {config_name}: there is no {config_name}.yaml among the configurations."
    if group in ("hydra/launcher", "hydra/sweeper"):
        plugins.refuse_missing(group.removeprefix("hydra/"), name)
    known = [o for o in (e.options or []) if ":" not in o]
    if group == "model" and "torchvision" in known:
        from easgd_cli.data.vision import torchvision  # here, since the import takes a second

        nets = {names.folded(net): net for net in torchvision().models.list_models(module=torchvision().models)}
        if net := nets.get(names.folded(name)):
            return f"model={name}: is a net of torchvision; write model=torchvision model.name={net}."
    if group == "launcher" and (far := names.near_to(name, plugins.LAUNCHERS)):
        return (
            f"launcher={name}: launcher= says where a run's processes are; the runs of a sweep are handed on with "
            f"-m hydra/launcher={far}."
        )
    return names.no_such_option(group, name, known)


def sentence(e: BaseException, overrides: Sequence[str]) -> str:
    """Returns the sentence on `e`, which was raised while `overrides` were composed or resolved."""
    if in_file := re.match(r"In '([^']+)': \w+ raised while composing config", str(e)):
        assert e.__context__ is not None  # the whole error, of which Hydra's own has only the first line
        return f"In {in_file[1]}.yaml: {_of_a_file(in_file[1].partition('/')[0], e.__context__)}"
    cause = e if isinstance(e, OmegaConfBaseException) else e.__cause__
    if isinstance(cause, InterpolationResolutionError):
        line = next((o for o in overrides if "${" in o), "A setting")
        written = names.written_as(cause.full_key, overrides) if cause.full_key else line
        return f"{written}: its ${{...}} cannot be resolved: {first_line(cause)}."
    if isinstance(cause, ValidationError | ConfigTypeError) and cause.full_key:
        return _wrong_type(cause, overrides)
    if isinstance(cause, AttributeError | KeyError) and getattr(cause, "full_key", None):
        return _unknown(cause, overrides)
    if unknown := re.match(r"(?:In '([^']+)': )?Could not (?:override|delete from config\.) '([^'@]+)", str(e)):
        file, key = unknown.groups()
        return f"In {file}.yaml: {names.no_setting(key, [])}" if file else names.no_setting(key, overrides)
    if there := re.match(r"Could not append to config\. An item is already at '(.*)'", str(e)):
        return f"{(line := names.written_as(there[1], overrides))}: is there already; write {line[1:]} without the +."
    if twice := re.match(r"Multiple values for ([\w/]+)\. To override a value use 'override [\w/]+: (.*)'", str(e)):
        return f"The defaults of a file choose {twice[1]} once more; write - override /{twice[1]}: {twice[2]} there."
    if gone := re.match(r"provider=.* path=(.*) is not available", str(e)):
        return (
            f"{names.written_as('hydra.searchpath', overrides)}: there is no directory {gone[1]}; one that is there "
            "is written 'hydra.searchpath=[file:///path/to/it]'."
        )
    if "hydra.searchpath must be a list" in str(e):
        line = names.written_as("hydra.searchpath", overrides)
        return f"{line}: must be a list, such as 'hydra.searchpath=[{line.partition('=')[2]}]'."
    if merging := re.match("Error merging override (.*)", str(e)):
        return no_place(merging[1])
    return f"{first_line(e)}."


def no_place(line: str) -> str:
    return f"{line}: has no place in the configuration; easgd train --cfg all shows what has one."


def first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")


def chosen_with_a_slash(written: str, group: str) -> str:
    """Returns the sentence on a name that was given to a section; an option of `group` is what fills the section."""
    key, _, value = written.lstrip("+").partition("=")
    return f"{written}: {key} is a section; what fills it is chosen with a slash: {group}={value}."


def check_sections(cfg: DictConfig, choices: Iterable[str], overrides: Sequence[str]) -> None:
    """Raises UsageError for mistakes that OmegaConf accepts: a value in place of one of Hydra's sections, and a key
    that + adds to a section with fixed keys.
    """
    for group in (group for group in choices if group.startswith("hydra/")):
        node = OmegaConf.select(cfg, group.replace("/", "."))
        if node is not None and not isinstance(node, DictConfig):
            raise UsageError(chosen_with_a_slash(names.written_as(group.replace("/", "."), overrides), group))
    for name in (line.partition("=")[0] for line in overrides if line.startswith("+")):
        inside, _, key = name.lstrip("+").rpartition(".")
        section = OmegaConf.get_type(OmegaConf.select(cfg, inside))
        if is_dataclass(section) and key not in typing.get_type_hints(section):
            raise UsageError(
                names.no_setting(f"{inside}.{key}", overrides, inside, list(typing.get_type_hints(section)))
            )


def _of_a_file(group: str, cause: BaseException) -> str:
    """Returns what is wrong with a configuration file of `group` that OmegaConf could not merge."""
    key, value = getattr(cause, "full_key", None), getattr(cause, "value", None)
    if group == key == "experiment":
        return (
            "an experiment sets what belongs to other groups, so # @package _global_ is its first line; write it there."
        )
    if key in GROUPS and value is not None:
        return f"{key}: {value}: a name is chosen in the defaults; write - override /{key}: {value} there."
    if stands := re.match(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", str(cause)):
        for name, kind in typing.get_type_hints(Settings).items():
            if getattr(kind, "__name__", None) == stands[1]:
                return names.section(f"{name}={stands[2]}", name, kind)
        part = "launcher" if "Launcher" in stands[1] else "sweeper"
        return f"{stands[2]}: a name is chosen in the defaults; write - override /hydra/{part}: {stands[2]} there."
    return sentence(cause, [])


def _unknown(cause: Any, overrides: Sequence[str]) -> str:
    full = str(cause.full_key)
    parent, _, key = full.rpartition(".")
    siblings = [str(k) for k in cause.parent_node or () if k not in ("hydra", "name", "target", "_target_")]
    written = names.written_as(full, overrides)
    if parent in GROUPS:
        return names.no_option(full, written, str(cause.parent_node.get("name")), siblings)
    if parent.startswith("hydra.") and typing.get_origin(cause.ref_type) is dict:
        return f"{written}: {parent} has no {key} yet; a + adds it: +{written}."
    chosen = f"{parent.replace('.', '/')}="
    if parent in ("hydra.launcher", "hydra.sweeper") and not any(o.startswith(chosen) for o in overrides):
        return f"{written}: easgd itself has no such setting; choose the plugin that has it with {chosen}."
    return names.no_setting(full, overrides, parent, siblings)


def _wrong_type(cause: Any, overrides: Sequence[str]) -> str:
    """Returns the sentence on a value of another type than the setting's."""
    full, item, _ = str(cause.full_key).partition("[")
    line, kind = names.written_as(full, overrides), _kind(cause)
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
        return names.section(line, full, kind)
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


def _kind(cause: Any) -> Any:
    """Returns the type, without None, that the schema gives to the setting that could not be set."""
    kind = (typing.get_type_hints(cause.object_type) if is_dataclass(cause.object_type) else {}).get(
        cause.key, cause.ref_type
    )
    kind = cause.object_type if kind is Any else kind
    without = [k for k in typing.get_args(kind) if k is not type(None)]
    return without[0] if typing.get_origin(kind) is typing.Union and len(without) == 1 else kind
