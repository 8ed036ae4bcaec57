"""A torch Dataset of the user's: any object with __len__ and __getitem__, read sample by sample.

The global generators of torch, numpy and Python are seeded by (seed, worker, t, index) for each sample, so a repeated
step sees the same batch. Since they are global, samples are read one after another: in the thread that trains, or in
processes of their own, each of which reads a batch at a time (loaders.py).
"""

from __future__ import annotations

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import default_collate

from easgd_cli.data import nest, packing
from easgd_cli.data.arrays import as_numbers, kind_of
from easgd_cli.data.dataset import Batch, Split, Targets
from easgd_cli.data.holding_out import held_out_of
from easgd_cli.data.loaders import Loaders
from easgd_cli.errors import UsageError
from easgd_cli.randomness import SAMPLE, key, seed_all, seeded
from easgd_cli.system.shared_memory import SharedTensors

_TARGETS = ("labels", "label", "targets", "target", "y")  # keys of targets in a dictionary, in this order
_STREAMS: dict[Split, int] = {"train": 0, "test": 1, "held_out": 0}


@dataclass(frozen=True, eq=False)
class Mapped:
    """Two Datasets, `train` and `test`. A sample is (input, target), (input, ..., target) for a net of several inputs,
    a dictionary with a target under a key in _TARGETS, or tokens alone. `collate` makes a batch of a list of samples.

    Raises UsageError for a sample that cannot be read, naming it.
    """

    train: Any
    test: Any
    name: str
    collate: Callable[[list[Any]], Any] = default_collate
    kept: Tensor | None = None  # [N] int64, which samples of `train` are trained on; None for all
    taken: Tensor | None = None  # [K] int64, which samples of `train` are held out
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of training batches
    loaders: int = 0  # processes that read samples, for each process that asks for batches
    _pool: list[Loaders] = field(default_factory=list, repr=False)  # started by the first batch
    _first: list[Batch] = field(default_factory=list, repr=False)

    about: ClassVar[str | None] = None
    nbytes: ClassVar[int] = 0  # the size of a user's Dataset is not known

    @property
    def ahead(self) -> int:
        return 2 * self.loaders  # each loader reads one batch and has the next one's indices at hand

    @property
    def targets(self) -> Targets:
        targets = self.sample[1]
        return "numbers" if not isinstance(targets, Tensor | None) else kind_of(targets)

    @property
    def num_classes(self) -> int | None:
        return self.class_count(None)

    def class_count(self, ignored: int | None) -> int | None:
        found, labels = getattr(self.train, "num_classes", None), getattr(self.train, "targets", None)
        if found is None and self.classes is not None:
            return len(self.classes)
        if found is None and isinstance(labels, Tensor | list) and self.targets == "labels":  # as in torchvision
            return int(torch.as_tensor(labels).max()) + 1
        return found if isinstance(found, int) else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        found = getattr(self.train, "classes", None)
        return tuple(str(name) for name in found) if isinstance(found, list | tuple) else None

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        targets = self.sample[1]
        return tuple(targets.shape[1:]) if isinstance(targets, Tensor) else None

    @property
    def input_shape(self) -> Any:
        return nest.mapped(lambda t: tuple(t.shape[1:]) if isinstance(t, Tensor) else None, self.sample[0])

    @property
    def described(self) -> str:
        return f"the samples of this data set, {nest.said(self.sample[0])} as a batch of one"

    @property
    def sample_size(self) -> int:
        return sum(t.numel() for t in nest.leaves(self.sample[0]) if isinstance(t, Tensor))

    def count(self, split: Split) -> int:
        chosen = self._chosen(split)
        if chosen is not None:
            return len(chosen)
        return 0 if split == "held_out" else len(self._source(split))

    def hold_out(self, n: int) -> Mapped:
        """Returns this set with `n` training samples set aside, the same in every run. Raises UsageError."""
        taken = held_out_of(len(self.train), n)
        return replace(self, taken=taken.nonzero()[:, 0], kept=(~taken).nonzero()[:, 0])

    def share(self) -> _Shared:
        """Returns this set with large arrays in shared memory. Raises UsageError if pickle fails, and MemoryError."""
        try:
            sent = packing.pack((self.train, self.test, self.collate))
        except (pickle.PicklingError, TypeError, AttributeError) as e:
            raise UsageError(
                f"dataset={self.name}: cannot be sent to the workers ({' '.join(str(e).split())}); classes and "
                "functions stand at the top of a module, and files are opened in __getitem__."
            ) from e
        return _received(sent, self.name, self.kept, self.taken, self.loaders)

    def training_on(self, device: torch.device) -> Mapped:
        return self if device == self.device else replace(self, device=device)

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """Begins a batch, with samples seeded by a draw from `generator`. Returns a function that waits for it."""
        drawn = int(torch.randint(2**62, (), generator=generator))
        return self._begun("train", indices, drawn, self.device, dtype)

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        """Yields the batches; a sample draws the same random numbers at every evaluation."""
        drawn = key(0, SAMPLE, _STREAMS[split])
        parts = (torch.arange(self.count(split)) if indices is None else indices).split(size)
        begun: deque[Callable[[], Batch]] = deque()
        for part in parts:
            begun.append(self._begun(split, part, drawn, device, dtype, few=len(parts) == 1))
            if len(begun) > self.ahead:
                yield begun.popleft()()
        for finish in begun:
            yield finish()

    @property
    def sample(self) -> Batch:
        """A batch of the first training sample."""
        if not self._first:
            first, host = torch.zeros(1, dtype=torch.int64), torch.device("cpu")
            self._first.append(next(self.evaluation_batches("train", 1, host, torch.float32, first)))
        return self._first[0]

    def _begun(
        self, split: Split, indices: Tensor, drawn: int, device: torch.device, dtype: torch.dtype, few: bool = False
    ) -> Callable[[], Batch]:
        """Begins to read a batch: in a loader, or at once if there are none or `few` samples are to be read."""
        chosen = self._chosen(split)
        numbers = (indices if chosen is None else chosen[indices]).tolist()
        if self.loaders and not few:
            if not self._pool:
                self._pool.append(Loaders(self._reader(), self.loaders, self.name))
            finish = self._pool[0].begin(split, numbers, drawn)
            return lambda: _as_batch(finish(), device, dtype)
        batch = _as_batch(self.read(split, numbers, drawn), device, dtype)
        return lambda: batch

    def _reader(self) -> Callable[[], Any]:
        """Returns a function for loaders: it makes a fresh copy of this set and returns the copy's `read`."""
        make, parts = self.share().__reduce__()
        return lambda: make(*parts).read

    def read(self, split: Split, numbers: list[int], drawn: int) -> Any:
        """Returns the samples `numbers` of the split's Dataset, collated. Raises UsageError."""
        source, samples = self._source(split), []
        with seeded(drawn, SAMPLE):
            for i in numbers:
                seed_all(key(drawn, SAMPLE, n=i))
                try:
                    samples.append(source[i])
                except Exception as e:
                    which = f"sample {i} of {'test' if split == 'test' else 'train'}"
                    raise UsageError(f"dataset={self.name}: {which} raised {_raised(e)}.") from e
            try:
                return self.collate(samples)
            except Exception as e:
                raise UsageError(
                    f"dataset={self.name}: samples cannot be made a batch: {_raised(e)}; give dataset.collate=, a "
                    "function of a list of samples."
                ) from e

    def _source(self, split: Split) -> Any:
        return self.test if split == "test" else self.train

    def _chosen(self, split: Split) -> Tensor | None:
        return {"train": self.kept, "held_out": self.taken, "test": None}[split]


@dataclass(frozen=True, eq=False)
class _Shared(Mapped):
    """A `Mapped` that is packed once for all processes to which it is sent."""

    sent: tuple[bytes, SharedTensors] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.sent, self.name, self.kept, self.taken, self.loaders)

    def share(self) -> _Shared:
        return self


def _received(
    sent: tuple[bytes, SharedTensors], name: str, kept: Tensor | None, taken: Tensor | None, loaders: int
) -> _Shared:
    train, test, collate = packing.unpack(*sent)
    return _Shared(train, test, name, collate, kept, taken, loaders=loaders, sent=sent)


def _as_batch(collated: Any, device: torch.device, dtype: torch.dtype) -> Batch:
    inputs, targets = _parted(collated)
    targets = nest.mapped(lambda t: _as_target(t, device, dtype), targets)
    on_device = nest.mapped(lambda t: t.to(device) if isinstance(t, Tensor) else t, inputs)
    return nest.mapped(lambda t: as_numbers(t, dtype), on_device), targets


def _parted(batch: Any) -> Batch:
    """Returns inputs and targets of a collated batch."""
    if isinstance(batch, Mapping):
        found = next((name for name in _TARGETS if name in batch), None)
        rest = {name: part for name, part in batch.items() if name != found}
        return rest, None if found is None else batch[found]
    if isinstance(batch, list | tuple) and len(batch) > 1:
        *inputs, targets = batch
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), targets
    return (batch[0] if isinstance(batch, list | tuple) else batch), None


def _as_target(t: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(t, Tensor):
        return t
    several = t.dtype == torch.bool and t.dim() > 1
    return t.to(device, t.dtype if several else dtype if t.is_floating_point() else torch.int64)


def _raised(e: BaseException) -> str:
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {' '.join(str(e).split())} ({frame.filename}, line {frame.lineno})"
