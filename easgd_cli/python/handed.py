"""Models, losses and data that are handed over as objects: how they are named, and how they reach the workers.

Objects that can be pickled go to a clean interpreter, once for all workers, their arrays in shared memory. Others, such
as a lambda or a class of `__main__` or a notebook, are inherited: workers are then forked from a copy of this process.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easgd_cli.commands import own_option
from easgd_cli.data import packing
from easgd_cli.data.dataset import Dataset
from easgd_cli.errors import UsageError
from easgd_cli.experiment.build import Recipe
from easgd_cli.settings.schema import Group, Settings
from easgd_cli.settings.targets import Handed
from easgd_cli.system.shared_memory import SharedTensors

_SENT = ("model", "task")  # groups whose makers are called by workers; data are made before


@dataclass(frozen=True)
class CopyOf:
    """Makes a copy of a net, so that the caller's own net is never trained."""

    net: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.net)


@dataclass(frozen=True)
class Just:
    """A maker that returns the object it was given."""

    what: Any

    def __call__(self) -> Any:
        return self.what


def model(given: Any) -> Group:
    """Returns a net, or a callable that makes one, as an option of `model`. Raises UsageError."""
    if isinstance(given, nn.Module):
        try:
            own = copy.deepcopy(given).cpu()
        except Exception as e:
            raise UsageError(
                f"model={_name(given)}: cannot be copied ({type(e).__name__}: {' '.join(str(e).split())}); give a "
                "function that makes it."
            ) from e
        own.zero_grad(set_to_none=True)
        return _node(given, CopyOf(own))
    if not callable(given):
        raise UsageError(f"model: is a {type(given).__name__}; give a torch.nn.Module, what makes one, or a name.")
    return own_option.of("model", name)[0] if (name := _written(given)) else _node(given, given)


def loss(given: Any) -> Group:
    """Returns a callable of outputs and targets, such as a loss of torch.nn, as an option of `task`.

    Raises UsageError.
    """
    if not callable(given):
        raise UsageError(
            f"loss: is a {type(given).__name__}; give a callable of outputs and targets, or the name of a task."
        )
    name = None if isinstance(given, nn.Module) else _written(given)
    return own_option.of("task", name)[0] if name else _node(given, Just(given))


def function(given: Callable[..., Any]) -> str:
    """Returns the function's name, `module:name`, if other processes find it by that, else the function handed over."""
    return _written(given) or Handed(_of(given), given)


def data(train: Any, test: Any) -> Group:
    """Returns data as an option of `dataset`. `train`, `test` (or None): Datasets, or pairs of inputs and targets."""
    for part in (train, test):
        if isinstance(part, type):
            raise UsageError(f"train, test: {part.__name__} is a class; give Datasets that have been made of it.")
    pairs = [part if isinstance(part, tuple | list) else (part, None) for part in (train, test) if part is not None]
    arrays = all(isinstance(part, Tensor | np.ndarray | tuple | list) for part in (train, test) if part is not None)
    if not arrays:
        given: Any = train if test is None else (train, test)
    else:
        if any(len(pair) != 2 for pair in pairs):
            raise UsageError("train, test: of arrays each is a pair (inputs, targets), several inputs being a tuple.")
        given = tuple(part for pair in pairs for part in pair)
    node = _node(train, Just(given))
    return node | own_option.OF_DATA | {"mean": None, "std": None}


def _node(given: Any, maker: Callable[[], Any]) -> Group:
    return {"name": _name(given), "target": Handed(_of(given), maker)}


def _of(given: Any) -> str:
    """Returns a description of the object, for config.yaml."""
    if isinstance(given, tuple | list | Tensor | np.ndarray):
        return f"arrays {_name(given).partition('-')[2]}"
    named = given if hasattr(given, "__qualname__") else type(given)
    return f"{named.__module__}.{named.__qualname__}" + ("" if named is given else " object")


def _name(given: Any) -> str:
    """Returns a short name of the object, fit for the name of a directory."""
    if isinstance(given, functools.partial):
        return _name(given.func)
    if isinstance(given, Tensor | np.ndarray):
        return "arrays-" + "x".join(map(str, given.shape))
    if isinstance(given, tuple | list):
        return _name(given[0]) if given else "arrays-0"
    if isinstance(given, dict):
        return _name(tuple(given.values()))
    return str(getattr(given, "__name__", type(given).__name__)).strip("<>")


def _written(given: Any) -> str | None:
    """Returns `module:Name` if another process finds the same object by it, else None."""
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", "")
    if not module or not name or not _importable(module):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is given else None


def _importable(module: str) -> bool:
    return module != "__main__" and getattr(sys.modules.get(module), "__spec__", None) is not None


# ---------------------------------------------------------------- reaching the workers


def unsendable(s: Settings) -> str | None:
    """Returns why an object that was handed over cannot be sent to another interpreter; None: all can."""
    for group in ("model", "task", "dataset"):
        handed = [value for value in getattr(s, group).values() if isinstance(value, Handed)]
        if not handed:
            continue
        try:
            _Probe().dump([value.maker for value in handed])
        except Exception as e:  # an object's own __reduce__ may raise anything
            return f"{group}={getattr(s, group)['name']}: {' '.join(str(e).split())}"
    return None


class _Probe(pickle.Pickler):
    """Pickles without arrays and without output. Raises for what another process could not find by its name."""

    def __init__(self) -> None:
        super().__init__(_Nothing(), pickle.HIGHEST_PROTOCOL)

    def persistent_id(self, given: Any) -> str | None:
        return "array" if isinstance(given, Tensor | np.ndarray) else None

    def reducer_override(self, given: Any) -> Any:
        module = getattr(given, "__module__", None)
        named = isinstance(given, type) or (callable(given) and hasattr(given, "__qualname__"))
        if named and isinstance(module, str) and module in sys.modules and not _importable(module):
            raise pickle.PicklingError(f"{given.__qualname__} is defined in {module}")
        return NotImplemented


class _Nothing(io.RawIOBase):
    def write(self, given: Any) -> int:
        return len(given)


@dataclass(frozen=True)
class SentRecipe(Recipe):
    """A recipe with objects `packed` once for all processes of a run, and torch's default `dtype` for the processes."""

    packed: tuple[bytes, SharedTensors] | None = None
    dtype: torch.dtype = torch.float32

    def shared(self) -> Recipe:
        makers = {group: getattr(self.settings, group)["target"] for group in _SENT}
        handed = {group: target.maker for group, target in makers.items() if isinstance(target, Handed)}
        shared = super().shared()
        return replace(self, data=shared.data, packed=packing.pack(handed), dtype=torch.get_default_dtype())

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.settings, self.data, self.steps, self.packed, self.dtype)


def _received(
    settings: Settings, data: Dataset | None, steps: int | None, packed: tuple[bytes, SharedTensors], dtype: torch.dtype
) -> Recipe:
    torch.set_default_dtype(dtype)
    for group, maker in packing.unpack(*packed).items():
        node = getattr(settings, group)
        setattr(settings, group, {**node, "target": Handed(node["target"], maker)})
    return Recipe(settings, data, steps)


_inheritance: dict[int, Recipe] = {}
_numbers = itertools.count()


@dataclass(frozen=True)
class InheritedRecipe(Recipe):
    """A recipe that copies of this process have already: only its `number` is sent. Call `release` after the run."""

    number: int = -1

    @classmethod
    def of(cls, recipe: Recipe) -> InheritedRecipe:
        number, data = next(_numbers), None if recipe.data is None else _unused(recipe.data)
        _inheritance[number] = Recipe(recipe.settings, data, recipe.steps)
        return cls(recipe.settings, data, recipe.steps, number)

    def shared(self) -> Recipe:
        return self

    def release(self) -> None:
        _inheritance.pop(self.number, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (self.number,)


def _unused(data: Any) -> Any:
    """Returns the data with fresh private fields: a fork does not copy the reading threads and processes in them."""
    anew = {f.name: f.default_factory for f in fields(data) if f.name.startswith("_")}
    return replace(data, **{name: made() for name, made in anew.items() if made is not MISSING})


def _inherited(number: int) -> Recipe:
    return _inheritance[number]
