"""Where the encoded images of a split lie: each in a file of its own, or packed into a few large files.

The paths or places and the labels of a million images are a few tensors, which the processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from easgd_cli.data.listing import Listed
from easgd_cli.errors import UsageError

_DESCRIPTORS = 1024


class Source(Protocol):
    """Encoded images 0, 1, ... and their labels."""

    @property
    def labels(self) -> Tensor:
        """The labels, [N] int64."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that grow with the number of images, by the names of their fields."""

    def first(self, count: int) -> Source:
        """Returns the same source, of the first `count` images only."""

    def content(self, i: int) -> bytes | memoryview | str:
        """Returns the bytes of image `i`, or the path of its file."""

    def name(self, i: int) -> str:
        """Returns the name of image `i`, for a sentence."""

    @property
    def remedy(self) -> str:
        """What to do about an image that cannot be decoded."""


@dataclass(frozen=True, eq=False)
class Files:
    """Images in files of their own below `root`. `text` is their paths, one after another; `ends`: where each ends."""

    root: str
    labels: Tensor  # [N] int64
    text: Tensor  # [bytes] uint8
    ends: Tensor  # [N] int64
    remedy: str = "repair or delete it"

    @classmethod
    def of(cls, root: Path, listed: Listed, remedy: str) -> Files:
        """Makes a source of the images `listed` below `root`, which shares the memory of `listed`."""
        text = torch.frombuffer(listed.text, dtype=torch.uint8) if listed.text else torch.empty(0, dtype=torch.uint8)
        return cls(str(root), torch.from_numpy(listed.labels), text, torch.from_numpy(listed.ends), remedy)

    def tensors(self) -> dict[str, Tensor]:
        return {"labels": self.labels, "text": self.text, "ends": self.ends}

    def first(self, count: int) -> Files:
        """Returns the same source, of the first `count` images only."""
        return replace(self, labels=self.labels[:count], ends=self.ends[:count])

    def content(self, i: int) -> str:
        begin = int(self.ends[i - 1]) if i else 0
        path = self.text[begin : int(self.ends[i])].numpy().tobytes()
        return f"{self.root}/{path.decode('utf-8', 'surrogateescape')}"

    def name(self, i: int) -> str:
        return self.content(i)


@dataclass(frozen=True, eq=False)
class Shards:
    """Images one after another in the files `shards` of `directory`, mapped into memory: one copy for all processes."""

    directory: str
    shards: tuple[str, ...]
    states: tuple[tuple[int, int], ...]  # of each shard, as it was found: bytes, and time of the last write
    labels: Tensor  # [N] int64
    places: Tensor  # [N, 3] int64: number of the shard, first byte, bytes
    remedy: str = "remove that file and call easgd data prepare again"
    _maps: dict[int, memoryview] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, directory: Path, shards: Sequence[str], labels: Tensor, places: Tensor) -> Shards:
        """Makes a source of the images at `places` in the `shards` as these are now. Raises OSError."""
        return cls(
            str(directory), tuple(shards), tuple(_state(os.stat(directory / name)) for name in shards), labels, places
        )

    def tensors(self) -> dict[str, Tensor]:
        return {"labels": self.labels, "places": self.places}

    def first(self, count: int) -> Shards:
        """Returns the same source, of the first `count` images only."""
        return replace(self, labels=self.labels[:count], places=self.places[:count])

    def content(self, i: int) -> memoryview:
        shard, first, length = self.places[i].tolist()
        return self._mapped(shard)[first : first + length]

    def name(self, i: int) -> str:
        shard, first, _ = self.places[i].tolist()
        return f"{self.directory}/{self.shards[shard]}, the image at byte {first},"

    def _mapped(self, shard: int) -> memoryview:
        """Returns the shard of this number, mapped. The first call maps all shards, so that files made anew under their
        names afterwards, as by easgd data prepare, change nothing.

        Raises UsageError if a shard has been made anew before the first call.
        """
        if len(self._maps) < len(self.shards):  # two threads may map the same shard; the second map is dropped
            _allow_descriptors()
            for n, (name, state) in enumerate(zip(self.shards, self.states, strict=True)):
                path = Path(self.directory, name)
                try:
                    with open(path, "rb") as file:
                        if _state(os.fstat(file.fileno())) != state:
                            raise _changed(path)
                        # An empty file cannot be mapped, and has no image.
                        self._maps.setdefault(
                            n, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if state[0] else b"")
                        )
                except FileNotFoundError:
                    raise _changed(path) from None
        return self._maps[shard]


def _state(found: os.stat_result) -> tuple[int, int]:
    """Returns a file's bytes, and when it was last written, in ns."""
    return found.st_size, found.st_mtime_ns


def _changed(path: Path) -> UsageError:
    return UsageError(f"{path}: has been made anew since this began, as by easgd data prepare; start it again.")


def _allow_descriptors() -> None:
    """Allows this process a thousand open files, as most systems do: each map keeps one, and some shells allow 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
