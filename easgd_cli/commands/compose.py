"""Turns overrides into typed settings: Hydra composes, and each of its refusals becomes a sentence about the key.

Other files get `Settings` and plain strings from here. The whole configuration is handed out only for Hydra, which runs
a job by it.
"""

from __future__ import annotations

import copy
import functools
import json
import typing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from easgd_cli.commands import configs, names, own_option, refusals
from easgd_cli.commands.arguments import ROOT
from easgd_cli.commands.configs import GROUPS
from easgd_cli.errors import UsageError
from easgd_cli.record import reader, run_directory
from easgd_cli.settings import faults, schema, targets
from easgd_cli.settings.overrides import as_given, spelt_out
from easgd_cli.settings.schema import Settings

_SETTINGS = OmegaConf.structured(Settings)
OmegaConf.set_struct(_SETTINGS.until, False)  # its keys are metrics, which the problem declares
ConfigStore.instance().store(name="easgd_settings", node=_SETTINGS)
for (_group, _pair), _row in configs.tuning().items():
    ConfigStore.instance().store(group=_group, name=_pair, node=_row)
# Hydra deep-copies the whole store for each job that it composes, a fifth of the time. The store can be shared: Hydra
# copies each node once more when it takes it out.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def _named_by(prefix: str, overrides: Iterable[str], but: Iterable[str] = (), digits: int | None = None) -> str:
    """Returns a directory's name: `prefix`, then all overrides but those of the keys in `but`."""
    left_out = set(but)
    given = [o for o in as_given(overrides) if o.partition("=")[0] not in left_out]
    return run_directory.named_by(given, prefix, digits)


OmegaConf.register_new_resolver("named_by", _named_by, replace=True)

_STUMBLES = (AssertionError, AttributeError, TypeError, ValueError)  # what OmegaConf raises without naming the key


@dataclass(frozen=True)
class Composed:
    """One job: its settings, and what Hydra's own part of the configuration says about it."""

    settings: Settings
    run_dir: str
    sweep_dir: str  # empty unless chosen
    multirun: bool  # an experiment may sweep by itself
    swept: dict[str, str]  # parameters of a sweep that an experiment brings, as key -> values
    choices: dict[str, str | None]  # which option of each group was taken
    config: DictConfig  # the whole configuration as Hydra has composed it, for Hydra to run the job by


@contextmanager
def composing(config_name: str) -> Iterator[typing.Callable[[Sequence[str]], Composed]]:
    """Yields a function from overrides (without sweeps) to a job, for use within the context. It raises UsageError."""
    group, slash, option = config_name.rpartition("/")
    if slash:
        raise UsageError(
            f"--config-name {config_name}: is an option of {group}, and no root configuration; write {group}={option}."
        )
    # cached, since the first job of a sweep is composed twice
    once = functools.lru_cache(1)(lambda overrides: _compose(config_name, spelt_out(overrides)))
    with initialize_config_dir(str(configs.directory()), job_name="train", version_base="1.3"):
        yield lambda overrides: once(tuple(overrides))


def _compose(config_name: str, overrides: list[str]) -> Composed:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "provider=.* is not available")  # a directory of hydra.searchpath
            cfg = compose(config_name, overrides, return_hydra_config=True)
    except MissingConfigException as e:
        group, _, name = (e.missing_cfg_file or "").partition("/")
        if (
            group in own_option.OFFERED
            and ":" in name
            and f"{name}.yaml" not in ConfigStore.instance().repo.get(group, {})
        ):
            _store(group, name)
            return _compose(config_name, overrides)
        raise UsageError(refusals.missing(e, config_name)) from e
    except yaml.YAMLError as e:
        raise UsageError(f"A configuration file is not YAML: {' '.join(str(e).split())}.") from e
    except (HydraException, OmegaConfBaseException, UserWarning) as e:
        raise UsageError(refusals.sentence(e, overrides)) from e
    except _STUMBLES as e:
        raise UsageError(refusals.no_place(_stumbled_over(config_name, overrides))) from e
    choices = {str(k): v for k, v in cfg.hydra.runtime.choices.items()}
    refusals.check_sections(cfg, choices, overrides)
    _fill_untuned(cfg, overrides)
    plain = copy.deepcopy(cfg)
    with open_dict(plain):
        del plain["hydra"]
    settings = typed(plain, overrides, choices)
    _refuse_labels(settings, overrides, choices)
    try:
        multirun = cfg.hydra.mode is not None and cfg.hydra.mode.name == "MULTIRUN"
        swept = {str(k): str(v) for k, v in (OmegaConf.select(cfg, "hydra.sweeper.params") or {}).items()}
        return Composed(settings, str(cfg.hydra.run.dir), str(cfg.hydra.sweep.dir), multirun, swept, choices, cfg)
    except OmegaConfBaseException as e:
        raise UsageError(refusals.sentence(e, overrides)) from e


def _fill_untuned(cfg: DictConfig, overrides: list[str]) -> None:
    """Sets in `cfg` the rates that the method starts with on unknown data, where the data set has no tuned rates."""
    dataset, algo = OmegaConf.select(cfg, "dataset.target"), OmegaConf.select(cfg, "algo.name")
    if dataset is None or algo is None or not isinstance(workers := OmegaConf.select(cfg, "workers"), int):
        return
    given = {o.partition("=")[0].lstrip("+~") for o in overrides}
    lacking = {"eta"} if OmegaConf.is_missing(cfg, "eta") else set()
    lacking |= {"default_steps"} if cfg.default_steps is None else set()
    lacking |= {"eval.every"} if cfg.eval.every is None else set()
    about = (str(algo), str(OmegaConf.select(cfg, "local.name")), str(OmegaConf.select(cfg, "dataset.name")))
    for key, value in configs.started_with(*about, workers, lacking, given).items():
        OmegaConf.update(cfg, key, value)


def _stumbled_over(config_name: str, overrides: list[str]) -> str:
    """Returns the first override that Hydra cannot apply without naming its key; --config-name where there is none."""
    for at, line in enumerate(overrides):
        with suppress(HydraException, OmegaConfBaseException):
            try:
                compose(config_name, overrides[: at + 1])
            except _STUMBLES as e:
                if not isinstance(e, OmegaConfBaseException):
                    return line
    return f"--config-name {config_name}"


def options(group: str, overrides: Sequence[str]) -> list[str]:
    """Returns the options of a group, also those in a search path of `overrides`. To be called within `composing`."""
    searched = [o for o in overrides if o.startswith("hydra.searchpath=")]
    names = GlobalHydra.instance().config_loader().get_group_options(group, config_name=ROOT, overrides=searched)
    return [name for name in names if ":" not in name]


def typed(cfg: DictConfig, overrides: Sequence[str], choices: dict[str, str | None]) -> Settings:
    """Returns `cfg` as Settings, interpolations resolved. Raises UsageError for missing and unresolvable values."""
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as e:
        raise UsageError(refusals.sentence(e, overrides)) from e
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UsageError(names.not_given(missing[0], overrides, choices))
    settings = OmegaConf.to_object(cfg)
    if not isinstance(settings, Settings):
        raise UsageError(
            "--config-name: is of a configuration that begins with easgd's own; - config is the first of its defaults."
        )
    settings.faults = faults.named(settings.faults)
    return settings


def resumed(path: str, overrides: Sequence[str], changes: dict[str, Any], doubts: list[str] | None = None) -> Settings:
    """Returns the settings of the config.yaml at `path`, with `changes` made to them. Raises UsageError.

    Adds a sentence to `doubts` where the file was edited. Imports no code that the file names. `${...}` in the file is
    plain text, since interpolations were resolved when it was written.
    """
    saved = reader.config_of(Path(path).parent, doubts)
    if saved is None:
        raise UsageError(f"{path}: there is no such file, so this is not the directory of a run.")
    text = json.dumps(saved, ensure_ascii=False, skipkeys=True, default=str)
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in text)
    try:
        protected = _replaced(saved, "${", mark)
        cfg = typing.cast(
            DictConfig, OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.create(configs.of_today(protected)))
        )
    except (OmegaConfBaseException, TypeError, ValueError) as e:
        raise UsageError(f"{path}: is not a configuration of this version of easgd: {refusals.first_line(e)}.") from e
    missing = sorted(OmegaConf.missing_keys(cfg))
    missing += [
        f"{g}.{key}" for g in schema.GROUPS if g not in missing for key in ("name", "target") if key not in cfg[g]
    ]
    if missing:
        raise UsageError(
            f"{path}: is not a configuration of this version of easgd: it says nothing of {missing[0]}; start the "
            "run again instead."
        )
    for key, value in changes.items():
        try:
            OmegaConf.update(cfg, key, value)
        except OmegaConfBaseException as e:
            raise UsageError(refusals.sentence(e, overrides)) from e
    settings = typed(cfg, overrides, {g: cfg[g].name for g in GROUPS if g in cfg})
    return Settings(**{key: _replaced(value, mark, "${") for key, value in vars(settings).items()})


def _replaced(value: Any, old: str, new: str) -> Any:
    """Returns `value` with `old` replaced by `new` in every text in it."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(inside, old, new) for key, inside in value.items()}
    if isinstance(value, list):
        return [_replaced(inside, old, new) for inside in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{key: _replaced(inside, old, new) for key, inside in vars(value).items()})
    return value


def _refuse_labels(settings: Settings, overrides: Sequence[str], choices: dict[str, str | None]) -> None:
    """Raises UsageError for `model.name=` and the like where the maker takes no name: the name would be a mere label,
    and mislead; and for dataset.target=, which is easily mistaken for dataset.targets=.
    """
    for line in overrides:
        group, _, key = line.partition("=")[0].partition(".")
        if group == "dataset" and key == "target":
            raise UsageError(f"{line}: what is learnt from a table is written dataset.targets=COLUMN.")
        if group not in GROUPS or key != "name":
            continue
        target = getattr(settings, group)["target"]
        if target is not None and "name" not in targets.signature(targets.locate(group, target)):
            raise UsageError(
                f"{line}: {group}={choices.get(group)} takes no name; write {group}=NAME to choose another."
            )


def _store(group: str, target: str) -> None:
    """Makes `module:callable` an option of `group`, its parameters being the settings. Raises UsageError."""
    node, unused = own_option.of(group, target)
    if unused:
        node["defaults"] = [{f"override /{other}@_global_.{other}": "none"} for other in unused] + ["_self_"]
    ConfigStore.instance().store(group=group, name=target, node=node)
