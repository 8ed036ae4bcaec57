"""Which training samples make up a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from easgd_cli.randomness import PERMUTATION, key


class Batches:
    """Which training samples make up the batch of a worker's step: a function of (seed, worker, t).

    Each pass over the `samples` indices is a fresh permutation of all of them. A batch that a pass cannot fill goes on
    with the next pass, so a batch may even be larger than the data set.
    """

    def __init__(self, samples: int, batch_size: int, seed: int):
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._generator = torch.Generator()
        # by worker: the last pass that it has reached, and that pass's order, which its next batch may need
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def indices(self, worker: int, t: int) -> Tensor:
        """Returns the sample numbers [batch_size] int64 of that worker's step `t`."""
        begin, end = t * self._batch_size, (t + 1) * self._batch_size
        parts = []
        for n in range(begin // self._samples, (end - 1) // self._samples + 1):
            order = self._order(worker, n)
            parts.append(order[max(begin - n * self._samples, 0) : end - n * self._samples])
            self._orders[worker] = n, order
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, worker: int, n: int) -> Tensor:
        remembered = self._orders.get(worker)
        if remembered is not None and remembered[0] == n:
            return remembered[1]
        return torch.randperm(
            self._samples, generator=self._generator.manual_seed(key(self._seed, PERMUTATION, worker, n))
        )
