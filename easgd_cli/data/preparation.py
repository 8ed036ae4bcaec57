"""A resized copy of a data set of photos, made once: decoding it takes a fraction of the time that the originals take.

    DIRECTORY/train-0f3c...bin    JPEG files one after another, smallest side `side`
    DIRECTORY/train-0f3c...json   what is in it, and from what it was made
    DIRECTORY/index.npz           everything a run needs to know; written last, so that an unfinished copy is none

The images of a split, in order, are cut into shards where their names say so: an image that comes or goes changes its
own shard and moves no other. A shard is written beside and renamed, its description after it: whatever is killed, a
description stands for a whole shard. A later call keeps the shards whose description says that they were made from the
same files (path, size, time of change) in the same way. Processes, since resizing costs as much as decoding. No torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from easgd_cli.data import decoding
from easgd_cli.data.folders import Folders
from easgd_cli.data.listing import Listed
from easgd_cli.data.patience import told
from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.system import interruption

_FORMAT = 1
_QUALITY = 92  # of JPEG: differences to the resized pixels stay below what a crop by a pixel makes
_SHARDS = 200  # of a split, about: each is a file that every process maps, and of which it keeps a descriptor
_LEAST = 64  # images in a shard, about
_ASKING = 8  # threads that ask for sizes and times: on a network each waits for its answer
_SECONDS = 1.0  # between two looks at how far the processes are
INDEX = "index.npz"


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
        digest = hashlib.sha256(f"{_FORMAT} {self.side} {_QUALITY}".encode())
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


# in each process that makes shards, shared with the one that asked for them: images done of each shard
_done: MutableSequence[int]


def make(shard: Shard, number: int) -> dict[str, Any]:
    """Writes the shard and its description, which is returned. Images that cannot be decoded are left out and listed.
    Raises OSError.

    Counts in `_done[number]`, since a shard of photos may take minutes.
    """
    signature, lengths, broken, at = shard.signature(), [], [], 0
    whole, beside = Path(shard.directory, f"{shard.name}.bin"), Path(shard.directory, f"{shard.name}.bin.part")
    Path(shard.directory, f"{shard.name}.json").unlink(missing_ok=True)
    with open(beside, "wb") as out:
        for path in shard.images.paths():
            _done[number] += 1
            try:
                content = decoding.encoded(decoding.resized(decoding.rgb(f"{shard.root}/{path}"), shard.side), _QUALITY)
            except decoding.BrokenImage as e:
                broken.append([path, str(e)])
                lengths.append(0)
                continue
            out.write(content)
            lengths.append(len(content))
            at += len(content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(beside, whole)
    description = {"signature": signature, "bytes": at, "lengths": lengths, "broken": broken}
    _write(Path(shard.directory, f"{shard.name}.json"), _bytes(json.dumps(description)))
    return description


def shards(folders: Folders, directory: Path, side: int) -> dict[str, list[Shard]]:
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


def existing(planned: Sequence[Shard]) -> dict[str, dict[str, Any]]:
    """What the finished shards hold, by name. Every original is asked for its size and time; slowness is told."""
    asked = told(planned, "comparing the originals with the files of the copy")
    decoding.load_formats()  # what had been left out is tried again
    with ThreadPoolExecutor(_ASKING) as pool:
        found = zip(asked, pool.map(Shard.described, planned), strict=True)
        return {shard.name: described for shard, described in found if described is not None}


@dataclass(frozen=True)
class Finished:
    """What `prepare` has done: images kept and written, and those that cannot be decoded, each with the reason."""

    kept: int
    written: int
    broken: list[tuple[str, str]]


def prepare(
    folders: Folders, directory: Path, side: int, processes: int, progress: Callable[[int, int], None]
) -> Finished:
    """Makes the copy in `directory`, or completes it. `progress` is told images done and images in all, every second
    and when a shard is finished.

    Raises UsageError where it cannot be written or another process is at it, RunError when a process dies or the disk
    is full.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as e:
        raise UsageError(
            f"{directory}: the copy cannot be written there ({why(e)}); choose a directory you can write to "
            "with dataset.prepared=DIR."
        ) from e
    with _alone(directory):
        return _prepare(folders, directory, side, processes, progress)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One at a time: the lock is on the directory and dies with the process. Raises UsageError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UsageError(
                f"{directory}: another easgd data prepare is making this copy; wait for it to end, or stop it."
            ) from e
        except OSError:
            pass  # a file system without locks, as some networks have: nothing can be known there
        yield
    finally:
        os.close(descriptor)


def _prepare(
    folders: Folders, directory: Path, side: int, processes: int, progress: Callable[[int, int], None]
) -> Finished:
    planned = shards(folders, directory, side)
    every = [shard for parts in planned.values() for shard in parts]
    total = sum(len(shard.images) for shard in every)
    described = existing(every)
    kept = sum(len(shard.images) for shard in every if shard.name in described)
    missing = [shard for shard in every if shard.name not in described]
    if missing:
        (directory / INDEX).unlink(missing_ok=True)  # it speaks of shards that are about to change
    progress(kept, total)
    context = multiprocessing.get_context("spawn")
    counts = context.RawArray("q", max(1, len(missing)))
    pool = ProcessPoolExecutor(
        max(1, min(processes, len(missing))), mp_context=context, initializer=_begin, initargs=(counts,)
    )
    try:
        running = {pool.submit(make, shard, n): shard for n, shard in enumerate(missing)}
        waiting = set(running)
        while waiting:
            ended, waiting = wait(waiting, timeout=_SECONDS, return_when=FIRST_COMPLETED)
            described |= {running[future].name: future.result() for future in ended}
            progress(kept + sum(counts), total)
    except BrokenProcessPool as e:
        raise RunError(
            f"{directory}: a process that prepared images was killed; call easgd data prepare again, and it goes "
            "on where it stopped."
        ) from e
    except OSError as e:
        raise RunError(
            f"{e.filename or directory}: {why(e)}; call easgd data prepare again, and it goes on where it stopped."
        ) from e
    finally:
        for child in multiprocessing.active_children():
            child.terminate()  # at the end they are idle; after Ctrl-C or an error none is waited for
        pool.shutdown(wait=False, cancel_futures=True)
    _finish(folders, directory, side, planned, described)
    broken = [(path, why) for shard in every for path, why in described[shard.name]["broken"]]
    return Finished(kept, total - kept, broken)


def current(folders: Folders, directory: Path, side: int) -> bool:
    """Whether the copy in `directory` is of these `folders`: the same files, classes and labels. Raises OSError."""
    planned = shards(folders, directory, side)
    every = [shard for parts in planned.values() for shard in parts]
    described = existing(every)
    if len(described) < len(every):
        return False
    expected = _index(folders, side, planned, described)
    with np.load(directory / INDEX) as index:
        return all(np.array_equal(index[name], expected[name]) for name in ("classes", "train_labels", "test_labels"))


def _index(
    folders: Folders, side: int, planned: dict[str, list[Shard]], described: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What a run needs to know. Raises UsageError where it could not train or measure with what can be decoded."""
    arrays: dict[str, Any] = {"format": _FORMAT, "side": side, "classes": np.array(folders.classes)}
    arrays |= {
        "looked_at": np.array(list(folders.times)),
        "times": np.array(list(folders.times.values()), dtype=np.int64),
    }
    for split, parts in planned.items():
        lengths = [np.array(described[shard.name]["lengths"], dtype=np.int64) for shard in parts]
        places = np.concatenate(
            [np.stack([np.full(len(own), n), own.cumsum() - own, own], 1) for n, own in enumerate(lengths)]
        )
        whole = places[:, 2] > 0
        labels = getattr(folders, split).labels[whole]
        absent = set(range(len(folders.classes))) - set(labels.tolist()) if split == "train" else set()
        if absent or not len(labels):
            where = f"train/{folders.classes[min(absent)]}" if absent else split
            raise UsageError(
                f"{folders.root}: none of the images in {where} can be decoded; easgd data verify lists them. "
                "Replace them, or remove the folder."
            )
        arrays |= {
            f"{split}_places": places[whole],
            f"{split}_labels": labels,
            f"{split}_shards": np.array([f"{s.name}.bin" for s in parts]),
        }
    return arrays


def _finish(
    folders: Folders, directory: Path, side: int, planned: dict[str, list[Shard]], described: dict[str, dict[str, Any]]
) -> None:
    arrays = _index(folders, side, planned, described)
    beside = directory / f"{INDEX}.part"
    with open(beside, "wb") as out:
        np.savez(out, **arrays)
        out.flush()
        os.fsync(out.fileno())
    os.replace(beside, directory / INDEX)
    current = {f"{shard.name}{suffix}" for parts in planned.values() for shard in parts for suffix in (".bin", ".json")}
    for file in directory.iterdir():  # of a larger set that lay here before
        if (
            file.name.startswith(("train-", "test-"))
            and file.name.endswith((".bin", ".json", ".part"))
            and file.name not in current
        ):
            file.unlink()


def _begin(counts: MutableSequence[int]) -> None:
    """In each process: the parent alone hears what ends the program, and its own end ends this process."""
    global _done
    decoding.load_formats()
    _done = counts
    for number in set(interruption.NUMBERS) - {signal.SIGTERM}:  # by which the pool ends this process
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.part")
    beside.write_bytes(content)
    os.replace(beside, path)
