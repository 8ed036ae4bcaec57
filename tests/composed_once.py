"""What Hydra reads and parses again for every command is kept: what stands in a file of the configuration, by its text,
what is stored beside the files, and the syntax trees of interpolations; and whole configurations are copied by pickle.
So is whatever else is read as YAML, and what files of the same contents make together, before what is changed in it.
The tests compose two thousand times, and each costs a third of what it would.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import os
import pickle
from typing import Any

import omegaconf._utils
import omegaconf.base
import yaml
from hydra import version
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf, grammar_parser

_load, _choices, _copied = OmegaConf.load, defaults_list._create_interpolation_map, DictConfig.__deepcopy__
_parse, _merged = yaml.load, ConfigLoaderImpl._compose_config_from_defaults_list
_NOBODY_ASKS = DictConfig({})
_files: dict[str, bytes] = {}
_texts: dict[tuple[str, Any], bytes] = {}
_together: dict[bytes, bytes] = {}  # by what is put together, and where
_stored: dict[int, tuple[Any, bytes]] = {}  # by the place of a node, which stays its own as it is kept here


def _file(file: Any) -> Any:
    if not isinstance(file, io.TextIOBase):
        return _load(file)
    at = file.tell()
    text = file.read()
    if text not in _files:
        file.seek(at)
        _files[text] = pickle.dumps(_load(file))
    return pickle.loads(_files[text])


def _text(stream: Any, Loader: Any) -> Any:
    if not isinstance(stream, str):
        return _parse(stream, Loader)
    if (stream, Loader) not in _texts:
        found = _parse(stream, Loader)
        try:
            _texts[stream, Loader] = pickle.dumps(found)
        except RecursionError:
            return found
    return pickle.loads(_texts[stream, Loader])


def _from_store(self: ConfigStore, config_path: str) -> ConfigNode:
    found = copy.copy(self._load(config_path))
    if id(found.node) not in _stored:
        _stored[id(found.node)] = found.node, pickle.dumps(found.node)
    found.node = pickle.loads(_stored[id(found.node)][1])
    return found


def _known_choices(overrides: Any, defaults: Any, self_added: bool) -> DictConfig:
    if any(d.is_interpolation() for d in defaults if not d.is_self()):
        return _choices(overrides, defaults, self_added)
    return _NOBODY_ASKS


def _whole(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> DictConfig:
    parts = [(d.config_path, d.package, repo.load_config(d.config_path)) for d in defaults]
    try:
        content = pickle.dumps([(path, package, part.config, part.is_schema_source) for path, package, part in parts])
    except (AttributeError, TypeError, pickle.PickleError):
        return _merged(self, defaults, repo)
    key = hashlib.sha1(content).digest()
    if key not in _together:
        _together[key] = pickle.dumps(_merged(self, defaults, repo))
    return pickle.loads(_together[key])


def _copy(self: DictConfig, memo: dict[int, Any]) -> DictConfig:
    if memo or self._get_parent() is not None:
        return _copied(self, memo)
    try:
        return pickle.loads(pickle.dumps(self))
    except (AttributeError, TypeError, pickle.PickleError):  # holds something that only copy.deepcopy can copy
        return _copied(self, memo)


def begin() -> None:
    """From here on they are kept, unless EASGD_COMPOSE_ANEW is set, to see that it makes no difference."""
    if os.environ.get("EASGD_COMPOSE_ANEW"):
        return
    DictConfig.__deepcopy__ = _copy  # type: ignore[method-assign]
    OmegaConf.load = staticmethod(_file)  # type: ignore[method-assign]
    ConfigStore.load = _from_store  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = _known_choices
    yaml.load = _text
    version._get_version = functools.cache(version._get_version)
    ConfigLoaderImpl._compose_config_from_defaults_list = _whole  # type: ignore[method-assign]
    omegaconf.base.parse = omegaconf._utils.parse = functools.lru_cache(4096)(grammar_parser.parse)  # type: ignore[attr-defined]
