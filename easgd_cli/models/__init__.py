"""Nets, one a file, and what holds for all of them, a user's own included.

A model is any callable that returns an nn.Module turning images [B, *input_shape] into one number a class [B, num_classes];
it may ask for `input_shape` and `num_classes` by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from easgd_cli.data.images import Images
from easgd_cli.errors import UsageError


def check_model(net: object, name: str, images: Images) -> None:
    """Tries `net` on two images. Raises UsageError when what comes out is not one finite number a class and image."""
    if not isinstance(net, nn.Module):
        raise UsageError(f"model={name}: made a {type(net).__name__}, which is not a torch.nn.Module.")
    if any(is_lazy(p) for p in net.parameters()):
        raise UsageError(
            f"model={name}: has lazy layers, whose parameters do not exist yet; give the layers their sizes "
            "(the model can ask for input_shape and num_classes)."
        )
    trained = [p for p in net.parameters() if p.requires_grad]
    if not trained:
        raise UsageError(f"model={name}: has no trainable parameters; at least one must have requires_grad=True.")
    dtype, shape = trained[0].dtype, images.input_shape
    batch, _ = next(images.evaluation_batches("test", 2, trained[0].device, dtype))
    was_training, before = net.training, torch.random.get_rng_state()
    net.eval()
    try:
        with torch.no_grad():
            out = net(batch)
    except Exception as e:
        raise UsageError(f"model={name}: does not take images {_by(shape)} of data: {type(e).__name__}: {' '.join(str(e).split())}") from e
    finally:
        net.train(was_training)
        torch.random.set_rng_state(before)
    if not isinstance(out, Tensor):
        raise UsageError(f"model={name}: returned a {type(out).__name__} for a batch of images; it must return one tensor [B, {images.num_classes}].")
    if tuple(out.shape) != (len(batch), images.num_classes):
        raise UsageError(
            f"model={name}: turned images [{len(batch)}, {', '.join(str(side) for side in shape)}] into {list(out.shape)}; with {images.num_classes} "
            f"classes it must be [{len(batch)}, {images.num_classes}] (the model can ask for num_classes)."
        )
    if not bool(torch.isfinite(out).all()):
        raise UsageError(f"model={name}: its outputs at the start are not finite numbers.")


def initialise(net: nn.Module) -> None:
    """Weights uniform in +-1/sqrt(fan_in), biases 0: Torch's default of the paper's time, which prints only the biases."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in sides)
