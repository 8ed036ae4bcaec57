"""Text as bytes, for nets that predict the next byte: a file, the files of a directory, or Python's own sources.

The text is cut into three pieces in its order, training, held out and test, so that windows for judging do not lie
between training windows. A sample is a window of `length` + 1 bytes; windows begin `length` bytes apart.

The text is mapped into memory and not read: a single file where it lies, the files of a directory as one nameless file,
put together on disk at the start. So a text may be larger than memory, and no copy stays behind to become outdated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from easgd_cli.data.conversion import sent
from easgd_cli.data.dataset import Batch, Split, Targets
from easgd_cli.data.patience import told
from easgd_cli.errors import UsageError, why
from easgd_cli.system.shared_memory import MappedFile

_TOKENS = 256


def text(root: str | None = None, length: int = 64, test: float = 0.02, pattern: str = "**/*.txt") -> Text:
    """Returns the text in the file `root`, or in all files of the directory `root` that match `pattern`, by path.

    Without `root`: the top-level modules of this Python's standard library, so that a language model trains without any
    data at hand. `length`: bytes that the net sees of a window; `test`: the share at the end of the text that is
    tested on. Raises UsageError.
    """
    if length < 1:
        raise UsageError(f"dataset.length={length}: must be a whole number of at least 1.")
    if not 0 < test < 1:
        raise UsageError(f"dataset.test={test:g}: is a share of the text, greater than 0 and less than 1.")
    place = Path(sysconfig.get_path("stdlib") if root is None else root).expanduser()
    written = f"dataset.root={place}"
    if place.is_dir():
        files = sorted(p for p in place.glob("*.py" if root is None else pattern) if p.is_file())
        if not files:
            raise UsageError(f"{written}: has no file that fits dataset.pattern={pattern}; give another pattern.")
    elif place.is_file():
        files = [place]
    else:
        raise UsageError(f"{written}: there is no such file or directory.")
    try:
        mapped = _mapped(files)
    except OSError as e:
        raise UsageError(f"{written}: {e.filename or place} cannot be read: {why(e)}.") from e
    size = 0 if mapped is None else len(mapped.tensor)
    tested = max(length + 1, round(test * size))
    if mapped is None or size < tested + length + 1:
        raise UsageError(
            f"{written} dataset.length={length}: the text has {size:,} bytes, and training and test need a "
            f"window of {length + 1} each; give a smaller length, or more text."
        )
    digest = hashlib.sha256(mapped.tensor.numpy().data).hexdigest()[:16]
    of = f"{len(files):,} files of {place}" if len(files) > 1 else str(files[0])
    about = f"the text is {size:,} bytes, {of}, SHA-256 {digest}..."
    return Text(mapped, {"train": (0, size - tested), "test": (size - tested, size)}, length, about)


def _mapped(files: list[Path]) -> MappedFile | None:
    """Maps the files as one text, one after another; None if all are empty. Raises OSError."""
    if len(files) == 1:
        with open(files[0], "rb") as one:
            return MappedFile(os.dup(one.fileno())) if os.fstat(one.fileno()).st_size else None
    with tempfile.TemporaryFile(prefix="easgd-") as whole:
        for path in told(files, "putting the text together, files"):
            with open(path, "rb") as part:
                shutil.copyfileobj(part, whole)
        whole.flush()
        return MappedFile(os.dup(whole.fileno())) if whole.tell() else None


@dataclass(frozen=True, eq=False)
class Text:
    """Windows of the bytes of `file`. `cuts`: begin and end of each split; `length`: bytes the net sees of a window."""

    file: MappedFile
    cuts: Mapping[Split, tuple[int, int]]
    length: int
    about: str
    on_device: Tensor | None = None  # the training bytes, if they lie on a GPU

    targets: ClassVar[Targets] = "tokens"
    num_classes: ClassVar[int] = _TOKENS
    classes: ClassVar[None] = None
    target_shape: ClassVar[None] = None
    ahead: ClassVar[int] = 0

    def class_count(self, ignored: int | None) -> int:
        return _TOKENS

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def described(self) -> str:
        return f"windows of {self.length} bytes"

    @property
    def sample_size(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        return 0  # the file is mapped: the system keeps it in memory as far as there is room

    @property
    def parts(self) -> dict[Split, Tensor]:
        """The bytes of each split, [n] uint8."""
        return {split: self.file.tensor[begin:end] for split, (begin, end) in self.cuts.items()}

    def count(self, split: Split) -> int:
        begin, end = self.cuts.get(split, (0, 1))
        return (end - begin - 1) // self.length

    def hold_out(self, n: int) -> Text:
        """Returns this text with the last `n` training windows set aside. Raises UsageError."""
        if not 0 < n < self.count("train"):
            raise UsageError(
                f"dataset.validation={n}: must be from 0 to {self.count('train') - 1}, of so many windows."
            )
        begin, end = self.cuts["train"]
        cut = begin + (self.count("train") - n) * self.length + 1
        return replace(self, cuts={**self.cuts, "train": (begin, cut), "held_out": (cut - 1, end)})

    def share(self) -> Text:
        """Returns this text: all processes map the same file."""
        return self

    def training_on(self, device: torch.device) -> Text:
        return self if device.type == "cpu" else replace(self, on_device=self.parts["train"].to(device))

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        batch = self._windows("train", indices), None
        return lambda: batch

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        for part in (torch.arange(self.count(split)) if indices is None else indices).split(size):
            yield self._windows(split, part).to(device), None

    def _windows(self, split: Split, indices: Tensor) -> Tensor:
        """Returns the windows `indices` of a split, [B, length + 1] int64."""
        begin, end = self.cuts[split]
        part = self.file.tensor[begin:end] if self.on_device is None or split != "train" else self.on_device
        at = indices[:, None] * self.length + torch.arange(self.length + 1)
        return part[sent(at, part.device)].long()
