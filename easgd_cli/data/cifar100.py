"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3x32x32 in 100 classes, cut as CIFAR-10's."""

from __future__ import annotations

from easgd_cli.data import cifar
from easgd_cli.data.images import Images

LAYOUT = cifar.Layout(
    dataset="cifar100",
    title="CIFAR-100",
    torchvisions="CIFAR100",
    folder="cifar-100-python",
    train=("train",),
    train_rows=50_000,
    test="test",
    test_rows=10_000,
    labels="fine_labels",
    names="meta",
    label_names="fine_label_names",
    classes=100,
)


def cifar100(root: str = "data", download: bool = True, verify: bool = True) -> Images:
    """Returns the set from `root`/cifar-100-python, in the published Python format, with its 100 classes and not the 20
    groups of these.

    `download`: fetch a missing set through torchvision. `verify`: compare the files with the published
    checksums; False admits a local copy whose checksums differ. Random 28x28 crops and mirroring in training, pixels in
    [0, 1]. Raises UsageError when files are missing, truncated, not the published ones, not CIFAR-100, or cannot be
    fetched.
    """
    return cifar.load(LAYOUT, root, download, verify)
