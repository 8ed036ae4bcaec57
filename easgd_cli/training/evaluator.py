"""The evaluator: measures snapshots of the center, one after another, at low priority.

It is a process of its own, so that it slows down neither serving nor training: nice 10 leaves two busy cores about 95 %
of their time, where nice 19 would starve the evaluation instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from easgd_cli.experiment.build import Recipe
from easgd_cli.system.channel import Channel
from easgd_cli.system.devices import deal_devices
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.training.snapshot import EVALUATED

_NICE = 10


@dataclass
class EvaluatorStart:
    """What an evaluator begins with."""

    recipe: Recipe
    threads: int


class Evaluator:
    """Answers each `evaluate` message with the metrics of the vectors that came with it, in the order they came."""

    def __init__(self, start: EvaluatorStart, channel: Channel):
        os.nice(_NICE)
        torch.set_num_threads(start.threads)
        [device] = deal_devices(start.recipe.settings.eval.device, 1, "eval.device")
        self._channel, self._device = channel, torch.device(device)
        self._problem = start.recipe.problem(self._device)

    def run(self, began: float) -> None:
        """Measures until told to stop. Raises ChannelClosed when the launcher has ended."""
        while True:
            message, tensors = self._channel.wait()
            if message["kind"] == "stop":
                return
            assert tensors is not None
            self._channel.post({"kind": "evaluated", "number": message["number"], "metrics": self._measured(tensors)})
            del tensors  # before the next snapshot comes

    def _measured(self, tensors: SharedTensors) -> dict[str, dict[str, float]]:
        """Returns the metrics of each vector of a snapshot, by the party under which the record has them."""
        metrics = {
            EVALUATED[name]: self._problem.evaluate(vector.to(self._device)) for name, vector in tensors.tensors.items()
        }
        tensors.close()
        return metrics
