"""Which training images are set aside for choosing settings."""

from __future__ import annotations

import torch
from torch import Tensor

from easgd_cli.errors import UsageError
from easgd_cli.randomness import HELD_OUT, key


def held_out(labels: Tensor, num_classes: int, n: int) -> Tensor:
    """Which of the images with these `labels` [N] are held out, [N] bool: every class gives its share of `n`.

    The choice is the same in every run, whatever its seed. Raises UsageError when `n` leaves too little to train on.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    total = len(labels)
    if not 0 < n < total:
        raise UsageError(
            f"dataset.validation={n}: must be from 0 to {total - 1}, since there are {total} training images."
        )
    quotas = counts * n // total
    remainders = counts * n % total
    quotas[remainders.argsort(descending=True, stable=True)[: n - int(quotas.sum())]] += 1
    if bool(((quotas >= counts) & (counts > 0)).any()):
        raise UsageError(
            f"dataset.validation={n}: leaves no training image of some class; hold out fewer of the {total} "
            "training images."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(key(0, HELD_OUT)))
    order = order[labels[order].argsort(stable=True)]  # class by class, in random order within each
    taken = torch.zeros(total, dtype=torch.bool)
    for images, quota in zip(order.split(counts.tolist()), quotas.tolist(), strict=True):
        taken[images[:quota]] = True
    return taken
