"""What a host may say of a worker or master that it has. Anything else ends that worker's or master's connection."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from easgd_cli.launcher.supervisor.parties import ProcessName
from easgd_cli.record.metrics import worker_name
from easgd_cli.system.shared_memory import Layout, SharedTensors
from easgd_cli.training.messages import OF_HOST, OF_MASTER, OF_OWNER, OF_WORKER, Measured
from easgd_cli.training.snapshot import EVALUATED
from easgd_cli.transport.connection import RulesBroken

_MOST = 1 << 53  # whole numbers up to this are exact in whatever reads them
_STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

Marks = Mapping[str, Callable[[Any], bool]]


@dataclass(frozen=True)
class Words:
    """What may be said of one `party` of a run of so many `workers`, whose vectors have this `layout`. `alone`: True
    for a worker without exchange, which owns what is evaluated.
    """

    party: ProcessName
    workers: int
    layout: Layout
    alone: bool = False

    def check(self, message: Mapping[str, Any], enclosed: SharedTensors | None) -> None:
        """Raises RulesBroken for a message that may not be said of the party, or not with these vectors."""
        of_party = OF_MASTER if isinstance(self.party, str) else (*OF_WORKER, *(OF_OWNER if self.alone else ()))
        marks = self._marks()
        if not any(fits(message, form, marks) for form in (*OF_HOST, *of_party)):
            raise RulesBroken
        if not self._belongs(message, {} if enclosed is None else enclosed.layout):
            raise RulesBroken

    def _marks(self) -> Marks:
        clocks = {str(self.party)} if self.alone else set(map(str, range(self.workers)))
        return {
            "number": range(self.workers).__contains__,
            "own": lambda name: isinstance(self.party, int) and name == worker_name(self.party),
            "clocks": lambda of: of.keys() == clocks,
            "ending": lambda number: number in set(signal.Signals) and number not in _STOPPING,
        }

    def _belongs(self, message: Mapping[str, Any], layout: Layout) -> bool:
        """Returns whether vectors of this layout belong to the message."""
        if message["kind"] not in ("state", "snapshot"):
            return not layout
        measured = EVALUATED.keys() & self.layout.keys()
        if message["purpose"] == "evaluate":
            needed = wanted = measured
        else:  # a worker's layout has scratch vectors, too, which it need not send
            wanted = set(self.layout)
            needed = wanted if isinstance(self.party, str) else measured
        return needed <= layout.keys() <= wanted and all(self.layout[name] == of for name, of in layout.items())


def fits(value: Any, form: Any, marks: Marks) -> bool:
    """Returns whether a value from JSON is of the type `form`. `marks`: what else is asked of annotated types."""
    of, arguments = get_origin(form), get_args(form)
    if form == Measured:
        return type(value) is float or _is_number(value)
    if of is Annotated:
        plain, mark = arguments
        return fits(value, plain, marks) and (value in mark if isinstance(mark, range) else marks[mark](value))
    if of in (UnionType, Union):
        return any(fits(value, one, marks) for one in arguments)
    if of is Literal:
        return value in arguments
    if of is list:
        return isinstance(value, list) and all(fits(one, arguments[0], marks) for one in value)
    if of is tuple:
        return (
            isinstance(value, list) and len(value) == len(arguments)
            and all(fits(one, part, marks) for one, part in zip(value, arguments, strict=True))
        )  # fmt: skip
    if of is dict:
        return isinstance(value, dict) and all(
            fits(key, str, marks) and fits(one, arguments[1], marks) for key, one in value.items()
        )
    if is_typeddict(form):
        return isinstance(value, dict) and _has_keys(value, *_keys(form), marks)
    if form is str:
        return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
    if form is float:
        return _is_number(value)
    return type(value) is form and (form is not int or _is_number(value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_MOST <= value <= _MOST


def _has_keys(value: dict[str, Any], keys: Mapping[str, Any], needed: frozenset[str], marks: Marks) -> bool:
    return needed <= value.keys() <= keys.keys() and all(fits(one, keys[key], marks) for key, one in value.items())


@cache
def _keys(form: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Returns the types of a TypedDict's keys, and the keys that it needs."""
    hints = get_type_hints(form, include_extras=True)
    plain = {key: get_args(of)[0] if get_origin(of) is NotRequired else of for key, of in hints.items()}
    return plain, frozenset(key for key, of in hints.items() if get_origin(of) is not NotRequired)
