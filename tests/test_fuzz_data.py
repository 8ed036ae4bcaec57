"""Hostile data sets: photos, prepared copies, tables, and the files of MNIST and CIFAR-10, changed in every way that
hypothesis thinks of. They are read, or refused in a sentence; see fuzzing.py.
"""

from __future__ import annotations

import gzip
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import Edit, edits, examples, mangled, places, refusal
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_data_cifar import as_python_2_wrote_it
from test_data_idx import as_published
from test_data_photos import make_folder, photo, prepare

from easgd_cli.data import cifar, cifar10, idx, mnist
from easgd_cli.data.photos import imagefolder
from easgd_cli.data.table import table


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few photos, of all formats that are read, and its prepared copy."""
    root = make_folder(tmp_path_factory.mktemp("photos") / "root", each=2)
    for n, suffix in enumerate((".png", ".bmp", ".gif", ".ppm", ".tiff", ".webp")):
        photo(34, 30, seed=n).save(root / "train" / "ant" / f"more{n}{suffix}")
    prepare(root, directory=root.parent / "copy")
    return root


def read_photos(root: Path, **more: Any) -> None:
    """Everything that a run asks of them."""
    found = imagefolder(str(root), resize=24, crop=20, loaders=0, **more)
    found.training_batch(torch.arange(found.count("train")), torch.Generator())
    list(found.evaluation_batches("test", 16, torch.device("cpu"), torch.float32))


@given(at=places, edits=edits)
@examples(12)
def test_a_mangled_photo(photos: Path, tmp_path_factory: pytest.TempPathFactory, at: int, edits: list[Edit]) -> None:
    files = sorted(path for path in photos.rglob("*.*") if path.is_file())
    path = files[at % len(files)]
    before = path.read_bytes()
    try:
        path.write_bytes(mangled(before, edits))
        refusal(lambda: read_photos(photos))
    finally:
        path.write_bytes(before)


@given(at=places, edits=edits, data=st.data())
@examples(12)
def test_a_mangled_prepared_copy(photos: Path, place: Path, at: int, edits: list[Edit], data: st.DataObject) -> None:
    """Its shards, its index, and the arrays in that with checksums that are right."""
    shutil.rmtree(place / "copy", ignore_errors=True)
    copy = Path(shutil.copytree(photos.parent / "copy", place / "copy"))
    files = sorted(copy.iterdir())
    path = data.draw(st.sampled_from([copy / "index.npz", files[at % len(files)]]))
    if path.name == "index.npz" and data.draw(st.booleans()):
        with np.load(path) as index:
            arrays = {name: index[name] for name in index.files}
        name = data.draw(st.sampled_from(sorted(arrays)))
        arrays[name] = data.draw(st.sampled_from(ARRAYS) | st.just(arrays[name]).map(at_odds(at)))
        np.savez(path, **arrays)
    else:
        path.write_bytes(mangled(path.read_bytes(), edits))
    refusal(lambda: read_photos(photos, prepared=str(copy)))


ARRAYS = (
    np.zeros(0), np.array(0), np.array(-1), np.array([[1]]), np.array(np.nan), np.array("x"), np.array(["\x1b[2J"]),
    np.zeros((3, 3)), np.full((8, 3), 1 << 62), np.full((8, 3), -1), np.full(8, 1 << 40),
    np.array(["../../etc/passwd"] * 3), np.array(b"x"), np.array(1 + 2j), np.zeros(8, dtype=[("a", "i4")]),
    np.array(["train"] * 8), np.full(8, -1), np.zeros((0, 3), np.int64), np.array("2001-01-01", dtype="datetime64"),
    np.ones((8, 3)), np.full((8, 3), 0, np.uint8),
)  # fmt: skip


def at_odds(at: int) -> Callable[[np.ndarray], np.ndarray]:
    """The array with one entry of its own that is another."""

    def changed_at(array: np.ndarray) -> np.ndarray:
        other = array.copy()
        if other.size and other.dtype.kind in "iu":
            other.flat[at % other.size] = (-1, 1 << 20, -(1 << 62), 1 << 62)[at % 4]
        return other[: at % (len(other) + 1)] if at % 3 == 0 and other.ndim else other

    return changed_at


def packed(name: str) -> bytes:
    rng = np.random.default_rng(3)
    rows = 30 if name.startswith("train") else 20
    array = rng.integers(0, 256, (rows, 28, 28), np.uint8) if "images" in name else rng.integers(0, 10, rows, np.uint8)
    return gzip.compress(as_published(array), mtime=0)


@given(at=places, edits=edits, inside=st.booleans())
@examples(8)
def test_mangled_files_of_mnist(place: Path, at: int, edits: list[Edit], inside: bool) -> None:
    layout = replace(mnist.LAYOUT, train_rows=30, test_rows=20)
    raw = place / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(layout.files):
        content = packed(name)
        if n == at % 4:
            content = gzip.compress(mangled(gzip.decompress(content), edits)) if inside else mangled(content, edits)
        (raw / f"{name}.gz").write_bytes(content)
    refusal(lambda: idx.load(layout, str(place), False, False))


PICKLES = (
    b"cos\nsystem\n(S'touch outside'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"(" * 9999 + b".", b"]q\0" + b"h\0a" * 99 + b".",
    b"\x80\x02\x8a\xff" + b"9" * 300, b"cnumpy\nload\n(S'x'\ntR.", b"cnumpy.core.multiarray\n_reconstruct\n.",
    b"B\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"I1\n" * 9 + b".", b"}" + b"(K\0]K\1]u.", b"0",
    b".", b"N.",
)  # fmt: skip


@given(at=places, edits=edits, whole=st.sampled_from(PICKLES) | st.none())
@examples(10)
def test_mangled_files_of_cifar10(place: Path, at: int, edits: list[Edit], whole: bytes | None) -> None:
    layout = replace(cifar10.LAYOUT, train=("data_batch_1",), train_rows=2, test_rows=2)
    folder = place / layout.folder
    folder.mkdir(exist_ok=True)
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    contents = {name: as_python_2_wrote_it("labels", pixels, [1, 2]) for name in ("data_batch_1", "test_batch")}
    contents["batches.meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, 2)
    for n, (name, content) in enumerate(contents.items()):
        spoilt = mangled(content, edits) if whole is None else whole + content
        (folder / name).write_bytes(spoilt if n == at % 3 else content)
    refusal(lambda: cifar.load(layout, str(place), False, False))


ROWS = b"rooms,area,town,price\n1,20.5,a,3\n2,30,b,4\n3,NA,a,5\n4,50,b,6\n5,60,a,7\n6,70,b,8\n"


@given(edits=edits, data=st.data(), suffix=st.sampled_from([".csv", ".npz", ".npy", ".safetensors"]))
@examples(12)
def test_mangled_tables(place: Path, edits: list[Edit], data: st.DataObject, suffix: str) -> None:
    path = place / f"table{suffix}"
    columns = {"rooms": np.arange(6.0), "price": np.arange(6)}
    if suffix == ".csv":
        path.write_bytes(ROWS)
    elif suffix == ".npy":
        np.save(path, np.arange(12.0).reshape(6, 2))
    elif suffix == ".npz":
        if data.draw(st.booleans()):
            columns[data.draw(st.sampled_from(["rooms", "price"]))] = data.draw(st.sampled_from(ARRAYS))
        np.savez(path, **columns)
    else:
        save_file(columns, path)
    path.write_bytes(mangled(path.read_bytes(), edits) if data.draw(st.booleans()) else path.read_bytes())
    targets = data.draw(st.sampled_from(["price", "1", "town", "rooms"]))

    def read() -> None:
        found = table(str(path), targets, columns=data.draw(st.sampled_from([(), ("rooms",), ("price",)])))
        found.begin(torch.arange(2), torch.Generator(), torch.float32)()

    refusal(read)


# --- what has failed before ------------------------------------------------------------------------------------------


def of_index(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda index: index.update({name: change(index[name])})


CORPUS = {
    "fewer labels than images": of_index("train_labels", lambda a: a[:2]),
    "no shards": of_index("train_shards", lambda a: a[:0]),
    "a shard outside": of_index("train_shards", lambda a: np.array(["../../etc/passwd"] * len(a))),
    "places in a line": of_index("test_places", lambda a: a.ravel()),
    "a place before the first": of_index("test_places", lambda a: -a),
    "a place whose end is none": of_index("test_places", lambda a: np.full_like(a, 1 << 62)),
    "a label of no class": of_index("test_labels", lambda a: a + 100),
    "several sides": of_index("side", lambda a: np.array([24, 24])),
    "no classes": of_index("classes", lambda a: a[:0]),
    "times that are texts": of_index("times", lambda a: a.astype(str)),
}  # fmt: skip


@pytest.mark.parametrize("which", CORPUS)
def test_an_index_that_has_failed_before(which: str, photos: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(photos.parent / "copy", tmp_path / "copy"))
    with np.load(copy / "index.npz") as index:
        arrays = dict(index)
    CORPUS[which](arrays)
    np.savez(copy / "index.npz", **arrays)
    assert refusal(lambda: read_photos(photos, prepared=str(copy))) is not None


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"\x93NUMPY\1\0"])
def test_an_index_that_is_none(content: bytes, photos: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(photos.parent / "copy", tmp_path / "copy"))
    (copy / "index.npz").write_bytes(content)
    assert refusal(lambda: read_photos(photos, prepared=str(copy))) is not None


def test_a_table_of_a_single_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "table.npz", rooms=np.array(1.0), price=np.arange(3))
    assert "differ in length" in str(refusal(lambda: table(str(tmp_path / "table.npz"), "price")))
