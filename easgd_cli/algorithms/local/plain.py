"""Plain stochastic gradient descent, the last line of the paper's Algorithm 1 (p. 3).

x <- x - eta g(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from easgd_cli.algorithms.local.base import LocalStep

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.base import Worker


@dataclass(frozen=True)
class Plain(LocalStep):
    """torch.optim.SGD without momentum."""

    @property
    def torch_sgd(self) -> dict[str, Any]:
        return {}

    def move(self, w: Worker, g: Tensor) -> None:
        w.x.sub_(g, alpha=w.eta)


PLAIN: Final = Plain()
