"""Regression: one number or several for a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from easgd_cli.data.dataset import Dataset
from easgd_cli.errors import UsageError
from easgd_cli.problems.metric import Metric
from easgd_cli.problems.tasks.base import Task, of_splits, tensor, turned, without_ones

_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


class Regression(Task):
    """The mean over all numbers of the squared error (mse), or another `loss`: the absolute error (l1), or Huber's with
    the bound 1 (huber).

    Outputs have the targets' shape; a last axis of length 1 may be there or not. Raises ValueError for any other loss.
    """

    name = "regression"
    takes = ("numbers", "labels")
    metrics: ClassVar[tuple[Metric, ...]] = (
        *of_splits("rmse", "RMSE", "Root of the mean squared error, in the targets' unit.", primary=True),
        *of_splits("mae", "MAE", "Mean absolute error, in the targets' unit."),
        *of_splits("loss", "loss", "The loss as it is trained, without the l2 term."),
    )

    def __init__(self, loss: str = "mse"):
        if loss not in _LOSSES:
            raise ValueError(f"task.loss={loss}: is mse, l1 or huber.")
        self._loss = _LOSSES[loss]

    def outputs(self, data: Dataset) -> int | None:
        shape = data.target_shape
        return None if shape is None or len(shape) > 1 else (shape or (1,))[0]

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        out = tensor(outputs)
        return self._loss(out.reshape(targets.shape), targets.to(out.dtype))

    def totals(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        out = tensor(outputs).reshape(targets.shape)
        numbers = targets.to(out.dtype)
        return {
            "loss": self._loss(out, numbers, reduction="sum"),
            "square": F.mse_loss(out, numbers, reduction="sum"),
            "absolute": F.l1_loss(out, numbers, reduction="sum"),
            "count": targets.new_tensor(targets.numel()),
        }

    def figures(self, totals: Mapping[str, float]) -> dict[str, float]:
        n = totals["count"]
        return {"rmse": (totals["square"] / n) ** 0.5, "mae": totals["absolute"] / n, "loss": totals["loss"] / n}

    def check(self, outputs: Any, inputs: Any, targets: Tensor) -> None:
        out = tensor(outputs)
        # torch would make [B, B] of [B] and [B, 1], and say so in a warning only
        if without_ones(out) != without_ones(targets):
            raise UsageError(
                f"{turned(inputs, out)}, and the targets are {list(targets.shape)}; the two must agree (the model can "
                "ask for num_classes, the numbers a sample has)."
            )
        super().check(outputs, inputs, targets)
