"""Several labels at once, each of which applies to a sample or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from easgd_cli.data.dataset import Dataset
from easgd_cli.errors import UsageError
from easgd_cli.problems.metric import HIGHER, Metric
from easgd_cli.problems.tasks.base import Task, of_splits, tensor, turned


class MultiLabel(Task):
    """The mean binary cross-entropy of outputs [B, K], logits, against targets [B, K] of 0 and 1."""

    name = "multi_label"
    takes = ("several labels", "numbers", "labels")
    metrics: ClassVar[tuple[Metric, ...]] = (
        *of_splits("label_error", "label error", "Labels that are wrong, of all, in percent.", unit="%", format=".2f",
                   primary=True),
        *of_splits("f1", "F1", "Harmonic mean of precision and recall over all labels, in percent.", unit="%",
                   format=".2f", direction=HIGHER),
        *of_splits("loss", "loss", "Mean binary cross-entropy, without the l2 term."),
    )  # fmt: skip

    def outputs(self, data: Dataset) -> int | None:
        shape = data.target_shape
        return shape[0] if shape is not None and len(shape) == 1 else None

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        out = tensor(outputs)
        return F.binary_cross_entropy_with_logits(out, targets.to(out.dtype))

    def totals(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        out = tensor(outputs)
        said, true = out > 0, targets > 0.5
        return {
            "loss": F.binary_cross_entropy_with_logits(out, targets.to(out.dtype), reduction="sum"),
            "wrong": (said != true).sum(),
            "both": (said & true).sum(),
            "either": said.sum() + true.sum(),
            "count": said.new_tensor(said.numel(), dtype=out.dtype),
        }

    def figures(self, totals: Mapping[str, float]) -> dict[str, float]:
        n = totals["count"]
        return {
            "label_error": 100 * totals["wrong"] / n,
            "f1": 200 * totals["both"] / (totals["either"] or 1.0),
            "loss": totals["loss"] / n,
        }

    def check(self, outputs: Any, inputs: Any, targets: Tensor) -> None:
        out = tensor(outputs)
        if out.shape != targets.shape:
            raise UsageError(
                f"{turned(inputs, out)}, and the targets are {list(targets.shape)}; it must return a number a label "
                "(the model can ask for num_classes)."
            )
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise UsageError("has targets other than 0 and 1; task=multi_label is about labels that apply or not.")
        super().check(outputs, inputs, targets)
