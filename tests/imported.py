"""A process that makes the parts of a worker and says which modules it has imported for them. It imports nothing itself
that every process of a run does not.
"""

from __future__ import annotations

import sys
from typing import Any


class Imported:
    """In a worker's place, made from a recipe."""

    def __init__(self, recipe: Any, channel: Any):
        import torch

        before = set(sys.modules)
        recipe.parts(torch.device("cpu"))
        channel.post({"kind": "imported", "modules": sorted(set(sys.modules) - before)})

    def run(self, began: float) -> None:
        """Nothing more."""
