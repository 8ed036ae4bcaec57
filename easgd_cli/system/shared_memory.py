"""Anonymous shared memory as tensors: no name to leak, gone with its last holder, whatever was killed.

A `SharedTensors` is a set of tensors laid out in one anonymous file. It travels to a child process started by
multiprocessing (the descriptor is duplicated for the child) or over a Unix socket (`Channel`).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

from easgd_cli.errors import why

_ALIGN = 4096  # every tensor starts on a page of its own: no two parties ever write to one cache line

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


class _Descriptor:
    """Holds `fd` until it is closed or dropped."""

    fd = -1

    def close(self) -> None:
        """Gives the descriptor back; what was mapped through it lives on until that is dropped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


class SharedTensors(_Descriptor):
    """Named tensors in anonymous shared memory.

    `tensors[name]` are ordinary CPU tensors; every process that holds the object sees the same bytes.
    Raises MemoryError when the memory cannot be had.
    """

    def __init__(self, layout: Layout, fd: int):
        self.layout, self.fd = layout, fd
        _, size = _offsets(layout)
        self._map = mmap.mmap(fd, max(size, 1))
        self.tensors = {name: _view(self._map, at, *layout[name]) for name, at in _offsets(layout)[0].items()}

    @classmethod
    def allocate(cls, layout: Layout) -> SharedTensors:
        """Returns zeros with every page touched, so that the first step of training pays for nothing."""
        _, size = _offsets(layout)
        available = available_memory()
        if available is not None and size > available:
            raise MemoryError(
                f"{size / 2**20:.0f} MiB of shared memory could not be had: {available / 2**20:.0f} MiB are free"
            )
        fd = _anonymous_file()
        try:
            if hasattr(os, "posix_fallocate"):
                # the pages are taken now: a shortage is an error here, not a SIGBUS later
                os.posix_fallocate(fd, 0, max(size, 1))
            else:
                os.ftruncate(fd, max(size, 1))
        except OSError as e:
            os.close(fd)
            raise MemoryError(f"{size / 2**20:.0f} MiB of shared memory could not be had: {why(e)}") from e
        return cls(layout, fd)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SharedTensors:
        """Returns a copy of `tensors` in shared memory."""
        shared = cls.allocate({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
        for name, t in tensors.items():
            shared.tensors[name].copy_(t)
        return shared

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def nbytes(self) -> int:
        return _offsets(self.layout)[1]

    def fileno(self) -> int:
        return self.fd

    def again(self) -> SharedTensors:
        """Returns the same memory under a descriptor of its own, to be given away."""
        return SharedTensors(self.layout, os.dup(self.fd))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.layout, reduction.DupFd(self.fd))


class AnonymousFile(_Descriptor):
    """An empty file without a name, for code that wants to open a file by its `path`. Every process that holds the
    object has the same file, which is gone with its last holder. Linux only.
    """

    def __init__(self, fd: int | None = None):
        self.fd = _anonymous_file() if fd is None else fd

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _file_again, (reduction.DupFd(self.fd),)


class MappedFile(_Descriptor):
    """The bytes of a file as a tensor [n] uint8, read on first use into pages that all processes share.

    Sent to another process it is the same file there, even if another file has its name by then. Raises OSError.
    """

    def __init__(self, fd: int):
        self.fd = fd
        # a private map, since a tensor needs writable memory and the file may be read-only
        self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
        self.tensor = torch.frombuffer(self._map, dtype=torch.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return _mapped_again, (reduction.DupFd(self.fd),)


def keep_freed_memory() -> None:
    """Keeps what this process frees for its next allocations, from now on. Does nothing where the C library is not
    glibc.

    The activations of a batch are tens of megabytes. glibc gives them back to the system when they are freed, and at
    the next step every page is faulted in again: a fifth of a training step of the paper's CIFAR net (docs/results.md).
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Undoes `keep_freed_memory`, with the sizes that glibc itself comes to in a program that frees large blocks."""
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


def available_memory() -> int | None:
    """Returns the bytes that can be had without swapping; None if the system does not say. Asking for more may end in
    the OOM killer.
    """
    try:
        with open("/proc/meminfo") as f:
            free = next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:  # in a container less may be allowed than the machine has
        with open("/sys/fs/cgroup/memory.max") as most, open("/sys/fs/cgroup/memory.current") as used:
            return min(free, int(most.read()) - int(used.read()))
    except (OSError, ValueError):
        return free


def _rebuild(layout: Layout, descriptor: Any) -> SharedTensors:
    return SharedTensors(layout, descriptor.detach())


def _file_again(descriptor: Any) -> AnonymousFile:
    return AnonymousFile(descriptor.detach())


def _mapped_again(descriptor: Any) -> MappedFile:
    return MappedFile(descriptor.detach())


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("easgd")
    fd, path = tempfile.mkstemp()  # macOS: a file unlinked at once
    os.unlink(path)
    return fd


def _offsets(layout: Layout) -> tuple[dict[str, int], int]:
    at, offsets = 0, {}
    for name, (shape, dtype) in layout.items():
        offsets[name] = at
        at += -(-math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN
    return offsets, at


def _view(memory: mmap.mmap, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if (count := math.prod(shape)) == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=at).view(shape)
