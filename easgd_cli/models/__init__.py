"""Nets, one a file, and what holds for all of them, a user's own included.

A model is any callable that returns an nn.Module. Of images [B, *input_shape] the net makes one number per class [B,
num_classes], of other data what their task takes. The callable may have parameters `input_shape` and `num_classes`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from easgd_cli.data.dataset import Dataset
from easgd_cli.data.nest import called
from easgd_cli.errors import UsageError
from easgd_cli.system import shared_memory


class Task(Protocol):
    """What trying a net needs of a task (problems/tasks/base.py)."""

    def parted(self, inputs: Any, targets: Any) -> tuple[Any, Any]: ...
    def check(self, outputs: Any, inputs: Any, targets: Any) -> None: ...
    def loss(self, outputs: Any, targets: Any) -> Tensor: ...


def check_model(net: object, written: str, data: Dataset | None, task: Task | None, batch_size: int) -> None:
    """Tries `net`, which the user has chosen as `written`: evaluates it and takes a gradient for `task` on two samples
    (one where `batch_size` is 1), and leaves it as it was. Without data or task only looks at its layers.

    Raises UsageError, with `written` at its beginning, where the outputs are not what the task takes or have no
    gradient, where the gradient does not fit into memory, and for running statistics other than batch norm's.
    """
    if not isinstance(net, nn.Module):
        raise UsageError(f"{written}: made a {type(net).__name__}, which is not a torch.nn.Module.")
    if "_parameters" not in vars(net):
        raise UsageError(
            f"{written}: its __init__ does not call super().__init__(), without which it is no torch.nn.Module; "
            "make that its first line."
        )
    if any(is_lazy(p) for p in net.parameters()):
        raise UsageError(
            f"{written}: has lazy layers, whose parameters do not exist yet; give the layers their sizes (the "
            "model can ask for input_shape and num_classes)."
        )
    if any(isinstance(m, _InstanceNorm) and m.running_mean is not None for m in net.modules()):
        raise UsageError(
            f"{written}: has an InstanceNorm with track_running_stats=True, whose statistics nobody keeps for "
            "the center; leave them out, as by default."
        )
    trained = [p for p in net.parameters() if p.requires_grad]
    if not trained:
        raise UsageError(f"{written}: has no trainable parameters; at least one must have requires_grad=True.")
    # two vectors of the parameters' size: the gradients, and the problem's copy of the start
    needed, available = 2 * sum(p.nbytes for p in trained), shared_memory.available_memory()
    if available is not None and needed > available:
        raise UsageError(
            f"{written}: has {sum(p.numel() for p in trained):,} parameters; to train it takes {needed / 2**30:,.1f} "
            f"GiB more than there is of it already, and {available / 2**30:,.1f} GiB are free; use a smaller net."
        )
    if data is None or task is None:  # only the problem knows what the net takes
        return
    was_training, before = net.training, torch.random.get_rng_state()
    buffers = {n: b.clone() for n, b in net.named_buffers()}  # training writes to them
    try:
        _measure(net, written, data, task, trained[0])
        _differentiate(net, written, data, task, trained[0], min(batch_size, 2))
    finally:
        net.train(was_training)
        net.zero_grad(set_to_none=True)
        torch.random.set_rng_state(before)
        for n, b in net.named_buffers():
            if n in buffers:
                b.copy_(buffers[n])


def _measure(net: nn.Module, written: str, data: Dataset, task: Task, like: Tensor) -> None:
    inputs, targets = task.parted(*next(data.evaluation_batches("test", 2, like.device, like.dtype)))
    net.eval()
    try:
        with torch.no_grad():
            out = called(net, inputs)
    except (Exception, SystemExit) as e:
        raise UsageError(f"{written}: does not take {data.described}: {_said(e)}") from e
    _check_output(f"{written}:", task, out, inputs, targets)


def _differentiate(net: nn.Module, written: str, data: Dataset, task: Task, like: Tensor, count: int) -> None:
    some = torch.arange(count) % data.count("train")
    inputs, targets = task.parted(*next(data.evaluation_batches("train", count, like.device, like.dtype, some)))
    net.train()
    try:
        out = called(net, inputs)
    except (Exception, SystemExit) as e:
        raise UsageError(
            f"{written}: fails in training mode, on {count} sample{'s' if count > 1 else ''}, though not in "
            f"evaluation: {_said(e)}"
        ) from e
    _check_output(f"{written}: in training mode", task, out, inputs, targets)
    try:
        task.loss(out, targets).backward()
    except Exception as e:
        raise UsageError(f"{written}: the gradient of its loss cannot be computed: {_said(e)}") from e


def _check_output(said: str, task: Task, out: Any, inputs: Any, targets: Any) -> None:
    try:
        task.check(out, inputs, targets)
    except UsageError as e:
        raise UsageError(f"{said} {e}") from e
    except Exception as e:  # raised by a user's own loss
        raise UsageError(f"{said} the loss cannot be computed: {_said(e)}") from e


def image_shape(input_shape: Any, model: str) -> tuple[int, int, int]:
    """Returns channels, rows and columns. Raises ValueError where the inputs are no images."""
    if not (isinstance(input_shape, tuple) and len(input_shape) == 3 and all(isinstance(n, int) for n in input_shape)):
        shape = list(input_shape) if isinstance(input_shape, tuple) else input_shape
        raise ValueError(
            f"model={model}: takes images [channels, rows, columns], and a sample is {shape}; use model=mlp, or a net "
            "of your own."
        )
    return input_shape


def initialise(net: nn.Module, bias: float = 0.0) -> None:
    """Draws weights uniformly in +-1/sqrt(fan_in), which was Torch's default at the time of the paper; the paper prints
    only the biases: 0, or 0.1 on ImageNet.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def _said(e: BaseException) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())}"
