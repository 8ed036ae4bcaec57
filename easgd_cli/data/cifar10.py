"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3x32x32, seen through 28x28 patches (paper p. 21)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easgd_cli.data.images import Images
from easgd_cli.errors import UsageError

_FOLDER = "cifar-10-batches-py"
_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
_TEST = "test_batch"
_NAMES = "batches.meta"
_ROWS, _PIXELS = 10_000, 3 * 32 * 32  # of each file of images


def cifar10(root: str = "data", download: bool = True, verify: bool = True) -> Images:
    """The set from `root`/cifar-10-batches-py, in the published Python format.

    `download`: fetch it through torchvision where it is missing. `verify`: hold the files against the published
    checksums; False admits a local copy whose checksums differ. Random 28x28 crops and mirroring in training, pixels in [0, 1].
    Raises UsageError when files are missing, truncated, not the published ones, not CIFAR-10, or cannot be fetched.
    """
    try:
        return _load(root, download, verify)
    except OSError as e:
        raise UsageError(f"dataset.root={root}: {e.filename or 'CIFAR-10'} cannot be read: {e.strerror or e}.") from e


def _load(root: str, download: bool, verify: bool) -> Images:
    folder = Path(root).expanduser() / _FOLDER
    if not folder.exists() and (folder.parent / _TEST).exists():
        raise UsageError(f"dataset.root={root}: is the directory of batches itself; write dataset.root={folder.parent.absolute().parent}, which holds it.")
    if not folder.exists() and download:
        from easgd_cli.data import vision

        vision.download_cifar10(folder.parent)
    _check_files(folder, root, download)
    if verify:
        _check_sums(folder)
    train, train_labels = torch.empty(_ROWS * len(_TRAIN), 3, 32, 32, dtype=torch.uint8), torch.empty(_ROWS * len(_TRAIN), dtype=torch.int64)
    for name, pixels, labels in zip(_TRAIN, train.split(_ROWS), train_labels.split(_ROWS), strict=True):
        _read_batch(folder / name, pixels, labels)
    test, test_labels = torch.empty(_ROWS, 3, 32, 32, dtype=torch.uint8), torch.empty(_ROWS, dtype=torch.int64)
    _read_batch(folder / _TEST, test, test_labels)
    return Images(train, train_labels, test, test_labels, num_classes=10, classes=_read_names(folder / _NAMES), crop=(28, 28), flip=True)


def _check_files(folder: Path, root: str, download: bool) -> None:
    missing = [name for name in (*_TRAIN, _TEST, _NAMES) if not (folder / name).is_file()]
    if missing and folder.exists():
        again = f"move {folder} away and start again to download it" if download else "copy the whole directory again"
        raise UsageError(f"dataset.root={root}: {folder} is incomplete: {missing[0]} is missing; {again}.")
    if missing:
        raise UsageError(
            f"dataset.root={root}: there is no {folder}; dataset.download=true fetches CIFAR-10, or say with dataset.root= which directory holds {_FOLDER}."
        )
    for name in (*_TRAIN, _TEST):
        size = (folder / name).stat().st_size
        if size < _ROWS * _PIXELS:
            raise UsageError(
                f"dataset.root={root}: {folder / name} is truncated: {size:,} bytes, where its pixels alone are {_ROWS * _PIXELS:,}; "
                f"{f'move {folder} away and start again to download it' if download else 'copy it again'}."
            )


def _check_sums(folder: Path) -> None:
    from easgd_cli.data import vision

    for name, md5 in vision.cifar10_checksums().items():
        if not vision.matches(folder / name, md5):
            raise UsageError(
                f"dataset=cifar10: {folder / name} is not the published file (its MD5 sum is not {md5}); move {folder} away to "
                "download it again, or write dataset.verify=false if this copy is meant to differ."
            )


def _read_batch(file: Path, pixels: Tensor, labels: Tensor) -> None:
    """Fills `pixels` [10000, 3, 32, 32] and `labels` [10000] from one file. Raises UsageError."""
    batch = _read(file)
    data, numbers = batch.get("data"), batch.get("labels")
    if not isinstance(data, _Array) or data.values.dtype != np.uint8 or data.values.shape != (_ROWS, _PIXELS):
        raise UsageError(f"dataset=cifar10: {file} is not a batch of CIFAR-10: its data must be {_ROWS} rows of {_PIXELS} bytes.")
    if isinstance(numbers, _Array):
        numbers = numbers.values.tolist()
    if not isinstance(numbers, list) or len(numbers) != _ROWS or not all(isinstance(n, int) and 0 <= n < 10 for n in numbers):
        raise UsageError(f"dataset=cifar10: {file} is not a batch of CIFAR-10: its labels must be {_ROWS} whole numbers from 0 to 9.")
    pixels.numpy().reshape(_ROWS, _PIXELS)[:] = data.values
    labels.copy_(torch.tensor(numbers))


def _read_names(file: Path) -> tuple[str, ...]:
    names = _read(file).get("label_names")
    if not isinstance(names, list) or len(names) != 10 or not all(isinstance(n, str) for n in names):
        raise UsageError(f"dataset=cifar10: {file} is not CIFAR-10's: its label_names must be ten names.")
    return tuple(names)


def _read(file: Path) -> dict[Any, Any]:
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()  # written by Python 2, whose texts are bytes
    except pickle.UnpicklingError as e:
        if "truncated" in str(e):
            raise UsageError(f"dataset=cifar10: {file} is truncated; fetch or copy it again.") from e
        raise UsageError(f"dataset=cifar10: {file} cannot be read: {e}.") from e
    except EOFError as e:
        raise UsageError(f"dataset=cifar10: {file} is truncated; fetch or copy it again.") from e
    except OSError:
        raise
    except Exception as e:  # damaged bytes can decode to any instruction
        raise UsageError(f"dataset=cifar10: {file} is damaged ({type(e).__name__}: {e}); fetch or copy it again.") from e
    if not isinstance(content, dict):
        raise UsageError(f"dataset=cifar10: {file} is not CIFAR-10's: it holds a {type(content).__name__}, where a dict is due.")
    return content


class _Unpickler(pickle.Unpickler):
    """Reads built-in values and arrays of numbers, and calls nothing else, whatever a file asks for.

    Not even numpy's own code is let near the file: a pickled dtype can be made to describe memory that is not its own.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays and built-in values are read") from None


class _Dtype:
    """Stands in for numpy.dtype: a plain number type, its byte order among what `__setstate__` gets."""

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
