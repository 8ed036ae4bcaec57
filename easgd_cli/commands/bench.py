"""`easgd bench`: what computing, loading data and communicating cost on this hardware, each beside its floor or peer."""

from __future__ import annotations

import difflib
import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from easgd_cli import build
from easgd_cli.bench.measure import Row
from easgd_cli.commands import arguments, compose, running
from easgd_cli.config import Settings
from easgd_cli.errors import UsageError

if TYPE_CHECKING:
    from easgd_cli.bench.calibrate import Calibration, Measured

_HELP = """usage: easgd bench WHAT [KEY=VALUE ...] [--windows N] [--json FILE]
       easgd bench calibrate RUN [--yaml FILE]

Each figure is measured in windows that alternate with those of its floor or peer, in the same run; the ratio is the
median over the windows, with its range.

  exchange   the center's rule, and a whole exchange as a worker sees it, against copying memory
  scaling    a run of the given settings against as many plain PyTorch loops that never communicate (workers=1: against one)
  data       batches of the given data set, cropped and mirrored, against torchvision's DataLoader, on one core; of
             photos in files against its ImageFolder on the originals
  startup    seconds from the command to the first step of every worker

  easgd bench exchange
  easgd bench scaling algo=easgd dataset=synthetic model=convnet7 workers=2 tau=10 batch_size=128 steps=40
  easgd bench startup workers=8

  calibrate  the settings of launcher=simulated with which a simulation takes as long as RUN did, a finished run of
             launcher=local; they belong to its net, batch size, number of workers and machine. --yaml writes them as an
             option: easgd train --config-dir DIR launcher=mine takes DIR/launcher/mine.yaml

  easgd bench calibrate runs/2026-11-24_12-00-00_algo=downpour,workers=2 --yaml my_configs/launcher/mine.yaml

Settings are those of easgd train. --windows: how many windows of each side (10). --json: write the figures there, too.
"""

_WHAT = ("exchange", "scaling", "data", "startup", "calibrate")


def main(argv: Sequence[str]) -> int:
    """Measures and prints a table; returns the exit status. Raises UsageError."""
    if not argv or "-h" in argv or "--help" in argv:
        print(_HELP, end="")
        return 0
    what, *rest = argv
    if what not in _WHAT:
        near = difflib.get_close_matches(what, _WHAT, 1)
        raise UsageError(f"bench {what}: there is no such benchmark; " + (f"did you mean {near[0]}?" if near else f"there are: {', '.join(_WHAT)}."))
    if what == "calibrate":
        return _calibrate(rest)
    windows, out, overrides = 10, None, []
    words = iter(rest)
    for word in words:
        if word == "--windows":
            windows = _whole(next(words, ""))
        elif word == "--json":
            out = Path(next(words, ""))
        else:
            overrides.append(word)
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--json {out}: there is no directory {out.parent}.")
    rows = list(_measure(what, overrides, windows))
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def _calibrate(words: list[str]) -> int:
    run, out, rest = None, None, iter(words)
    for word in rest:
        if word == "--yaml" or word.startswith("--yaml="):
            out = Path(word.partition("=")[2] if "=" in word else next(rest, ""))
        elif word.startswith("-") or run is not None:
            raise UsageError(f"bench calibrate {word}: takes one run directory, and --yaml FILE; see easgd bench --help.")
        else:
            run = Path(word)
    if run is None:
        raise UsageError("bench calibrate: name the directory of a finished run of launcher=local.")
    if not run.is_dir():
        raise UsageError(f"bench calibrate {run}: there is no such directory.")
    if out is not None and (out.suffix != ".yaml" or not out.parent.is_dir()):
        raise UsageError(f"--yaml {out}: is a file that ends in .yaml, in a directory that is there; options are found in one called launcher.")
    settings = compose.resumed(str(run / "config.yaml"), [], {})

    from easgd_cli.bench import calibrate

    measured = calibrate.read(run, settings)

    def exchange() -> float:
        from easgd_cli.bench.exchange import seconds_beside

        print("The record does not tell how long an exchange took; measuring one on this machine.", file=sys.stderr)
        return seconds_beside(build.method(settings), measured.nbytes // 4, busy=settings.workers - 1)

    found = calibrate.calibrate(measured, exchange)
    written = {name: _plain(value) for name, value in found.settings().items()}
    for line in _derived(measured, found):
        print(line)
    print(shlex.join(["launcher=simulated", *(f"launcher.{name}={value}" for name, value in written.items())]))
    if out is not None:
        lines = [f"# What {run.name} measured: {settings.algo['name']}, {settings.workers} workers, tau={settings.tau}.", "defaults: [simulated]"]
        out.write_text("\n".join([*lines, *(f"{name}: {value}" for name, value in written.items())]) + "\n", encoding="utf-8")
    return 0


def _derived(m: Measured, c: Calibration) -> Iterator[str]:
    """What was found, and from what, a line each."""
    mean = statistics.fmean(c.compute)
    source = "the step loop's waiting" if c.exchange == m.exchanging else "measured beside processes that compute"
    for name, seconds, said in (
        ("a step", mean, f"from {min(c.compute) * 1000:.4g} to {max(c.compute) * 1000:.4g} ms, exchanges left out"),
        ("service", c.service, f"the master's CPU time for each of {m.exchanges:,} messages, {m.service * 1000:.4g} ms, or the exchange where that is less"),
        ("an exchange", c.exchange, f"{source}; {c.queueing * 1000:.2g} ms of it behind others"),
        ("latency", c.latency, "half of what an exchange takes beyond service and queue"),
        ("overhead", c.overhead, f"of a worker for each exchange, not simulated: {100 * c.overhead / m.tau / mean:.2g} % of a step"),
    ):
        yield f"{name:<12} {seconds * 1000:8.4g} ms  {said}"


def _plain(value: float | list[float]) -> str:
    """Four digits, as Hydra and YAML read them: never 1e-05, which is a text to YAML."""
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    return format(Decimal(f"{value:.4g}"), "f") if value else "0.0"


def _measure(what: str, overrides: list[str], windows: int) -> Iterator[Row]:
    settings = _settings(overrides)
    console = Console()
    if what == "startup":
        from easgd_cli.bench.startup import seconds_to_first_steps

        seconds = [seconds_to_first_steps(overrides, settings.workers) for _ in range(windows)]
        console.print(
            f"command to the first step of every one of {settings.workers} workers: median {statistics.median(seconds):.2f} s, "
            f"from {min(seconds):.2f} to {max(seconds):.2f} s, {windows} times"
        )
        return
    if what == "exchange":
        from easgd_cli.bench.exchange import run as measure_exchange

        if not build.method(settings).center:
            raise UsageError(f"bench exchange algo={settings.algo['name']}: this method never exchanges; leave algo out, or name one with a center.")
        found = measure_exchange(build.method(settings), windows)
    elif what == "data":
        from easgd_cli.bench.data import run as measure_data
        from easgd_cli.bench.data import run_stored as measure_stored
        from easgd_cli.data.images import Images
        from easgd_cli.data.stored import StoredImages

        images = build.prepare(settings).images
        if images is None:
            raise UsageError(f"bench data problem={settings.problem['name']}: this problem has no data set; use problem=dataset.")
        if isinstance(images, StoredImages):
            originals = Path(settings.dataset.get("root", "")) / "train"
            if not originals.is_dir():
                raise UsageError(f"bench data dataset={settings.dataset['name']}: torchvision's peer reads the originals, and {originals} is not there.")
            if images.count("train") < settings.batch_size:
                raise UsageError(f"batch_size={settings.batch_size}: must be at most the {images.count('train')} images that torchvision makes batches of.")
            found = iter(measure_stored(images, originals, settings.batch_size, windows))
        elif isinstance(images, Images):
            found = iter(measure_data(images, settings.batch_size, windows))
        else:
            raise AssertionError(f"a {type(images).__name__}")
    else:
        from easgd_cli.bench.scaling import run as measure_scaling

        found = measure_scaling(settings, build.prepare(settings), windows)
    for row in found:
        console.print(_table(row))
        yield row


def _table(row: Row) -> Table:
    table = Table(title=row.what, title_justify="left")
    for heading in (row.unit, f"{row.peer_name}, {row.unit}", "ratio", "range", "windows", "target"):
        table.add_column(heading, justify="right")
    target = "" if row.target is None else f">= {row.target:g}"
    table.add_row(f"{row.figure:.4g}", f"{row.peer:.4g}", f"{row.ratio:.3f}", f"{row.least:.3f} to {row.greatest:.3f}", str(row.windows), target)
    return table


def _settings(overrides: list[str]) -> Settings:
    asked = arguments.parse(overrides)
    arguments.parse_overrides(asked.overrides)
    with compose.composing(asked.config_name) as composed:
        settings = composed(asked.overrides).settings
    running.checked(settings)
    return settings


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--windows {text}: must be a whole number of at least 1.")
    return int(text)
