"""The shards into which a copy of photos is cut, and which of the shards are finished. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easgd_cli.data import decoding
from easgd_cli.data.folders import Folders
from easgd_cli.data.listing import Listed
from easgd_cli.data.patience import told

FORMAT = 1
QUALITY = 92  # of JPEG: changes the resized pixels less than a crop that is moved by a pixel
_SHARDS = 200  # in a split, about: every process maps each shard and keeps a descriptor for it
_LEAST = 64  # images in a shard, about
_ASKING = 8  # threads that ask for sizes and times: on a network file system each waits for its answer


@dataclass(frozen=True)
class Shard:
    """A part of a split, and where its files are written."""

    directory: str
    name: str  # the split, and a digest of the first image's path
    root: str
    images: Listed
    side: int

    def signature(self) -> str:
        """Returns a digest of the originals' paths, sizes and times, and of how they are prepared. Raises OSError."""
        digest = hashlib.sha256(f"{FORMAT} {self.side} {QUALITY}".encode())
        for path in self.images.paths():
            try:
                found = os.stat(f"{self.root}/{path}")
                size, time = found.st_size, found.st_mtime_ns
            except FileNotFoundError:  # a link that leads nowhere, or removed since the listing: cannot be decoded
                size = time = -1
            digest.update(_bytes(f"{path}\0{size}\0{time}\0"))
        return digest.hexdigest()

    def described(self) -> dict[str, Any] | None:
        """Returns what the finished shard holds; None if there is none, if it was made from other files, or if an image
        that was left out can be decoded now.
        """
        try:
            description = json.loads(Path(self.directory, f"{self.name}.json").read_text(encoding="utf-8"))
            same = (
                description["signature"] == self.signature()
                and os.path.getsize(f"{self.directory}/{self.name}.bin") == description["bytes"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not same or any(self._decodes(path) for path, _ in description["broken"]):
            return None
        return description

    def _decodes(self, path: str) -> bool:
        """Returns whether an image can be decoded now, such as one that could not be read before."""
        try:
            decoding.rgb(f"{self.root}/{path}")
        except decoding.BrokenImage:
            return False
        return True


def planned(folders: Folders, directory: Path, side: int) -> dict[str, list[Shard]]:
    """Returns the shards of each split."""
    return {split: list(_cut(folders, split, getattr(folders, split), directory, side)) for split in ("train", "test")}


def _cut(folders: Folders, split: str, listed: Listed, directory: Path, side: int) -> Iterator[Shard]:
    """Yields the shards of a split. A shard begins at each image whose path has a checksum divisible by `about`, a
    power of 2, and ends after at most twice `about` images.

    So the cuts follow from the paths; the number of images changes only `about`, in steps of a factor of 2.
    """
    about = 1 << (max(_LEAST, len(listed) // _SHARDS) - 1).bit_length()
    begins: list[int] = []
    for n, path in enumerate(listed.encoded()):
        if n == 0 or n - begins[-1] == 2 * about or zlib.crc32(path) % about == 0:
            begins.append(n)
    for first, last in zip(begins, [*begins[1:], len(listed)], strict=True):
        part = listed.part(first, last)
        name = hashlib.blake2b(next(part.encoded()), digest_size=8).hexdigest()
        yield Shard(str(directory), f"{split}-{name}", str(folders.root), part, side)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def finished(parts: Sequence[Shard]) -> dict[str, dict[str, Any]]:
    """Returns what the finished shards hold, by name. Asks for every original's size and time; tells how far it is."""
    asked = told(parts, "comparing the originals with the files of the copy")
    decoding.load_formats()  # images that were left out are tried again
    with ThreadPoolExecutor(_ASKING) as pool:
        found = zip(asked, pool.map(Shard.described, parts), strict=True)
        return {shard.name: described for shard, described in found if described is not None}
