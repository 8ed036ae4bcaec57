"""`easgd bench`: what computing, data and communication cost on this hardware, each beside its floor or peer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from easgd_cli.commands import arguments, calibrate, compose, plan, single_run
from easgd_cli.commands.words import meant, taken
from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.experiment import build
from easgd_cli.settings.schema import Settings
from easgd_cli.system.terminal import help_text, printable, tell

if TYPE_CHECKING:
    from easgd_cli.bench.measure import Row
    from easgd_cli.bench.startup import Startup
    from easgd_cli.bench.table4 import Spent

_HELP = """usage: easgd bench WHAT [KEY=VALUE ...] [--windows N] [--json FILE]
       easgd bench calibrate RUN [--yaml FILE]

Each figure is measured in windows that alternate with those of its floor or peer, in the same run; the ratio is the
median over the windows, with its range.

  step       one worker against a plain PyTorch loop; the given settings against as many of them that never communicate;
             and with several workers the same at tau=1 against DistributedDataParallel, and that against the plain
             loops
  scaling    runs of 1, 2, ... up to the given number of workers, each against as many plain loops: the efficiency. A
             list, workers=1,4,16, has these numbers only; lists of other settings as in a sweep
  table4     seconds of a worker that compute, load data and communicate, by number of workers and tau, as in the
             paper's Table 4, whose own stand beside DOWNPOUR's at tau=1 and EASGD's at tau=10 with its net and batches;
             lists of values as in a sweep; each run once
  exchange   the center's rule, and a whole exchange as a worker sees it, against copying memory; device=cuda: from a
             GPU. With launcher.transport=collective: a round of a synchronous method by an all-reduce, against the same
             over sessions, and against DistributedDataParallel's all-reduce alone
  data       batches of the given data set, cropped and mirrored, against torchvision's DataLoader, on one core; of
             photos in files against its ImageFolder on the originals
  startup    seconds from the command to the first step of every worker
  network    the links to other hosts, on each of which easgd join HOST:PORT is called: what they carry, and an exchange
             of the given net over them against the bytes alone. --hosts N: how many join (1); --step SECONDS, of a
             local step, and --share S, of a worker's time (0.05): the tau for it; --gloo: beside what torch's gloo
             makes of the same links, over ports that check nobody. With a list, masters=1,2,4: instead the exchanges
             of one worker, and of one on each host at once, with so many masters, of which launcher.masters_here= are
             on the first host (all) and the others on the hosts that join, in turn

  easgd bench step algo=easgd dataset=synthetic model=convnet7 workers=2 batch_size=128 steps=30
  easgd bench scaling algo=easgd dataset=synthetic model=convnet7 workers=4 tau=10 batch_size=128 steps=40
  easgd bench table4 algo=downpour,easgd dataset=synthetic model=convnet7 workers=1,4 tau=1,10 batch_size=128 steps=20
  easgd bench exchange
  easgd bench exchange algo=sync_easgd launcher.transport=collective workers=2
  easgd bench startup workers=8
  easgd bench network launcher.address=10.0.0.1:2950 dataset=cifar10 --hosts 2 --step 0.05
  easgd bench network launcher.address=10.0.0.1:2950 --hosts 3 masters=1,2,4 launcher.masters_here=1 --gloo

  calibrate  the settings of launcher=simulated with which a simulation takes as long as RUN did, a finished run of
             launcher=local or distributed; they belong to its net, batch size, number of workers and machines. --yaml
             writes them as an option: easgd train --config-dir DIR launcher=mine takes DIR/launcher/mine.yaml

  easgd bench calibrate runs/2026-11-24_12-00-00_algo=downpour,workers=2 --yaml my_configs/launcher/mine.yaml

Settings are those of easgd train. --windows: how many windows of each side (10). --json: write the figures there, too.
"""


_WINDOWS = 10  # unless given


@dataclass(frozen=True)
class _Asked:
    """A benchmark's command line. `windows`: None where not given."""

    what: str
    overrides: list[str]
    windows: int | None
    out: Path | None


def main(argv: Sequence[str]) -> int:
    """Measures and prints tables; returns the exit status. Raises UsageError, and RunError when a run fails."""
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(_HELP), end="")
        return 0
    what, *rest = argv
    if what == "calibrate":
        return calibrate.main(rest)
    if what not in _MEASURED:
        raise UsageError(f"bench {what}: there is no such benchmark; {meant(what, [*_MEASURED, 'calibrate'])}")
    asked = _parsed(what, rest)
    found = []
    console = Console()
    for figures in _MEASURED[what](asked):
        found.append(figures)
        if what != "table4":
            console.print(_table([figures]))
    if what == "table4":  # one table, since its rows are compared with each other
        console.print(_table(found))
    if asked.out is not None:
        try:
            asked.out.write_text(json.dumps([asdict(figures) for figures in found], indent=2) + "\n")
        except OSError as e:
            raise RunError(f"--json {asked.out}: cannot be written ({why(e)}); the figures are those above.") from e
    return 0


def _parsed(what: str, rest: Sequence[str]) -> _Asked:
    given, overrides = taken(rest, ("--windows", "--json"))
    windows = _whole(given["--windows"]) if "--windows" in given else None
    if given.get("--json") == "":
        raise UsageError("--json: name the file, such as --json figures.json.")
    out = Path(given["--json"]) if "--json" in given else None
    if out is not None and (not out.parent.is_dir() or out.is_dir()):
        raise UsageError(
            f"--json {out}: "
            + ("is a directory; name a file." if out.is_dir() else f"there is no directory {out.parent}.")
        )
    return _Asked(what, overrides, windows, out)


def _step(asked: _Asked) -> Iterator[Row]:
    from easgd_cli.bench.step import run

    return run(_timed(asked, _settings(asked)), asked.windows or _WINDOWS)


def _scaling(asked: _Asked) -> Iterator[Row]:
    from easgd_cli.bench.scaling import against_plain

    several = _several(asked)
    if len({s.workers for s in several}) == 1:
        several = [replace(s, workers=p) for s in several for p in range(1, s.workers + 1)]
    for s in several:
        yield against_plain("scaling", s, asked.windows or _WINDOWS)


def _table4(asked: _Asked) -> Iterator[Spent]:
    from easgd_cli.bench.table4 import spent

    if asked.windows is not None:
        raise UsageError(
            f"--windows {asked.windows}: bench table4 makes each run once; give more steps for steadier figures."
        )
    return map(spent, _several(asked))


def _exchange(asked: _Asked) -> Iterator[Row]:
    from easgd_cli.bench.exchange import run

    s = _settings(asked)
    if build.method(s).alone:
        raise UsageError(
            f"bench exchange algo={s.algo['name']}: this method never exchanges; leave algo out, or name one with "
            "a center."
        )
    if s.launcher.get("transport") == "collective":
        from easgd_cli.bench import rounds

        return rounds.run(s.algo["name"], build.method(s), s.workers, asked.windows or _WINDOWS)
    import torch

    from easgd_cli.system.devices import deal_devices

    return run(s.algo["name"], build.method(s), torch.device(deal_devices(s.device, 1)[0]), asked.windows or _WINDOWS)


def _data(asked: _Asked) -> Iterator[Row]:
    from easgd_cli.bench.data import run, run_stored
    from easgd_cli.data.images import Images
    from easgd_cli.data.stored import StoredImages

    s = _settings(asked)
    images = build.prepare(s).data
    if images is None:
        raise UsageError(f"bench data problem={s.problem['name']}: this problem has no data set; use problem=dataset.")
    if isinstance(images, Images):
        yield run(images, s.batch_size, asked.windows or _WINDOWS)
        return
    if not isinstance(images, StoredImages):
        raise UsageError(f"bench data dataset={s.dataset['name']}: is held against torchvision on images; use those.")
    originals = Path(s.dataset.get("root", "")) / "train"
    if not originals.is_dir():
        raise UsageError(
            f"bench data dataset={s.dataset['name']}: torchvision's peer reads the originals, and {originals} is "
            "not there."
        )
    yield run_stored(images, originals, s.batch_size, asked.windows or _WINDOWS)


def _network(asked: _Asked) -> Iterator[Row]:
    from easgd_cli.bench import masters
    from easgd_cli.bench import network as links
    from easgd_cli.launcher import kinds
    from easgd_cli.launcher.distributed import Distributed
    from easgd_cli.system.network import secret
    from easgd_cli.transport.base import SessionEnded
    from easgd_cli.transport.connection import ConnectionEnded

    numbers, counts = {"--hosts": 1.0, "--step": 0.0, "--share": 0.05}, list[int]()
    given, words = taken(asked.overrides, numbers)
    numbers |= {option: _positive(option, value) for option, value in given.items()}
    gloo, words = "--gloo" in words, [word for word in words if word != "--gloo"]
    for at, word in enumerate(words):
        if word.startswith("masters=") and "," in word:
            counts = [_whole(count, "masters=") for count in word.removeprefix("masters=").split(",")]
            words[at] = f"masters={max(counts)}"
    if counts and numbers["--step"]:
        raise UsageError("bench network --step: tau is proposed for one master; leave out --step or the list masters=.")
    s = _settings(replace(asked, overrides=["launcher=distributed", *words]))
    launcher = kinds.launcher(s)
    if not isinstance(launcher, Distributed):
        raise UsageError(f"bench network launcher={s.launcher['name']}: leave out launcher=.")
    size = build.prepare(s).size
    listener, where = launcher.listen()
    tell(f"measuring the links to {numbers['--hosts']:.0f} hosts; on each: easgd join {where}")
    known = secret("launcher.address", listener.getsockname()[0])
    hosts, windows = int(numbers["--hosts"]), asked.windows or _WINDOWS
    try:
        if counts:
            layout = masters.Layout(counts, launcher.masters_here or max(counts), launcher.places_here > 0, hosts)
            found = masters.run(listener, known, layout, size, windows, launcher.wait, gloo=gloo)
            for of in found:
                print(of.line())
                yield from of.rows(found[0])
            return
        for costs in links.run(listener, known, hosts, size, windows, launcher.wait, gloo=gloo):
            print(printable(costs.line()))
            print(links.simulated(costs))
            if numbers["--step"]:
                print(links.proposed(costs, numbers["--step"], numbers["--share"], s.workers))
            yield from costs.rows()
    except (ConnectionEnded, SessionEnded) as e:
        raise RunError(f"bench network: a host has left while it was measured: {e}.") from e


def _positive(option: str, text: str) -> float:
    try:
        number = float(text)
        assert 0 < number < 1e9 and (option != "--share" or number < 1)
    except (ValueError, AssertionError) as e:
        raise UsageError(f"bench network {option} {text}: must be a number above 0, a share one below 1.") from e
    return number


def _startup(asked: _Asked) -> Iterator[Startup]:
    from easgd_cli.bench.startup import run

    fixed = next(
        (o for o in asked.overrides if o.partition("=")[0] in ("steps", "epochs", "minutes", "hydra.run.dir")), None
    )
    if fixed is not None:
        raise UsageError(
            f"bench startup {fixed}: its runs take one step, in directories of their own; leave out "
            f"{fixed.partition('=')[0]}=."
        )
    s = _timed(asked, _settings(asked))
    yield run(asked.overrides, s.workers, asked.windows or _WINDOWS)


_MEASURED: dict[str, Callable[[_Asked], Iterator[Row | Spent | Startup]]] = {
    "step": _step, "scaling": _scaling, "table4": _table4, "exchange": _exchange, "data": _data, "startup": _startup,
    "network": _network,
}  # fmt: skip


def _table(found: Sequence[Row | Spent | Startup]) -> Table:
    """Returns a table with a row for each of `found`, which are of one kind; the first gives title and headings."""
    table = Table(title=found[0].what, title_justify="left")
    for heading in found[0].columns():
        table.add_column(heading, justify="right", overflow="fold")
    for figures in found:
        table.add_row(*figures.columns().values())
    return table


def _settings(asked: _Asked) -> Settings:
    """Composes and checks the settings of a benchmark of one run. Raises UsageError."""
    parsed = arguments.of_one_run(asked.overrides, f"bench {asked.what}")
    with compose.composing(parsed.config_name) as composed:
        settings = composed(parsed.overrides).settings
    single_run.checked(settings)
    if settings.auto.tau:
        raise UsageError(f"bench {asked.what} tau=auto: measures with a period that is given; write tau=N.")
    return settings


def _timed(asked: _Asked, settings: Settings) -> Settings:
    """Returns `settings`, of a benchmark that times real runs. Raises UsageError for settings that cannot be timed."""
    if not build.launched_in_processes(settings):
        raise UsageError(
            f"bench {asked.what} launcher={settings.launcher['name']}: its seconds are virtual, and real ones are "
            "due; leave out launcher=."
        )
    for key, usual in (("accumulate", 1), ("replicas", 1), ("dither", 0)):
        if (given := getattr(settings, key)) != usual:
            raise UsageError(
                f"bench {asked.what} {key}={given}: the loops it is held against take one batch a step as it is; "
                f"leave out {key}=."
            )
    for key in ("resume", "replay"):
        if (path := getattr(settings, key)) is not None:
            raise UsageError(f"bench {asked.what} {key}={path}: makes runs of its own; leave out {key}=.")
    return settings


def _several(asked: _Asked) -> list[Settings]:
    """Returns the settings of each combination of values, as in a sweep. Names and leaves out those that cannot run."""
    parsed = arguments.with_search_path(arguments.parse([*asked.overrides, "--multirun"]))
    with compose.composing(parsed.config_name) as composed:
        planned = plan.make(parsed, arguments.parse_overrides(parsed.overrides), composed)
    assert isinstance(planned, plan.Plan)  # since --multirun asks for one
    for words, sentence in planned.left_out:
        tell(f"left out: {words}. {sentence}")
    return [_timed(asked, member.settings) for member in planned.jobs]


def _whole(text: str, key: str = "--windows ") -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{key}{text}: must be a whole number of at least 1.")
    return int(text)
