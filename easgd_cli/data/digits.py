"""UCI handwritten digits: 1,347 training and 450 test images of 8x8, inside the package. Provenance: digits.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from easgd_cli.data.images import Images


def digits() -> Images:
    """Returns 1,797 real images, in a fixed split; training shifts them by at most one pixel and never mirrors them."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        pixels, labels = torch.from_numpy(file["pixels"]), torch.from_numpy(file["labels"]).to(torch.int64)
        train, test = torch.from_numpy(file["train"]).long(), torch.from_numpy(file["test"]).long()
    parts, scale = (pixels[train], labels[train], pixels[test], labels[test]), 1 / 16  # a pixel is 0 to 16
    return Images(*parts, num_classes=10, classes=tuple("0123456789"), scale=scale).with_shifts(1)
