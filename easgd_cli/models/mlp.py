"""A net of linear layers, for inputs of any shape: all inputs in a row, hidden layers with ReLU and dropout, and one
output per class or number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from easgd_cli.models import initialise
from easgd_cli.system import shared_memory


class MLP(nn.Module):
    """`forward`: inputs [B, *input_shape] to [B, num_classes].

    `hidden`: the widths of the inner layers; none make the net linear. `dropout`: the share of each inner layer's
    outputs zeroed in training, after their ReLU. Raises ValueError for a width below 1, and for more parameters than
    memory holds.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (1, 8, 8),
        num_classes: int = 10,
        hidden: tuple[int, ...] = (128,),
        dropout: float = 0.0,
    ):
        super().__init__()
        if not (isinstance(input_shape, tuple) and all(isinstance(n, int) for n in input_shape)):
            raise ValueError("model=mlp: takes one tensor, and a sample has several inputs; use a net of your own.")
        if any(width < 1 for width in hidden):
            raise ValueError(
                f"model.hidden={list(hidden)}: widths are whole numbers of at least 1, such as model.hidden=[256,128]."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout={dropout}: is a share, from 0 to less than 1.")
        widths = [math.prod(input_shape), *hidden]
        many = sum((ins + 1) * outs for ins, outs in zip(widths, [*hidden, num_classes], strict=True))
        needed, available = many * torch.get_default_dtype().itemsize, shared_memory.available_memory()
        if available is not None and needed > available:
            raise ValueError(
                f"model.hidden={list(hidden)}: these are {many:,} parameters, {needed / 2**30:,.1f} GiB, and "
                f"{available / 2**30:,.1f} GiB are free; use narrower layers."
            )
        self.layers = nn.Sequential(nn.Flatten())
        for ins, outs in zip(widths, hidden, strict=False):
            self.layers.extend([nn.Linear(ins, outs), nn.ReLU(inplace=True), nn.Dropout(dropout)])
        self.layers.append(nn.Linear(widths[-1], num_classes))
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)
