"""A net for small images, 13,706 parameters on the digits:

    (1,8)C(16,6)C(32,4)P(32,2)D(64,1)S(10,1)        (channels, side) of each layer's input, as the paper writes nets

Convolutions 3x3 without padding, pooling by 2, no dropout. Measured on images held out of training, it learns faster
than a net of as many parameters that pads and pools after each convolution, and costs a tenth less.
"""

from __future__ import annotations

from torch import Tensor, nn

from easgd_cli.models import image_shape, initialise


class ConvNetDigits(nn.Module):
    """`forward`: images [B, C, H, W], at least 6x6, to logits [B, num_classes]. Raises ValueError for smaller ones."""

    def __init__(self, input_shape: tuple[int, int, int] = (1, 8, 8), num_classes: int = 10):
        super().__init__()
        channels, *sides = image_shape(input_shape, "small")
        if min(sides) < 6:
            raise ValueError(f"model=small: takes images of at least 6x6, and these are {sides[0]}x{sides[1]}.")
        rows, columns = ((side - 4) // 2 for side in sides)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3), nn.ReLU(inplace=True),
            # pooling and ReLU commute, and after pooling there is a quarter as much to rectify
            nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * rows * columns, 64), nn.ReLU(inplace=True), nn.Linear(64, num_classes)
        )
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))
