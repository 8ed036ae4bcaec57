"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3x32x32, seen as 28x28 patches (p. 21)."""

from __future__ import annotations

from easgd_cli.data import cifar
from easgd_cli.data.images import Images

LAYOUT = cifar.Layout(
    dataset="cifar10",
    title="CIFAR-10",
    torchvisions="CIFAR10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    train_rows=10_000,
    test="test_batch",
    test_rows=10_000,
    labels="labels",
    names="batches.meta",
    label_names="label_names",
    classes=10,
)


def cifar10(root: str = "data", download: bool = True, verify: bool = True) -> Images:
    """Returns the set from `root`/cifar-10-batches-py, in the published Python format.

    `download`: fetch a missing set through torchvision. `verify`: compare the files with the published
    checksums; False admits a local copy whose checksums differ. Random 28x28 crops and mirroring in training, pixels in
    [0, 1]. Raises UsageError when files are missing, truncated, not the published ones, not CIFAR-10, or cannot be
    fetched.
    """
    return cifar.load(LAYOUT, root, download, verify)
