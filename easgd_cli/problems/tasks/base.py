"""What a net is trained for: the loss of its outputs, and the metrics that it is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from easgd_cli.data.dataset import Dataset, Targets
from easgd_cli.data.nest import said
from easgd_cli.errors import UsageError
from easgd_cli.problems.metric import LOWER, Metric


class Task(ABC):
    """A loss, which gradients are of, and what evaluation measures beside it.

    Outputs are what the net returned for a batch of B samples, targets what the data set has for them. Evaluation adds
    up `totals` over the batches of a split and makes figures of the sums. A subclass declares each metric for the test
    set and for what is held out (`of_splits`).
    """

    name: str = "own"  # how it is chosen
    takes: ClassVar[tuple[Targets, ...]] = ("labels", "numbers", "several labels", "tokens")
    metrics: ClassVar[tuple[Metric, ...]]

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of its figures, without the split they are of."""
        return tuple(m.name.removeprefix("test_") for m in self.metrics if m.name.startswith("test_"))

    def outputs(self, data: Dataset) -> int | None:
        """How many numbers a net is to give for a sample, offered to nets as `num_classes`; None: not known here."""
        return data.num_classes

    def parted(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """What goes into the net, and what its outputs are held against."""
        return inputs, targets

    def on(self, device: torch.device) -> Self:
        """The same, its own tensors, if any, on `device`."""
        return self

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch, 0-d, which is differentiated."""

    @abstractmethod
    def totals(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """Sums over a batch by name, 0-d, `count` among them: what the figures of a split are made of."""

    @abstractmethod
    def figures(self, totals: Mapping[str, float]) -> dict[str, float]:
        """The figures of a split by name, `loss` among them, from the sums over all of it."""

    def check(self, outputs: Any, inputs: Any, targets: Any) -> None:
        """Raises UsageError, a fact without a subject, for outputs that do not go with the targets."""
        out = tensor(outputs)
        if not bool(torch.isfinite(out).all()):
            raise UsageError("its outputs at the start are not finite numbers.")


def tensor(outputs: Any) -> Tensor:
    """The one tensor that a net has returned, or the `logits` of what it has. Raises UsageError."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise UsageError(
            f"returned a {type(outputs).__name__}; it must return one tensor (or an object that has it as logits), "
            "but for a task of your own."
        )
    return found


def turned(inputs: Any, outputs: Tensor) -> str:
    """What a net has made of a batch, for a sentence."""
    return f"turned inputs {said(inputs)} into {list(outputs.shape)}"


def of_splits(
    name: str, title: str, description: str, *, unit: str = "", format: str = ".4g", direction: str = LOWER,
    primary: bool = False,
) -> tuple[Metric, Metric]:  # fmt: skip
    """A metric of the test set, and the same of the training samples that are held out."""
    test = Metric(
        f"test_{name}", f"test {title}", unit=unit, format=format, direction=direction, primary=primary,
        description=f"{description} On the test samples, at the center.",
    )  # fmt: skip
    held_out = Metric(
        f"validation_{name}", f"held-out {title}", unit=unit, format=format, direction=direction,
        description=f"{description} On the training samples held out by dataset.validation, at the center.",
    )  # fmt: skip
    return test, held_out


def without_ones(t: Tensor) -> list[int]:
    """Its shape without last axes of one, of which outputs may have more or fewer than targets."""
    shape = list(t.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return shape
