"""A net for small images, 13,706 parameters on the digits: C(16) P C(32) P D(64) S(10), kernels 3x3 with a margin of 1."""

from __future__ import annotations

from torch import Tensor, nn

from easgd_cli.models import initialise


class ConvNetDigits(nn.Module):
    """`forward`: images [B, C, H, W], at least 4x4, to logits [B, num_classes]. Raises ValueError for smaller images."""

    def __init__(self, input_shape: tuple[int, int, int] = (1, 8, 8), num_classes: int = 10):
        super().__init__()
        channels, rows, columns = input_shape
        if min(rows, columns) < 4:
            raise ValueError(f"model=small: takes images of at least 4x4, and these are {rows}x{columns}.")
        # Pooling and ReLU commute, and after pooling there is a quarter as much to rectify.
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32 * (rows // 4) * (columns // 4), 64), nn.ReLU(inplace=True), nn.Linear(64, num_classes))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))
