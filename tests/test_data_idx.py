"""MNIST's and Fashion-MNIST's files, small ones in the published format: read, checked, fetched from a local server, or
refused.
"""

import gzip
import hashlib
import os
import socket
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from easgd_cli.data import fashion_mnist, mnist, vision
from easgd_cli.errors import UsageError

TRAIN, TEST = 30, 20


@pytest.fixture(params=["mnist", "fashion_mnist"])
def kind(request, monkeypatch):
    """One of the two with fewer images: how to load it, and how it is laid out."""
    module, load = {"mnist": (mnist, mnist.mnist), "fashion_mnist": (fashion_mnist, fashion_mnist.fashion_mnist)}[
        request.param
    ]
    monkeypatch.setattr(module, "LAYOUT", replace(module.LAYOUT, train_rows=TRAIN, test_rows=TEST))
    return SimpleNamespace(load=load, layout=module.LAYOUT)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (TRAIN, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.permutation(np.arange(TRAIN, dtype=np.uint8) % 10),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (TEST, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.permutation(np.arange(TEST, dtype=np.uint8) % 10),
    }


def as_published(array: np.ndarray) -> bytes:
    """Magic number 2051 for images and 2049 for labels, the sides, the bytes: http://yann.lecun.com/exdb/mnist."""
    return (
        struct.pack(">i", {3: 2051, 1: 2049}[array.ndim])
        + b"".join(struct.pack(">i", side) for side in array.shape)
        + array.tobytes()
    )


@pytest.fixture
def raw(kind, tmp_path):
    """The directory of a complete set, packed as published."""
    folder = tmp_path / kind.layout.torchvisions / "raw"
    folder.mkdir(parents=True)
    for name, array in arrays().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(as_published(array)))
    return folder


@pytest.fixture
def published(kind, raw, monkeypatch):
    """The same files as the ones whose checksums are published."""
    cls = getattr(vision.torchvision().datasets, kind.layout.torchvisions)
    assert [name for name, _ in cls.resources] == [f"{name}.gz" for name in arrays()]
    monkeypatch.setattr(
        cls,
        "resources",
        [(f"{name}.gz", hashlib.md5((raw / f"{name}.gz").read_bytes()).hexdigest()) for name in arrays()],
    )
    return cls


def unpack(raw):
    for file in list(raw.iterdir()):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()


def assert_is_the_set(kind, images):
    x, y, test_x, test_y = arrays().values()
    assert np.array_equal(images.train.numpy()[:, 0], x) and np.array_equal(images.test.numpy()[:, 0], test_x)
    assert np.array_equal(images.train_labels.numpy(), y) and np.array_equal(images.test_labels.numpy(), test_y)
    assert images.input_shape == (1, 28, 28) and images.num_classes == 10 and images.crop is None
    assert images.flip == (kind.layout.dataset == "fashion_mnist")


def test_the_published_numbers_of_images_and_names_of_classes_are_expected():
    for layout in (mnist.LAYOUT, fashion_mnist.LAYOUT):
        assert list(layout.files.values()) == [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)]
    datasets = vision.torchvision().datasets
    assert fashion_mnist.LAYOUT.classes == tuple(datasets.FashionMNIST.classes)
    assert mnist.LAYOUT.classes == tuple(name[0] for name in datasets.MNIST.classes)


def test_published_files_are_read_and_others_are_not(kind, raw, published, tmp_path):
    assert_is_the_set(kind, kind.load(str(tmp_path), download=False))
    file = raw / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(as_published(arrays()["t10k-images-idx3-ubyte"]) + b"x"))
    with pytest.raises(
        UsageError,
        match=rf"dataset={kind.layout.dataset}: .*{file.name} is not the published " r"file .*dataset.verify=false",
    ):
        kind.load(str(tmp_path))


def test_torchvision_reads_the_same_from_the_same_directory(kind, raw, published, tmp_path):
    """A set that torchvision has fetched, which keeps the files both packed and unpacked, needs no copy of its own."""
    for file in list(raw.iterdir()):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    ours = kind.load(str(tmp_path), download=False)
    for train in (True, False):
        theirs = published(str(tmp_path), train=train)
        images, labels = (ours.train, ours.train_labels) if train else (ours.test, ours.test_labels)
        assert np.array_equal(theirs.data.numpy(), images[:, 0].numpy()) and np.array_equal(
            theirs.targets.numpy(), labels.numpy()
        )


def test_unpacked_files_are_read_if_they_need_not_be_the_published_ones(kind, raw, published, tmp_path):
    unpack(raw)
    assert_is_the_set(kind, kind.load(str(tmp_path), verify=False))
    with pytest.raises(
        UsageError,
        match=r"raw/train-images-idx3-ubyte is unpacked, and only train-images-idx3-ubyte.gz has a published "
        r"checksum; .*verify=false",
    ):
        kind.load(str(tmp_path))


def packed(name, content):
    return lambda raw: (raw / f"{name}.gz").write_bytes(gzip.compress(content))


def cut(raw):
    file = raw / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])


def flipped(raw):
    file = raw / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    file.write_bytes(content)


LABELS = arrays()["t10k-labels-idx1-ubyte"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda raw: (raw / "t10k-labels-idx1-ubyte.gz").unlink(),
            "raw is incomplete: neither t10k-labels-idx1-ubyte.gz nor t10k-labels-idx1-ubyte is there",
        ),
        (cut, "train-images-idx3-ubyte.gz is truncated; fetch or copy it again"),
        (flipped, "train-images-idx3-ubyte.gz is damaged"),
        (
            lambda raw: (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip"),
            "t10k-labels-idx1-ubyte.gz is damaged .BadGzipFile",
        ),
        (
            packed("t10k-labels-idx1-ubyte", as_published(LABELS)[:-3]),
            "t10k-labels-idx1-ubyte.gz is truncated: 25 bytes, where 28 are due",
        ),
        (
            packed("t10k-labels-idx1-ubyte", as_published(LABELS) + bytes(9)),
            "t10k-labels-idx1-ubyte.gz is too long: more bytes, where 28 are due",
        ),
        (
            packed("t10k-labels-idx1-ubyte", as_published(LABELS[:9])),
            "t10k-labels-idx1-ubyte.gz is not .*: its header must tell of 20 unsigned bytes",
        ),
        (
            packed("t10k-images-idx3-ubyte", as_published(LABELS)),
            "t10k-images-idx3-ubyte.gz is not .*: its header must tell of 20 x 28 x 28 unsigned bytes",
        ),
        (
            packed("t10k-labels-idx1-ubyte", as_published(LABELS + 1)),
            "t10k-labels-idx1-ubyte.gz is not .*: it has the label 10, and the last is 9",
        ),
    ],
)
def test_what_is_not_the_set_is_refused(kind, raw, tmp_path, spoil, sentence):
    spoil(raw)
    with pytest.raises(UsageError, match=sentence):
        kind.load(str(tmp_path), download=False, verify=False)


def test_a_root_without_the_set_is_refused(kind, raw, tmp_path):
    name, title = kind.layout.torchvisions, kind.layout.title
    with pytest.raises(
        UsageError,
        match=rf"there is no .*/none/{name}; dataset.download=true fetches {title}, or " r"say with dataset.root=",
    ):
        kind.load(str(tmp_path / "none"), download=False)
    for inside in (raw, raw.parent):
        with pytest.raises(
            UsageError, match=r"is the directory of the set itself; write " rf"dataset.root={tmp_path}, which holds it"
        ):
            kind.load(str(inside))


def test_a_missing_set_is_fetched_once_and_from_a_second_place_if_the_first_has_it_not(
    kind, raw, published, served, tmp_path_factory, monkeypatch
):
    address = served(raw)
    monkeypatch.setattr(published, "mirrors", [f"{address}nothing/", address])
    fresh = tmp_path_factory.mktemp("fresh") / "deep"
    assert_is_the_set(kind, kind.load(str(fresh)))
    assert (
        os.listdir(fresh) == [kind.layout.torchvisions]
        and len(os.listdir(fresh / kind.layout.torchvisions / "raw")) == 4
    )
    for file in raw.iterdir():
        file.unlink()
    assert_is_the_set(kind, kind.load(str(fresh)))


def test_a_damaged_or_missing_file_leaves_nothing_behind(kind, raw, published, served, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(published, "mirrors", [served(raw)])
    place = tmp_path_factory.mktemp("fresh")
    fresh = place / "deep" / "root"
    last = raw / "t10k-labels-idx1-ubyte.gz"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(UsageError, match=rf"dataset={kind.layout.dataset}: what came from .* is damaged"):
        kind.load(str(fresh))
    assert not list(place.iterdir())
    last.unlink()
    with pytest.raises(
        UsageError, match=rf"dataset={kind.layout.dataset}: could not be fetched from .* \(.*\); " r"without internet"
    ):
        kind.load(str(fresh))
    assert not list(place.iterdir())


def test_without_internet_the_remedy_is_named(kind, published, monkeypatch, tmp_path_factory):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(published, "mirrors", [f"http://127.0.0.1:{closed.getsockname()[1]}/"])
        fresh = tmp_path_factory.mktemp("fresh") / "root"
        with pytest.raises(
            UsageError,
            match=r"could not be fetched from .*; without internet, copy "
            rf"{kind.layout.torchvisions} into .*dataset.root=",
        ):
            kind.load(str(fresh))
        assert not fresh.exists()
