"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): clothing, 60,000 training and 10,000 test images of 1x28x28."""

from __future__ import annotations

from easgd_cli.data import idx
from easgd_cli.data.images import Images

LAYOUT = idx.Layout(
    dataset="fashion_mnist",
    title="Fashion-MNIST",
    torchvisions="FashionMNIST",
    classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    flip=True,
)


def fashion_mnist(root: str = "data", download: bool = True, verify: bool = True) -> Images:
    """Returns the set from `root`/FashionMNIST/raw, where torchvision keeps it, in the published format.

    `download`: fetch a missing set from torchvision's addresses. `verify`: compare the files with the published
    checksums; False admits unpacked files and copies that differ. Whole images, mirrored in training, pixels in [0, 1].
    Raises UsageError when files are missing, truncated, not the published ones, not Fashion-MNIST, or cannot be
    fetched.
    """
    return idx.load(LAYOUT, root, download, verify)
