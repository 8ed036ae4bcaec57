"""What a net is trained for: the loss of its outputs, and the metrics by which the net is judged."""

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
    """A loss, whose gradients are taken, and what evaluation measures beside it.

    Outputs are what the net has returned for a batch of B samples, targets what the data set has for these. Evaluation
    adds up `totals` over the batches of a split and makes figures of the sums. A subclass declares each metric for the
    test set and for held-out samples (`of_splits`).
    """

    name: str = "own"  # under which users choose the task
    takes: ClassVar[tuple[Targets, ...]] = ("labels", "numbers", "several labels", "tokens")
    metrics: ClassVar[tuple[Metric, ...]]

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of its figures, without that of the split."""
        return tuple(m.name.removeprefix("test_") for m in self.metrics if m.name.startswith("test_"))

    def outputs(self, data: Dataset) -> int | None:
        """Returns how many numbers a net is to give for a sample, offered to nets as `num_classes`; None: not known."""
        return data.num_classes

    def parted(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """Returns what goes into the net, and the targets with which its outputs are compared."""
        return inputs, targets

    def on(self, device: torch.device) -> Self:
        """Returns this task with its own tensors, if it has any, on `device`."""
        return self

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the loss of a batch, 0-d, which is then differentiated."""

    @abstractmethod
    def totals(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """Returns sums over a batch by name, 0-d, `count` among them, from which the figures of a split are made."""

    @abstractmethod
    def figures(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Returns the figures of a split by name, `loss` among them, from the sums over the whole split."""

    def check(self, outputs: Any, inputs: Any, targets: Any) -> None:
        """Raises UsageError for outputs that do not go with the targets; its text follows the net's name."""
        out = tensor(outputs)
        if not bool(torch.isfinite(out).all()):
            raise UsageError("its outputs at the start are not finite numbers.")


def tensor(outputs: Any) -> Tensor:
    """Returns the one tensor in a net's `outputs`: `outputs` itself, or its attribute `logits`. Raises UsageError."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise UsageError(
            f"returned a {type(outputs).__name__}; it must return one tensor (or an object that has it as logits), "
            "but for a task of your own."
        )
    return found


def turned(inputs: Any, outputs: Tensor) -> str:
    """Returns what a net has made of a batch, for a sentence."""
    return f"turned inputs {said(inputs)} into {list(outputs.shape)}"


def of_splits(
    name: str, title: str, description: str, *, unit: str = "", format: str = ".4g", direction: str = LOWER,
    primary: bool = False,
) -> tuple[Metric, Metric]:  # fmt: skip
    """Returns a metric of the test set, and the same metric of the training samples that are held out."""
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
    """Returns the shape without last axes of length 1, of which outputs may have more or fewer than targets."""
    shape = list(t.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return shape
