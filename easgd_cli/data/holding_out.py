"""Chooses samples to set aside: training samples to choose settings by, or a test set where the data have none."""

from __future__ import annotations

import torch
from torch import Tensor

from easgd_cli.errors import UsageError
from easgd_cli.randomness import HELD_OUT, TESTED, key


def held_out(labels: Tensor, num_classes: int, n: int) -> Tensor:
    """Returns which images with these `labels` [N] are held out, [N] bool: `n` in all, of each class its share.

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


def held_out_of(total: int, n: int) -> Tensor:
    """Returns which `n` of `total` samples are held out, [total] bool: the same in every run. Raises UsageError."""
    if not 0 < n < total:
        raise UsageError(
            f"dataset.validation={n}: must be from 0 to {total - 1}, since there are {total} training samples."
        )
    return _chosen(total, n, HELD_OUT)


def tested(total: int, share: float) -> Tensor:
    """Returns which of `total` samples are the test set, [total] bool: a fixed `share` of them. Raises UsageError."""
    n = round(share * total)
    if not (0 < share < 1 and 0 < n < total):
        raise UsageError(
            f"dataset.test={share:g}: is the share of the {total} samples that is tested on, between 0 and 1, and "
            "leaves at least one to train on."
        )
    return _chosen(total, n, TESTED)


def _chosen(total: int, n: int, stream: int) -> Tensor:
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.randperm(total, generator=torch.Generator().manual_seed(key(0, stream)))[:n]] = True
    return chosen
