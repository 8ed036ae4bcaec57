"""`easgd join`: this machine takes part in a run whose master is on another one."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from easgd_cli.errors import RunError, UsageError
from easgd_cli.launcher.hosts.world import World
from easgd_cli.system import network
from easgd_cli.system.terminal import help_text, tell

if TYPE_CHECKING:
    from easgd_cli.experiment.build import Experiment

_HELP = """usage: easgd join HOST:PORT [workers=N] [masters=N] [wait=SECONDS]

Offers this machine to the run that easgd train launcher=distributed has begun at HOST:PORT, for N of its workers, one
for each CUDA device unless given, and for N of its masters, one unless given, where some are not to be on the first
host. The run's settings come from there; its data, and modules of your own that it names, are looked for here as they
were there, from the working directory. It waits so many seconds for the run, 60 unless given, and ends with it. Of a
sweep it takes part in one job after another, and waits so long for each.

EASGD_SECRET, or a file named by EASGD_SECRET_FILE, has what the hosts of a run have in common (docs/cluster.md).

Exit status: that of the run, of several the highest; 2 where this machine cannot take part.
"""

_WAIT_SECONDS = 60.0


def main(argv: Sequence[str]) -> int:
    """Takes part until the run has ended; returns its exit status. Raises UsageError and RunError."""
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(_HELP), end="")
        return 0
    address, *rest = argv
    given: dict[str, float] = {}
    for word in rest:
        key, _, value = word.partition("=")
        if key not in ("workers", "masters", "wait"):
            raise UsageError(f"join {word}: takes an address, workers=, masters= and wait=; all else is the run's own.")
        try:
            number = float(value)
            assert number >= 0 and (key == "wait" or number == int(number))
        except (ValueError, OverflowError, AssertionError) as e:
            raise UsageError(f"join {word}: is a number, such as {key}=2.") from e
        given[key] = number
    places, masters = int(given["workers"]) if "workers" in given else None, int(given.get("masters", 1))
    if places == masters == 0:
        raise UsageError("join workers=0 masters=0: a host is there for workers or masters; leave out one of the two.")
    _take_part(address, places, masters, given.get("wait", _WAIT_SECONDS))


def follow(world: World) -> int:
    """Takes part in a run as one of torchrun's or SLURM's further processes. One process on each host takes part for
    all of that host, and ends with the run's exit status; the others return 0. Raises UsageError and RunError.
    """
    if world.local_rank != 0:
        return 0
    if world.size > world.local_size:  # checked first: without a secret, find() would only report that nobody answers
        asked, host = world.address()
        network.secret(asked, network.resolved(asked, host))
    _take_part(world.find(), world.local_size, 1, _WAIT_SECONDS, led=True)


def _take_part(where: str, places: int | None, masters: int, wait: float, led: bool = False) -> NoReturn:
    """Takes part in a run, or in several one after another, and ends the process with the run's exit status, or the
    highest. `led`: whether the process that makes the run has told this one where it is.
    """
    host, port = network.split("join ", where)
    address = network.resolved(f"join {where}", host)
    secret = network.secret(f"join {where}", address)
    from easgd_cli.launcher.hosts import agent  # here, since it loads torch

    places = agent.usual_places() if places is None else places
    status, part = 0, None
    try:
        while part is None or part.stays:
            given = secret, places, masters, wait, _prepared
            part = agent.Agent((address, port), *given, again=part is not None, led=led)
            status = max(status, part.run())
    except agent.Over as e:
        tell(str(e))
        status = status if part is not None else 1
    except (UsageError, RunError) as e:
        tell(str(e))
        status = 2 if isinstance(e, UsageError) else 1
    sys.stdout.flush()
    os._exit(status)  # the interpreter's normal exit would cut off threads that are giving vectors back


def _prepared(settings: dict[str, Any], places: int, masters: int) -> Experiment:
    """Builds the experiment by the run's settings here, for so many workers and masters. Raises UsageError."""
    import yaml

    from easgd_cli.commands import compose, foreign_code
    from easgd_cli.experiment import build
    from easgd_cli.launcher.hosts.first_host import masters_elsewhere

    with tempfile.TemporaryDirectory(prefix="easgd-") as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        composed = compose.resumed(str(path), [], {})
        foreign_code.announce(Path(directory), composed)
    tell(f"preparing {composed.problem['name']}, in {os.getcwd()}")
    # the evaluator is on the first host, and its device need not exist here
    here = replace(composed, eval=replace(composed.eval, device="cpu"))
    return build.prepare(here, places, min(masters, masters_elsewhere(here)))
