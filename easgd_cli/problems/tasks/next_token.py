"""The next token of a sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from easgd_cli.errors import UsageError
from easgd_cli.problems.metric import Metric
from easgd_cli.problems.tasks.base import Task, of_splits, tensor, turned

_BYTES = 256  # with as many tokens or fewer, each is taken for a byte


class NextToken(Task):
    """The mean cross-entropy a token of outputs [B, L, V], logits, against the tokens [B, L] int64 that come next.

    A data set without targets has sequences [B, L + 1]: the net sees all tokens but the last, and the targets are all
    but the first. `ignore_index`: a token that does not count, such as padding. `bytes_per_token`: how many bytes of
    text a token stands for on average, for bits per byte; None: 1 where there are at most 256 tokens, else bits per
    byte are not measured.
    Raises ValueError for a number that is not positive.
    """

    name = "next_token"
    takes = ("tokens", "labels")
    metrics: ClassVar[tuple[Metric, ...]] = (
        *of_splits("perplexity", "perplexity", "exp of the mean cross-entropy a token.", primary=True),
        *of_splits("bits_per_byte", "bits per byte", "The cross-entropy in bits a byte of text."),
        *of_splits("loss", "loss", "Mean cross-entropy a token, in nats, without the l2 term."),
    )

    def __init__(self, ignore_index: int = -100, bytes_per_token: float | None = None):
        if bytes_per_token is not None and not bytes_per_token > 0:
            raise ValueError(f"task.bytes_per_token={bytes_per_token:g}: must be greater than 0.")
        self._ignored, self._bytes = ignore_index, bytes_per_token

    def parted(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        if targets is not None:
            return inputs, targets
        return inputs[:, :-1], inputs[:, 1:]

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(tensor(outputs).flatten(0, -2), targets.flatten(), ignore_index=self._ignored)

    def totals(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        logits = tensor(outputs)
        count = (targets != self._ignored).sum()
        per_token = self._bytes or (1.0 if logits.shape[-1] <= _BYTES else math.nan)
        return {
            "loss": F.cross_entropy(
                logits.flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=self._ignored
            ),
            "bytes": count * per_token,
            "count": count,
        }

    def figures(self, totals: Mapping[str, float]) -> dict[str, float]:
        loss = totals["loss"] / (totals["count"] or math.nan)
        found = {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
        bits = totals["loss"] / math.log(2) / (totals["bytes"] or math.nan)
        return found if math.isnan(totals["bytes"]) else found | {"bits_per_byte": bits}

    def check(self, outputs: Any, inputs: Any, targets: Tensor) -> None:
        out = tensor(outputs)
        if targets.dtype != torch.int64 or out.dim() != targets.dim() + 1 or out.shape[:-1] != targets.shape:
            raise UsageError(
                f"{turned(inputs, out)}, and the tokens that come next are {list(targets.shape)}; the outputs must be "
                f"{[*targets.shape, 'V']}, a logit for each of V tokens, the batch first."
            )
        highest = int(targets.max()) if targets.numel() else 0
        if highest >= out.shape[-1]:
            raise UsageError(f"has outputs for {out.shape[-1]} tokens, and there is a token {highest}.")
        super().check(outputs, inputs, targets)
