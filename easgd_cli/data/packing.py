"""Packs an object, and apart from it its large arrays: these lie in shared memory, one copy for all processes."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easgd_cli.system.shared_memory import SharedTensors

_LARGE = 1 << 16  # bytes from which on an array is packed apart


def pack(given: Any) -> tuple[bytes, SharedTensors]:
    """Returns the arguments of `unpack`. Raises what pickle raises, and MemoryError."""
    into = io.BytesIO()
    pickler = _Pickler(into, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dump(given)
    return into.getvalue(), SharedTensors.of(pickler.tensors)


def unpack(packed: bytes, memory: SharedTensors) -> Any:
    """Returns the object; its large arrays lie in the shared memory and must not be written to."""
    return _Unpickler(io.BytesIO(packed), memory).load()


class _Pickler(pickle.Pickler):
    def __init__(self, into: io.BytesIO, protocol: int):
        super().__init__(into, protocol)
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def persistent_id(self, given: Any) -> tuple[str, bool] | None:
        is_array = type(given) is np.ndarray and given.dtype.kind in "fiub" and given.dtype.isnative
        is_tensor = type(given) is Tensor and given.device.type == "cpu" and not given.requires_grad
        if not (is_array or (is_tensor and given.layout == torch.strided)) or given.nbytes < _LARGE:
            return None
        if id(given) not in self._names:
            try:
                tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
            except TypeError:  # a type of numbers that torch does not have
                return None
            self._names[id(given)] = name = str(len(self.tensors))
            self.tensors[name] = tensor
        return self._names[id(given)], is_array


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: io.BytesIO, memory: SharedTensors):
        super().__init__(packed)
        self._memory = memory

    def persistent_load(self, pid: tuple[str, bool]) -> Any:
        name, is_array = pid
        tensor = self._memory.tensors[name]
        return tensor.numpy() if is_array else tensor
