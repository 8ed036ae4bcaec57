"""Reads CIFAR-10 and CIFAR-100 (Krizhevsky 2009): files of pickled arrays, read without calling what a file names."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easgd_cli.data import published
from easgd_cli.data.images import Images
from easgd_cli.data.vision import torchvision
from easgd_cli.errors import UsageError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """One of the two data sets, as it is laid out in its published Python format."""

    dataset: str  # its name in `dataset=`
    title: str
    # the name of torchvision's class for the set, which has the address and checksums
    torchvisions: str
    folder: str
    train: tuple[str, ...]  # files
    train_rows: int  # images in each of them
    test: str
    test_rows: int
    labels: str  # the key of the labels in a file of images
    names: str  # the file of class names
    label_names: str  # the key of the names in that file
    classes: int

    @property
    def rows(self) -> dict[str, int]:
        """Every file of images with the number of images in it."""
        return {**dict.fromkeys(self.train, self.train_rows), self.test: self.test_rows}


def load(layout: Layout, root: str, download: bool, verify: bool) -> Images:
    """Returns the set from its folder in `root`; `download`, `verify`: see `cifar10`. Raises UsageError."""
    with published.reading(root, layout.title):
        return _load(layout, root, download, verify)


def _load(layout: Layout, root: str, download: bool, verify: bool) -> Images:
    folder = Path(root).expanduser() / layout.folder
    if not folder.exists() and all((folder.parent / name).is_file() for name in (layout.test, layout.names)):
        raise UsageError(
            f"dataset.root={root}: is the directory of batches itself; write "
            f"dataset.root={folder.parent.absolute().parent}, which holds it."
        )
    if not folder.exists() and download:
        _download(layout, folder)
    _check_files(layout, folder, root, download)
    if verify:
        _check_sums(layout, folder)
    train, train_labels = _empty(layout.train_rows * len(layout.train))
    for name, pixels, labels in zip(
        layout.train, train.split(layout.train_rows), train_labels.split(layout.train_rows), strict=True
    ):
        _read_batch(layout, folder / name, pixels, labels)
    test, test_labels = _empty(layout.test_rows)
    _read_batch(layout, folder / layout.test, test, test_labels)
    names = _read_names(layout, folder / layout.names)
    return Images(
        train, train_labels, test, test_labels, num_classes=layout.classes, classes=names, crop=(28, 28), flip=True
    )


def _empty(rows: int) -> tuple[Tensor, Tensor]:
    """Room for images [rows, 3, 32, 32] and labels [rows]."""
    return torch.empty(rows, 3, 32, 32, dtype=torch.uint8), torch.empty(rows, dtype=torch.int64)


def _download(layout: Layout, folder: Path) -> None:
    theirs, tools = getattr(torchvision().datasets, layout.torchvisions), torchvision().datasets.utils
    published.download(
        layout.dataset, layout.title, theirs.url, folder,
        lambda there: tools.download_and_extract_archive(theirs.url, str(there), filename=theirs.filename,
        md5=theirs.tgz_md5),
    )  # fmt: skip


def _check_files(layout: Layout, folder: Path, root: str, download: bool) -> None:
    missing = [name for name in (*layout.rows, layout.names) if not (folder / name).is_file()]
    if missing and folder.exists():
        again = f"move {folder} away and start again to download it" if download else "copy the whole directory again"
        raise UsageError(f"dataset.root={root}: {folder} is incomplete: {missing[0]} is missing; {again}.")
    if missing:
        raise published.missing(root, folder, layout.title, layout.folder)
    for name, rows in layout.rows.items():
        size = (folder / name).stat().st_size
        if size < rows * _PIXELS:
            raise UsageError(
                f"dataset.root={root}: {folder / name} is truncated: {size:,} bytes, where its pixels alone "
                f"are {rows * _PIXELS:,}; "
                f"{f'move {folder} away and start again to download it' if download else 'copy it again'}."
            )


def _check_sums(layout: Layout, folder: Path) -> None:
    theirs = getattr(torchvision().datasets, layout.torchvisions)
    for name, md5 in (*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])):
        published.check(layout.dataset, folder, folder / name, md5)


def _read_batch(layout: Layout, file: Path, pixels: Tensor, labels: Tensor) -> None:
    """Fills `pixels` [rows, 3, 32, 32] and `labels` [rows] from one file. Raises UsageError."""
    batch, rows = _read(layout, file), len(pixels)
    data, numbers = batch.get("data"), batch.get(layout.labels)
    not_one = f"dataset={layout.dataset}: {file} is not a file of {layout.title}"
    if not isinstance(data, _Array) or data.values.dtype != np.uint8 or data.values.shape != (rows, _PIXELS):
        raise UsageError(f"{not_one}: its data must be {rows} rows of {_PIXELS} bytes.")
    if isinstance(numbers, _Array):
        numbers = numbers.values.tolist()
    if (
        not isinstance(numbers, list)
        or len(numbers) != rows
        or not all(isinstance(n, int) and 0 <= n < layout.classes for n in numbers)
    ):
        raise UsageError(f"{not_one}: its {layout.labels} must be {rows} whole numbers from 0 to {layout.classes - 1}.")
    pixels.numpy().reshape(rows, _PIXELS)[:] = data.values
    labels.copy_(torch.tensor(numbers))


def _read_names(layout: Layout, file: Path) -> tuple[str, ...]:
    names = _read(layout, file).get(layout.label_names)
    if not isinstance(names, list) or len(names) != layout.classes or not all(isinstance(n, str) for n in names):
        raise UsageError(
            f"dataset={layout.dataset}: {file} is not {layout.title}'s: its {layout.label_names} must be "
            f"{layout.classes} names."
        )
    return tuple(names)


def _read(layout: Layout, file: Path) -> dict[Any, Any]:
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()  # written by Python 2, whose strings are bytes
    except pickle.UnpicklingError as e:
        if "truncated" in str(e):
            raise UsageError(f"dataset={layout.dataset}: {file} is truncated; fetch or copy it again.") from e
        raise UsageError(f"dataset={layout.dataset}: {file} cannot be read: {e}.") from e
    except EOFError as e:
        raise UsageError(f"dataset={layout.dataset}: {file} is truncated; fetch or copy it again.") from e
    except OSError:
        raise
    except Exception as e:  # damaged bytes can stand for any instruction of pickle, and so raise anything
        raise UsageError(
            f"dataset={layout.dataset}: {file} is damaged ({type(e).__name__}: {e}); fetch or copy it again."
        ) from e
    if not isinstance(content, dict):
        raise UsageError(
            f"dataset={layout.dataset}: {file} is not {layout.title}'s: it holds a {type(content).__name__}, "
            "where a dict is due."
        )
    return content


class _Unpickler(pickle.Unpickler):
    """Reads built-in values and arrays of numbers, and refuses to call anything else that a file names.

    Numpy's own functions are not called with a file's content: a forged dtype can describe memory outside its array.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only arrays and built-in values are read"
            ) from None


class _Dtype:
    """Stands in for numpy.dtype: a type of whole numbers, whose byte order `__setstate__` is told."""

    def __init__(self, code: str, *rest: object):
        if code not in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, and only whole numbers are read")
        self.values = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.values = self.values.newbyteorder(">")


class _Array:
    """Stands in for numpy.ndarray; the array is `values`."""

    values: np.ndarray[Any, Any] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self._fill(raw, dtype, shape, "F" if fortran else "C")

    def _fill(self, raw: bytes | bytearray | str, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> None:
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        self.values = np.frombuffer(data, dtype.values).reshape(shape, order=order)


def _reconstruct(kind: type[_Array], *rest: object) -> _Array:
    return kind()


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array._fill(raw, dtype, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes in Python 2's protocol; the only encoding it uses for that


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}
