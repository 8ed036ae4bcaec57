"""A resized copy of a data set of photos, made once: decoding it takes a fraction of the time that the originals take.

    DIRECTORY/train-0f3c...bin    JPEG files one after another, smallest side `side`
    DIRECTORY/train-0f3c...json   the lengths of its images, and from what they were made
    DIRECTORY/index.npz           everything a run needs to know; written last, so that an unfinished copy is none

The images of a split, in order, are cut into shards where their paths say so: an image that is added or removed changes
its own shard and moves no other. A shard is written under another name and renamed when it is whole, its description
after it; so a description always stands for a whole shard, even after a kill. A later call keeps the shards whose
description says that they were made from the same files (path, size, time of change) in the same way. Images are
resized in processes, since that costs as much as decoding. Imports no torch.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from easgd_cli.data import decoding, shards
from easgd_cli.data.folders import Folders
from easgd_cli.data.shards import Shard
from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.system import interruption

_SECONDS = 1.0  # between two reports of progress
INDEX = "index.npz"


# in each process that makes shards: images done of each shard, in memory shared with the process that reports progress
_done: MutableSequence[int]


def make(shard: Shard, number: int) -> dict[str, Any]:
    """Writes the shard and its description, and returns the description. Images that cannot be decoded are left out and
    listed there. Raises OSError.

    Counts images in `_done[number]`, since a shard of photos may take minutes.
    """
    signature, lengths, broken, at = shard.signature(), [], [], 0
    whole, beside = Path(shard.directory, f"{shard.name}.bin"), Path(shard.directory, f"{shard.name}.bin.part")
    Path(shard.directory, f"{shard.name}.json").unlink(missing_ok=True)
    with open(beside, "wb") as out:
        for path in shard.images.paths():
            _done[number] += 1
            try:
                content = decoding.encoded(
                    decoding.resized(decoding.rgb(f"{shard.root}/{path}"), shard.side), shards.QUALITY
                )
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
    beside = Path(shard.directory, f"{shard.name}.json.part")
    beside.write_text(json.dumps(description))
    os.replace(beside, beside.with_suffix(""))
    return description


@dataclass(frozen=True)
class Finished:
    """What `prepare` has done: numbers of images kept and written, and what cannot be decoded, with the reason."""

    kept: int
    written: int
    broken: list[tuple[str, str]]


def prepare(
    folders: Folders, directory: Path, side: int, processes: int, progress: Callable[[int, int], None]
) -> Finished:
    """Makes the copy in `directory`, or completes it. `progress` is called with images done and images in all, every
    second and when a shard is finished.

    Raises UsageError if the copy cannot be written or another process is making it, RunError if a process dies or the
    disk is full.
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
    """Lets one process at a time make the copy, by a lock on the directory that ends with the process.

    Raises UsageError.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UsageError(
                f"{directory}: another easgd data prepare is making this copy; wait for it to end, or stop it."
            ) from e
        except OSError:
            pass  # a file system without locks, as on some networks: another process goes unnoticed
        yield
    finally:
        os.close(descriptor)


def _prepare(
    folders: Folders, directory: Path, side: int, processes: int, progress: Callable[[int, int], None]
) -> Finished:
    planned = shards.planned(folders, directory, side)
    every = [shard for parts in planned.values() for shard in parts]
    total = sum(len(shard.images) for shard in every)
    described = shards.finished(every)
    kept = sum(len(shard.images) for shard in every if shard.name in described)
    missing = [shard for shard in every if shard.name not in described]
    if missing:
        (directory / INDEX).unlink(missing_ok=True)  # it describes shards that are about to change
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
            child.terminate()  # idle at the end; after Ctrl-C or an error not waited for
        pool.shutdown(wait=False, cancel_futures=True)
    _finish(folders, directory, side, planned, described)
    broken = [(path, why) for shard in every for path, why in described[shard.name]["broken"]]
    return Finished(kept, total - kept, broken)


def current(folders: Folders, directory: Path, side: int) -> bool:
    """Returns whether the copy is of these `folders`: of the same files, classes and labels. Raises OSError."""
    planned = shards.planned(folders, directory, side)
    every = [shard for parts in planned.values() for shard in parts]
    described = shards.finished(every)
    if len(described) < len(every):
        return False
    expected = _index(folders, side, planned, described)
    with np.load(directory / INDEX) as index:
        return all(np.array_equal(index[name], expected[name]) for name in ("classes", "train_labels", "test_labels"))


def _index(
    folders: Folders, side: int, planned: dict[str, list[Shard]], described: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Returns the index's arrays. Raises UsageError if a class has no training image that can be decoded, or the
    test set no such image.
    """
    arrays: dict[str, Any] = {"format": shards.FORMAT, "side": side, "classes": np.array(folders.classes)}
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
    for file in directory.iterdir():  # files of an earlier, larger set
        if (
            file.name.startswith(("train-", "test-"))
            and file.name.endswith((".bin", ".json", ".part"))
            and file.name not in current
        ):
            file.unlink()


def _begin(counts: MutableSequence[int]) -> None:
    """Prepares a process of the pool: only the parent heeds signals, and this process ends when the parent ends."""
    global _done
    decoding.load_formats()
    _done = counts
    for number in set(interruption.NUMBERS) - {signal.SIGTERM}:  # SIGTERM is how the parent ends this process
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
