"""Images too many for memory: they lie in files and are decoded when a batch needs them.

A process holds no pixels, only the place and the label of each image, in memory that all processes of the machine
share. Threads of the process decode the next few batches ahead, since a batch is a function of (seed, worker, t).
Everything random is drawn before, so the number of threads changes no bit. Pixels go to the device as uint8 and are
converted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from easgd_cli.data import decoding
from easgd_cli.data.conversion import Channels, as_input, sent
from easgd_cli.data.dataset import Batch, Split
from easgd_cli.data.holding_out import held_out
from easgd_cli.data.image_set import ImageSet
from easgd_cli.data.sources import Source
from easgd_cli.errors import UsageError
from easgd_cli.system.shared_memory import SharedTensors

_TOGETHER = 4  # images that a thread decodes as one task
_VERIFIED = 1024  # images between two reports of `broken`, so that a million tasks never wait at once


@dataclass(frozen=True, eq=False)
class StoredImages(ImageSet):
    """RGB images in `train` and `test`, resized so that the smallest side is `resize` unless they already are.

    Training sees a random patch of `crop` rows and columns, evaluation the center one; with `flip`, training mirrors an
    image from left to right in half of all cases, at random (paper p. 21). `loaders` threads decode in each process
    that asks for batches: None for as many as torch computes with, 0 for none, so that a batch is made when it is
    wanted.
    """

    train: Source
    test: Source
    num_classes: int
    resize: int
    crop: tuple[int, int]  # rows, columns
    flip: bool = True
    loaders: int | None = None
    most_ahead: int = 2
    about: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    classes: tuple[str, ...] | None = None  # names, in the order of the labels
    kept: Tensor | None = None  # [N] int64, which images of `train` are trained on; None for all
    taken: Tensor | None = None  # [K] int64, which images of `train` are held out
    memory: SharedTensors | None = field(default=None, repr=False)  # where the tensors lie, after share()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of training batches
    # started by the first batch, so that no fork copies threads
    _pool: list[ThreadPoolExecutor] = field(default_factory=list, repr=False)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the net sees."""
        return (3, *self.crop)

    @property
    def ahead(self) -> int:
        return 0 if self.loaders == 0 else self.most_ahead

    def count(self, split: Split) -> int:
        if split == "held_out":
            return 0 if self.taken is None else len(self.taken)
        if split == "train" and self.kept is not None:
            return len(self.kept)
        return len(self._source(split).labels)

    def hold_out(self, n: int) -> StoredImages:
        """Returns this set with `n` training images set aside as `held_out`; see holding_out.py. Raises UsageError."""
        taken = held_out(self.train.labels, self.num_classes, n)
        return replace(self, taken=taken.nonzero()[:, 0], kept=(~taken).nonzero()[:, 0], memory=None)

    def share(self) -> StoredImages:
        """Returns this set with the places and labels of images in anonymous shared memory. Raises MemoryError."""
        return self._with(SharedTensors.of(self._tensors()))

    def training_on(self, device: torch.device) -> StoredImages:
        """Returns this set with training batches on `device`."""
        return replace(self, device=device)

    def training_batch(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Batch:
        """Returns training images `indices` [B], cropped and mirrored at random, [B, *input_shape], and labels [B]."""
        return self.begin(indices, generator, dtype)()

    def begin(self, indices: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Callable[[], Batch]:
        """Begins the batch. Returns a function that waits for it and raises UsageError for an image that is broken.

        The corner of a patch is drawn as fractions of the rows and columns where a patch can begin, since the sides of
        an image are known only when it is decoded.
        """
        across = torch.rand(len(indices), 2, generator=generator, dtype=torch.float64).tolist()
        mirrored = torch.randint(2, indices.shape, generator=generator).tolist() if self.flip else [0] * len(indices)
        places = indices if self.kept is None else self.kept[indices]
        cuts = [
            partial(decoding.patch, across=(a, b), mirrored=bool(m)) for (a, b), m in zip(across, mirrored, strict=True)
        ]
        return self._begun("train", places, cuts, self.device, dtype)

    def evaluation_batches(
        self, split: Split, size: int, device: torch.device, dtype: torch.dtype, indices: Tensor | None = None
    ) -> Iterator[Batch]:
        """Yields center patches, `size` at most, and their labels, on `device`; the next are decoded meanwhile."""
        chosen = {"train": self.kept, "held_out": self.taken, "test": None}[split]
        wanted = torch.arange(self.count(split)) if indices is None else indices
        places = wanted if chosen is None else chosen[wanted]
        waiting: Callable[[], Batch] | None = None
        for part in places.split(size):
            begun = self._begun(split, part, [decoding.center] * len(part), device, dtype)
            if waiting is not None:
                yield waiting()
            waiting = begun
        if waiting is not None:
            yield waiting()

    def broken(self, split: Split, threads: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """Decodes all images of a split ("train", held-out ones included, or "test"), a thousand at a time.

        Yields how many are done, and for each of the last thousand that cannot be decoded its name and the reason.
        """
        source = self._source(split)
        total = len(source.labels)

        def tried(i: int) -> tuple[str, str] | None:
            try:
                decoding.rgb(source.content(i), source.name(i))
            except decoding.BrokenImage as e:
                return source.name(i), str(e)
            return None

        decoding.load_formats()
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, total, _VERIFIED):
                last = min(first + _VERIFIED, total)
                yield last, [said for said in pool.map(tried, range(first, last)) if said is not None]

    def _begun(
        self, split: Split, places: Tensor, cuts: Sequence[Callable[..., None]], device: torch.device,
        dtype: torch.dtype,
    ) -> Callable[[], Batch]:  # fmt: skip
        source, shape = self._source(split), (len(places), *self.input_shape)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type != "cpu")
        into, numbers = pixels.numpy(), places.tolist()
        decoding.load_formats()

        def decode(first: int) -> None:
            for j in range(first, min(first + _TOGETHER, len(numbers))):
                self._decode(source, numbers[j], cuts[j], into[j])

        firsts = range(0, len(numbers), _TOGETHER)
        begun: list[Future[None]] = (
            [] if self.loaders == 0 else [self._threads().submit(decode, first) for first in firsts]
        )

        def finish() -> Batch:
            for first in firsts if self.loaders == 0 else ():
                decode(first)
            for part in begun:
                part.result()
            on_device = pixels.to(device, non_blocking=True)
            return as_input(on_device, dtype, 1 / 255, self.mean, self.std), sent(source.labels[places], device)

        return finish

    def _decode(self, source: Source, i: int, cut: Callable[..., None], out: NDArray[np.uint8]) -> None:
        try:
            image = decoding.resized(decoding.rgb(source.content(i), source.name(i)), self.resize)
        except decoding.BrokenImage as e:
            raise UsageError(f"{source.name(i)} cannot be decoded: {e}; {source.remedy}.") from e
        cut(image, out=out)

    def _threads(self) -> ThreadPoolExecutor:
        if not self._pool:
            self._pool.append(
                ThreadPoolExecutor(self.loaders or torch.get_num_threads(), thread_name_prefix="decoding")
            )
        return self._pool[0]

    def _source(self, split: Split) -> Source:
        return self.test if split == "test" else self.train

    def _tensors(self) -> dict[str, Tensor]:
        chosen = {name: t for name in ("kept", "taken") if (t := getattr(self, name)) is not None}
        return {
            f"{split}.{k}": t for split in ("train", "test") for k, t in getattr(self, split).tensors().items()
        } | chosen

    def _with(self, tensors: SharedTensors | dict[str, Tensor]) -> StoredImages:
        """Returns this set with these tensors in place of its own, and a thread pool of its own."""
        memory = tensors if isinstance(tensors, SharedTensors) else None
        named = tensors.tensors if isinstance(tensors, SharedTensors) else tensors
        sources = {
            s: replace(
                getattr(self, s), **{k.removeprefix(f"{s}."): t for k, t in named.items() if k.startswith(f"{s}.")}
            )
            for s in ("train", "test")
        }
        return replace(self, **sources, kept=named.get("kept"), taken=named.get("taken"), memory=memory, _pool=[])

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves out of the pickle what lies in shared memory, and threads."""
        sources = [
            (type(s), {k: v for k, v in vars(s).items() if k not in s.tensors() and k != "_maps"})
            for s in (self.train, self.test)
        ]
        apart = {"train", "test", "kept", "taken", "memory", "_pool"}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        return _rebuilt, (sources, rest, self.memory if self.memory is not None else self._tensors())


def _rebuilt(sources: Any, rest: dict[str, Any], tensors: SharedTensors | dict[str, Tensor]) -> StoredImages:
    nothing = torch.empty(0)
    named = tensors.tensors if isinstance(tensors, SharedTensors) else tensors
    bare = []
    for (kind, own), split in zip(sources, ("train", "test"), strict=True):
        bare.append(kind(**own, **{k.removeprefix(f"{split}."): nothing for k in named if k.startswith(f"{split}.")}))
    return StoredImages(*bare, **rest)._with(tensors)
