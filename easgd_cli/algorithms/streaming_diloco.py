"""Streaming DiLoCo, of Douillard et al. (2025, arXiv 2501.18512), Algorithm 2 with `fragments=` of the vector: these
are the lines of one fragment, or of the whole vector. One round of all workers:

    if tau divides t, t > 0:
        d   <- x~ - (1/p) sum_i x^i             as in DiLoCo, of the x^i that are sent now
        u   <- mu u + d
        x~  <- x~ - nu (d + mu u)
        r^i <- x~                               the reply, which is not used yet
    if t is `delay` steps after that:
        x^i <- mix x^i + (1 - mix) r^i          mixed with what the worker has done meanwhile
    x^i <- the local step at x^i                AdamW unless told otherwise (local=)
    t   <- t + 1

With mix = 0 the steps during the delay are lost, with mix = 1 the reply has no effect. The exchange overlaps the
gradient of the step in which it is made; the other steps of the delay begin when the reply is there, where in the paper
it is still on its way. A worker that was lost and is back has no r until its next exchange, and mixes nothing. There is
a closing exchange. The first exchange of a fragment is at its phase, where that is not 0. The paper cuts between
layers, here fragments are equally long (fragments.py). The paper's messages of fewer bits are wire=.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from easgd_cli.algorithms.base import Exchange, Gradient, Rule, Variable, WithLocalStep, Worker, check_outer_step
from easgd_cli.algorithms.diloco import DiLoCo
from easgd_cli.algorithms.local import PLAIN, LocalStep


@dataclass(frozen=True)
class StreamingDiLoCo(WithLocalStep):
    """`delay`: steps from sending x to mixing in the reply; `mix`: share of the worker's own x in the mix; `nu`, `mu`:
    outer rate and momentum; `local`: how x moves by g in between.
    """

    tau: int
    local: LocalStep = PLAIN
    nu: float = 0.7
    mu: float = 0.9
    delay: int = 5
    mix: float = 0.5

    def __post_init__(self) -> None:
        check_outer_step(self.nu, self.mu)
        if not 1 <= self.delay < self.tau:
            raise ValueError(
                f"algo.delay={self.delay} tau={self.tau}: is a number of steps, at least 1 and less than tau; "
                "algo=diloco has no delay."
            )
        if not 0 <= self.mix <= 1:
            raise ValueError(f"algo.mix={self.mix:g}: is the share of the worker's own, from 0 to 1.")

    @property
    def state(self) -> tuple[str, ...]:
        return (*super().state, "r")

    @property
    def scratch(self) -> tuple[str, ...]:
        return (*super().scratch, "mixed")

    def step(self, w: Worker) -> Rule:
        x = None
        if w.since == self.delay:
            share = w.r.any().to(w.r.dtype).mul_(1 - self.mix)  # 0 without r; a tensor, so that no GPU is waited for
            x = w.mixed.copy_(w.x).lerp_(w.r, share)
        at = self.local.at(w if x is None else w.at(x))
        g, reply = yield Gradient(at), Exchange(w.x) if w.due and w.t else None
        if x is not None:
            w.x.copy_(x)
        if reply is not None:
            w.r.copy_(reply)
        self.local.move(w, g)

    def closing(self, w: Worker) -> Exchange:
        return Exchange(w.x)

    @property
    def variables(self) -> Mapping[str, Variable]:
        return DiLoCo(nu=self.nu, mu=self.mu).variables
