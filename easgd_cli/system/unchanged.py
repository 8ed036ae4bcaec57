"""The process that a run leaves as it found it."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Puts back what a run, or a plugin of Hydra's, may leave in this process: directory, environment, logging,
    generators, threads.
    """
    root, torch = logging.getLogger(), sys.modules.get("torch")  # not imported for this
    directory, environment, handlers, level = os.getcwd(), dict(os.environ), list(root.handlers), root.level
    drawn, torchs = random.getstate(), (torch.get_rng_state(), torch.get_num_threads()) if torch else None
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # removed while the run went on
            os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        random.setstate(drawn)
        if torch and torchs:
            torch.set_rng_state(torchs[0])
            torch.set_num_threads(torchs[1])
