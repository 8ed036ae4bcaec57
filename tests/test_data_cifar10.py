"""CIFAR-10's files, small ones in the published formats: read, checked, fetched from a local server, or refused."""

import errno
import functools
import hashlib
import http.server
import os
import pathlib
import pickle
import socket
import struct
import tarfile
import threading

import numpy as np
import pytest
import torch

from easgd_cli.data import cifar10 as module
from easgd_cli.data import vision
from easgd_cli.data.cifar10 import cifar10
from easgd_cli.errors import UsageError

ROWS = 20
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def content(number: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8), rng.integers(0, 10, ROWS).tolist()


def as_python_2_wrote_it(data: np.ndarray, labels: list[int]) -> bytes:
    """The published files' own form, byte by byte: texts and pixels are Python 2's byte strings."""
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = data.tobytes()
    state = b"(K\x01K" + bytes([len(data)]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86" + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(b"labels") + numbers + b"u."


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A complete set of 5 * 20 + 20 images."""
    monkeypatch.setattr(module, "_ROWS", ROWS)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(FILES):
        data, labels = content(number)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=(0, 2, 3, 4, 5, 4)[number]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    return tmp_path


@pytest.fixture
def published(root, monkeypatch):
    """The same files as the ones whose checksums are published."""
    cls = vision.torchvision().datasets.CIFAR10
    sums = {name: hashlib.md5((root / "cifar-10-batches-py" / name).read_bytes()).hexdigest() for name in (*FILES, "batches.meta")}
    monkeypatch.setattr(cls, "train_list", [[name, sums[name]] for name in FILES[:5]])
    monkeypatch.setattr(cls, "test_list", [[FILES[5], sums[FILES[5]]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": sums["batches.meta"]})
    return cls


def assert_is_the_set(images):
    for number in range(6):
        data, labels = content(number)
        begin = ROWS * number
        x, y = (images.test, images.test_labels) if number == 5 else (images.train[begin : begin + ROWS], images.train_labels[begin : begin + ROWS])
        assert np.array_equal(x.numpy().reshape(ROWS, -1), data) and y.tolist() == labels
    assert images.classes == tuple(NAMES) and images.input_shape == (3, 28, 28) and images.flip and images.num_classes == 10


def test_a_copy_is_read_in_whatever_protocol_it_was_pickled(root):
    assert_is_the_set(cifar10(str(root), download=False, verify=False))


def test_files_as_python_2_wrote_them_are_read(root):
    for number, name in enumerate(FILES):
        (root / "cifar-10-batches-py" / name).write_bytes(as_python_2_wrote_it(*content(number)))
    assert_is_the_set(cifar10(str(root), download=False, verify=False))


def test_published_files_pass_and_others_do_not(root, published):
    assert_is_the_set(cifar10(str(root), download=False))
    file = root / "cifar-10-batches-py" / "data_batch_3"
    spoilt = bytearray(file.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    file.write_bytes(spoilt)
    with pytest.raises(UsageError, match=r"data_batch_3 is not the published file .*dataset.verify=false"):
        cifar10(str(root), download=True)
    assert file.read_bytes() == spoilt, "a copy that differs is never replaced"


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def test_a_file_that_cannot_be_opened_is_named(root, monkeypatch):
    real = pathlib.Path.open

    def closed_to_us(path, *arguments):
        if path.name == "data_batch_2":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(pathlib.Path, "open", closed_to_us)
    with pytest.raises(UsageError, match=r"dataset.root=.*data_batch_2 cannot be read: Permission denied"):
        cifar10(str(root), verify=False)


@pytest.mark.parametrize("call", [os.mkdir, eval, getattr, np.load])
def test_a_file_that_asks_for_code_runs_nothing(root, call):
    victim = root / "harm"
    argument = f"__import__('os').mkdir({str(victim)!r})" if call is eval else str(victim)
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({"data": Evil(call, argument), "filler": bytes(ROWS * 3072)}))
    with pytest.raises(UsageError, match=r"data_batch_2 cannot be read: it asks for \S+, and only arrays and built-in values are read"):
        cifar10(str(root), verify=False)
    assert not victim.exists()


def test_arrays_of_anything_but_numbers_are_refused(root):
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({"data": np.array([None] * ROWS * 3072)}))
    with pytest.raises(UsageError, match="holds an array of type 'O8', and only whole numbers are read"):
        cifar10(str(root), verify=False)


def fewer_bytes(folder):
    file = folder / "test_batch"
    file.write_bytes(file.read_bytes()[:1000])


def last_bytes_missing(folder):
    file = folder / "data_batch_5"
    file.write_bytes(file.read_bytes()[:-3])


def damaged(folder):
    (folder / "data_batch_1").write_bytes(b"\xff" * 100_000)


def one_missing(folder):
    (folder / "data_batch_4").unlink()


def names_missing(folder):
    (folder / "batches.meta").unlink()


def wrong_shape(folder):
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": np.zeros((ROWS, 3073), np.uint8), "labels": [0] * ROWS}))


def wrong_label(folder):
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": np.zeros((ROWS, 3072), np.uint8), "labels": [10] * ROWS}))


def no_dict(folder):
    (folder / "data_batch_1").write_bytes(pickle.dumps([bytes(100_000)]))


def wrong_names(folder):
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES[:9]}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (fewer_bytes, "test_batch is truncated: 1,000 bytes, where its pixels alone are 61,440; copy it again"),
        (last_bytes_missing, "data_batch_5 is truncated"),
        (damaged, "data_batch_1 (cannot be read|is damaged)"),
        (one_missing, "is incomplete: data_batch_4 is missing; copy the whole directory again"),
        (names_missing, "is incomplete: batches.meta is missing"),
        (wrong_shape, "data_batch_1 is not a batch of CIFAR-10: its data must be 20 rows of 3072 bytes"),
        (wrong_label, "data_batch_1 is not a batch of CIFAR-10: its labels must be 20 whole numbers from 0 to 9"),
        (no_dict, "data_batch_1 is not CIFAR-10's: it holds a list, where a dict is due"),
        (wrong_names, "its label_names must be ten names"),
    ],
)
def test_what_is_not_the_set_is_refused(root, spoil, sentence):
    spoil(root / "cifar-10-batches-py")
    with pytest.raises(UsageError, match=sentence):
        cifar10(str(root), download=False, verify=False)


def test_a_root_without_the_set_is_refused(root):
    with pytest.raises(UsageError, match=r"there is no .*/none/cifar-10-batches-py; dataset.download=true fetches CIFAR-10"):
        cifar10(str(root / "none"), download=False)
    with pytest.raises(UsageError, match=rf"is the directory of batches itself; write dataset.root={root}, which holds it"):
        cifar10(str(root / "cifar-10-batches-py"))


@pytest.fixture
def server(root, published, tmp_path_factory, monkeypatch):
    """A local server that offers the set as the archive that torchvision fetches; gives the archive's path."""
    archive = tmp_path_factory.mktemp("served") / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    handler = functools.partial(Quiet, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(published, "url", f"http://127.0.0.1:{serving.server_port}/{archive.name}")
        monkeypatch.setattr(published, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        yield archive
        serving.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_a_missing_set_is_fetched_once(server, root, tmp_path_factory):
    fresh = tmp_path_factory.mktemp("fresh") / "deep" / "er"
    assert_is_the_set(cifar10(str(fresh)))
    assert os.listdir(fresh) == ["cifar-10-batches-py"], "no archive and no temporary directory stay"
    server.unlink()
    assert_is_the_set(cifar10(str(fresh)))


def test_a_damaged_archive_leaves_nothing_behind(server, tmp_path_factory):
    server.write_bytes(server.read_bytes()[:-100])
    fresh = tmp_path_factory.mktemp("fresh") / "root"
    with pytest.raises(UsageError, match="is damaged"):
        cifar10(str(fresh))
    assert not fresh.exists()


def test_without_internet_the_remedy_is_named(published, monkeypatch, tmp_path_factory):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(published, "url", f"http://127.0.0.1:{closed.getsockname()[1]}/cifar-10-python.tar.gz")
        fresh = tmp_path_factory.mktemp("fresh") / "root"
        with pytest.raises(UsageError, match=r"could not be fetched from .*; without internet, copy cifar-10-batches-py into"):
            cifar10(str(fresh))
        assert not fresh.exists() and socket.getdefaulttimeout() is None


def test_a_root_that_cannot_be_written_is_named(published, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"dataset.root=.*CIFAR-10 cannot be written there \(Not a directory\)"):
        cifar10(str(tmp_path / "file" / "data"))


def test_torchvision_is_usable_here():
    assert torch.ops.torchvision is not None
    assert len(vision.cifar10_checksums()) == 7
