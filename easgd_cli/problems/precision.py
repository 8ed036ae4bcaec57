"""How the arithmetic of a gradient is rounded and compiled: precision=fp32, tf32 on CUDA, bf16; compile=true."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import nn


def use_tf32(device: torch.device, tf32: bool) -> None:
    """On CUDA: whether float32 products are rounded to tf32 from here on; torch's own default is mixed."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What a net's forward pass is in: torch's autocast for bf16, else nothing. It may be entered again and again."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def compiled(net: nn.Module) -> Callable[..., torch.Tensor]:
    """`net` by torch.compile, in this process alone: its helpers would outlive a worker and leave semaphores behind."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1
    return cast("Callable[..., torch.Tensor]", torch.compile(net))
