"""The digits inside the package, and the synthetic images."""

import pytest
import torch

from easgd_cli.data.digits import digits
from easgd_cli.data.image_checks import as_images
from easgd_cli.data.synthetic import synthetic
from easgd_cli.errors import UsageError


def test_digits_are_1797_split_by_class():
    images = as_images(digits(), "digits")
    assert images.train.shape == (1347, 1, 10, 10) and images.test.shape == (450, 1, 8, 8)
    assert images.input_shape == (1, 8, 8) and images.num_classes == 10 and not images.flip
    train, test = torch.bincount(images.train_labels), torch.bincount(images.test_labels)
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as the source counts them
    assert all(abs(n - 450 / 1797 * total) < 1 for n, total in zip(test.tolist(), (train + test).tolist(), strict=True))


def test_no_image_is_on_both_sides():
    images = digits()
    train = {bytes(x.numpy().tobytes()) for x in images.train[:, :, 1:9, 1:9].contiguous()}
    test = {bytes(x.numpy().tobytes()) for x in images.test.contiguous()}
    assert len(train) == 1347 and len(test) == 450 and not train & test


def test_pixels_lie_in_0_to_1_and_digits_are_told_apart_by_their_means():
    images = digits()
    x, y = (
        torch.cat(parts)
        for parts in zip(*images.evaluation_batches("train", 500, torch.device("cpu"), torch.float32), strict=True)
    )
    assert x.min() == 0 and x.max() == 1
    means = torch.stack([x[y == c].mean(0).flatten() for c in range(10)])
    tx, ty = (
        torch.cat(parts)
        for parts in zip(*images.evaluation_batches("test", 500, torch.device("cpu"), torch.float32), strict=True)
    )
    nearest = torch.cdist(tx.flatten(1), means).argmin(1)
    assert (nearest == ty).float().mean() > 0.85  # labels belong to their images


def test_synthetic_images_are_the_same_every_time_and_can_be_learnt():
    images = as_images(synthetic(train=500, test=100), "synthetic")
    assert torch.equal(images.train, synthetic(train=500, test=100).train)
    assert (
        images.train.shape == (500, 3, 32, 32)
        and images.input_shape == (3, 28, 28)
        and images.test.shape == (100, 3, 32, 32)
    )
    means = torch.stack([images.train[images.train_labels == c].float().mean(0).flatten() for c in range(10)])
    nearest = torch.cdist(images.test.float().flatten(1), means).argmin(1)
    assert (nearest == images.test_labels).float().mean() > 0.95


def test_synthetic_images_come_in_any_shape():
    images = as_images(synthetic(shape=(1, 5, 7), classes=4, train=9, test=3, crop=None, flip=False), "synthetic")
    assert images.input_shape == (1, 5, 7) and images.num_classes == 4
    assert torch.bincount(images.train_labels).tolist() == [3, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shape": (3, 32)}, r"dataset.shape=\[3, 32\]: must be three"),
        ({"shape": (3, 32, 0)}, "dataset.shape"),
        ({"classes": 1}, "dataset.classes=1"),
        ({"train": 0}, "dataset.train=0"),
        ({"test": -1}, "dataset.test=-1"),
        ({"crop": 33}, "dataset.crop=33: must be from 1 to 32"),
    ],
)
def test_synthetic_sizes_out_of_range_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        synthetic(**options)
