"""MDOWNPOUR: Algorithms 4 and 5 of Zhang, Choromanska, LeCun (2015), p. 20. tau = 1 only.

    worker i                                    master
        receive x~:  x^i <- x~                      receive g^i
        compute g^i = g^i(x^i)                      v  <- delta v - eta g^i
        send g^i                                    x~ <- x~ + delta v

One velocity, the master's, for all workers. The last line is printed like that, `+ delta v`; with one worker it is
heavy ball with step delta eta, that is torch.optim.SGD(lr=delta*eta, momentum=delta), and not Nesterov.

A step here ends with the reply to the worker's own push; that reply is the next step's "receive". eta_t is at the
sender's clock, so it travels in the message: m = eta_t g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Vectors, Worker

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MDOWNPOUR(Method):
    """Momentum at the master. `delta`: momentum; `tau` must be 1."""

    delta: float
    tau: int

    scratch = ("m",)
    center = ("x", "v")

    def __post_init__(self) -> None:
        if self.tau != 1:
            raise ValueError(
                f"tau={self.tau}: MDOWNPOUR is defined for tau = 1 only (paper p. 20); write tau=1, or use "
                "algo=downpour for longer periods."
            )

    def step(self, w: Worker) -> Rule:
        g = yield Gradient(w.x)
        w.m.copy_(g).mul_(w.eta)
        x = yield Exchange(w.m)
        w.x.copy_(x)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.v.mul_(self.delta).sub_(m, alpha=n)
        center.x.add_(center.v, alpha=self.delta)
        reply.copy_(center.x)
