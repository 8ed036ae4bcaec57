"""Restores this process after a run."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Puts back, at the end, what a run or a plugin of Hydra's may leave in this process: directory, environment, where
    modules are looked for, logging, generators, threads.
    """
    loggers = [_Logger(name) for name in (None, "easgd.launcher")]
    directory, environment, places = os.getcwd(), dict(os.environ), list(sys.path)
    drawn, torchs = random.getstate(), _of_torch()
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # the directory was removed while the run went on
            os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = places
        for logger in loggers:
            logger.put_back()
        random.setstate(drawn)
        if torchs is not None:
            _put_back(torchs)


class _Logger:
    """The settings of a logger; None: of the root."""

    def __init__(self, name: str | None):
        self._logger = logging.getLogger(name)
        self._handlers, self._level = list(self._logger.handlers), self._logger.level
        self._propagates = self._logger.propagate

    def put_back(self) -> None:
        for handler in set(self._logger.handlers) - set(self._handlers):
            handler.close()
        self._logger.handlers[:] = self._handlers
        self._logger.setLevel(self._level)
        self._logger.propagate = self._propagates


def _of_torch() -> dict[str, Any] | None:
    """Returns torch's settings; None if torch has not been loaded, since this alone should not load it."""
    if (torch := sys.modules.get("torch")) is None:
        return None
    numpy: Any = sys.modules.get("numpy.random")
    return {
        "rng": torch.get_rng_state(), "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "numpy": None if numpy is None else numpy.get_state(),
    }  # fmt: skip


def _put_back(was: dict[str, Any]) -> None:
    torch = sys.modules["torch"]
    torch.set_rng_state(was["rng"])
    torch.set_num_threads(was["threads"])
    torch.set_default_dtype(was["dtype"])
    if torch.are_deterministic_algorithms_enabled() != was["deterministic"]:  # setting this takes a second
        torch.use_deterministic_algorithms(was["deterministic"], warn_only=was["warn_only"])
    if was["numpy"] is not None:
        sys.modules["numpy.random"].set_state(was["numpy"])
