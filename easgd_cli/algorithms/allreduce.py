"""All-reduce SGD: gradients averaged in every step, as by DistributedDataParallel with torch.optim.SGD. One round:

    g   <- (1/p) sum_i g^i(x)                   every worker's batch, at the same x; what is sent is eta_t g^i
    v   <- delta v + eta_t g
    x~  <- x~ - (eta_t g + delta v)             Nesterov; heavy ball: x~ <- x~ - v; with delta = 0 both are x~ - eta_t g
    x^i <- x~

All-reduce SGD equals one worker with the batch of all p. The velocity is the center's, one for all workers, where
DistributedDataParallel keeps p equal copies. As long as eta does not change this is torch.optim.SGD(momentum=delta,
nesterov=True); with a falling rate each gradient keeps in v the rate of its own step, as in equation 7 of Zhang,
Choromanska, LeCun (2015), while torch scales v anew.

tau = 1 by its nature: with a longer period gradients would be taken at points that differ, and that is model averaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Vectors, Worker

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AllReduce(Method):
    """Gradients averaged at every step. `delta`: momentum; `nesterov`: whether in Nesterov's form; `tau` must be 1."""

    delta: float
    tau: int
    nesterov: bool = True

    scratch = ("m",)
    center = ("x", "v")
    gathers = "round"

    def __post_init__(self) -> None:
        if self.tau != 1:
            raise ValueError(
                f"tau={self.tau}: all-reduce SGD averages the gradients of every step, tau = 1; write tau=1, or use "
                "algo=model_averaging, which averages parameters every tau steps."
            )

    def step(self, w: Worker) -> Rule:
        g = yield Gradient(w.x)
        w.m.copy_(g).mul_(w.eta)
        x = yield Exchange(w.m)
        w.x.copy_(x)

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        center.v.mul_(self.delta).add_(m)
        if self.nesterov:
            center.x.sub_(m).sub_(center.v, alpha=self.delta)
        else:
            center.x.sub_(center.v)
        reply.copy_(center.x)
