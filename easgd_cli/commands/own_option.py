"""A user's own maker, `module:callable`, as an option of its group: its parameters are its settings."""

from __future__ import annotations

import inspect
from typing import Any

from easgd_cli.experiment import build
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings

# The arguments that experiment/build.py passes to a maker of each group: these parameters are no settings.
_SYMBOLS = list(build.symbols(Settings(eta=0.0)))
OFFERED = {
    "algo": [*_SYMBOLS, "local", "seed"],
    "local": _SYMBOLS,
    "schedule": [*_SYMBOLS, *build.OFFERED_TO_SCHEDULES],
    "average": [],
    "problem": list(build.OFFERED_TO_PROBLEMS),
    "dataset": ["seed"],
    "task": ["data"],
    "model": ["num_classes", "input_shape"],
    "launcher": _SYMBOLS,
}


OF_DATA = {"validation": 0, "test": None, "collate": None, "loaders": None}  # settings of every user's own data set


def of(group: str, target: str) -> tuple[dict[str, Any], list[str]]:
    """Returns `module:callable` as an option of `group`, with the callable's own parameters as settings, and the groups
    that it does not use. Raises UsageError.
    """
    maker = targets.locate(group, target)
    parameters = targets.signature(maker)
    node: dict[str, Any] = {"name": target, "target": target}
    given = [*OFFERED[group], *(build.loss_arguments(maker) if group == "task" else ())]
    if group == "dataset" and (split := build.split_parameter(maker)):
        given.append(split)
    for name, parameter in parameters.items():
        if name in given:
            continue
        if parameter.default is inspect.Parameter.empty:
            node[name] = "???"
        elif isinstance(parameter.default, int | float | str | list | tuple | dict | None):
            node[name] = parameter.default
    if group == "dataset":
        node |= {key: value for key, value in OF_DATA.items() if key not in parameters}
    unused: list[str] = []
    if group == "problem":  # unasked for, data set and net are set to none, and so bring no learning rate
        wanted = {"dataset": build.DATA, "model": {"model"}}
        unused = [other for other, asked in wanted.items() if not asked & parameters.keys()]
    return node, unused
