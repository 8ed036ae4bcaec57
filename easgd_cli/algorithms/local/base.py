"""The local step: where a gradient is taken, and how x moves by it.

A method says when and with whom a worker exchanges; a local step says what happens between. The paper prints the two in
one listing. Where they can be told apart, as in Algorithm 1, the method asks its `local` for the lines of the step, and
`local=` puts another there.

l2 is part of what is minimised: it is in g, and every step sees it. Decay that is decoupled from the gradient (AdamW's)
is no gradient: it is a constant of the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.base import Worker


class LocalStep(ABC):
    """Base of every local step. A subclass is a frozen dataclass whose fields are its constants.

    A field with the name of a root setting (delta, ...) gets the value of that setting; any other is `local.<field>`. A
    constant that breaks a rule raises ValueError in `__post_init__`, with a sentence that names the constant. A step
    depends on its vectors, g, and the worker's `eta` and `t` alone: it has no random numbers and no counter of its own.
    """

    state: ClassVar[tuple[str, ...]] = ()  # vectors [d] beside x that last; they begin at 0 and stay with the worker
    scratch: ClassVar[tuple[str, ...]] = ()  # vectors [d] that need not outlive a step

    @property
    def torch_sgd(self) -> Mapping[str, Any] | None:
        """Arguments, beside the rate, with which torch.optim.SGD takes this step; None: it cannot."""
        return None

    def at(self, w: Worker) -> Tensor:
        """Returns the point [d] at which the gradient is taken; may write scratch only."""
        return w.x

    @abstractmethod
    def move(self, w: Worker, g: Tensor) -> None:
        """Moves x and the state by g [d], which is only read."""


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError unless 0 <= value < 1, the range of the weight in a running mean."""
    if not 0 <= value < 1:
        raise ValueError(f"local.{name}={value:g}: lies in [0, 1).")


def check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"local.{name}={value:g}: must be a finite number that is not negative.")
