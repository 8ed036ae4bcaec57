"""How a gradient's arithmetic is rounded and compiled: precision=fp32, tf32 (on CUDA) or bf16; compile=true."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import nn


def use_tf32(device: torch.device, tf32: bool) -> None:
    """On CUDA, sets whether products of float32 are rounded to tf32 from here on. Torch's own default is mixed: they
    are in convolutions, but not in products of matrices.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Returns the context of a net's forward pass: torch's autocast for bf16, else none. It may be entered again."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def compiled(net: nn.Module) -> Callable[..., torch.Tensor]:
    """Returns `net` by torch.compile, which has to compile in this process alone: its helper processes would outlive a
    worker and leave semaphores behind.
    """
    import torch._inductor.config as inductor

    inductor.compile_threads = 1
    return cast("Callable[..., torch.Tensor]", torch.compile(net))
