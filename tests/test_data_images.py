"""Batches against a slow transcription of what they are to be: patches, mirrors, shifts, center patches, held-out
images.
"""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from easgd_cli.data.dataset import fixed_subset
from easgd_cli.data.given import as_dataset
from easgd_cli.data.image_checks import as_images
from easgd_cli.data.images import Images, _patches, _patches_in_numpy
from easgd_cli.errors import UsageError

CPU = torch.device("cpu")


def numbered(n=6, side=5, **options) -> Images:
    """No two pixels alike: each says which image, channel, row and column it is of."""
    train = torch.arange(n * 2 * side * side, dtype=torch.float32).view(n, 2, side, side)
    labels = torch.arange(n) % 3
    return Images(train, labels, -train, labels, num_classes=3, **options)


def batch(images: Images, indices: torch.Tensor, seed=0):
    return images.training_batch(indices, torch.Generator().manual_seed(seed))


def test_training_patches_are_patches_everywhere_and_both_ways_round():
    images = numbered(crop=(3, 4), flip=True)
    indices = torch.arange(6).repeat(200)
    patches, labels = batch(images, indices)
    assert patches.shape == (1200, 2, 3, 4) and patches.is_contiguous()
    assert torch.equal(labels, images.train_labels[indices])
    seen = []
    for i, patch in zip(indices.tolist(), patches, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(3)
            for left in range(2)
            for mirrored in (False, True)
            if torch.equal(patch.flip(2) if mirrored else patch, images.train[i, :, top : top + 3, left : left + 4])
        ]
        assert len(found) == 1
        seen += found
    counts = {corner: seen.count(corner) for corner in set(seen)}
    # 100 each, 5 standard deviations
    assert len(counts) == 12 and min(counts.values()) > 60 and max(counts.values()) < 145


def test_torch_and_numpy_cut_the_same_patches():
    """The first serves GPUs, the second CPUs."""
    pixels = torch.randint(0, 256, (7, 3, 8, 9), dtype=torch.uint8)
    i, draws = torch.randint(7, (50,)), torch.randint(4 * 3 * 2, (50,))
    for flip in (True, False):
        d = draws if flip else draws // 2
        numpy = _patches_in_numpy(
            np.lib.stride_tricks.sliding_window_view(pixels.numpy(), (5, 7), axis=(2, 3)), i, d, 3, flip
        )
        assert torch.equal(numpy, _patches(pixels.unfold(2, 5, 1).unfold(3, 7, 1), i, d, 3, flip))


def test_batches_are_copies():
    images = numbered()
    before = images.train.clone()
    for same in (images, numbered(crop=(3, 3), flip=True), numbered(crop=(5, 5))):
        patches, _ = batch(same, torch.tensor([1, 2]))
        patches.zero_()
    assert torch.equal(images.train, before)


def test_shifts_move_zeros_in_and_evaluation_sees_the_image_itself():
    plain = numbered()
    images = plain.with_shifts(1)
    assert images.input_shape == (2, 5, 5)
    patches, _ = batch(images, torch.zeros(300, dtype=torch.int64))
    shifted = {}
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            moved = torch.zeros(2, 5, 5)
            moved[:, max(dy, 0) : 5 + min(dy, 0), max(dx, 0) : 5 + min(dx, 0)] = plain.train[
                0, :, max(-dy, 0) : 5 + min(-dy, 0), max(-dx, 0) : 5 + min(-dx, 0)
            ]
            shifted[dy, dx] = sum(torch.equal(moved, p) for p in patches)
    assert sum(shifted.values()) == 300 and min(shifted.values()) > 5
    for split, whole in (("train", plain.train), ("test", plain.test)):
        seen = torch.cat([x for x, _ in images.evaluation_batches(split, 4, CPU, torch.float32)])
        assert torch.equal(seen, whole)


def test_bytes_are_scaled_and_floats_are_used_as_they_are():
    pixels, labels = torch.full((2, 1, 2, 2), 16, dtype=torch.uint8), torch.tensor([0, 1])
    images = Images(pixels, labels, pixels, labels, num_classes=2, scale=1 / 16)
    assert torch.equal(batch(images, torch.tensor([0]))[0], torch.ones(1, 1, 2, 2))
    x, _ = images.training_batch(torch.tensor([0]), torch.Generator(), torch.float64)
    assert x.dtype == torch.float64
    floats = Images(pixels.float(), labels, pixels.float(), labels, num_classes=2)
    assert torch.equal(batch(floats, torch.tensor([0]))[0], torch.full((1, 1, 2, 2), 16.0))


def test_evaluation_takes_center_patches_of_all_images_in_order():
    images = numbered(n=7, side=6, crop=(4, 2))
    parts = list(images.evaluation_batches("test", 3, CPU, torch.float32))
    assert [len(x) for x, _ in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in parts]), images.test[:, :, 1:5, 2:4])
    assert torch.equal(torch.cat([y for _, y in parts]), images.test_labels)
    some = torch.tensor([5, 2])
    ((x, y),) = images.evaluation_batches("train", 3, CPU, torch.float32, indices=some)
    assert torch.equal(x, images.train[some][:, :, 1:5, 2:4]) and torch.equal(y, images.train_labels[some])


def test_the_training_subset_is_fixed_and_spread():
    subset = fixed_subset(1000, 100)
    assert torch.equal(subset, fixed_subset(1000, 100)) and len(set(subset.tolist())) == 100
    assert subset.max() > 900 and subset.min() < 100
    assert torch.equal(fixed_subset(1000, 5000), torch.arange(1000))


def test_held_out_images_leave_training_class_by_class():
    images = numbered(n=100, side=2)
    held = images.hold_out(25)
    assert (len(held.train), len(held.held_out)) == (75, 25)
    assert torch.equal(
        torch.cat([held.train, held.held_out]).flatten().sort().values, images.train.flatten().sort().values
    )
    for label, pixel in zip(held.held_out_labels.tolist(), held.held_out[:, 0, 0, 0].tolist(), strict=True):
        assert images.train_labels[int(pixel) // 8] == label
    shares = torch.bincount(held.held_out_labels).tolist()
    assert max(abs(share - 25 / 3) for share in shares) < 1
    assert torch.equal(images.hold_out(25).held_out, held.held_out), "the same in every run"
    assert torch.equal(held.test, images.test)
    assert sum(len(x) for x, _ in held.evaluation_batches("held_out", 100, CPU, torch.float32)) == 25


@pytest.mark.parametrize(
    ("n", "sentence"),
    [
        (100, "dataset.validation=100: must be from 0 to 99"),
        (-1, "dataset.validation=-1"),
        (98, "leaves no training image of some class"),
    ],
)
def test_holding_out_too_many_is_refused(n, sentence):
    with pytest.raises(UsageError, match=sentence):
        numbered(n=100, side=1).hold_out(n)


def _scribble(images: Images) -> None:
    images.train[0, 0, 0, 0] = 77


def test_shared_images_are_one_copy_for_all_processes():
    images = numbered(crop=(3, 3), flip=True).hold_out(2).share()
    assert len(pickle.dumps([images.input_shape])) < 1000
    child = multiprocessing.get_context("forkserver").Process(target=_scribble, args=(images,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert images.train[0, 0, 0, 0] == 77


def test_images_that_are_not_shared_travel_whole():
    images = numbered(crop=(3, 3), flip=True, scale=0.5, classes=("a", "b", "c")).hold_out(2)
    again = pickle.loads(pickle.dumps(images))
    for name in ("train", "train_labels", "test", "test_labels", "held_out", "held_out_labels"):
        assert torch.equal(getattr(again, name), getattr(images, name))
    assert (again.crop, again.flip, again.scale, again.classes, again.num_classes) == (
        (3, 3),
        True,
        0.5,
        ("a", "b", "c"),
        3,
    )
    assert again.nbytes == images.nbytes


X, Y = np.zeros((4, 1, 6, 6), np.uint8), np.arange(4) % 2


def test_a_users_arrays_become_images():
    for x, y in (
        (X, Y),
        (torch.from_numpy(X), torch.from_numpy(Y).to(torch.int32)),
        (X.astype(np.float64), Y.astype(np.uint8)),
        (X[:, :, ::-1], Y.tolist()),
    ):
        images = as_images((x, y, x[:2], y[:2]), "mine")
        assert images.num_classes == 2 and images.train_labels.dtype == torch.int64 and images.input_shape == (1, 6, 6)
        assert images.train.dtype in (torch.uint8, torch.float32) and images.crop is None and not images.flip
    assert as_images(numbered(crop=(3, 3)), "mine").crop == (3, 3)


@pytest.mark.parametrize(("given", "what"), [(7, "a int"), ((X, Y, X), "3 things")])
def test_what_is_no_form_of_data_is_refused_by_name(given, what):
    with pytest.raises(UsageError, match=f"^dataset=mine: returned {what}; it must return"):
        as_dataset(given, "mine", None, None)


def replaced(place, value):
    four = [X, Y, X, Y]
    four[place] = value
    return tuple(four)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            replaced(0, X[:, 0]),
            r"x_train has shape \(4, 6, 6\); images are \[N, channels, rows, columns\]; " r"x_train\[:, None\] adds",
        ),
        (replaced(2, X[0, 0]), r"x_test has shape \(6, 6\)"),
        (replaced(0, X.astype(np.int64)), "x_train is of type int64; pixels are uint8"),
        (replaced(0, X + np.float32(np.nan)), "some train pixels are not finite"),
        (replaced(0, "pixels"), "x_train is a str, which is neither"),
        (replaced(0, X[:0]), "there are no train images"),
        (replaced(1, Y[:3]), "there are 4 train images and 3 labels"),
        (replaced(1, Y - 1), "has the train label -1; with 2 classes labels run from 0 to 1"),
        (replaced(1, Y * 0.5), "y_train is of type float64; labels are whole numbers"),
        (
            replaced(1, np.eye(4)),
            r"y_train has shape \(4, 4\); labels are \[N\], one number an image; " r"y_train.argmax\(1\)",
        ),
        ((X, Y * 0, X, Y * 0), "all labels are 0; there must be at least two classes"),
        (replaced(2, X[..., :5]), "training images are 1x6x6 and test images 1x6x5; without a crop they must agree"),
        (replaced(2, np.repeat(X, 3, 1)), "must agree"),
        (numbered(crop=3), r"crop=3 must be two whole numbers, \(rows, columns\)"),
        (numbered(crop=(6, 3)), "crop 6x3 does not fit into training images 2x5x5"),
        (numbered(scale=0.0), "scale=0.0 is the value of a pixel of 1; it must be a finite number greater than 0"),
        (numbered(mean=(0.1,)), r"dataset=mine: dataset.mean=\[0.1\]: has 1 numbers and the images have 2 channels"),
        (numbered(classes=("a",)), "there are 1 class names for 3 classes"),
    ],
)
def test_what_is_not_data_is_refused_by_name(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        as_images(given, "mine")
