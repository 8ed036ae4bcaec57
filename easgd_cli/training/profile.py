"""A profile of some steps of a worker, by torch.profiler, as a Chrome trace: every operator and kernel on a time axis.

Read by chrome://tracing, ui.perfetto.dev and TensorBoard's profiler plugin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from easgd_cli.algorithms.base import CENTER, WHOLE
from easgd_cli.settings.schema import UNPROFILED_STEPS
from easgd_cli.system.files import put
from easgd_cli.training.drive import Gradients
from easgd_cli.transport.base import Reply, Session


class Trace:
    """Profiles `steps` steps of this process, after the first `UNPROFILED_STEPS`, and writes them to `path`: to a file
    beside it, which is then renamed.

    The last unrecorded step already runs under the profiler, which pays its own first costs there. `Named` makes the
    step's parts visible. If the trace cannot be written, a line on standard output says so, and the run goes on.
    """

    def __init__(self, path: Path, steps: int, device: torch.device):
        self._path, self._left = path, UNPROFILED_STEPS + steps
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])],
            schedule=schedule(skip_first=UNPROFILED_STEPS - 1, wait=0, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write, record_shapes=True,
        )  # fmt: skip
        self._profile.start()

    def step(self) -> None:
        """Counts a step that has been taken."""
        if self._left:
            self._profile.step()
            self._left -= 1
            if not self._left:
                self._profile.stop()

    def close(self) -> None:
        """Ends the profile. If the run ends before all steps to be recorded, those recorded so far are written."""
        if self._left:
            self._left = 0
            self._profile.stop()

    def _write(self, recorded: profile) -> None:
        try:
            put(self._path, lambda beside: recorded.export_chrome_trace(str(beside)))
        except (OSError, RuntimeError) as e:
            print(f"{self._path} could not be written: {e}", flush=True)


class Both(Gradients, Session, Protocol):
    """All that a step calls: gradients and a session."""


class Named:
    """Passes the calls of a step on to `asked`, each as a range of the trace: load, gradient, post and collect."""

    def __init__(self, asked: Both):
        self._asked = asked

    def load(self, worker: int, t: int) -> None:
        with record_function("load"):
            self._asked.load(worker, t)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with record_function("gradient"):
            return self._asked.gradient(x)

    def post(self, message: Tensor | None, t: int, to: str = CENTER, *, fragment: int = WHOLE) -> None:
        with record_function("post"):
            self._asked.post(message, t, to, fragment=fragment)

    def collect(self) -> Reply:
        with record_function("collect"):
            return self._asked.collect()
