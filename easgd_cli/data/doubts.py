"""Finds oddities of data that may be meant but are mostly mistakes, and says each in a sentence with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from easgd_cli.data import nest
from easgd_cli.data.arrays import Arrays, as_numbers
from easgd_cli.data.dataset import Dataset, fixed_subset
from easgd_cli.data.images import Images
from easgd_cli.data.mapped import Mapped
from easgd_cli.errors import UsageError

_FEW = 4  # classes that a sentence names
_SAMPLED = 1000  # samples by which the scale is estimated
_TIMES = 8.0  # by this factor scales of training and test inputs may differ


def doubts(data: Dataset, name: str, ignored: int | None = None) -> list[str]:
    """Returns a sentence for each oddity. `ignored`: a label of no class. Raises UsageError for others below 0."""
    labels = _labels(data)
    found = [] if labels is None else list(_of_labels(name, *labels, ignored, data.classes))
    if isinstance(data, Images | Arrays):
        splits = (data.train, data.test) if isinstance(data, Images) else (data.inputs["train"], data.inputs["test"])
        pairs = list(zip(*(nest.leaves(part) for part in splits), strict=True))
        found += [said for train, test in pairs for said in _of_scales(train, test)]
        found += [said for train, _ in pairs for said in _of_channels(train.shape[1:], "permute(0, 3, 1, 2)")]
    elif isinstance(data, Mapped):
        shapes = [t.shape[1:] for t in nest.leaves(data.sample[0]) if isinstance(t, Tensor)]
        found += [said for shape in shapes for said in _of_channels(shape, "permute(2, 0, 1)")]
    return [f"dataset={name}: {said}" for said in found]


def _labels(data: Dataset) -> tuple[Tensor, Tensor] | None:
    """Returns the labels of training and test samples; None if they are unknown before all samples are read."""
    if isinstance(data, Images):
        return data.train_labels, data.test_labels
    if data.targets != "labels":
        return None
    if isinstance(data, Arrays):
        found: list[Any] = [data.labels["train"], data.labels["test"]]
    elif isinstance(data, Mapped):  # as of torchvision's Datasets
        found = [getattr(part, "targets", None) for part in (data.train, data.test)]
    else:  # images in folders, which are their classes
        return None
    try:
        train, test = (torch.as_tensor(part).flatten() for part in found)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if train.is_floating_point() or test.is_floating_point() else (train.long(), test.long())


def _of_labels(
    name: str, train: Tensor, test: Tensor, ignored: int | None, names: Sequence[str] | None
) -> Iterator[str]:
    if ignored is not None:
        train, test = train[train != ignored], test[test != ignored]
    if not len(train) or not len(test):
        return
    least = int(min(train.min(), test.min()))
    if least < 0:
        count = int((train == least).sum() + (test == least).sum())
        raise UsageError(
            f"dataset={name}: {count:,} labels are {least}; labels run from 0, and task.ignore_index={least} "
            "leaves these out of loss and error."
        )
    classes = max(int(train.max()), int(test.max())) + 1 if names is None else len(names)
    seen, tested = (torch.bincount(part, minlength=classes) for part in (train, test))
    untrained = ((seen == 0) & (tested > 0)).nonzero()[:, 0].tolist()
    absent = ((seen == 0) & (tested == 0)).nonzero()[:, 0].tolist()
    if absent == [0]:
        yield f"labels run from 1 to {classes - 1}, so that class 0 of {classes} has no sample; y - 1 begins at 0."
    elif absent:
        yield (
            f"labels name {classes} classes, and {len(absent)} of them have no sample: {_some(absent, names)}; "
            "numpy.unique(y, return_inverse=True)[1] numbers those that have some."
        )
    if untrained:
        count = int(tested[untrained].sum())
        yield (
            f"{count:,} test samples are of {len(untrained)} classes without a training sample: "
            f"{_some(untrained, names)}; nobody can learn these."
        )


def _some(classes: Sequence[int], names: Sequence[str] | None) -> str:
    said = ", ".join(str(c) if names is None else names[c] for c in classes[:_FEW])
    return said + (f" and {len(classes) - _FEW} more" if len(classes) > _FEW else "")


def _of_scales(train: Tensor, test: Tensor) -> Iterator[str]:
    kinds = [str(part.dtype).removeprefix("torch.") for part in (train, test)]
    if "uint8" in kinds and kinds[0] != kinds[1]:
        yield (
            f"training inputs are {kinds[0]} and test inputs {kinds[1]}; uint8 is handed to the net as numbers from 0 "
            "to 1, all else as it is; give both the same type."
        )
    parts = [as_numbers(part[fixed_subset(len(part), _SAMPLED)], torch.float64) for part in (train, test)]
    if not all(part.is_floating_point() and part.numel() > 1 for part in parts):
        return  # whole numbers stand for things, and have no scale
    (m, s), (n, t) = ((float(part.mean()), float(part.std())) for part in parts)
    if min(s, t) > 0 and (max(s / t, t / s) > _TIMES or abs(m - n) > _TIMES * max(s, t)):
        yield (
            f"training inputs have the mean {m:.4g} and the standard deviation {s:.4g}, test inputs {n:.4g} and "
            f"{t:.4g}; scale both in the same way."
        )


def _of_channels(shape: Sequence[int], remedy: str) -> Iterator[str]:
    if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4:
        a, b, c = shape
        yield (
            f"inputs are {[a, b, c]}, taken for {a} channels of {b}x{c} pixels; if the channels stand last, "
            f"x.{remedy} puts them first."
        )
