"""`easgd bench calibrate`: a run's seconds as settings of launcher=simulated."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.commands import compose, output
from easgd_cli.commands.words import taken
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.system.terminal import printable, tell

if TYPE_CHECKING:
    from easgd_cli.bench.calibrate import Calibration, Measured


def main(words: Sequence[str]) -> int:
    """Prints the settings, and writes them where asked; returns the exit status. Raises UsageError and RunError."""
    given, runs = taken(words, ("--yaml",))
    if strange := next((word for i, word in enumerate(runs) if i or word.startswith("-")), None):
        raise UsageError(
            f"bench calibrate {strange}: takes one run directory, and --yaml FILE; see easgd bench --help."
        )
    if not runs:
        raise UsageError("bench calibrate: name the directory of a finished run of launcher=local or distributed.")
    run, out = Path(runs[0]), Path(given["--yaml"]) if "--yaml" in given else None
    if not run.is_dir():
        raise UsageError(f"bench calibrate {run}: there is no such directory.")
    if out is not None and out.suffix != ".yaml":
        raise UsageError(
            f"--yaml {out}: is a file that ends in .yaml; options are found in a directory called launcher."
        )
    doubts: list[str] = []
    settings = compose.resumed(str(run / "config.yaml"), [], {}, doubts)

    from easgd_cli.bench import calibrate

    measured = calibrate.read(run, settings)

    def exchange() -> float:
        from easgd_cli.bench.exchange import seconds_beside

        if not calibrate.of_easgds_own(settings):
            raise UsageError(
                f"bench calibrate {run}: the record does not tell how long an exchange took, and measuring one would "
                f"run the code of algo={settings.algo['name']}; give a run of a method of easgd's own."
            )
        print("The record does not tell how long an exchange took; measuring one on this machine.", file=sys.stderr)
        return seconds_beside(build.method(settings), measured.nbytes // 4, busy=settings.workers - 1)

    for sentence in doubts:
        tell(sentence)
    found = calibrate.calibrate(measured, exchange)
    written = {name: _plain(value) for name, value in found.settings().items()}
    for line in _derived(measured, found):
        print(printable(line))
    print(shlex.join(["launcher=simulated", *(f"launcher.{name}={value}" for name, value in written.items())]))
    if out is not None:
        lines = [
            f"# What {run.name} measured: {settings.algo['name']}, {settings.workers} workers, tau={settings.tau}.",
            "defaults: [simulated]",
        ]
        text = "\n".join([*lines, *(f"{name}: {value}" for name, value in written.items())]) + "\n"
        output.put(out, lambda path: path.write_text(text, encoding="utf-8"))
    return 0


def _derived(m: Measured, c: Calibration) -> Iterator[str]:
    """Yields a line for each figure: its value, and what it was found from."""
    mean = statistics.fmean(c.compute)
    source = "the step loop's waiting" if c.exchange == m.exchanging else "measured beside processes that compute"
    for name, seconds, said in (
        ("a step", mean, f"from {min(c.compute) * 1000:.4g} to {max(c.compute) * 1000:.4g} ms, exchanges left out"),
        (
            "service",
            c.service,
            f"the master's CPU time for each of {m.exchanges:,} messages, {m.service * 1000:.4g} ms, or the "
            "exchange where that is less",
        ),
        ("an exchange", c.exchange, f"{source}; {c.queueing * 1000:.2g} ms of it behind others"),
        ("latency", c.latency, "half of what an exchange takes beyond service and queue"),
        ("overhead", c.overhead, f"of a worker for each exchange: {100 * c.overhead / m.tau / mean:.2g} % of a step"),
    ):
        yield f"{name:<12} {seconds * 1000:8.4g} ms  {said}"


def _plain(value: float | list[float]) -> str:
    """Returns the value with four digits, never in the form 1e-05, which YAML reads as a text."""
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    return format(Decimal(f"{value:.4g}"), "f") if value else "0.0"
