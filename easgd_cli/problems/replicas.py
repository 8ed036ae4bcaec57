"""Parallel dither and dropout (Simpson 2015, arXiv 1508.07130): every sample of a batch several times, each time with
noise and a dropout mask of its own, the gradient their mean.

The noise is Gaussian, drawn where the net draws its masks: a function of (seed, worker, t). The paper's own noise was
not at hand to be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easgd_cli.data.dataset import Batch, Dataset
from easgd_cli.data.nest import leaves, mapped


@dataclass(frozen=True)
class Replicas:
    """`count` copies of each sample; `dither`: standard deviation of the noise on each number that the net sees."""

    count: int = 1
    dither: float = 0.0

    def check(self, data: Dataset) -> None:
        """Raises ValueError for samples that are no numbers."""
        if not self.dither and self.count == 1:
            return
        given = f"dither={self.dither:g}" if self.dither else f"replicas={self.count}"
        inputs, _ = next(iter(data.evaluation_batches("train", 1, torch.device("cpu"), torch.float32, _FIRST)))
        if data.targets == "tokens" or not any(t.is_floating_point() for t in leaves(inputs)):
            raise ValueError(
                f"{given}: what this net sees are whole numbers that stand for something, such as tokens, to which no "
                f"noise can be added; leave out {given.partition('=')[0]}=."
            )

    def of(self, inputs: Any, targets: Any) -> Batch:
        """The batch [B, ...] as many times as there are copies [count * B, ...]."""
        if self.count == 1:
            return inputs, targets
        several = [mapped(lambda t: t.repeat(self.count, *[1] * (t.dim() - 1)), nest) for nest in (inputs, targets)]
        return several[0], several[1]

    def dithered(self, inputs: Any) -> Any:
        """The inputs with noise from the generator that the net draws from."""
        return mapped(self._with_noise, inputs) if self.dither else inputs

    def _with_noise(self, t: Tensor) -> Tensor:
        return torch.randn_like(t).mul_(self.dither).add_(t) if t.is_floating_point() else t


_FIRST = torch.zeros(1, dtype=torch.int64)
