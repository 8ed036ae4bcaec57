"""Text as bytes, of which a net learns to tell the next: a file, the files of a directory, or Python's own sources.

The text is cut once, in its order: training, then what is held out of it, then the test, so that no part of what is
judged lies beside what was trained on. A sample is a window of `length` + 1 bytes; windows begin `length` apart.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from easgd_cli.data.conversion import sent
from easgd_cli.data.dataset import Batch, Split, Targets, fixed_subset
from easgd_cli.errors import UsageError, why
from easgd_cli.system.shared_memory import SharedTensors

_TOKENS = 256


def text(root: str | None = None, length: int = 64, test: float = 0.02, pattern: str = "**/*.txt") -> Text:
    """The bytes of the file `root`, or of all files in that directory that `pattern` fits, in the order of their paths.

    Without `root`: the top-level modules of this Python's standard library, so that a language model trains without any
    data at hand. `length`: bytes that the net sees of a window; `test`: the last share of the text, tested on. Raises
    UsageError.
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
        whole = np.concatenate([np.fromfile(p, np.uint8) for p in files])
    except OSError as e:
        raise UsageError(f"{written}: {e.filename or place} cannot be read: {why(e)}.") from e
    tested = max(length + 1, round(test * len(whole)))
    if len(whole) < tested + length + 1:
        raise UsageError(
            f"{written} dataset.length={length}: the text has {len(whole):,} bytes, and training and test need a "
            f"window of {length + 1} each; give a smaller length, or more text."
        )
    parts: dict[Split, Tensor] = {
        "train": torch.from_numpy(whole[: len(whole) - tested]), "test": torch.from_numpy(whole[len(whole) - tested :]),
    }  # fmt: skip
    digest = hashlib.sha256(whole.data).hexdigest()[:16]
    of = f"{len(files):,} files of {place}" if len(files) > 1 else str(files[0])
    return Text(parts, length, f"the text is {len(whole):,} bytes, {of}, SHA-256 {digest}...")


@dataclass(frozen=True, eq=False)
class Text:
    """Bytes [n] uint8 by split; `length`: of a window, without the byte that is only to be told."""

    parts: Mapping[Split, Tensor]
    length: int
    about: str
    memory: SharedTensors | None = field(default=None, repr=False)  # where the bytes lie, after share()

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
        return sum(part.nbytes for part in self.parts.values())

    def count(self, split: Split) -> int:
        return (len(self.parts[split]) - 1) // self.length if split in self.parts else 0

    def hold_out(self, n: int) -> Text:
        """The same with the last `n` training windows set aside. Raises UsageError."""
        if not 0 < n < self.count("train"):
            raise UsageError(
                f"dataset.validation={n}: must be from 0 to {self.count('train') - 1}, of so many windows."
            )
        whole = self.parts["train"]
        cut = (self.count("train") - n) * self.length + 1
        parts = {**self.parts, "train": whole[:cut], "held_out": whole[cut - 1 :]}
        return replace(self, parts=parts, memory=None)

    def share(self) -> Text:
        """The same in anonymous shared memory. Raises MemoryError."""
        return self._in(SharedTensors.of({str(split): part for split, part in self.parts.items()}))

    def _in(self, memory: SharedTensors) -> Text:
        parts: dict[Any, Tensor] = dict(memory.tensors)
        return replace(self, parts=parts, memory=memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without the bytes when they are in shared memory."""
        return _rebuilt, (self.parts if self.memory is None else self.memory, self.length, self.about)

    def training_on(self, device: torch.device) -> Text:
        if device.type == "cpu":
            return self
        return replace(self, parts={**self.parts, "train": self.parts["train"].to(device)}, memory=None)

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        batch = self._windows("train", indices), None
        return lambda: batch

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        for part in (torch.arange(self.count(split)) if indices is None else indices).split(size):
            yield self._windows(split, part).to(device), None

    def training_subset(self, n: int) -> Tensor:
        return fixed_subset(self.count("train"), n)

    def _windows(self, split: Split, indices: Tensor) -> Tensor:
        """[B, length + 1] int64."""
        part = self.parts[split]
        at = indices[:, None] * self.length + torch.arange(self.length + 1)
        return part[sent(at, part.device)].long()


def _rebuilt(parts: SharedTensors | Mapping[Split, Tensor], length: int, about: str) -> Text:
    if isinstance(parts, SharedTensors):
        return Text({}, length, about)._in(parts)
    return Text(parts, length, about)
