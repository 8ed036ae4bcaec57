"""Classification: one of several classes for a sample or, as in segmentation, for each place of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from easgd_cli.data.dataset import Dataset
from easgd_cli.errors import UsageError
from easgd_cli.problems.classification import METRICS
from easgd_cli.problems.metric import Metric
from easgd_cli.problems.tasks.base import Task, tensor, turned

_MANY_CLASSES = 100  # with as many or more, top-5 errors are of interest


class Classification(Task):
    """The mean cross-entropy of outputs [B, C, ...] against labels [B, ...] int64, 0 <= label < C.

    Places with the label `ignore_index` count neither in the loss nor in errors. `label_smoothing` e trains toward
    1 - e of the label and e of all classes alike (Szegedy et al. 2016, section 7). `top5`: whether top-5 errors are
    measured; None: with a hundred classes or more. Raises ValueError for a setting out of its range.
    """

    name = "classification"
    takes = ("labels",)
    metrics: ClassVar[tuple[Metric, ...]] = METRICS.declared

    def __init__(
        self, label_smoothing: float = 0.0, top5: bool | None = None, ignore_index: int = -100, *, data: Dataset
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"task.label_smoothing={label_smoothing:g}: the share of a label that all classes get alike; "
                "it lies in [0, 1), such as 0.1."
            )
        classes = data.class_count(ignore_index)
        if top5 and classes is not None and classes <= 5:
            raise ValueError(
                f"task.top5=true: there are {classes} classes, so the right one is always among "
                "five; it takes at least 6."
            )
        self._smoothing, self._ignored = label_smoothing, ignore_index
        self._top5 = classes is not None and classes >= _MANY_CLASSES if top5 is None else top5
        self._classes = classes

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(name for name in super().measures if self._top5 or name != "error_top5")

    def outputs(self, data: Dataset) -> int | None:
        return self._classes

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(tensor(outputs), targets, ignore_index=self._ignored, label_smoothing=self._smoothing)

    def totals(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        logits, counted = tensor(outputs), targets != self._ignored
        found = {
            "loss": F.cross_entropy(logits, targets, reduction="sum", ignore_index=self._ignored),
            "error": ((logits.argmax(1) != targets) & counted).sum(),
            "count": counted.sum(),
        }
        if self._top5:
            missed = (logits.topk(5, 1).indices != targets.unsqueeze(1)).all(1)
            found["error_top5"] = (missed & counted).sum()
        return found

    def figures(self, totals: Mapping[str, float]) -> dict[str, float]:
        count = totals["count"] or float("nan")
        return {name: (1 if name == "loss" else 100) * totals[name] / count for name in totals if name != "count"}

    def check(self, outputs: Any, inputs: Any, targets: Tensor) -> None:
        out = tensor(outputs)
        if targets.dtype != torch.int64:
            raise UsageError(f"has labels of type {targets.dtype}; classification takes whole numbers.")
        classes = out.shape[1] if self._classes is None and out.dim() > 1 else self._classes
        expected = [len(targets), classes, *targets.shape[1:]]
        if list(out.shape) != expected:
            raise UsageError(
                f"{turned(inputs, out)}; with {classes} classes it must be {expected} (the model can ask for "
                "num_classes)."
            )
        labels = targets[targets != self._ignored]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < out.shape[1]:
            wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise UsageError(
                f"has {out.shape[1]} outputs, and there is a label {wrong}; labels run from 0, and task.ignore_index= "
                "names one that does not count."
            )
        super().check(outputs, inputs, targets)

    @torch.no_grad()
    def confusion(self, outputs: Any, targets: Tensor) -> Tensor:
        """Returns how many labels of each class (row) are taken for each class (column): [C, C] int64, on the CPU."""
        logits = tensor(outputs)
        n, labels = logits.shape[1], targets.cpu()
        pairs = labels * n + logits.argmax(1).cpu()
        return torch.bincount(pairs[labels != self._ignored], minlength=n * n).view(n, n)
