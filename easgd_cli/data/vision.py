"""Imports torchvision, for all other modules.

The import is on demand, since it takes more than a second. A torchvision built for CUDA cannot be imported beside a
torch without CUDA unless the schemas of two operators, which nothing here calls, are declared first.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from easgd_cli.errors import UsageError


@cache
def torchvision() -> ModuleType:
    """Returns the package. Raises UsageError when it is not installed or does not fit the installed torch."""
    try:
        try:
            import torchvision as package
        except RuntimeError as e:
            if "torchvision::nms" not in str(e):
                raise
            declared = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision as package

            package._easgd_declared = declared  # the schemas last as long as this object
    except (ImportError, RuntimeError, AttributeError) as e:
        raise UsageError(
            f"torchvision, which this needs, cannot be imported beside torch {torch.__version__}: {e}"
        ) from e
    return package
