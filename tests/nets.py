"""Nets of a user's own, as `model=nets:double` would name them."""

from __future__ import annotations

from torch import nn

from easgd_cli.models.convnet_digits import ConvNetDigits


def double(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The small net in float64. ReLU and pooling turn a last bit in float32 into a visible difference some steps later; not so here."""
    return ConvNetDigits(input_shape, num_classes).double()
