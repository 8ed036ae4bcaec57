"""MNIST (LeCun, Cortes, Burges 1998): handwritten digits, 60,000 training and 10,000 test images of 1x28x28."""

from __future__ import annotations

from easgd_cli.data import idx
from easgd_cli.data.images import Images

LAYOUT = idx.Layout(dataset="mnist", title="MNIST", torchvisions="MNIST", classes=tuple("0123456789"), flip=False)


def mnist(root: str = "data", download: bool = True, verify: bool = True) -> Images:
    """Returns the set from `root`/MNIST/raw, where torchvision keeps it, in the published format.

    `download`: fetch a missing set from torchvision's addresses. `verify`: compare the files with the published
    checksums; False admits unpacked files and copies that differ. Whole images, not mirrored, pixels in [0, 1].
    Raises UsageError when files are missing, truncated, not the published ones, not MNIST, or cannot be fetched.
    """
    return idx.load(LAYOUT, root, download, verify)
