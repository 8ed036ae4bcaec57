"""Data, nets and losses of a user's own, as `dataset=theirs:table` would name them."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset, IterableDataset


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table() -> tuple[Tensor, ...]:
    """Rows of five numbers, of which the target is a sum."""
    x = drawn(120, 5)
    y = x @ torch.arange(5.0) + 0.1 * drawn(120, seed=1)
    return x[:90], y[:90], x[90:], y[90:]


def two_inputs() -> tuple[Any, ...]:
    a, b = drawn(80, 4), drawn(80, 3, seed=1)
    y = 2 * a[:, :1] + b[:, :1]
    return (a[:60], b[:60]), y[:60], (a[60:], b[60:]), y[60:]


def segments() -> tuple[Tensor, ...]:
    """Which pixels are bright; those of the first row are nobody's (255)."""
    x = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long() + (x[:, 0] > 0.8).long()
    y[:, 0] = 255
    return x[:40], y[:40], x[40:], y[40:]


def tokens() -> tuple[Any, ...]:
    starts = torch.randint(0, 11, (60, 1), generator=torch.Generator().manual_seed(0))
    t = (torch.arange(9)[None] * 3 + starts) % 11
    return t[:40], None, t[40:], None


def tags() -> tuple[Tensor, ...]:
    x = drawn(80, 5)
    return x[:60], x[:60, :3] > 0, x[60:], x[60:, :3] > 0


class Augmented(Dataset[Any]):
    """Noise of three global generators on each training sample; `train`, as torchvision's data sets have it."""

    classes = ("negative", "positive")

    def __init__(self, train: bool, noise: float = 0.1):
        self.x = drawn(70, 6, seed=int(train)).double()
        self.y, self.noise = (self.x[:, 0] > 0).long(), noise if train else 0.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        noise = torch.randn(6) + random.random() + float(np.random.rand())
        return self.x[i] + self.noise * noise, int(self.y[i])


class Named(Dataset[Any]):
    """One Dataset without a test set, of dictionaries of different lengths."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"numbers": [float(i % 5)] * (1 + i % 3), "label": i % 5}


def padded(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    rows = [torch.tensor(sample["numbers"]) for sample in samples]
    numbers = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {
        "numbers": nn.functional.pad(numbers, (0, 3 - numbers.shape[1])),
        "mask": torch.tensor([len(row) for row in rows])[:, None] > torch.arange(3),
        "label": torch.tensor([sample["label"] for sample in samples]),
    }


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(3), 1


def streams() -> tuple[Stream, Stream]:
    return Stream(), Stream()


class Broken(Augmented):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i == 7:
            raise OSError("no such file: seven.png")
        return super().__getitem__(i)


class Slow(Augmented):
    """Takes a millisecond a sample, and little of the processor's time."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        time.sleep(0.001)
        return super().__getitem__(i)


class Linear(nn.Sequential):
    """In float64: of whatever shape, one number a class."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int):
        super().__init__(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))
        self.double()


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 1)
        self.double()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(a) + self.b(b)))


class PartlyFrozen(Siamese):
    """One of its layers, and a parameter that nothing uses, are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)
        self.frozen = nn.Parameter(torch.ones(3).double(), requires_grad=False)


class Tied(nn.Module):
    """Embedding and head are one matrix."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.embedding, self.out = nn.Embedding(num_classes, 6), nn.Linear(6, num_classes, bias=False)
        self.out.weight = self.embedding.weight
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embedding(tokens))


class Dropped(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]):
        super().__init__()
        self.below = nn.Sequential(nn.Linear(input_shape[0], 16), nn.Dropout(0.4), nn.ReLU())
        self.head = nn.Linear(16, num_classes)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.below(x))


class Dropped32(Dropped):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]):
        super().__init__(num_classes, input_shape)
        self.float()


class Checkpointed(Dropped):
    """The same, that keeps less: its activations are computed again for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.below, x, use_reentrant=False))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, numbers: Tensor, mask: Tensor) -> Tensor:
        return self.layer(numbers * mask)


class Convolution(nn.Sequential):
    def __init__(self, num_classes: int):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, num_classes, 1))
        self.double()


class Bigram(nn.Sequential):
    def __init__(self, num_classes: int):
        super().__init__(nn.Embedding(num_classes, 6), nn.Linear(6, num_classes))
        self.double()


def quartic(outputs: Tensor, targets: Tensor, power: int = 4) -> Tensor:
    return (outputs[:, 0] - targets).pow(power).mean()
