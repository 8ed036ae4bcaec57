"""Batch norm's running statistics, gathered in training and used in evaluation: means and variances of channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """The running statistics of `model` as one vector [size], of which the layers' own buffers become views; the model
    must already be on its device.

    In training a layer moves its statistics r by its own momentum m toward its batch's s: r <- (1 - m) r + m s.
    """

    def __init__(self, model: nn.Module):
        self.layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        buffers = [
            (layer, name, getattr(layer, name)) for layer in self.layers for name in ("running_mean", "running_var")
        ]
        anything = next(model.parameters(), torch.empty(0))  # an empty vector must be on its device, too
        self.vector = torch.cat([buffer.reshape(-1) for _, _, buffer in buffers]) if buffers else anything.new_empty(0)
        self.size = self.vector.numel()
        for (layer, name, buffer), view in zip(
            buffers, self.vector.split([b.numel() for _, _, b in buffers]), strict=True
        ):
            setattr(layer, name, view.view(buffer.shape))

    def take(self, r: Tensor) -> None:
        """Sets the statistics to `r` [size], gathered elsewhere. The layers' counts of batches become 0, since nobody
        knows here how many there were.
        """
        self.vector.copy_(r)
        for layer in self.layers:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.zero_()

    def estimate(self, pass_over: Callable[[], None]) -> None:
        """Sets the statistics to the plain average over the batches of one pass over data, `pass_over`, in which the
        batch norms are in training mode and the rest of the net is in evaluation mode.
        """
        momenta = [layer.momentum for layer in self.layers]
        for layer in self.layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        with torch.no_grad():
            pass_over()
        for layer, momentum in zip(self.layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
