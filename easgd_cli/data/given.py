"""Turns what a user's `dataset=my_module:...` returns into one of the forms of data that problems take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from easgd_cli.data import nest
from easgd_cli.data.arrays import Arrays, arrays
from easgd_cli.data.dataset import Dataset
from easgd_cli.data.holding_out import tested
from easgd_cli.data.image_checks import as_images
from easgd_cli.data.images import Images
from easgd_cli.data.mapped import Mapped
from easgd_cli.data.stored import StoredImages
from easgd_cli.data.text import Text
from easgd_cli.errors import UsageError

_FORMS = (
    "(x_train, y_train, x_test, y_test), a pair (train, test) of torch Datasets, or one Dataset with dataset.test=0.2"
)


def as_dataset(made: Any, name: str, collate: Callable[[list[Any]], Any] | None, test: float | None) -> Dataset:
    """Returns what was `made`, arrays, Datasets or a form of the package's, as a form of the package's.

    `test`: the share of samples that is tested on if there is no test set. Raises UsageError.
    """
    if isinstance(made, Images):
        return as_images(made, name)
    if isinstance(made, StoredImages | Arrays | Mapped | Text):
        return made
    parts = made if isinstance(made, tuple | list) else (made,)
    for part in parts:
        _refuse_stream(part, name)
    if len(parts) == 4:
        return _of_four(parts, name)
    if len(parts) == 2 and all(_is_array(part) for part in parts):
        return _of_four(_split(parts, name, test), name)
    if len(parts) in (1, 2) and all(_is_mapped(part) for part in parts):
        own = next((getattr(parts[0], key) for key in ("collate", "collate_fn") if hasattr(parts[0], key)), None)
        train, tested_on = parts if len(parts) == 2 else _subsets(parts[0], name, test)
        for part, split in ((train, "training"), (tested_on, "test")):
            if not len(part):
                raise UsageError(f"dataset={name}: its {split} Dataset is empty; at least one sample is needed.")
        return Mapped(train, tested_on, name, collate or own or default_collate)
    what = f"{len(made)} things" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
    raise UsageError(f"dataset={name}: returned {what}; it must return {_FORMS}, or Images.")


def _of_four(parts: Any, name: str) -> Dataset:
    """Returns `Images` for pictures with a label each, which can be cropped and mirrored, else `Arrays`."""
    x, y = (_array(part) for part in parts[:2])
    pictures = x is not None and (x.ndim == 4 or (x.ndim == 3 and str(x.dtype).endswith("uint8")))
    whole = y is not None and y.ndim == 1 and not _is_floating(y)
    if pictures and whole and int(y.min() if len(y) else 0) >= 0:
        return as_images(tuple(parts), name)
    return arrays(parts[0], parts[1], parts[2], parts[3], name)


def _split(parts: Any, name: str, share: float | None) -> tuple[Any, Any, Any, Any]:
    x, y = (torch.as_tensor(part) for part in parts)
    taken = tested(len(x), _share(share, name))
    return x[~taken], y[~taken], x[taken], y[taken]


def _subsets(whole: Any, name: str, share: float | None) -> tuple[Any, Any]:
    taken = tested(len(whole), _share(share, name))
    return Subset(whole, (~taken).nonzero()[:, 0]), Subset(whole, taken.nonzero()[:, 0])


class Subset(torch.utils.data.Dataset[Any]):
    """The samples `indices` of a Dataset, with the Dataset's `classes` and `num_classes`."""

    def __init__(self, whole: Any, indices: Tensor):
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        return self.whole[int(self.indices[i])]

    @property
    def classes(self) -> Any:
        return getattr(self.whole, "classes", None)

    @property
    def num_classes(self) -> Any:
        return getattr(self.whole, "num_classes", None)


def _share(share: float | None, name: str) -> float:
    if share is None:
        raise UsageError(
            f"dataset={name}: returned no test set; return a pair (train, test), or give the share of samples that is "
            "tested on, such as dataset.test=0.2."
        )
    return share


def _refuse_stream(part: Any, name: str) -> None:
    if isinstance(part, DataLoader):
        raise UsageError(
            f"dataset={name}: returned a DataLoader; return its dataset. Batches are made from (seed, worker, t), "
            "so that a run can be resumed and repeated; a collate_fn is given as dataset.collate=my_module:collate."
        )
    streams = isinstance(part, IterableDataset) or (hasattr(part, "__iter__") and not hasattr(part, "__getitem__"))
    if streams and not isinstance(part, set | dict):
        raise UsageError(
            f"dataset={name}: a {type(part).__name__} can only be read from its beginning: it has no sample for "
            "a given (seed, worker, t), so a run could be neither resumed nor repeated; give it __len__ and "
            "__getitem__, or read what it holds into arrays."
        )


def _is_array(part: Any) -> bool:
    return isinstance(part, Tensor | np.ndarray)


def _is_mapped(part: Any) -> bool:
    return hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, str | bytes | dict)


def _array(part: Any) -> Any:
    """Returns `part` as one array; None for a tuple or dictionary, and for None."""
    leaves = list(nest.leaves(part)) if isinstance(part, tuple | dict) else [part]
    if len(leaves) == 1 and leaves[0] is not None and not isinstance(part, tuple | dict):
        return part if _is_array(part) else np.asarray(part)
    return None


def _is_floating(y: Any) -> bool:
    return y.is_floating_point() if isinstance(y, Tensor) else y.dtype.kind not in "iu"
