"""Arrays of any kind, whole in memory: numbers, labels, tokens, several inputs. A batch is one indexing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from easgd_cli.data import nest
from easgd_cli.data.conversion import as_tensor, sent
from easgd_cli.data.dataset import Batch, Split, Targets
from easgd_cli.data.holding_out import held_out, held_out_of
from easgd_cli.errors import UsageError
from easgd_cli.system.shared_memory import SharedTensors

_PIXEL = 1 / 255


@dataclass(frozen=True, eq=False)
class Arrays:
    """Inputs and targets by split ("train", "test", "held_out"); the first axis of a tensor counts samples.

    Inputs are a tensor, or a tuple or dictionary of tensors. uint8 is handed to the net as numbers from 0 to 1, other
    whole numbers as they are, and the rest in the net's type. `labels` are the targets, None for inputs of tokens.
    """

    inputs: Mapping[Split, Any]
    labels: Mapping[Split, Tensor | None]
    targets: Targets
    classes: tuple[str, ...] | None = None
    about: str | None = None  # a sentence about the data for the user
    memory: SharedTensors | None = field(default=None, repr=False)  # where the tensors lie, after share()

    ahead: ClassVar[int] = 0

    @property
    def num_classes(self) -> int | None:
        return self.class_count(None)

    def class_count(self, ignored: int | None) -> int | None:
        if self.classes is not None:
            return len(self.classes)
        if self.targets not in ("labels", "tokens"):
            return None
        parts = (self.labels if self.targets == "labels" else self.inputs).values()
        counted = [part if ignored is None else part[part != ignored] for part in parts if isinstance(part, Tensor)]
        return max((int(part.max()) for part in counted if part.numel()), default=0) + 1

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        labels = self.labels["train"]
        return None if labels is None else tuple(labels.shape[1:])

    @property
    def input_shape(self) -> Any:
        return nest.mapped(lambda t: tuple(t.shape[1:]), self.inputs["train"])

    @property
    def described(self) -> str:
        return f"the inputs of this data set, {nest.said(nest.mapped(lambda t: t[0], self.inputs['train']))} each"

    @property
    def sample_size(self) -> int:
        return sum(math.prod(t.shape[1:]) for t in nest.leaves(self.inputs["train"]))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._tensors().values())

    def count(self, split: Split) -> int:
        return len(next(nest.leaves(self.inputs[split]))) if split in self.inputs else 0

    def hold_out(self, n: int) -> Arrays:
        """Returns this set with `n` training samples set aside; of labels a share of each class. Raises UsageError."""
        labels = self.labels["train"]
        by_class = self.targets == "labels" and labels is not None and labels.dim() == 1 and int(labels.min()) >= 0
        if by_class and labels is not None:
            taken = held_out(labels, self.num_classes or 0, n)
        else:
            taken = held_out_of(self.count("train"), n)
        parts: dict[Split, Tensor] = {"train": ~taken, "held_out": taken}
        inputs = {split: nest.mapped(itemgetter(i), self.inputs["train"]) for split, i in parts.items()}
        targets = {split: None if labels is None else labels[i] for split, i in parts.items()}
        return replace(self, inputs={**self.inputs, **inputs}, labels={**self.labels, **targets}, memory=None)

    def share(self) -> Arrays:
        """Returns this set in anonymous shared memory. Raises MemoryError."""
        return _rebuilt(self._form(), SharedTensors.of(self._tensors()), self._rest())

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves the tensors out of the pickle when they are in shared memory."""
        return _rebuilt, (self._form(), self.memory if self.memory is not None else self._tensors(), self._rest())

    def training_on(self, device: torch.device) -> Arrays:
        """Returns this set with the training samples on `device`."""
        if device.type == "cpu":
            return self
        inputs, labels = self.inputs["train"], self.labels["train"]
        on_device = nest.mapped(lambda t: t.to(device), inputs)
        targets = None if labels is None else labels.to(device)
        return replace(
            self, inputs={**self.inputs, "train": on_device}, labels={**self.labels, "train": targets}, memory=None
        )

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """Makes the batch at once, without random numbers, and returns a function that returns it."""
        batch = self._batch("train", indices, dtype)
        return lambda: batch

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        for part in (torch.arange(self.count(split)) if indices is None else indices).split(size):
            inputs, targets = self._batch(split, part, dtype)
            yield nest.mapped(lambda t: t.to(device), inputs), None if targets is None else targets.to(device)

    def _batch(self, split: Split, indices: Tensor, dtype: torch.dtype) -> Batch:
        labels = self.labels[split]
        inputs = nest.mapped(lambda t: as_numbers(t[sent(indices, t.device)], dtype), self.inputs[split])
        if labels is None:
            return inputs, None
        targets = labels[sent(indices, labels.device)]
        return inputs, targets.to(dtype) if targets.is_floating_point() else targets

    def _tensors(self) -> dict[str, Tensor]:
        parts = ((kind, split, part) for kind in ("inputs", "labels") for split, part in getattr(self, kind).items())
        return {
            f"{kind}.{split}.{i}": t
            for kind, split, part in parts
            for i, t in enumerate(nest.leaves(part))
            if t is not None
        }

    def _form(self) -> Any:
        """Returns inputs and labels with each tensor replaced by its name."""
        places = {id(t): name for name, t in self._tensors().items()}
        return nest.mapped(lambda t: places.get(id(t)), (dict(self.inputs), dict(self.labels)))

    def _rest(self) -> dict[str, Any]:
        """Returns all fields but the tensors."""
        return {"targets": self.targets, "classes": self.classes, "about": self.about}


def _rebuilt(form: Any, tensors: SharedTensors | dict[str, Tensor], rest: dict[str, Any]) -> Arrays:
    memory = tensors if isinstance(tensors, SharedTensors) else None
    named = tensors.tensors if isinstance(tensors, SharedTensors) else tensors
    inputs, labels = nest.mapped(lambda name: None if name is None else named[name], form)
    return Arrays(inputs, labels, **rest, memory=memory)


def as_numbers(t: Any, dtype: torch.dtype) -> Any:
    """Returns a part of a batch as the net takes it; anything but a tensor is returned as it is."""
    if not isinstance(t, Tensor):
        return t
    if t.dtype == torch.uint8:
        return t.to(dtype).mul_(_PIXEL)
    return t.to(dtype) if t.is_floating_point() or t.dtype == torch.bool else t


def kind_of(targets: Tensor | None) -> Targets:
    """Returns the kind of these targets [N, ...], by their type and shape."""
    if targets is None:
        return "tokens"
    if targets.dtype == torch.bool:
        return "several labels" if targets.dim() > 1 else "labels"
    return "numbers" if targets.is_floating_point() else "labels"


def arrays(
    x_train: Any, y_train: Any, x_test: Any, y_test: Any, name: str, classes: tuple[str, ...] | None = None
) -> Arrays:
    """Returns a checked data set of tensors or arrays. Raises UsageError naming data set, what is wrong, and rule."""
    given = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    given = {part: np.asarray(value) if isinstance(value, list) else value for part, value in given.items()}
    made = {
        part: nest.mapped(partial(_tensor, name, part), value) for part, value in given.items() if value is not None
    }
    inputs: dict[Split, Any] = {"train": made["x_train"], "test": made["x_test"]}
    labels: dict[Split, Tensor | None] = {"train": made.get("y_train"), "test": made.get("y_test")}
    kind = kind_of(labels["train"])
    for split, y in labels.items():
        _check_split(name, split, inputs[split], y)
        if y is not None and kind_of(y) != kind:
            raise UsageError(
                f"dataset={name}: y_train is of type {labels['train'].dtype} and y_test of type {y.dtype}; the two "  # type: ignore[union-attr]
                "must agree."
            )
        if kind == "labels" and y is not None:
            labels[split] = _checked_labels(name, split, y)
    shapes = [nest.mapped(lambda t: tuple(t.shape[1:]), part) for part in inputs.values()]
    if shapes[0] != shapes[1] and kind != "tokens":
        raise UsageError(
            f"dataset={name}: inputs are {shapes[0]} in training and {shapes[1]} in the test; they must agree."
        )
    for one, other in zip(*(nest.leaves(part) for part in inputs.values()), strict=True):
        if torch.int64 in (one.dtype, other.dtype) and one.dtype != other.dtype:
            raise UsageError(
                f"dataset={name}: inputs are of type {one.dtype} in training and {other.dtype} in the test; whole "
                "numbers stay whole and uint8 becomes numbers from 0 to 1, so the two must agree."
            )
    return Arrays(inputs, labels, kind, classes)


def _check_split(name: str, split: Split, inputs: Any, targets: Tensor | None) -> None:
    counts = [len(t) for t in (*nest.leaves(inputs), *([] if targets is None else [targets]))]
    if not min(counts):
        raise UsageError(f"dataset={name}: there are no {split} samples; at least one is needed.")
    if len(set(counts)) > 1:
        raise UsageError(
            f"dataset={name}: its {split} arrays have {', '.join(map(str, counts))} rows; each has one a sample."
        )
    for t in (*nest.leaves(inputs), targets):
        if t is not None and t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise UsageError(f"dataset={name}: some {split} numbers are not finite.")


def _checked_labels(name: str, split: Split, y: Tensor) -> Tensor:
    if y.dim() == 2 and y.shape[1] == 1:
        raise UsageError(
            f"dataset={name}: y_{split} has shape {list(y.shape)}; labels are [N], one number a sample; "
            f"y_{split}[:, 0] makes them so."
        )
    if y.dim() == 2 and bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all()):
        raise UsageError(
            f"dataset={name}: y_{split} has shape {list(y.shape)}; labels are [N], one number a sample; "
            f"y_{split}.argmax(1) turns one-hot rows into numbers."
        )
    return y.to(torch.int64)


def _tensor(name: str, part: str, given: Any) -> Tensor:
    made = as_tensor(given, name, part)
    if made.dim() == 0 or made.is_complex():
        raise UsageError(f"dataset={name}: {part} is {'complex' if made.dim() else 'a single number'}; it is [N, ...].")
    made = made.detach().to("cpu").contiguous()
    if made.is_floating_point():
        return made if made.dtype == torch.float64 else made.to(torch.float32)
    return made if made.dtype in (torch.uint8, torch.bool) else made.to(torch.int64)
