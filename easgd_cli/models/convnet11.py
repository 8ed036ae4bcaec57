"""The paper's ImageNet net (Zhang, Choromanska, LeCun 2015, p. 6): 61,128,808 parameters on 3x221x221 images and 1,000
classes.

    (3,221)C(96,108)P(96,36)C(256,32)P(256,16)C(384,14)C(384,13)C(256,12)P(256,6)D(4096,1)D(4096,1)S(1000,1)

(channels, side) of each layer's input; C convolution, P max pooling, D linear with dropout, S linear and softmax. The
paper does not print the kernels. These give its sides without padding: 7x7 in steps of 2, pooling by 3, 5x5, pooling by
2, 3x3, 2x2, 2x2, pooling by 2. ReLU on all inner layers; no normalisation; all biases begin at 0.1, as the paper says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from easgd_cli.models import image_shape, initialise


class ConvNet11(nn.Module):
    """`forward`: images [B, C, H, W], at least 101x101, to logits [B, num_classes]; the softmax is in the loss.

    `dropout`: the share of each D layer's 4,096 outputs zeroed in training, after their ReLU, the others scaled up, so
    that evaluation needs no scaling. Raises ValueError for smaller images.
    """

    def __init__(
        self, input_shape: tuple[int, int, int] = (3, 221, 221), num_classes: int = 1000, dropout: float = 0.5
    ):
        super().__init__()
        channels, *sides = image_shape(input_shape, "convnet11")
        if min(sides) < 101:
            raise ValueError(
                f"model=convnet11: takes images of at least 101x101, and these are {sides[0]}x{sides[1]}; "
                "model=convnet7 takes smaller ones."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout={dropout}: is a share, from 0 to less than 1.")
        rows, columns = (((((side - 7) // 2 + 1) // 3 - 4) // 2 - 4) // 2 for side in sides)
        # Pooling and ReLU commute, and after pooling there is less to rectify.
        self.features = nn.Sequential(
            nn.Conv2d(channels, 96, 7, stride=2), nn.MaxPool2d(3), nn.ReLU(inplace=True),
            nn.Conv2d(96, 256, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True),
            nn.Conv2d(256, 384, 3), nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 2), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 2), nn.MaxPool2d(2), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(256 * rows * columns, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )  # fmt: skip
        initialise(self, bias=0.1)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)  # trains 1.2 and evaluates 1.4 times as fast
        return self.classifier(self.features(images))
