"""Reads MNIST and Fashion-MNIST: four files of bytes with a short header, gzipped, as LeCun published MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import urllib.error
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from easgd_cli.data import published
from easgd_cli.data.images import Images
from easgd_cli.data.vision import torchvision
from easgd_cli.errors import UsageError

_SIDE = 28


@dataclass(frozen=True)
class Layout:
    """One of the two data sets. Its files lie in `torchvisions`/raw, as torchvision keeps them, gzipped or unpacked."""

    dataset: str  # its name in `dataset=`
    title: str
    # the name of the set's folder and of torchvision's class for it, which has the addresses and checksums
    torchvisions: str
    classes: tuple[str, ...]
    flip: bool  # True if a mirrored image still shows the same class
    train_rows: int = 60_000  # images
    test_rows: int = 10_000

    @property
    def files(self) -> dict[str, tuple[int, ...]]:
        """Every file with the shape of its array: training images and labels, then test images and labels."""
        return {
            "train-images-idx3-ubyte": (self.train_rows, _SIDE, _SIDE),
            "train-labels-idx1-ubyte": (self.train_rows,),
            "t10k-images-idx3-ubyte": (self.test_rows, _SIDE, _SIDE),
            "t10k-labels-idx1-ubyte": (self.test_rows,),
        }


def load(layout: Layout, root: str, download: bool, verify: bool) -> Images:
    """Returns the set from its folder in `root`; `download`, `verify`: see `mnist`. Raises UsageError."""
    with published.reading(root, layout.title):
        return _load(layout, root, download, verify)


def _load(layout: Layout, root: str, download: bool, verify: bool) -> Images:
    folder = Path(root).expanduser() / layout.torchvisions
    given = folder.absolute().parent
    own = given.parent if given.name == "raw" else given
    if not folder.exists() and own.name == layout.torchvisions and (own / "raw").is_dir():
        raise UsageError(
            f"dataset.root={root}: is the directory of the set itself; write dataset.root={own.parent}, which holds it."
        )
    if not folder.exists() and download:
        _download(layout, folder)
    files = _files(layout, folder, root, download)
    if verify:
        _check_sums(layout, folder, files)
    train, train_labels, test, test_labels = (_read(layout, files[name], shape) for name, shape in layout.files.items())
    for name, labels in (("train-labels-idx1-ubyte", train_labels), ("t10k-labels-idx1-ubyte", test_labels)):
        if int(labels.max()) >= len(layout.classes):
            last = len(layout.classes) - 1
            raise UsageError(
                f"dataset={layout.dataset}: {files[name]} is not {layout.title}'s: it has the label "
                f"{int(labels.max())}, and the last is {last}."
            )
    parts = train[:, None], train_labels.to(torch.int64), test[:, None], test_labels.to(torch.int64)
    return Images(*parts, num_classes=len(layout.classes), classes=layout.classes, flip=layout.flip)


def _files(layout: Layout, folder: Path, root: str, download: bool) -> dict[str, Path]:
    """Returns the path of each file: the published one if it is there, else the unpacked one. Raises UsageError."""
    raw = folder / "raw"
    files = {name: next((f for f in (raw / f"{name}.gz", raw / name) if f.is_file()), None) for name in layout.files}
    missing = next((name for name, file in files.items() if file is None), None)
    if missing and not folder.exists():
        raise published.missing(root, folder, layout.title, layout.torchvisions)
    if missing:
        again = f"move {folder} away and start again to download it" if download else "copy the whole directory again"
        raise UsageError(
            f"dataset.root={root}: {raw} is incomplete: neither {missing}.gz nor {missing} is there; {again}."
        )
    return {name: file for name, file in files.items() if file is not None}


def _download(layout: Layout, folder: Path) -> None:
    theirs, tools = getattr(torchvision().datasets, layout.torchvisions), torchvision().datasets.utils

    def fetch(there: Path) -> None:
        for name, md5 in theirs.resources:
            for mirror in theirs.mirrors:
                try:
                    tools.download_url(f"{mirror}{name}", str(there / folder.name / "raw"), md5=md5)
                    break
                except urllib.error.URLError:
                    if mirror == theirs.mirrors[-1]:
                        raise

    published.download(layout.dataset, layout.title, " or ".join(theirs.mirrors), folder, fetch)


def _check_sums(layout: Layout, folder: Path, files: dict[str, Path]) -> None:
    for name, md5 in getattr(torchvision().datasets, layout.torchvisions).resources:
        file = files[name.removesuffix(".gz")]
        if file.name != name:
            raise UsageError(
                f"dataset={layout.dataset}: {file} is unpacked, and only {name} has a published checksum; put "
                "that beside it, or write dataset.verify=false."
            )
        published.check(layout.dataset, folder, file, md5)


def _read(layout: Layout, file: Path, shape: tuple[int, ...]) -> Tensor:
    """Returns the bytes in `file` as a uint8 tensor of `shape`. Raises UsageError.

    The header is two zero bytes, a byte 8 (for unsigned bytes), a byte with the number of axes, and the lengths of the
    axes, 32 bits each, the most significant byte first.
    """
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    due = len(header) + math.prod(shape)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            content = stream.read(due + 1)  # a byte more than due, to notice a longer file without unpacking it all
    except EOFError as e:
        raise UsageError(f"dataset={layout.dataset}: {file} is truncated; fetch or copy it again.") from e
    except (gzip.BadGzipFile, zlib.error) as e:
        raise UsageError(
            f"dataset={layout.dataset}: {file} is damaged ({type(e).__name__}: {e}); fetch or copy it again."
        ) from e
    if content[: len(header)] != header:
        sides = " x ".join(f"{side:,}" for side in shape)
        raise UsageError(
            f"dataset={layout.dataset}: {file} is not {layout.title}'s: its header must tell of {sides} unsigned bytes."
        )
    if len(content) != due:
        what = f"truncated: {len(content):,} bytes" if len(content) < due else "too long: more bytes"
        raise UsageError(f"dataset={layout.dataset}: {file} is {what}, where {due:,} are due; fetch or copy it again.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy())
