"""The shards that a copy of photos is cut into, and which of them are there already. No torch."""

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
QUALITY = 92  # of JPEG: differences to the resized pixels stay below what a crop by a pixel makes
_SHARDS = 200  # of a split, about: each is a file that every process maps, and of which it keeps a descriptor
_LEAST = 64  # images in a shard, about
_ASKING = 8  # threads that ask for sizes and times: on a network each waits for its answer


@dataclass(frozen=True)
class Shard:
    """A part of a split, and where it goes."""

    directory: str
    name: str  # the split, and a digest of the first image's path
    root: str
    images: Listed
    side: int

    def signature(self) -> str:
        """Changes with the files and how they are prepared; one that is missing cannot be decoded. Raises OSError."""
        digest = hashlib.sha256(f"{FORMAT} {self.side} {QUALITY}".encode())
        for path in self.images.paths():
            try:
                found = os.stat(f"{self.root}/{path}")
                size, time = found.st_size, found.st_mtime_ns
            except FileNotFoundError:  # a link that leads nowhere, or removed since it was listed
                size = time = -1
            digest.update(_bytes(f"{path}\0{size}\0{time}\0"))
        return digest.hexdigest()

    def described(self) -> dict[str, Any] | None:
        """What the finished shard holds; None where there is none, it is of other files, or an image that was left out
        can be decoded by now.
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
        """Whether an image can be decoded, such as one that nobody had the right to read."""
        try:
            decoding.rgb(f"{self.root}/{path}")
        except decoding.BrokenImage:
            return False
        return True


def planned(folders: Folders, directory: Path, side: int) -> dict[str, list[Shard]]:
    """How each split is cut."""
    return {split: list(_cut(folders, split, getattr(folders, split), directory, side)) for split in ("train", "test")}


def _cut(folders: Folders, split: str, listed: Listed, directory: Path, side: int) -> Iterator[Shard]:
    """A shard begins at each image whose path has a checksum divisible by a power of 2, and ends after at most twice as
    many images.

    So cuts follow from names, and from how many there are only when these become half as many or twice as many.
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
    """What the finished shards hold, by name. Every original is asked for its size and time; slowness is told."""
    asked = told(parts, "comparing the originals with the files of the copy")
    decoding.load_formats()  # what had been left out is tried again
    with ThreadPoolExecutor(_ASKING) as pool:
        found = zip(asked, pool.map(Shard.described, parts), strict=True)
        return {shard.name: described for shard, described in found if described is not None}
