"""CIFAR-10's and CIFAR-100's files, small ones in the published formats: read, checked, fetched from a local server, or
refused.
"""

import errno
import hashlib
import os
import pathlib
import pickle
import socket
import struct
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from easgd_cli.data import cifar10, cifar100, vision
from easgd_cli.errors import UsageError

ROWS = 20


@pytest.fixture(params=["cifar10", "cifar100"])
def kind(request, monkeypatch):
    """One of the two with 20 images in each file: how to load it, how it is laid out, its files of images, its labels'
    key and its names.
    """
    module, load = {"cifar10": (cifar10, cifar10.cifar10), "cifar100": (cifar100, cifar100.cifar100)}[request.param]
    layout = replace(module.LAYOUT, train_rows=ROWS, test_rows=ROWS)
    monkeypatch.setattr(module, "LAYOUT", layout)
    labels = {"cifar10": "labels", "cifar100": "fine_labels"}[request.param]
    names = [f"class {i}" for i in range(layout.classes)]
    return SimpleNamespace(load=load, layout=layout, files=[*layout.train, layout.test], labels=labels, names=names)


def content(kind, number: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8), rng.integers(0, kind.layout.classes, ROWS).tolist()


def as_dict(kind, data, labels) -> dict[str, object]:
    """What a file of images holds: in CIFAR-100's also the coarse labels, which are not to be taken for the classes."""
    rest = (
        {"coarse_labels": [n // 5 for n in labels], "filenames": [f"{n}.png" for n in labels]}
        if kind.layout.classes == 100
        else {}
    )
    return {**rest, "data": data, kind.labels: labels}


def as_python_2_wrote_it(key: str, data: np.ndarray, labels: list[int]) -> bytes:
    """The published files' own form, byte by byte: texts and pixels are Python 2's byte strings."""
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    raw = data.tobytes()
    state = (
        b"(K\x01K"
        + bytes([len(data)])
        + b"M"
        + struct.pack("<H", data.shape[1])
        + b"\x86"
        + dtype
        + b"\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(key.encode()) + numbers + b"u."


@pytest.fixture
def root(kind, tmp_path):
    """A complete set."""
    folder = tmp_path / kind.layout.folder
    folder.mkdir()
    for number, name in enumerate(kind.files):
        (folder / name).write_bytes(
            pickle.dumps(as_dict(kind, *content(kind, number)), protocol=(0, 2, 3, 4, 5, 4)[number])
        )
    (folder / kind.layout.names).write_bytes(
        pickle.dumps({"coarse_label_names": ["other"] * 20, kind.layout.label_names: kind.names})
    )
    return tmp_path


@pytest.fixture
def published(kind, root, monkeypatch):
    """The same files as the ones whose checksums are published."""
    layout, cls = kind.layout, getattr(vision.torchvision().datasets, kind.layout.torchvisions)
    sums = {
        name: hashlib.md5((root / layout.folder / name).read_bytes()).hexdigest()
        for name in (*kind.files, layout.names)
    }
    monkeypatch.setattr(cls, "train_list", [[name, sums[name]] for name in layout.train])
    monkeypatch.setattr(cls, "test_list", [[layout.test, sums[layout.test]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": sums[layout.names]})
    return cls


def assert_is_the_set(kind, images):
    last = len(kind.files) - 1
    for number in range(last + 1):
        data, labels = content(kind, number)
        begin = ROWS * number
        x, y = (
            (images.test, images.test_labels)
            if number == last
            else (images.train[begin : begin + ROWS], images.train_labels[begin : begin + ROWS])
        )
        assert np.array_equal(x.numpy().reshape(ROWS, -1), data) and y.tolist() == labels
    assert (
        len(images.train) == ROWS * last
        and images.classes == tuple(kind.names)
        and images.num_classes == kind.layout.classes
    )
    assert images.input_shape == (3, 28, 28) and images.flip


def test_layouts_are_those_torchvision_publishes():
    """Files, folders and keys, and the numbers of images that the sets' own pages tell."""
    for layout, train, classes in ((cifar10.LAYOUT, 50_000, 10), (cifar100.LAYOUT, 50_000, 100)):
        cls = getattr(vision.torchvision().datasets, layout.torchvisions)
        assert layout.folder == cls.base_folder
        assert [name for name, _ in cls.train_list] == list(layout.train) and [name for name, _ in cls.test_list] == [
            layout.test
        ]
        assert (cls.meta["filename"], cls.meta["key"]) == (layout.names, layout.label_names)
        assert (
            sum(layout.rows.values()) == train + 10_000
            and layout.rows[layout.test] == 10_000
            and layout.classes == classes
        )


def test_a_copy_is_read_in_whatever_protocol_it_was_pickled(kind, root):
    assert_is_the_set(kind, kind.load(str(root), download=False, verify=False))


def test_files_as_python_2_wrote_them_are_read(kind, root):
    for number, name in enumerate(kind.files):
        (root / kind.layout.folder / name).write_bytes(as_python_2_wrote_it(kind.labels, *content(kind, number)))
    assert_is_the_set(kind, kind.load(str(root), download=False, verify=False))


def test_published_files_pass_and_others_do_not(kind, root, published):
    assert_is_the_set(kind, kind.load(str(root), download=False))
    file = root / kind.layout.folder / kind.layout.train[-1]
    spoilt = bytearray(file.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    file.write_bytes(spoilt)
    with pytest.raises(
        UsageError,
        match=rf"dataset={kind.layout.dataset}: .*/{file.name} is not the published " r"file .*dataset.verify=false",
    ):
        kind.load(str(root), download=True)
    assert file.read_bytes() == spoilt, "a copy that differs is never replaced"


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def test_a_file_that_cannot_be_opened_is_named(kind, root, monkeypatch):
    real = pathlib.Path.open

    def closed_to_us(path, *arguments):
        if path.name == kind.layout.train[0]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(pathlib.Path, "open", closed_to_us)
    with pytest.raises(UsageError, match=rf"dataset.root=.*{kind.layout.train[0]} cannot be read: Permission denied"):
        kind.load(str(root), verify=False)


@pytest.mark.parametrize("call", [os.mkdir, eval, getattr, np.load])
def test_a_file_that_asks_for_code_runs_nothing(kind, root, call):
    victim = root / "harm"
    argument = f"__import__('os').mkdir({str(victim)!r})" if call is eval else str(victim)
    (root / kind.layout.folder / kind.layout.train[0]).write_bytes(
        pickle.dumps({"data": Evil(call, argument), "filler": bytes(ROWS * 3072)})
    )
    with pytest.raises(
        UsageError,
        match=rf"{kind.layout.train[0]} cannot be read: it asks for \S+, and only "
        r"arrays and built-in values are read",
    ):
        kind.load(str(root), verify=False)
    assert not victim.exists()


def test_arrays_of_anything_but_numbers_are_refused(kind, root):
    (root / kind.layout.folder / kind.layout.train[0]).write_bytes(
        pickle.dumps({"data": np.array([None] * ROWS * 3072)})
    )
    with pytest.raises(UsageError, match="holds an array of type 'O8', and only whole numbers are read"):
        kind.load(str(root), verify=False)


def fewer_bytes(folder, layout):
    file = folder / layout.test
    file.write_bytes(file.read_bytes()[:1000])


def last_bytes_missing(folder, layout):
    file = folder / layout.train[-1]
    file.write_bytes(file.read_bytes()[:-3])


def damaged(folder, layout):
    (folder / layout.train[0]).write_bytes(b"\xff" * 100_000)


def one_missing(folder, layout):
    (folder / layout.train[-1]).unlink()


def names_missing(folder, layout):
    (folder / layout.names).unlink()


def wrong_shape(folder, layout):
    (folder / layout.train[0]).write_bytes(
        pickle.dumps({"data": np.zeros((ROWS, 3073), np.uint8), layout.labels: [0] * ROWS})
    )


def wrong_label(folder, layout):
    (folder / layout.train[0]).write_bytes(
        pickle.dumps({"data": np.zeros((ROWS, 3072), np.uint8), layout.labels: [layout.classes] * ROWS})
    )


def no_dict(folder, layout):
    (folder / layout.train[0]).write_bytes(pickle.dumps([bytes(100_000)]))


def wrong_names(folder, layout):
    (folder / layout.names).write_bytes(pickle.dumps({layout.label_names: ["x"] * (layout.classes - 1)}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (fewer_bytes, "{test} is truncated: 1,000 bytes, where its pixels alone are 61,440; copy it again"),
        (last_bytes_missing, "{last} is truncated"),
        (damaged, "{first} (cannot be read|is damaged)"),
        (one_missing, "is incomplete: {last} is missing; copy the whole directory again"),
        (names_missing, "is incomplete: {names} is missing"),
        (wrong_shape, "{first} is not a file of {title}: its data must be 20 rows of 3072 bytes"),
        (wrong_label, "{first} is not a file of {title}: its {labels} must be 20 whole numbers from 0 to {most}"),
        (no_dict, "{first} is not {title}'s: it holds a list, where a dict is due"),
        (wrong_names, "its {label_names} must be {classes} names"),
    ],
)
def test_what_is_not_the_set_is_refused(kind, root, spoil, sentence):
    layout = kind.layout
    spoil(root / layout.folder, layout)
    told = sentence.format(
        **vars(layout) | {"first": layout.train[0], "last": layout.train[-1], "most": layout.classes - 1}
    )
    with pytest.raises(UsageError, match=told):
        kind.load(str(root), download=False, verify=False)


def test_a_root_without_the_set_is_refused(kind, root):
    folder, title = kind.layout.folder, kind.layout.title
    with pytest.raises(
        UsageError,
        match=rf"there is no .*/none/{folder}; dataset.download=true fetches {title}, " r"or say with dataset.root=",
    ):
        kind.load(str(root / "none"), download=False)
    with pytest.raises(
        UsageError, match=rf"is the directory of batches itself; write dataset.root={root}, which " r"holds it"
    ):
        kind.load(str(root / folder))


@pytest.fixture
def server(kind, root, published, served, tmp_path_factory, monkeypatch):
    """A local server that offers the set as the archive that torchvision fetches; gives the archive's path."""
    archive = tmp_path_factory.mktemp("served") / published.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / kind.layout.folder, kind.layout.folder)
    monkeypatch.setattr(published, "url", f"{served(archive.parent)}{archive.name}")
    monkeypatch.setattr(published, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def test_a_missing_set_is_fetched_once(kind, server, tmp_path_factory):
    fresh = tmp_path_factory.mktemp("fresh") / "deep" / "er"
    assert_is_the_set(kind, kind.load(str(fresh)))
    assert os.listdir(fresh) == [kind.layout.folder], "no archive and no temporary directory stay"
    server.unlink()
    assert_is_the_set(kind, kind.load(str(fresh)))


def test_a_damaged_archive_leaves_nothing_behind(kind, server, tmp_path_factory):
    server.write_bytes(server.read_bytes()[:-100])
    fresh = tmp_path_factory.mktemp("fresh") / "root"
    with pytest.raises(UsageError, match=rf"dataset={kind.layout.dataset}: .* is damaged"):
        kind.load(str(fresh))
    assert not fresh.exists()


def test_without_internet_the_remedy_is_named(kind, published, monkeypatch, tmp_path_factory):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(published, "url", f"http://127.0.0.1:{closed.getsockname()[1]}/{published.filename}")
        fresh = tmp_path_factory.mktemp("fresh") / "root"
        with pytest.raises(
            UsageError, match=r"could not be fetched from .*; without internet, copy " rf"{kind.layout.folder} into"
        ):
            kind.load(str(fresh))
        assert not fresh.exists() and socket.getdefaulttimeout() is None


def test_a_root_that_cannot_be_written_is_named(kind, published, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UsageError, match=rf"dataset.root=.*{kind.layout.title} cannot be written there \(Not a " r"directory\)"
    ):
        kind.load(str(tmp_path / "file" / "data"))


def test_torchvision_is_usable_here():
    assert torch.ops.torchvision is not None
    assert vision.torchvision().datasets.CIFAR10 is not None
