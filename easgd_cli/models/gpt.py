"""A small decoder transformer of today's form, for tokens: the default net of `dataset=text`.

RMSNorm before each part and at the end, rotary positions (Su et al. 2021), causal attention of `heads` heads, a gated
inner layer (SwiGLU: Shazeer 2020) of 8/3 the width, no biases, and the embedding as the output's weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INITIAL = 0.02  # standard deviation of the weights at the start
_BASE = 10_000.0  # of the rotations' wavelengths


class GPT(nn.Module):
    """`forward`: tokens [B, L] int64 to logits [B, L, num_classes].

    `width`: numbers that represent a token; `depth`: number of blocks. `dropout`: which share of each part's output is
    zeroed in training. Raises ValueError for a width that the heads do not divide into even parts.
    """

    def __init__(self, num_classes: int = 256, width: int = 64, depth: int = 2, heads: int = 4, dropout: float = 0.0):
        super().__init__()
        if min(width, depth, heads) < 1 or width % (2 * heads):
            raise ValueError(
                f"model.width={width} model.heads={heads} model.depth={depth}: are at least 1, and the width is a "
                "multiple of twice the heads, since rotary positions turn pairs of numbers."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout={dropout:g}: is a share, from 0 to less than 1.")
        self.embedding = nn.Embedding(num_classes, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        for name, p in self.named_parameters():
            if p.dim() > 1:  # what a block adds is scaled down, so that the sum over blocks keeps its size
                scale = (2 * depth) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=_INITIAL * scale)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        turns = _turns(tokens.shape[1], x.shape[-1] // self.blocks[0].heads, x)
        for block in self.blocks:
            x = block(x, turns)
        return F.linear(self.norm(x), self.embedding.weight)


class _Block(nn.Module):
    """Attention, then the inner layer; each adds its output to its input [B, L, width]."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        inner = -(-8 * width // 3 // 8) * 8
        self.before_attention, self.before_inner = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.gate = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(_turned(q, turns), _turned(k, turns), v, is_causal=True)
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(b, n, width)))
        h = self.before_inner(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))


def _turns(n: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines [n, size / 2] of the angles by which pairs of numbers are turned at each place."""
    rate = _BASE ** (-torch.arange(0, size, 2, device=like.device, dtype=torch.float64) / size)
    angle = torch.arange(n, device=like.device, dtype=torch.float64)[:, None] * rate
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Returns x [B, heads, L, size] with its pairs of numbers turned; the first half of `size` pairs with the other."""
    (cos, sin), (a, b) = turns, x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
