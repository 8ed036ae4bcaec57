"""A user's own loss: any callable of outputs and targets, such as torch.nn's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from easgd_cli.data.dataset import Dataset
from easgd_cli.data.nest import leaves
from easgd_cli.errors import UsageError
from easgd_cli.problems.metric import Metric
from easgd_cli.problems.tasks import by_data
from easgd_cli.problems.tasks.base import Task, of_splits, tensor, without_ones


class OwnLoss(Task):
    """The mean over samples of `given(outputs, targets)`, which returns its batch's mean, a 0-d tensor."""

    metrics: ClassVar[tuple[Metric, ...]] = of_splits("loss", "loss", "The loss, without the l2 term.", primary=True)

    def __init__(self, given: Callable[[Any, Any], Any]):
        if isinstance(given, nn.Module) and any(p.requires_grad for p in given.parameters()):
            raise UsageError("task: the loss has parameters, which nobody trains; make them part of the net.")
        self._given = given

    def on(self, device: torch.device) -> OwnLoss:
        return OwnLoss(copy.deepcopy(self._given).to(device)) if isinstance(self._given, nn.Module) else self

    def outputs(self, data: Dataset) -> int | None:
        return by_data(data).outputs(data)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        if type(self._given).__module__.startswith("torch.nn") and isinstance(targets, Tensor):
            out = tensor(outputs)  # torch's own losses would pair each of [B, 1] with each of [B]
            outputs = out.reshape(targets.shape) if without_ones(out) == without_ones(targets) else out
        found = self._given(outputs, targets)
        if not isinstance(found, Tensor) or found.dim() != 0:
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UsageError(f"the loss returned {what}; it must return a tensor without dimensions, the batch's mean.")
        return found

    def totals(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        loss = self.loss(outputs, targets)
        count = len(next(t for t in leaves((targets, outputs)) if isinstance(t, Tensor) and t.dim()))
        return {"loss": loss * count, "count": loss.new_tensor(count)}

    def figures(self, totals: Mapping[str, float]) -> dict[str, float]:
        return {"loss": totals["loss"] / totals["count"]}

    def check(self, outputs: Any, inputs: Any, targets: Any) -> None:
        with torch.no_grad():
            if not bool(torch.isfinite(self.loss(outputs, targets))):
                raise UsageError("the loss at the start is not a finite number.")


def as_task(made: Any, name: str) -> Task:
    """Returns as a task what a user's maker has `made`, a task or a loss. Raises UsageError for anything else."""
    if isinstance(made, Task):
        return made
    if callable(made):
        return OwnLoss(made)
    raise UsageError(
        f"task={name}: made a {type(made).__name__}; a task is a subclass of easgd_cli.problems.tasks.base.Task, or a "
        "callable of outputs and targets that returns the loss."
    )
