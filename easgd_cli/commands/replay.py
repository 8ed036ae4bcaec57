"""`easgd train replay=RUN`: goes through the exchanges of a recorded run again, in order, on a virtual cluster."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from easgd_cli.algorithms.base import Method
from easgd_cli.commands import compose, foreign_code, hydra_job, single_run
from easgd_cli.commands.arguments import Arguments
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Outcome
from easgd_cli.order_entry import entry_of, entry_place, entry_worker
from easgd_cli.record import reader, resumption
from easgd_cli.record.row_reader import returns_of
from easgd_cli.settings import faults
from easgd_cli.settings.faults import Fault
from easgd_cli.system.terminal import for_terminal, tell

_CHANGEABLE = ("launcher.", "eval.", "checkpoint.", "hydra.run.dir")
_OPTION = "launcher"  # may be given, too, where it names a virtual cluster


def run(source: Path, asked: Arguments, overrides: Mapping[str, Any], command: str) -> tuple[Outcome, Path]:
    """Replays the run of `source`; prints whether its center is the recorded one. Raises UsageError and RunError."""
    given = f"replay={source}"
    others = _others(given, asked, overrides)
    source = _directory(given, source)
    with compose.composing(asked.config_name) as composed:
        words = asked.overrides if _OPTION in others else ["launcher=simulated", *asked.overrides]
        virtual = composed(words)  # used for its cluster and directory only
    if not isinstance(kinds.launcher(virtual.settings), kinds.Simulated):
        raise UsageError(
            f"{given} {others[_OPTION].input_line}: a recorded order is gone through on a virtual cluster; "
            "use launcher=simulated, or leave it out."
        )
    others.pop(_OPTION, None)
    changes = {key: o.value() for key, o in others.items() if not key.startswith(("launcher.", "hydra."))}
    doubts: list[str] = []
    settings = compose.resumed(str(source / "config.yaml"), [o.input_line for o in others.values()], changes, doubts)
    recorded = reader.summary_of(source, doubts)
    foreign_code.announce(source, settings)
    if build.of_copies(settings):
        raise UsageError(
            f"{given}: torch kept the workers of this run together (launcher={settings.launcher['name']}), so it has "
            "no order to go through; run its command again."
        )
    threads = recorded.get("threads", settings.threads)  # another number rounds sums differently
    if settings.minutes is not None and recorded.get("steps"):  # the minutes were the real clock's
        settings = replace(settings, minutes=None, steps=max(recorded["steps"].values()))
    summed = settings.launcher.get("transport") == "collective" and settings.workers > 2
    faults_of_run = faults.read(settings)  # read before `replay` is set: a replay has none
    # The recorded order ends where the run did, whatever ended it.
    settings = replace(settings, launcher=virtual.settings.launcher, replay=str(source), threads=threads, until={})
    outline, launcher = single_run.checked(settings)
    method = outline.rules
    entries = reader.Entries.of(method, settings.workers, settings.masters)
    order = _checked_order(source, entries)  # before anything is started
    returns = returns_of(source / "metrics.jsonl", settings.workers)
    if settings.masters == 1:
        _refuse_lost_nodes(given, faults_of_run, list(method.variables), order)
        _refuse_half_steps(given, method, order, returns)
    else:
        _refuse_half_exchanges(given, entries.variables, order, returns)
    for sentence in doubts:
        tell(sentence)
    outcome, path = single_run.launch(
        outline, launcher, Path(virtual.run_dir), words, command, partial(hydra_job.run, virtual)
    )
    if outcome.status == "completed":
        print(for_terminal(_compared(source, path, summed), sys.stdout), flush=True)
    return outcome, path


def _others(given: str, asked: Arguments, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the overrides beside `replay`, by key. Raises UsageError for those that a replay cannot have."""
    if asked.multirun:
        raise UsageError(f"{given}: one run is replayed at a time; leave out -m.")
    others = {key: o for key, o in overrides.items() if key != "replay"}
    for key, override in others.items():
        if key != _OPTION and not key.startswith(_CHANGEABLE):
            raise UsageError(
                f"{given} {override.input_line}: a run is replayed with the settings it had; "
                "only a virtual cluster (launcher=, launcher.*), eval.*, checkpoint.* and hydra.run.dir may be given."
            )
    return others


def _directory(given: str, source: Path) -> Path:
    """Returns the run's absolute directory. Raises UsageError where it is missing or has no record of exchanges."""
    if not source.is_dir():
        raise UsageError(f"{given}: there is no such directory; give that of a run.")
    source = source.resolve()
    if not os.path.lexists(source / "exchanges.bin"):
        raise UsageError(f"{given}: holds no exchanges.bin, so this is not the directory of a run.")
    return source


def _refuse_lost_nodes(given: str, faults_of_run: Sequence[Fault], variables: list[str], order: list[int]) -> None:
    """Raises UsageError where a variable was lost by a fault: workers that came to it then went on alone, and the
    record of exchanges does not show which.
    """
    served = Counter(variables[entry_place(entry)] for entry in order)
    for fault in faults_of_run:
        if fault.variable is not None and fault.exchange is not None and served[fault.variable] >= fault.exchange:
            raise UsageError(
                f"{given}: {fault.variable} of this run was lost (faults), and the order of exchanges does not tell "
                "who went on without it; run its command again, which gives the same bits on the virtual cluster."
            )


def _refuse_half_steps(
    given: str, method: Method, order: Sequence[int], returns: Sequence[tuple[int, int, int, int]]
) -> None:
    """Raises UsageError where a worker of gossip died in the middle of a step and came back. Such a worker exchanges
    with its own variable and then with another's; it made the first exchange only, and a replay would make both.
    """
    places = list(method.variables)
    for at, worker, _, _ in returns:
        home = places.index(method.home(worker))
        met = Counter(entry_place(entry) == home for entry in order[:at] if entry_worker(entry) == worker)
        if met[False] and met[True] != met[False]:
            raise UsageError(
                f"{given}: worker {worker} of this run died between its own variable and another's, and came back; the "
                "order of exchanges does not tell what was left out, so this run cannot be gone through again."
            )


def _refuse_half_exchanges(
    given: str, masters: int, order: Sequence[int], returns: Sequence[tuple[int, int, int, int]]
) -> None:
    """Raises UsageError where a worker died while it sent a message to several masters, and came back: it exchanged
    some slices and not the others, and a replay would exchange all.
    """
    met: dict[int, list[list[int]]] = {}  # of each worker that came back: its exchanges with each master before then
    for at, worker, _, master in returns:
        if master < masters:
            before = sum(entry == entry_of(worker, master) for entry in order[:at])
            found = met.setdefault(worker, [[] for _ in range(masters)])[master]
            if before not in found:  # several returns without an exchange in between count as one
                found.append(before)
    for worker, of_masters in met.items():
        if any(found != of_masters[0] for found in of_masters):
            raise UsageError(
                f"{given}: worker {worker} of this run died in the middle of an exchange with its {masters} masters, "
                "and came back; the order of exchanges does not tell what was left out, so this run cannot be gone "
                "through again."
            )


def _checked_order(source: Path, entries: reader.Entries) -> list[int]:
    """Returns the order of exchanges. Raises UsageError for a file that has changed since it was recorded.

    Of a run that was killed, only the part up to its last checkpoint can be checked.
    """
    path = source / "exchanges.bin"
    order = reader.read_order(path, entries)
    held = reader.held_at_the_end(source).get(path.name)
    if wrong := reader.wrong_at_the_end(path, held):
        raise reader.BadFile(path, wrong)
    if held is None:
        resumption.check_order(source)
    return order


def _compared(source: Path, path: Path, summed: bool) -> str:
    """Returns a sentence on whether both centers are equal bit for bit. `summed`: whether the recorded run added the
    messages of more than two workers by all-reduces.
    """
    import torch

    try:
        files = [reader.open_file(p / "center.pt") for p in (source, path)]
        theirs, ours = (torch.load(file, weights_only=True) for file in files)
        apart = max((float((theirs[k].double() - v.double()).abs().max()) for k, v in ours.items()), default=0.0)
        same = theirs.keys() == ours.keys() and all(torch.equal(theirs[k], v) for k, v in ours.items())
    except Exception as e:  # a center.pt of the recorded run that this program has not written
        return f"The center cannot be held against that of {source} ({type(e).__name__})."
    if same:
        return f"The center is that of {source}, bit for bit."
    ours_said, theirs_said = reader.summary_of(path), reader.summary_of(source)
    facts = ("versions", "hardware", "threads", "exchanges", "steps")
    because = "that run was resumed with several workers, say, which is not recorded exactly"
    if changed := [name for name in facts if ours_said.get(name) != theirs_said.get(name)]:
        because = f"the two differ in {', '.join(changed)} (summary.json)"
    if summed:
        because = "an all-reduce sums in another order, which differs in the last bits, and training makes more of them"
    return f"The center differs from that of {source} by up to {apart:.3g}: {because}."
