"""Faults on purpose: what `faults` says of each, checked, and when which worker suffers it.

A fault happens at the beginning of a worker's own step, and once: a worker that comes back with the clock `spared` has
had all faults up to that step. So nobody has to remember which have happened; a worker's clock says it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easgd_cli.errors import UsageError
from easgd_cli.randomness import FAULTS, key, uniform
from easgd_cli.settings.schema import Settings
from easgd_cli.settings.targets import convert

# what may and must be said of a kind beside where it happens
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "kill": ((), ()),
    "stop": (("seconds",), ("seconds",)),
    "slow": (("factor", "steps"), ("factor",)),
    "exception": ((), ()),
    "nan": ((), ()),
    "link": (("seconds",), ()),
}
_TYPES: dict[str, type] = {
    "kind": str, "worker": int, "step": int, "per_step": float, "seconds": float, "factor": float, "steps": int,
}  # fmt: skip
_EXAMPLE = "'faults=[{worker: 1, step: 20, kind: kill}]'"


@dataclass(frozen=True)
class Fault:
    """One entry. `worker`: None for all. Either at the worker's own `step`, or at each with the probability `per_step`.

    `seconds`: of standing still, or without a link; `factor`: how many times as long a gradient takes, for `steps`
    steps, None: to the end.
    """

    kind: str
    worker: int | None = None
    step: int | None = None
    per_step: float | None = None
    seconds: float = 0.0
    factor: float = 1.0
    steps: int | None = None


def named(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, where `kind: nan` on a command line has been read as the number that is none."""
    return [{part: "nan" if isinstance(v, float) and v != v else v for part, v in entry.items()} for entry in entries]


class Faults:
    """Those of one worker. `spared`: it has had those of its steps up to this one."""

    def __init__(self, faults: Sequence[Fault], seed: int, worker: int, spared: int = -1):
        mine = [(i, fault) for i, fault in enumerate(faults) if fault.worker in (None, worker)]
        self._at: dict[int, list[Fault]] = {}
        for _, fault in mine:
            if fault.step is not None:
                self._at.setdefault(fault.step, []).append(fault)
        self._drawn = [(key(seed, FAULTS, i), fault) for i, fault in mine if fault.per_step is not None]
        self._slow = [fault for _, fault in mine if fault.kind == "slow"]
        self._worker, self.spared = worker, spared

    def at(self, t: int) -> list[Fault]:
        """What happens at the beginning of its step t; a function of (seed, worker, t) and of what it is spared."""
        if t <= self.spared:
            return []
        drawn = [f for z, f in self._drawn if uniform(z, FAULTS, self._worker, t) < (f.per_step or 0.0)]
        return [*self._at.get(t, ()), *drawn]

    def slowness(self, t: int) -> float:
        """How many times as long as usual the gradient of its step t takes."""
        found = 1.0
        for fault in self._slow:
            begun = t - (fault.step or 0)
            if begun >= 0 and (fault.steps is None or begun < fault.steps):
                found *= fault.factor
        return found


def read(s: Settings) -> tuple[Fault, ...]:
    """The faults of a run; none where a recorded order is gone through again, which has had them. Raises UsageError."""
    found = tuple(_fault(s, f"faults[{i}]", entry) for i, entry in enumerate(s.faults))
    return found if s.replay is None else ()


def _fault(s: Settings, name: str, entry: Mapping[str, Any]) -> Fault:
    kind = entry.get("kind")
    if kind not in KINDS:
        raise UsageError(f"{name}.kind={kind}: is one of {', '.join(KINDS)}, as in {_EXAMPLE}.")
    allowed, needed = KINDS[kind]
    where = ("worker", "step") if kind == "slow" else ("worker", "step", "per_step")
    for part, value in entry.items():
        if part not in ("kind", *where, *allowed):
            raise UsageError(
                f"{name}.{part}={value}: a fault of kind {kind} has no such setting; it takes "
                f"{', '.join((*where, *allowed))}."
            )
    said = {part: convert(f"{name}.{part}", value, _TYPES[part]) for part, value in entry.items() if value is not None}
    if ("step" in said) == ("per_step" in said):
        either = "step" if kind == "slow" else "step, or per_step, a probability"
        raise UsageError(f"{name}: a fault says when it happens by {either}, and by one of them; see {_EXAMPLE}.")
    for part in needed:
        if part not in said:
            raise UsageError(f"{name}: a fault of kind {kind} needs {part}, a number greater than 0.")
    fault = Fault(**said)
    _check(s, name, fault, said)
    return fault


def _check(s: Settings, name: str, fault: Fault, said: Mapping[str, Any]) -> None:
    if fault.worker is not None and not 0 <= fault.worker < s.workers:
        raise UsageError(
            f"{name}.worker={fault.worker}: the run has the workers 0 to {s.workers - 1}; leave worker out for all."
        )
    last = (s.steps or s.default_steps) if s.epochs is None and s.minutes is None else None
    if fault.step is not None and not 0 <= fault.step < (math.inf if last is None else last):
        raise UsageError(
            f"{name}.step={fault.step}: a fault happens at the beginning of a step of the worker, counted from 0"
            + (f" to {last - 1}." if last is not None else ".")
        )
    if fault.per_step is not None and not 0 <= fault.per_step <= 1:
        raise UsageError(f"{name}.per_step={fault.per_step:g}: is the probability of a step, from 0 to 1.")
    for part in ("seconds", "factor", "steps"):
        if part in said and not (math.isfinite(said[part]) and said[part] > 0):
            raise UsageError(f"{name}.{part}={said[part]:g}: must be a number greater than 0.")
    if "factor" in said and fault.factor < 1:
        raise UsageError(f"{name}.factor={fault.factor:g}: says how many times as long a gradient takes, at least 1.")
