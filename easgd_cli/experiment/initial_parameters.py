"""The parameters a net begins with, from a file: `init` and `init_without`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easgd_cli.errors import UsageError
from easgd_cli.settings.schema import Settings

if TYPE_CHECKING:
    from torch import nn


def read_into(net: nn.Module, s: Settings, num_classes: int | None) -> None:
    """Puts the parameters in the file `init` into `net`, except those that `init_without` names; does nothing without a
    file. Raises UsageError.

    `num_classes`: how many outputs the net is to have, None if unknown.
    """
    from easgd_cli.problems.flat import Flat

    if s.init is None:
        if s.init_without:
            raise UsageError(
                f"init_without={listed(s.init_without)}: there is no file to leave these out of; give init=, or "
                "leave it out."
            )
        if s.init_prefix is not None:
            raise UsageError(f"init_prefix={s.init_prefix}: there is no file to read; give init=, or leave it out.")
        return
    state = _without(_under_prefix(_state_dict(s.init), net, s), net, s)
    if num_classes is not None:
        _check_outputs(net, state, s, num_classes)
    Flat(net).load(state, f"init={s.init}")
    # as a plain dict, without the file's versions of layers: names and shapes have been checked
    net.load_state_dict(dict(state))
    net.zero_grad(set_to_none=True)


def _state_dict(path: str) -> dict[str, Any]:
    """Reads a saved state_dict. Raises UsageError."""
    import torch

    if not os.path.isfile(path):
        raise UsageError(
            f"init={path}: there is no such file; give a state_dict saved with torch.save, such as a run's center.pt."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise UsageError(
            f"init={path}: cannot be read as a file of parameters ({type(e).__name__}); it must be a state_dict "
            "saved with torch.save."
        ) from e
    if not isinstance(content, dict):
        raise UsageError(
            f"init={path}: holds a {type(content).__name__}; it must be a state_dict saved with torch.save."
        )
    return content


def _under_prefix(state: dict[str, Any], net: nn.Module, s: Settings) -> dict[str, Any]:
    """Returns the file's entries under the net's names, without the `init_prefix` that they may have in the file."""
    prefix = s.init_prefix
    if prefix is not None:
        found = {str(key).removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
        if not found:
            raise UsageError(
                f"init_prefix={prefix}: no name in init={s.init} begins so; they begin with "
                f"{', '.join(dict.fromkeys(str(key).partition('.')[0] for key in state))}."
            )
        return found
    own = net.state_dict().keys()
    first = next(iter(own), "")
    for key in map(str, state):
        before = key.removesuffix(first)
        if before and key.endswith(f".{first}") and all(f"{before}{name}" in state for name in own):
            raise UsageError(
                f"init={s.init}: its names begin with {before}, as of a net inside another (DataParallel's module., "
                f"torch.compile's _orig_mod., Lightning's model.); init_prefix={before} takes that off."
            )
    return state


def _without(state: Mapping[Any, Any], net: nn.Module, s: Settings) -> dict[Any, Any]:
    """Returns the file's entries; those of the modules and parameters in `init_without` come from the net."""
    own = net.state_dict()
    for name in s.init_without:
        if not any(_within(key, name) for key in (*state, *own)):
            raise UsageError(
                f"init_without={listed(s.init_without)}: neither init={s.init} nor the net has a module or parameter "
                f"{name}; the net's are {', '.join(dict.fromkeys(key.split('.')[0] for key in own))}."
            )
    left_out = {key for key in (*state, *own) if any(_within(key, name) for name in s.init_without)}
    return {key: value for key, value in state.items() if key not in left_out} | {
        key: value for key, value in own.items() if key in left_out
    }


def listed(names: Sequence[str]) -> str:
    """Returns the names as they are written on the command line."""
    return f"[{','.join(names)}]"


def _within(key: Any, name: str) -> bool:
    """Whether that entry of a state_dict is the parameter `name`, or one of the module `name`."""
    return key == name or str(key).startswith(f"{name}.")


def _check_outputs(net: nn.Module, state: Mapping[str, Any], s: Settings, num_classes: int) -> None:
    """Refuses a file of parameters of the same net with another number of classes."""
    others = {
        name: (getattr(state[name], "shape", own.shape), own.shape)
        for name, own in net.state_dict().items()
        if name in state
    }
    others = {name: shapes for name, shapes in others.items() if shapes[0] != shapes[1]}
    if others and all(
        len(theirs) and theirs[1:] == own[1:] and own[:1] == (num_classes,) for theirs, own in others.values()
    ):
        name, (theirs, own) = next(iter(others.items()))
        raise UsageError(
            f"init={s.init}: {name} is {list(theirs)} in the file and {list(own)} in the net: the file is of a net for "
            f"{theirs[0]} classes, and dataset={s.dataset['name']} has {num_classes}; give "
            f"init_without=[{name.rpartition('.')[0] or name}] to begin with a new last layer, or use a data set with "
            f"{theirs[0]} classes."
        )
