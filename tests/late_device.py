"""A device `late:0` for tests of what runs on a GPU, where there is none: it does its work as late as it may.

Its tensors are torch's own, at addresses where nothing lies: what is in them is kept here, and reached by copies alone.
Whatever is asked of it waits in the queue of a stream, and is carried out when somebody waits for it: for an event, a
stream, the device, or a number. A wait that is left out leaves old values, or NaN where nothing has been written yet.
As on CUDA, a copy from or to memory that is not pinned makes the host wait, and so does a number that is read; after
`set_sync_debug_mode("error")` both raise. An operation on tensors of the device and of the CPU raises. Importing this
registers the device, which torch takes once in a process and before its first backward pass.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef, reduce_tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_unflatten

aten = torch.ops.aten
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
VIEWS = {
    aten.as_strided.default,
    aten.view.default,
    aten._reshape_alias.default,
    aten.unfold.default,
    aten.set_.source_Storage_storage_offset,
}
SEEDED = torch.Tag.nondeterministic_seeded
lock = threading.RLock()
# whether the stream that a process begins with works at once: then it is ahead of the others, unless it waits for them
prompt = False
default_generators = (torch.Generator(),)


class Process:
    """What a process has of the device: streams of its own. A test's threads are processes where they say so
    (`process`).
    """

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.default = Stream(self)


class Stream:
    """A queue of work, each piece of which takes a microsecond."""

    def __init__(self, device: Any = None):
        self.process = device if isinstance(device, Process) else here.process
        self.process.streams.append(self)
        self.work: deque[Callable[[], object]] = deque()
        self.asked = self.done = 0
        self.clock = 0.0  # milliseconds

    def ask(self, task: Callable[[], object]) -> int:
        with lock:
            self.work.append(task)
            self.asked += 1
            if prompt and self is self.process.default:
                self.synchronize()
            return self.asked

    def run_to(self, place: int) -> None:
        with lock, torch.no_grad():
            while self.done < place:
                task = self.work.popleft()
                self.done += 1
                self.clock += 0.001
                task()

    def wait_for(self, other: Stream, place: int) -> None:
        def wait() -> None:
            other.run_to(place)
            self.clock = max(self.clock, other.clock)

        self.ask(wait)

    def wait_stream(self, other: Stream) -> None:
        self.wait_for(other, other.asked)

    def wait_event(self, event: Event) -> None:
        self.wait_for(*event.at)

    def synchronize(self) -> None:
        self.run_to(self.asked)


class Event:
    def __init__(self, enable_timing: bool = False):
        self.timed = enable_timing
        self.at = (here.process.default, 0)
        self.clock: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or current_stream()

        def note() -> None:
            self.clock = stream.clock

        self.clock = None
        self.at = stream, stream.ask(note)

    def query(self) -> bool:
        return self.at[0].done >= self.at[1]

    def synchronize(self) -> None:
        self.at[0].run_to(self.at[1])

    def elapsed_time(self, end_event: Event) -> float:
        assert self.timed and end_event.timed and self.clock is not None and end_event.clock is not None, (
            "an event that has not passed"
        )
        return end_event.clock - self.clock


class Here(threading.local):
    process: Process
    stream: Stream | None = None


here = Here()
Here.process = Process()


@contextmanager
def process() -> Iterator[None]:
    """This thread is another process, with streams of its own on the same device."""
    here.process = Process()
    yield
    del here.process


@contextmanager
def stream(stream: Stream) -> Iterator[None]:
    before, here.stream = here.stream, stream
    yield
    here.stream = before


def current_stream(device: Any = None) -> Stream:
    return here.stream or here.process.default


def synchronize(device: Any = None) -> None:
    for stream in here.process.streams:
        stream.synchronize()


def init() -> None:
    """Nothing to begin."""


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def set_device(device: Any) -> None:
    assert torch.device(device).index in (0, None)


def manual_seed_all(seed: int) -> None:
    default_generators[0].manual_seed(seed)


_sync_debug_mode = "default"


def set_sync_debug_mode(mode: str) -> None:
    global _sync_debug_mode
    _sync_debug_mode = mode


def _host_waits() -> None:
    if _sync_debug_mode == "error":
        raise RuntimeError("the host waits for the device")
    current_stream().synchronize()


# Memory

_device_memory: dict[int, tuple[StorageWeakRef, Tensor]] = {}  # by address: the storage, and its bytes
_pinned: dict[int, StorageWeakRef | None] = {}  # by address of the host: the storage that it ends with
_next = 1 << 46  # addresses that no process has


def _new(size: Any, stride: Any, dtype: torch.dtype, content: Tensor | None = None) -> Tensor:
    """A tensor on memory that is full of NaN, or on that which another process has handed over."""
    global _next
    numbers = 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    nbytes = numbers * dtype.itemsize
    with lock:
        address, _next = _next, _next + nbytes // 4096 * 4096 + 4096
        if len(_device_memory) % 500 == 0:
            for gone in [at for at, (storage, _) in _device_memory.items() if storage.expired()]:
                del _device_memory[gone]
        storage = torch._C._construct_storage_from_data_pointer(address, torch.device("late:0"), nbytes)
        _device_memory[address] = (
            StorageWeakRef(storage),
            torch.full((nbytes,), 255, dtype=torch.uint8) if content is None else content,
        )
    made = torch._C._acc.create_empty_tensor(list(size), dtype)
    return aten.set_.source_Storage_storage_offset.redispatch(CPU, made, storage, 0, list(size), list(stride))


def _content(t: Any) -> Any:
    """What is in a tensor of the device, as one of the CPU; anything else as it is."""
    if isinstance(t, torch.device):
        return torch.device("cpu")
    if not isinstance(t, Tensor) or t.device.type != "late":
        return t
    content = _device_memory[t.untyped_storage().data_ptr()][1].untyped_storage()
    return torch.empty(0, dtype=t.dtype).set_(content, t.storage_offset(), t.size(), t.stride())


def _handed_over(t: Tensor) -> Any:
    """How a tensor is sent to another process, which then has the same memory: a whole one, not a view."""
    if t.device.type != "late":
        return reduce_tensor(t)
    return _new, (
        tuple(t.size()),
        t.stride(),
        t.dtype,
        _device_memory[t.untyped_storage().data_ptr()][1].share_memory_(),
    )


class _Runtime:
    """What is used of CUDA's."""

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        _pinned[address] = None
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if _pinned.pop(address, 1) is None else 1


def cudart() -> _Runtime:
    return _Runtime()


def check_error(status: int) -> None:
    assert status == 0


def _is_pinned(t: Tensor, device: Any = None) -> bool:
    storage = _pinned.get(begin := t.untyped_storage().data_ptr())
    return begin in _pinned and (storage is None or not storage.expired())


def _pin_memory(t: Tensor, device: Any = None) -> Tensor:
    copy = t.clone()
    storage = copy.untyped_storage()
    _pinned[storage.data_ptr()] = StorageWeakRef(storage)
    return copy


# Operations


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    host = next((t for t in (source, target) if t.device.type == "cpu"), None)
    here_, there = _content(source), _content(target)
    current_stream().ask(lambda: there.copy_(here_))
    if host is not None and not (non_blocking and host.is_pinned()):
        _host_waits()
    return target


def _operation(op: Any, *args: Any, **kwargs: Any) -> Any:
    if op in VIEWS:
        return op.redispatch(CPU, *args, **kwargs)
    if op is aten.empty.memory_format or op is aten.empty_strided.default:
        like = op(*args, **{**kwargs, "device": "meta", "pin_memory": False})
        return _new(like.shape, like.stride(), like.dtype)
    if op is aten._copy_from.default:
        return _copy(*args, **kwargs)
    numbers = (
        isinstance(a.type, torch.TensorType) and isinstance(v, int | float)
        for a, v in zip(op._schema.arguments, args, strict=False)
    )
    args = tuple(
        torch.tensor(v, dtype=torch.float64 if isinstance(v, float) else None) if n else v
        for v, n in zip(args, numbers, strict=True)
    )
    flat, spec = tree_flatten((args, kwargs))
    if any(isinstance(t, Tensor) and t.device.type == "cpu" and t.dim() for t in flat):
        raise RuntimeError(f"{op}: expected all tensors to be on the same device, but found late:0 and cpu")
    # a number, or whether two are equal
    if not all(str(r.type) in ("Tensor", "List[Tensor]") for r in op._schema.returns):
        _host_waits()
        cpu_args, cpu_kwargs = tree_unflatten([_content(t) for t in flat], spec)
        return op(*cpu_args, **cpu_kwargs)
    return _later(op, flat, spec)


def _later(op: Any, flat: list[Any], spec: Any) -> Any:
    """Has the operation carried out in its turn; its results' shapes are known now."""
    key = (op, str(spec), *((t.shape, t.stride(), t.dtype) if isinstance(t, Tensor) else repr(t) for t in flat))
    if key not in _shapes:
        _shapes[key] = _results(op, flat, spec)
    given, made, tree = _shapes[key]
    for i, (size, stride) in given.items():
        if size != flat[i].shape:  # an `out` that was made without its size
            new = _new(size, stride, flat[i].dtype)
            aten.set_.source_Storage_storage_offset.redispatch(CPU, flat[i], new.untyped_storage(), 0, size, stride)
    results = [flat[m] if isinstance(m, int) else _new(*m) if isinstance(m, tuple) else m for m in made]
    contents, targets = [_content(t) for t in flat], [_content(t) for t in results]
    seed = int(torch.randint(2**62, (), generator=default_generators[0])) if SEEDED in op.tags else None

    def work() -> None:
        args, kwargs = tree_unflatten(contents, spec)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            for target, value in zip(targets, tree_flatten(op(*args, **kwargs))[0], strict=True):
                if isinstance(value, Tensor) and value.numel() and value.data_ptr() != target.data_ptr():
                    target.copy_(value)

    current_stream().ask(work)
    return tree_unflatten(results, tree)


_shapes: dict[Any, Any] = {}  # what `_results` told


def _results(op: Any, flat: list[Any], spec: Any) -> tuple[dict[int, Any], list[Any], Any]:
    """Sizes and strides of the given tensors afterwards; each result as the number of a given one, or its size, stride
    and dtype.
    """
    metas = [_meta(t) for t in flat]
    args, kwargs = tree_unflatten(metas, spec)
    numbers = {id(m): i for i, m in enumerate(metas) if isinstance(m, Tensor)}
    results, tree = tree_flatten(op(*args, **kwargs))
    made = [numbers.get(id(m), (m.shape, m.stride(), m.dtype)) if isinstance(m, Tensor) else m for m in results]
    return {i: (metas[i].shape, metas[i].stride()) for i in numbers.values()}, made, tree


def _meta(t: Any) -> Any:
    if isinstance(t, torch.device):
        return torch.device("meta")
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") if isinstance(t, Tensor) else t


def _register() -> list[torch.library.Library]:
    backend_registration._setup_privateuseone_for_python_backend("late", backend_module=sys.modules[__name__])
    everything, ours = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(_operation, "PrivateUse1")
    # torch would look for a library of the device's
    for op in (aten.convolution.default, aten.convolution_backward.default):
        ours.impl(op, lambda *args, op=op, **kwargs: _operation(op, *args, **kwargs), "PrivateUse1")
    ForkingPickler.register(Tensor, _handed_over)
    ours.impl("is_pinned", _is_pinned, "CPU")
    ours.impl("_pin_memory", _pin_memory, "CPU")
    return [everything, ours]


_registered = _register()  # lasts as long as these do
