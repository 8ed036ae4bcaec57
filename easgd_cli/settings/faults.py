"""Faults on purpose: the entries of `faults`, checked, and when each fault happens.

A worker's fault happens at the beginning of its own step, and once: a worker that comes back with the clock `spared`
has had all faults up to that step. So nobody has to remember which have happened; a worker's clock says it. The faults
of master and evaluator happen when their launcher hears that they are due, once a command.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from easgd_cli.errors import UsageError
from easgd_cli.randomness import FAULTS, key, uniform
from easgd_cli.settings.schema import Settings
from easgd_cli.settings.targets import convert

# of each kind, the settings that it may and that it must have, beside where it happens
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "kill": ((), ()),
    "stop": (("seconds",), ("seconds",)),
    "slow": (("factor", "steps"), ("factor",)),
    "exception": ((), ()),
    "nan": ((), ()),
    "link": (("seconds",), ()),
}
# parties that are no workers, and the setting that says when their fault happens
PARTIES = {"master": "exchange", "evaluator": "evaluation"}
_OF_PARTIES = ("kill", "stop")  # the kinds that these parties suffer
_OF_VARIABLES = ("variable", "exchange", "kind")
_EXAMPLE = "'faults=[{worker: 1, step: 20, kind: kill}]'"


@dataclass(frozen=True)
class Fault:
    """One entry. `worker`: None for all. The fault happens at the worker's own `step`, or at each step with the
    probability `per_step`. A `party` that is no worker suffers it once the master has served `exchange` exchanges, or
    during the evaluator's `evaluation`, counted from 0; the owner of a `variable`, once it has served `exchange`
    exchanges with it.

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
    party: str | None = None
    exchange: int | None = None
    evaluation: int | None = None
    variable: str | None = None

    @property
    def of_worker(self) -> bool:
        """Whether a worker suffers the fault."""
        return self.party is None and self.variable is None


_TYPES = get_type_hints(Fault)


def named(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the entries with `kind: nan` as a text, which a command line has read as the number NaN."""
    return [{part: "nan" if isinstance(v, float) and v != v else v for part, v in entry.items()} for entry in entries]


class Faults:
    """The faults of one worker. `spared`: the step up to which the worker has had its faults."""

    def __init__(self, faults: Sequence[Fault], seed: int, worker: int, spared: int = -1):
        mine = [(i, fault) for i, fault in enumerate(faults) if fault.of_worker and fault.worker in (None, worker)]
        self._at: dict[int, list[Fault]] = {}
        for _, fault in mine:
            if fault.step is not None:
                self._at.setdefault(fault.step, []).append(fault)
        self._drawn = [(key(seed, FAULTS, i), fault) for i, fault in mine if fault.per_step is not None]
        self._slow = [fault for _, fault in mine if fault.kind == "slow"]
        self._worker, self.spared = worker, spared

    def at(self, t: int) -> list[Fault]:
        """Returns the faults of the worker's step t; a function of (seed, worker, t) and of `spared`."""
        if t <= self.spared:
            return []
        drawn = [f for z, f in self._drawn if uniform(z, FAULTS, self._worker, t) < (f.per_step or 0.0)]
        return [*self._at.get(t, ()), *drawn]

    def slowness(self, t: int) -> float:
        """Returns how many times as long as usual the gradient of the worker's step t takes."""
        found = 1.0
        for fault in self._slow:
            begun = t - (fault.step or 0)
            if begun >= 0 and (fault.steps is None or begun < fault.steps):
                found *= fault.factor
        return found


def read(s: Settings) -> tuple[Fault, ...]:
    """Returns the faults of a run; none in a replay, whose recorded order has had them. Raises UsageError."""
    found = tuple(_fault(s, f"faults[{i}]", entry) for i, entry in enumerate(s.faults))
    return found if s.replay is None else ()


def _fault(s: Settings, name: str, entry: Mapping[str, Any]) -> Fault:
    kind = entry.get("kind")
    if kind not in KINDS:
        raise UsageError(f"{name}.kind={kind}: is one of {', '.join(KINDS)}, as in {_EXAMPLE}.")
    if entry.get("party") is not None:
        return _of_party(name, entry)
    if entry.get("variable") is not None:
        return _of_variable(name, entry)
    allowed, needed = KINDS[kind]
    where = ("worker", "step") if kind == "slow" else ("worker", "step", "per_step")
    said = _said(name, f"of kind {kind}", entry, ("kind",), (*where, *allowed))
    if ("step" in said) == ("per_step" in said):
        either = "step" if kind == "slow" else "step, or per_step, a probability"
        raise UsageError(f"{name}: a fault says when it happens by {either}, and by one of them; see {_EXAMPLE}.")
    for part in needed:
        if part not in said:
            raise UsageError(f"{name}: a fault of kind {kind} needs {part}, a number greater than 0.")
    fault = Fault(**said)
    _check(s, name, fault, said)
    return fault


def _said(
    name: str, of: str, entry: Mapping[str, Any], marks: tuple[str, ...], allowed: tuple[str, ...]
) -> dict[str, Any]:
    """What is said of a fault beside its `marks`, and these, each of its type. Raises UsageError."""
    for part, value in entry.items():
        if part not in (*marks, *allowed):
            raise UsageError(f"{name}.{part}={value}: a fault {of} has no such setting; it takes {', '.join(allowed)}.")
    return {part: convert(f"{name}.{part}", value, _TYPES[part]) for part, value in entry.items() if value is not None}


def _check_positive(name: str, said: Mapping[str, Any]) -> None:
    for part in ("seconds", "factor", "steps"):
        if part in said and not (math.isfinite(said[part]) and said[part] > 0):
            raise UsageError(f"{name}.{part}={said[part]:g}: must be a number greater than 0.")


def _of_party(name: str, entry: Mapping[str, Any]) -> Fault:
    """Returns a fault of the master or the evaluator. Raises UsageError."""
    kind, party = entry["kind"], entry["party"]
    if party not in PARTIES:
        raise UsageError(f"{name}.party={party}: is one of {', '.join(PARTIES)}; a worker is written worker: 1.")
    when = PARTIES[party]
    if kind not in _OF_PARTIES:
        raise UsageError(
            f"{name}.kind={kind}: the {party} suffers {' and '.join(_OF_PARTIES)} only; others are workers'."
        )
    said = _said(name, f"of the {party} of kind {kind}", entry, ("kind", "party"), (when, *KINDS[kind][0]))
    for part in (when, *KINDS[kind][1]):
        if part not in said:
            raise UsageError(
                f"{name}: a fault of the {party} of kind {kind} needs {part}, as in "
                "'faults=[{party: master, exchange: 100, kind: kill}]'."
            )
    if said[when] < 0:
        raise UsageError(f"{name}.{when}={said[when]}: is counted from 0.")
    _check_positive(name, said)
    return Fault(**said)


def _of_variable(name: str, entry: Mapping[str, Any]) -> Fault:
    """Returns a fault of the owner of a variable. Raises UsageError."""
    example = "'faults=[{variable: node_1, exchange: 100, kind: kill}]'"
    if entry["kind"] != "kill" or set(entry) != set(_OF_VARIABLES):
        raise UsageError(f"{name}: the owner of a variable suffers kill only, after its own exchange; see {example}.")
    said = {part: convert(f"{name}.{part}", value, _TYPES[part]) for part, value in entry.items()}
    if said["exchange"] < 1:
        raise UsageError(f"{name}.exchange={said['exchange']}: is counted from 1, by the exchanges with that variable.")
    return Fault(**said)


def check_parties(
    faults: Sequence[Fault], processes: bool, has_master: bool, launcher: str, algo: str, mortal: Sequence[str] = ()
) -> None:
    """Refuses faults of a master, evaluator or variable that the run does not have; `mortal`: the variables that can be
    lost. Raises UsageError.
    """
    for i, fault in enumerate(faults):
        if fault.variable is not None and fault.variable not in mortal:
            raise UsageError(
                f"faults[{i}].variable={fault.variable}: of algo={algo} "
                + (f"{', '.join(mortal)} can be lost." if mortal else "no variable can be lost; a tree's nodes can.")
            )
        if fault.variable is not None and processes:
            raise UsageError(
                f"faults[{i}].variable={fault.variable}: under launcher={launcher} one process owns all variables; use "
                "launcher=simulated, or write party: master."
            )
        if fault.party is not None and not processes:
            raise UsageError(
                f"faults[{i}].party={fault.party}: under launcher={launcher} only workers suffer faults, since master "
                "and evaluator are no processes there. Write worker: 1, or leave launcher= out."
            )
        if fault.party == "master" and not has_master:
            raise UsageError(f"faults[{i}].party=master: algo={algo} has no master; write worker: 0.")


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
    _check_positive(name, said)
    if "factor" in said and fault.factor < 1:
        raise UsageError(f"{name}.factor={fault.factor:g}: says how many times as long a gradient takes, at least 1.")
