"""Makers: the callables that groups of settings name as `module:callable`, the package's own and a user's alike; found,
read and called here.

A group's options, and what the runner offers by name, are matched with the callable's signature; whatever does not fit
is a UsageError.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.machinery
import inspect
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from easgd_cli.errors import UsageError
from easgd_cli.settings import shipped
from easgd_cli.settings.schema import Group

HANDED = "python:"  # begins the text in config.yaml for an object that was handed over in Python


class Handed(str):
    """The text that is written for a maker handed over in Python, which has no name to be found by; with the maker.

    A copy of it, for a file or another process, is its text alone.
    """

    maker: Callable[..., Any]

    def __new__(cls, what: str, maker: Callable[..., Any]) -> Handed:
        made = super().__new__(cls, HANDED + what)
        made.maker = maker
        return made

    def __deepcopy__(self, memo: object) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def make(group: str, spec: Group, offered: Mapping[str, Any]) -> Any:
    """Calls the maker named by `spec["target"]` with the options of `spec` and what it asks for of `offered`.

    If the maker has a parameter `name`, as torchvision's nets do, the name in `spec` is one of its options.

    Raises UsageError when the maker cannot be found, an option is unknown or of the wrong type, one is missing, or the
    maker itself raises ValueError.
    """
    maker = locate(group, spec["target"])
    given: dict[str, Any] = {}
    parameters = signature(maker)
    options = {k: v for k, v in spec.items() if k != "target" and (k != "name" or k in parameters)}
    for key, value in options.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, 1)
            raise UsageError(
                f"{group}.{key}={value}: {spec['name']} has no such setting"
                + (f"; did you mean {group}.{near[0]}?" if near else ".")
            )
        given[key] = convert(f"{group}.{key}", value, parameters[key].annotation)
    for key, parameter in parameters.items():
        if key in given:
            continue
        if key in offered:
            given[key] = offered[key]
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{written(group, spec)} needs {group}.{key}, and no value was given.")
    try:
        return maker(**given)
    except ValueError as e:
        raise UsageError(str(e)) from e
    except UsageError:
        raise
    except (Exception, SystemExit) as e:
        if ours(spec):
            raise
        raise UsageError(f"{written(group, spec)}: calling it raised {_raised(e)}.") from e


_TARGET = re.compile(r"^ *target: *(easgd_cli\.\S+:\w+)", re.MULTILINE)


def own(target: str | None) -> bool:
    """Whether `target` is a maker that this package offers under its settings, and so no code that a run brings along.
    Nothing else in the package counts: one of its modules holds `os`, another a function that writes files.
    """
    return target is None or _today(target) in _offered()


@functools.cache
def _offered() -> frozenset[str]:
    """Returns every target in the shipped configurations."""
    texts = (path.read_text(encoding="utf-8") for path in shipped.directory().rglob("*.yaml"))
    return frozenset(found for text in texts for found in _TARGET.findall(text))


def _today(target: str) -> str:
    """Returns the name of today of a target that older runs may name otherwise."""
    module, _, name = _MOVED.get(target, target).partition(":")
    return f"{_MOVED.get(module, module)}:{name}"


def ours(spec: Group) -> bool:
    """Whether the maker is the package's, so that what it raises is a defect of the package."""
    return str(spec["target"]).startswith("easgd_cli.")


def written(group: str, spec: Group) -> str:
    """Returns what a user writes to choose it: `model=small`, or `model.name=resnet18` if the maker takes the name."""
    return f"{group}{'.name' if 'name' in signature(locate(group, spec['target'])) else ''}={spec['name']}"


def example(group: str) -> str:
    """Returns how a user names something of their own in this group."""
    name = {"algo": "MyMethod", "local": "MyStep", "problem": "MyProblem", "task": "MyLoss"}.get(group, f"my_{group}")
    return f"{group}=my_module:{name}"


# Makers and modules that have moved: the name in the config.yaml of an older run, and the name of today.
_MOVED = {
    "easgd_cli.average": "easgd_cli.algorithms.average",
    "easgd_cli.schedule": "easgd_cli.algorithms.schedule",
    "easgd_cli.problems.images:ImageProblem": "easgd_cli.problems.net:NetProblem",
}


def locate(group: str, target: str) -> Callable[..., Any]:
    """Returns the callable `module:name`, from the working directory or an installed package, or what was handed over
    under that name. Raises UsageError.
    """
    if isinstance(target, Handed):
        return target.maker
    if isinstance(target, str) and target.startswith(HANDED):
        raise UsageError(
            f"{group}={target.removeprefix(HANDED)}: was handed over in Python, and its name does not give it back; "
            "there easgd_cli.train(..., resume=RUN) goes on with the run, and easgd_cli.load(RUN).center is its center."
        )
    module, _, name = _today(target).partition(":") if isinstance(target, str) else ("", "", "")
    if not module or not name:
        raise UsageError(f"{group}={target}: write it as module:name, such as {example(group)}.")
    here = os.getcwd()
    if here not in sys.path and not module.startswith("easgd_cli."):  # the package's own need nothing from there
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        missing = e.name or module
        if module == missing or module.startswith(missing + "."):
            raise UsageError(
                f"{group}={target}: there is no module {missing} in {here} or among the installed packages; "
                "go to the directory that holds it."
            ) from e
        raise UsageError(
            f"{group}={target}: importing {module} failed: it needs the module {missing}, which is not installed."
        ) from e
    except (Exception, SystemExit) as e:
        raise UsageError(f"{group}={target}: importing {module} raised {_raised(e)}.") from e
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, [n for n in vars(found) if not n.startswith("_")], 1)
            raise UsageError(
                f"{group}={target}: {module} has no {name}" + (f"; did you mean {module}:{near[0]}?" if near else ".")
            ) from None
    if not callable(found):
        raise UsageError(f"{group}={target}: is a {type(found).__name__}, not something that can be called.")
    return found


def file_of(target: str) -> str | None:
    """Returns where the module of `module:name` would be imported from, without importing it; None if there is none."""
    if target.startswith(HANDED):
        return None
    found: Any = None
    places: list[str] | None = [os.getcwd(), *sys.path]
    module = target.partition(":")[0]
    parts = module.split(".")
    for upto in range(1, len(parts) + 1):
        try:
            found = importlib.machinery.PathFinder.find_spec(".".join(parts[:upto]), places)
        except (ImportError, ValueError, OSError):
            return None
        if found is None:
            return None
        places = list(found.submodule_search_locations or [])
    return str(found.origin or (places or ["nowhere"])[0])


def signature(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the named parameters of `maker`, with annotations resolved where they can be."""
    try:
        parameters = inspect.signature(maker, eval_str=True).parameters
    except (NameError, TypeError):
        parameters = inspect.signature(maker).parameters
    return {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def convert(key: str, value: Any, annotation: Any) -> Any:
    """Returns `value` as `annotation` asks: int, float, str, bool, list or dictionary of these, or any of them with
    None.

    A whole number passes for a float; nothing else is bent. Raises UsageError.
    """
    if annotation in (inspect.Parameter.empty, Any) or isinstance(annotation, str):
        return value
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = typing.get_args(annotation)
        if value is None and type(None) in kinds:
            return None
        for kind in kinds:
            if kind is not type(None) and _fits(value, kind):
                return convert(key, value, kind)
        kinds = tuple(k for k in kinds if k is not type(None))
        if len(kinds) > 1:
            raise UsageError(f"{key}={value}: must be {' or '.join(word(k) for k in kinds)}.")
        [annotation] = kinds
    if typing.get_origin(annotation) in (list, tuple):
        kind = typing.get_args(annotation)[0]
        if not isinstance(value, list | tuple):
            bare = str(value).strip("[]'\" ")
            example = f", such as '{key}=[{bare}]'" if re.fullmatch(r"[\w., -]+", bare) else ""
            quoted = isinstance(value, str) and value.strip().startswith("[")
            raise UsageError(f"{key}={value}: must be a list{' and is a text, in quotes' if quoted else ''}{example}.")
        if len(value) == 1 and isinstance(value[0], list | tuple) and kind in (int, float, str, bool):
            inner = ",".join(map(str, value[0]))
            raise UsageError(f"{key}=[[{inner}]]: is a list in a list; write '{key}=[{inner}]'.")
        items = [convert(key, v, kind) for v in value]
        return tuple(items) if typing.get_origin(annotation) is tuple else items
    if typing.get_origin(annotation) is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{key}={value}: must be {_WORDS[dict]}.")
        return {name: convert(f"{key}.{name}", v, typing.get_args(annotation)[1]) for name, v in value.items()}
    if annotation in (int, float, str, bool) and not _fits(value, annotation):
        raise UsageError(f"{key}={value}: must be {_WORDS[annotation]}{', or auto' if key == 'tau' else ''}.")
    try:
        return float(value) if annotation is float else value
    except OverflowError as e:
        raise UsageError(f"{key}={str(value)[:20]}...: is more than any number can be.") from e


_WORDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", tuple: "a list",
    dict: "a dictionary",
}  # fmt: skip


def word(kind: Any) -> str:
    return _WORDS.get(typing.get_origin(kind) or kind, str(kind))


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) in (list, tuple):
        return isinstance(value, list | tuple)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _raised(e: BaseException) -> str:
    """Returns what a user's own code raised, and where: the last line that was run, or that of a syntax error."""
    if isinstance(e, SyntaxError) and e.filename is not None:
        return f"{type(e).__name__}: {e.msg} ({e.filename}, line {e.lineno})"
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {' '.join(str(e).split())} ({frame.filename}, line {frame.lineno})"
