"""From settings to objects: the method, the schedule, the data and the model of a run.

A group names its maker as `module:callable`, the package's own and a user's alike. Its options, and what the runner
offers by name (the paper's symbols for a method, the shape of the data for a model), are matched with the callable's
signature; whatever does not fit is a UsageError.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from easgd_cli.config import Group, Settings, effective_alpha
from easgd_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from easgd_cli.algorithms.base import Method
    from easgd_cli.data.images import Images
    from easgd_cli.schedule import Schedule


def symbols(s: Settings) -> dict[str, Any]:
    """What a method or schedule may ask for by the paper's names."""
    alpha = effective_alpha(s)
    return {
        "tau": s.tau, "eta": s.eta, "alpha": alpha, "beta": alpha * s.workers, "delta": s.delta,
        "gamma": s.gamma, "l2": s.l2, "workers": s.workers,
    }  # fmt: skip


def method(s: Settings) -> Method:
    """The method's two rules, with their constants. Raises UsageError."""
    from easgd_cli.algorithms.base import check_method

    made = make("algo", s.algo, symbols(s))
    check_method(made, s.algo["name"], workers=s.workers)
    return made


def schedule(s: Settings) -> Schedule:
    """eta as a function of the worker's clock. Raises UsageError."""
    return make("schedule", s.schedule, symbols(s))


def data(s: Settings) -> Images:
    """The data set, with `dataset.validation` images held out of training. Raises UsageError."""
    from easgd_cli.data.images import as_images

    options = dict(s.dataset)
    held_out = options.pop("validation", 0)
    images = as_images(make("dataset", options, {"seed": s.seed}), s.dataset["name"])
    return images.hold_out(held_out) if held_out else images


def model(s: Settings, images: Images) -> nn.Module:
    """A net for these images, initialised from the one seed. Raises UsageError."""
    from easgd_cli.models import check_model, seeded

    offered = {"num_classes": images.num_classes, "input_shape": images.input_shape}
    with seeded(s.seed):
        net = make("model", s.model, offered)
    check_model(net, s.model["name"], images)
    return net


def make(group: str, spec: Group, offered: Mapping[str, Any]) -> Any:
    """Calls the maker named by `spec["target"]` with the options of `spec` and what it asks for of `offered`.

    Raises UsageError when the maker cannot be found, an option is unknown or of the wrong type, one is missing, or
    the maker itself raises ValueError.
    """
    maker = locate(group, spec["target"])
    options = {k: v for k, v in spec.items() if k not in ("name", "target")}
    given: dict[str, Any] = {}
    parameters = signature(maker)
    for key, value in options.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, 1)
            raise UsageError(f"{group}.{key}={value}: {spec['name']} has no such setting" + (f"; did you mean {group}.{near[0]}?" if near else "."))
        given[key] = convert(f"{group}.{key}", value, parameters[key].annotation)
    for key, parameter in parameters.items():
        if key in given:
            continue
        if key in offered:
            given[key] = offered[key]
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{group}={spec['name']} needs {group}.{key}, and no value was given.")
    try:
        return maker(**given)
    except ValueError as e:
        raise UsageError(str(e)) from e
    except UsageError:
        raise
    except Exception as e:
        if spec["target"].startswith("easgd_cli."):
            raise
        raise UsageError(f"{group}={spec['name']}: calling it raised {type(e).__name__}: {e} ({_last_line(e)}).") from e


def locate(group: str, target: str) -> Callable[..., Any]:
    """The callable `module:name`, from the working directory or an installed package. Raises UsageError."""
    module, _, name = target.partition(":")
    if not name:
        raise UsageError(f"{group}={target}: write it as module:name, such as {group}=my_module:{'MyMethod' if group == 'algo' else 'my_' + group}.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        missing = e.name or module
        if module == missing or module.startswith(missing + "."):
            raise UsageError(f"{group}={target}: there is no module {missing} in {here} or among the installed packages.") from e
        raise UsageError(f"{group}={target}: importing {module} failed: it needs the module {missing}, which is not installed.") from e
    except Exception as e:
        raise UsageError(f"{group}={target}: importing {module} raised {type(e).__name__}: {e} ({_last_line(e)}).") from e
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, [n for n in vars(found) if not n.startswith("_")], 1)
            raise UsageError(f"{group}={target}: {module} has no {name}" + (f"; did you mean {module}:{near[0]}?" if near else ".")) from None
    if not callable(found):
        raise UsageError(f"{group}={target}: is a {type(found).__name__}, not something that can be called.")
    return found


def signature(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of `maker`, with annotations resolved where they can be."""
    try:
        parameters = inspect.signature(maker, eval_str=True).parameters
    except (NameError, TypeError):
        parameters = inspect.signature(maker).parameters
    return {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def convert(key: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` asks (int, float, str, bool, list of these, or one of them with None).

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
        annotation = next(k for k in kinds if k is not type(None))
    if typing.get_origin(annotation) in (list, tuple):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key}={value}: must be a list, such as {key}=[1,2].")
        kind = typing.get_args(annotation)[0]
        items = [convert(key, v, kind) for v in value]
        return tuple(items) if typing.get_origin(annotation) is tuple else items
    if annotation in (int, float, str, bool) and not _fits(value, annotation):
        raise UsageError(f"{key}={value}: must be {_WORDS[annotation]}.")
    return float(value) if annotation is float else value


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _last_line(e: BaseException) -> str:
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"
