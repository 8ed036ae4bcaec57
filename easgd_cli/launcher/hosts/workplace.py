"""What the workers and masters of a host that has joined have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from easgd_cli.experiment.build import Experiment, Recipe
from easgd_cli.launcher.hosts.first_host import masters_elsewhere
from easgd_cli.launcher.processes.child import Child
from easgd_cli.launcher.supervisor.parties import ProcessName, title_in_files
from easgd_cli.system.devices import deal_devices, worker_threads
from easgd_cli.transport.turn import turns

# of a session: the worker's number or the master's place there, bytes of vectors that went and came, and the rate
LinkFigures = tuple[int, int, int, float | None]


class Workplace:
    """What workers and masters of a host share. `cannot`: tells the first host why a ticket's process cannot begin."""

    def __init__(
        self, address: tuple[str, int], secret: bytes, silence: float,
        experiment: Experiment, recipe: Recipe, places: int, cannot: Callable[[int, str], None],
    ):  # fmt: skip
        self.address, self.secret, self.silence = address, secret, silence
        self.experiment, self.recipe = experiment, recipe
        here = replace(experiment.settings, workers=max(1, places))
        self.threads, self.devices = worker_threads(here), deal_devices(here.device, max(1, places))
        self.masters_elsewhere = masters_elsewhere(experiment.settings)
        self.turns, self.cannot = turns(), cannot
        self._forking = threading.Lock()

    def start(self, party: ProcessName, maker: Any, start: Any, log: Path) -> Child:
        """Starts the party's process. Raises RunError and OSError."""
        with self._forking:
            return Child(title_in_files(party), maker, start, log)
