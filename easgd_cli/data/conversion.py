"""Turns pixels into the numbers that a net takes, on the device where the pixels lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easgd_cli.errors import UsageError

Channels = tuple[float, ...]  # a number for each channel


def as_input(
    pixels: Tensor, dtype: torch.dtype, scale: float, mean: Channels | None = None, std: Channels | None = None
) -> Tensor:
    """Returns contiguous numbers [B, C, H, W] of `dtype`: (pixel - mean) / std, after uint8 pixels times `scale`."""
    numbers = pixels.to(dtype, memory_format=torch.contiguous_format)
    if not pixels.is_floating_point():
        numbers.mul_(scale)
    if mean is not None:
        numbers = numbers - _along_channels(mean, numbers)
    if std is not None:
        numbers = numbers / _along_channels(std, numbers)
    return numbers


def _along_channels(values: Channels, numbers: Tensor) -> Tensor:
    return sent(torch.tensor(values, dtype=numbers.dtype), numbers.device)[:, None, None]


def sent(small: Tensor, device: torch.device) -> Tensor:
    """Returns `small` on `device`; goes to a GPU through pinned memory, since other copies wait for all work there."""
    return small if device.type == "cpu" else small.pin_memory().to(device, non_blocking=True)


def as_tensor(given: Any, name: str, part: str) -> Tensor:
    """Returns a tensor or array as a tensor. Raises UsageError for anything else, naming data set and part."""
    try:
        return given if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
    except (TypeError, ValueError) as e:
        raise UsageError(
            f"dataset={name}: {part} is a {type(given).__name__}, which is neither a tensor nor an array of numbers."
        ) from e


def checked_channels(name: str, values: Sequence[float] | None, channels: int) -> Channels | None:
    """Returns the checked `values` of dataset.`name` (mean or std), one for each channel. Raises UsageError."""
    if values is None:
        return None
    written = f"dataset.{name}=[{','.join(f'{v:g}' for v in values)}]"
    if len(values) != channels:
        raise UsageError(
            f"{written}: has {len(values)} numbers and the images have {channels} channels; give one a channel, "
            "or null."
        )
    if not all(math.isfinite(v) for v in values) or (name == "std" and min(values) <= 0):
        raise UsageError(
            f"{written}: must be finite numbers{' greater than 0' if name == 'std' else ''}, of pixels that run "
            "from 0 to 1."
        )
    return tuple(values)
