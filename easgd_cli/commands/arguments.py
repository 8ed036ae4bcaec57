"""Parses the command line of `easgd train`, options and overrides in any order; refuses mistakes that Hydra accepts."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from easgd_cli.commands.configs import GROUPS
from easgd_cli.errors import UsageError
from easgd_cli.settings.overrides import quote as quote

# Settings whose values are paths or lists of devices: these may contain = and , and users write them without quotes.
PATHS = ("resume", "replay", "init", "dataset.root", "hydra.run.dir", "hydra.sweep.dir")
_LISTS = ("device",)
_TEXTS = ("report",)  # one value, whatever characters are in it

_SWEPT = "hydra.sweeper.params"  # Hydra's section for the values of a sweep

_DEEPEST = 20  # the most levels of brackets in a value, as in a run's config.yaml

ROOT = "config"  # the configuration that settings are composed from unless --config-name names another


@dataclass(frozen=True)
class Arguments:
    """A parsed command line. `overrides`: in Hydra's grammar; `show`: those of Hydra's options that only print."""

    overrides: list[str]
    multirun: bool
    config_dir: str | None
    config_name: str
    show: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}; see easgd train --help.")

    def long_options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]


def _parser() -> _Parser:
    shown = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser = _Parser(prog="easgd train", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default=ROOT)
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=shown)
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    return parser


OPTIONS = sorted(["--help", *_parser().long_options()])


def parse(argv: Sequence[str]) -> Arguments:
    """Parses `argv`, with options before, between or after the overrides. Raises UsageError."""
    found, unknown = _parser().parse_known_intermixed_args(argv)
    if option := next((word for word in unknown if word.startswith("-")), None):
        name = option.lstrip("-").partition("=")[0]
        raise UsageError(
            f"{option}: there is no such option; settings are written key=value, such as {name or 'tau'}=VALUE. See "
            "easgd train --help."
        )
    if found.config_dir is not None and not os.path.isdir(found.config_dir):
        raise UsageError(f"--config-dir {found.config_dir}: there is no such directory.")
    of_cfg = [*(["--package", found.package] if found.package else []), *(["--resolve"] if found.resolve else [])]
    if of_cfg and found.cfg is None:
        given = of_cfg[-1] if found.resolve else " ".join(of_cfg)
        raise UsageError(f"{given}: says how --cfg prints the settings, and goes with it; write --cfg job {given}.")
    show = ["--cfg", found.cfg, *of_cfg] if found.cfg is not None else []
    show += ["--info", found.info] if found.info is not None else []
    show += ["--hydra-help"] if found.hydra_help else []
    show += ["--shell-completion"] if found.shell_completion else []
    overrides = found.overrides
    if deep := next((word for word in overrides if _depth(word) > _DEEPEST), None):
        raise UsageError(f"{deep[:60]}...: is nested more than {_DEEPEST} deep, and no setting is.")
    if not found.shell_completion:
        overrides = [_quoted_path(meant, found.multirun) for o in found.overrides for meant in _as_meant(o)]
    return Arguments(overrides, found.multirun, found.config_dir, found.config_name, show)


def _depth(word: str) -> int:
    """Returns how deep the brackets in `word` are nested."""
    opened = itertools.accumulate((c in "[{(") - (c in "]})") for c in word)
    return max(opened, default=0)


def with_search_path(arguments: Arguments) -> Arguments:
    """Returns `arguments` with --config-dir written as hydra.searchpath=, so that composing here and in Hydra's own
    program finds the same files. Raises UsageError where both are given.
    """
    if arguments.config_dir is None:
        return arguments
    if any(o.startswith("hydra.searchpath=") for o in arguments.overrides):
        raise UsageError(
            "--config-dir and hydra.searchpath= both add directories of configurations; put all of them into "
            "hydra.searchpath=[...]."
        )
    path = quote(f"file://{os.path.abspath(arguments.config_dir)}")
    return replace(arguments, overrides=[*arguments.overrides, f"hydra.searchpath=[{path}]"], config_dir=None)


def of_one_run(words: Sequence[str], command: str) -> Arguments:
    """Parses settings for a `command` other than easgd train: one run, nothing that only prints. Raises UsageError."""
    asked = with_search_path(parse(words))
    if asked.show or asked.multirun:
        raise UsageError(
            f"{command} {asked.show[0] if asked.show else '--multirun'}: is an option of easgd train only."
        )
    several = next((o.input_line for o in parse_overrides(asked.overrides) if o.is_sweep_override()), None)
    if several is not None:
        raise UsageError(
            f"{command} {several}: takes one value of each setting; a single value with a comma in it goes into quotes."
        )
    return asked


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parses overrides as Hydra does. Raises UsageError also for those that Hydra reads, but no user can mean."""
    parser, parsed = OverridesParser.create(), dict[str, Override]()
    for line in overrides:
        key, equals, value = line.partition("=")
        if os.path.isdir(line):
            raise UsageError(f"{line}: is a directory, not a setting; to go on with a run write resume={line}.")
        if not equals and not line.startswith("~"):
            raise UsageError(f"{line}: settings are written key=value, such as tau=10.")
        if not key.strip():
            raise UsageError(f"{line}: there is no key before the =; write key=value, such as tau=10.")
        try:
            [override] = parser.parse_overrides([line])
        except OverrideParseException:
            raise UsageError(_unreadable(line, key, value)) from None
        name = override.key_or_group
        if name in parsed:
            raise UsageError(f"{parsed[name].input_line} {line}: {name} is given twice; keep one of the two.")
        if wrong := _not_meant(override, key, value):
            raise UsageError(f"{line}: {wrong}.")
        parsed[name] = override
    return list(parsed.values())


def _not_meant(override: Override, key: str, value: str) -> str | None:
    """Returns what is wrong with an override that Hydra accepts, or None."""
    name = override.key_or_group
    if override.package is not None:
        return f"every group has its place; write {name}={value} without the @"
    if key == "hydra":
        return "hydra is a section; write what is in it, such as hydra.run.dir=PATH"
    if key == "hydra.run.dir" and not value:
        return "names no directory; write hydra.run.dir=PATH, or leave it out"
    named = override.is_sweep_override() or isinstance(override.value(), str)
    if (name in GROUPS or "/" in key) and not named:
        return f"is not a name; write one of the names that easgd train --help lists for {name}"
    if name == "default_steps":
        return (
            f"default_steps is the length that configs/tuning.yaml gives where none is asked for; write steps={value}"
        )
    return None


def directory(override: Override | None) -> Path | None:
    """Returns the directory that `resume` or `replay` names, as written; None without one. Raises UsageError."""
    written = None if override is None else override.value()
    if override is None or written is None:
        return None
    if written == "":
        key = override.key_or_group
        raise UsageError(f"{override.input_line}: names no directory; write {key}=RUN_DIR, such as {key}=runs/my_run.")
    # Hydra reads the directory name 123 as a number
    return Path(written if isinstance(written, str) else str(override.input_line).partition("=")[2])


def run_dir(path: Path) -> str:
    """Returns the override for `path` as a run's directory, quoted if need be; `parse` quotes for = and , itself."""
    plain = re.fullmatch(r"[\w./=,-]+", str(path), re.ASCII)
    return f"hydra.run.dir={path if plain else quote(str(path))}"


def _as_meant(line: str) -> list[str]:
    """Returns the overrides that `line` stands for. easgd's settings need no + or ++ to be added, so these are dropped;
    ~ becomes null. Values of a sweep under hydra.sweeper.params become overrides of their own.
    """
    key, _, value = line.partition("=")
    name = key.lstrip("+~")
    if line == "experiment=null" or (key.startswith("~") and (name == "experiment" or name.startswith("hydra/"))):
        return []  # nothing to remove: these have no option of their own unless one is given
    if not name.startswith("hydra"):
        return [f"{name}=null" if key.startswith("~") else f"{name}{line[len(key) :]}"]
    _, is_swept, swept = name.partition(_SWEPT)
    if not is_swept or not value or key.startswith("~"):
        return [line]
    try:
        [override] = OverridesParser.create().parse_overrides([f"{_SWEPT}={value}"])
    except OverrideParseException:
        return [line]
    given = override.value()
    if swept:
        return [f"{swept[1:]}={given if isinstance(given, str) else value}"]
    if not isinstance(given, dict):
        return [line]
    return [f"{k}={v if isinstance(v, str) else Override._get_value_element_as_str(v)}" for k, v in given.items()]


def _quoted_path(line: str, multirun: bool) -> str:
    key, equals, value = line.partition("=")
    if key in _TEXTS and value not in ("", "null") and value[0] not in "'\"":
        return f"{key}={quote(value)}"
    if not equals or key not in (PATHS if multirun else PATHS + _LISTS) or not value or value[0] in "'\"":
        return line
    # an interpolation, such as ${now:%Y}, or nothing that needs quotes
    if "${" in value or re.fullmatch(r"[\w./-]+", value, re.ASCII):
        return line
    if not multirun or key.startswith("hydra.") or key in ("resume", "replay") or os.path.exists(value):
        return f"{key}={quote(os.path.expanduser(value) if key in PATHS else value)}"
    return f"{key}={','.join(quote(os.path.expanduser(v)) for v in value.split(','))}"


def _unreadable(line: str, key: str, value: str) -> str:
    if not re.fullmatch(r"[\w@./:-]+", key.lstrip("+~"), re.ASCII):
        return f"{line}: {key} is not a key; settings are written key=value, such as tau=10."
    quoted = shlex.quote(f"{key}={quote(value)}")
    return (
        f"{line}: the value cannot be read; one with characters such as = # ; ( ) or unpaired quotes goes into "
        f"quotes of its own: {quoted}."
    )
