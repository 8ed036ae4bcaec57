"""Nests: what a net may be given, which is a tensor, or a tuple or dictionary of nests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def mapped(change: Callable[[Any], Any], nest: Any) -> Any:
    """Returns the nest with every leaf replaced by `change(leaf)`; lists become tuples."""
    if isinstance(nest, Mapping):
        return {key: mapped(change, part) for key, part in nest.items()}
    if isinstance(nest, list | tuple):
        return tuple(mapped(change, part) for part in nest)
    return change(nest)


def leaves(nest: Any) -> Iterator[Any]:
    """Yields the leaves of a nest, in order."""
    if isinstance(nest, Mapping | list | tuple):
        for part in nest.values() if isinstance(nest, Mapping) else nest:
            yield from leaves(part)
    else:
        yield nest


def called(net: Callable[..., Any], inputs: Any) -> Any:
    """Calls `net` with a batch's inputs: one tensor, a tuple's parts in order, or a dictionary's by name."""
    if isinstance(inputs, Mapping):
        return net(**inputs)
    return net(*inputs) if isinstance(inputs, tuple) else net(inputs)


def said(nest: Any) -> str:
    """Returns the shapes in a nest, for a sentence: `[2, 13]`, `([2, 13], [2, 4])`, `{a: [2, 13]}`."""
    if isinstance(nest, Mapping):
        return f"{{{', '.join(f'{key}: {said(part)}' for key, part in nest.items())}}}"
    if isinstance(nest, list | tuple):
        return f"({', '.join(said(part) for part in nest)})"
    return (
        f"[{', '.join(str(side) for side in nest.shape)}]" if isinstance(nest, Tensor) else f"a {type(nest).__name__}"
    )
