"""How a worker suffers a fault on purpose, and how it notices that it has to go back to the center.

A run without `faults` and with the usual `on_nan` has none of this: its steps ask gradients and session directly.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch
from torch import Tensor

from easgd_cli.algorithms.base import CENTER, WHOLE
from easgd_cli.settings.faults import Fault, Faults
from easgd_cli.training.drive import Gradients
from easgd_cli.transport.base import Reply, Session


class InjectedFault(Exception):
    """The exception that a fault of kind exception raises."""


class Rejoin(Exception):
    """A step cannot be taken: the worker goes back to the center, not before the monotonic (or virtual) second `until`.
    The step has not happened, since a rule changes its state only after its last yield.
    """

    def __init__(self, why: str, until: float = 0.0):
        super().__init__(why)
        self.until = until


class Watched:
    """The gradients of one worker, spoiled and slowed down as its faults say. `checked`: a value that is not finite
    raises Rejoin before the rule or the center has it; a GPU is waited for once a step. `sleep`: None on a virtual
    clock.
    """

    def __init__(
        self, gradients: Gradients, faults: Faults, *, checked: bool, sleep: Callable[[float], None] | None = None
    ):
        self._gradients, self._faults, self._checked, self._sleep, self._t = gradients, faults, checked, sleep, 0

    def load(self, worker: int, t: int) -> None:
        self._t = t
        self._gradients.load(worker, t)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        began = time.perf_counter()
        g, loss = self._gradients.gradient(x)
        if self._sleep is not None and (slowness := self._faults.slowness(self._t)) > 1:
            torch.get_device_module(x.device).synchronize()
            self._sleep((slowness - 1) * (time.perf_counter() - began))
        if any(fault.kind == "nan" for fault in self._faults.at(self._t)):
            g = torch.full_like(g, torch.nan)
        if self._checked and not (is_finite(g) and is_finite(loss)):
            raise Rejoin("its loss or gradient is not finite")
        return g, loss

    def check(self, message: Tensor) -> None:
        """Raises Rejoin for a message that must not reach the center."""
        if not self.passes(message):
            raise Rejoin("what it would send is not finite")

    def passes(self, message: Tensor | None) -> bool:
        """Whether a message may reach the center: any may unless messages are `checked`, and then finite ones."""
        return not self._checked or message is None or is_finite(message)


class WatchedSession:
    """A session whose messages are checked, and lost while its link is `down`. `outstanding`: a reply is awaited."""

    def __init__(self, session: Session, gradients: Watched):
        self._session, self._gradients = session, gradients
        self.down: float | None = None  # until this monotonic second; 0: until the next message
        self.outstanding = False

    def post(self, message: Tensor | None, t: int, to: str = CENTER, *, fragment: int = WHOLE) -> None:
        if (until := self.down) is not None:
            self.down = None
            if until == 0 or time.monotonic() < until:
                raise Rejoin("its link was lost", until)
        if message is not None:
            self._gradients.check(message)
        self._session.post(message, t, to, fragment=fragment)
        self.outstanding = True

    def collect(self) -> Reply:
        self.outstanding = False
        return self._session.collect()


def is_finite(v: Tensor) -> bool:
    """Whether all entries of `v` are finite, seen by their greatest magnitude: one pass, without a further vector."""
    return bool(torch.isfinite(torch.linalg.vector_norm(v, ord=torch.inf)))


def suffer(fault: Fault) -> None:
    """Kills or stops this process, or raises InjectedFault. A stopped process goes on once somebody wakes it."""
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.kind == "exception":
        raise InjectedFault("a fault on purpose")
