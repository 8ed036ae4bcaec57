"""Lists directories of images without a system call for each name, and notes when each directory had last changed.
Imports no torch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from easgd_cli.data.decoding import SUFFIXES
from easgd_cli.errors import UsageError

_SUFFIXES = tuple(SUFFIXES)


@dataclass(frozen=True, eq=False)
class Listed:
    """The images of a split, in order: labels, and paths relative to the root. The paths are one text, since a million
    strings take three times the memory."""

    text: bytearray  # the paths one after another, in UTF-8; bytes of a name that are not UTF-8 are kept
    ends: NDArray[np.int64]  # [N]: where each path ends
    labels: NDArray[np.int64]  # [N]

    @classmethod
    def of(cls, paths: Sequence[str], labels: int | NDArray[np.int64]) -> Listed:
        """Makes the list from `paths` and one label for all images, or a label for each."""
        encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(bytearray().join(encoded), lengths.cumsum(), np.full(lengths.shape, labels, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Listed]) -> Listed:
        """Returns the images of all `parts`, one part after another."""
        nothing = np.empty(0, np.int64)
        begins = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.ends + begin for part, begin in zip(parts, begins, strict=False)]
        labels = [part.labels for part in parts]
        text = bytearray().join(part.text for part in parts)
        return cls(text, np.concatenate([nothing, *ends]), np.concatenate([nothing, *labels]))

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, first: int, last: int) -> Listed:
        """Returns the images `first` to `last` - 1."""
        begin, ends = int(self.ends[first - 1]) if first else 0, self.ends[first:last]
        return Listed(self.text[begin : int(ends[-1]) if len(ends) else begin], ends - begin, self.labels[first:last])

    def encoded(self) -> Iterator[memoryview]:
        """Yields the paths as views of `text`, without copies."""
        whole, begin = memoryview(self.text), 0
        for end in self.ends:
            yield whole[begin:end]
            begin = end

    def paths(self) -> Iterator[str]:
        for path in self.encoded():
            yield str(path, "utf-8", "surrogateescape")


class Directories:
    """Lists the directories below one root. `times`: when each directory and file that was read had last changed, in
    ns, noted before reading.

    Raises UsageError, naming dataset.root, for a directory that cannot be read.
    """

    def __init__(self, root: str):
        self.root = root
        self.top = Path(root).expanduser().absolute()
        self.times: dict[str, int] = {}
        self.loose: dict[str, int] = {}  # by folder given to `subfolders`: images beside its subfolders

    def subfolders(self, folder: str) -> list[str]:
        """Returns the sorted names of the directories in `folder` (relative to the root), without hidden ones."""
        with self._reading(folder):
            entries = self._entries(folder)
            found = sorted(e.name for e in entries if e.is_dir())
        images = sum(e.name.lower().endswith(_SUFFIXES) for e in entries)
        self.loose[folder] = images - sum(name.lower().endswith(_SUFFIXES) for name in found)
        return found

    def images(self, folder: str, nested: bool = True) -> list[str]:
        """Returns paths, relative to the root, of the images in `folder` and, if `nested`, in all directories below it,
        without hidden ones.

        Directories are in the order of their names, and images within each, as in torchvision's ImageFolder. An image
        is told by its suffix. Most file systems list with each name whether it is a directory, without a system call.
        """
        found: dict[str, list[str]] = {}
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            found[here] = []
            with self._reading(here):
                for e in self._entries(here):
                    # a link with an image's suffix is not followed: that could take a system call for each of a million
                    if e.name.lower().endswith(_SUFFIXES) and not e.is_dir(follow_symlinks=False):
                        found[here].append(e.name)
                    elif nested and e.is_dir():
                        waiting.append(f"{here}/{e.name}")
        return [f"{here}/{name}" for here in sorted(found) for name in sorted(found[here])]

    def note(self, path: str) -> None:
        """Notes in `times` when a file or directory had last changed. Raises OSError."""
        self.times[path] = os.stat(self.top / path).st_mtime_ns

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Returns what is in `folder` and not hidden, and notes when the folder had last changed. Raises OSError."""
        self.note(folder)
        with os.scandir(self.top / folder) as entries:
            return [e for e in entries if not e.name.startswith(".")]

    @contextmanager
    def _reading(self, folder: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            there = self.top / folder
            if e.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                raise UsageError(
                    f"dataset.root={self.root}: a link in {_before_loop(self.top, folder)} leads back to where it "
                    "lies, or to a folder above; remove it."
                ) from e
            raise UsageError(
                f"dataset.root={self.root}: {there} cannot be read ({e.strerror}); give yourself the right to, or "
                "choose another root."
            ) from e


def _before_loop(top: Path, folder: str) -> Path:
    """Returns the directory with the link: on the way to `folder` the last before a directory is reached twice."""
    seen: set[Path] = set()
    here = top
    for part in Path(folder).parts:
        try:
            real = (here / part).resolve(strict=True)
        except (OSError, RuntimeError):
            return here
        if real in seen:
            return here
        seen.add(real)
        here = here / part
    return here


def changed(top: Path, times: Mapping[str, int]) -> list[str]:
    """Returns which directories and files in `times` have changed or are gone; the system is not asked for images."""
    return [path for path, time in times.items() if _time(top / path) != time]


def _time(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
