"""`easgd eval`: measures what a run has saved, on its data set or another, and says which classes it confuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from easgd_cli.commands import arguments, compose, foreign_code, output, single_run
from easgd_cli.commands.words import taken
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.problems.classification import metrics_of
from easgd_cli.problems.metric import Metrics
from easgd_cli.record import checksum, reader
from easgd_cli.record.display import Screen
from easgd_cli.settings.schema import Settings
from easgd_cli.system.terminal import help_text, tell

if TYPE_CHECKING:
    from torch import Tensor

_HELP = """usage: easgd eval RUN [WHAT] [KEY=VALUE ...] [--config-dir DIR] [--json FILE] [--export FILE]

Measures what RUN has saved, as the run itself measures: center patches, dropout off, batch norm's statistics estimated
anew. Code of your own that RUN/config.yaml names is imported, each module with a line on stderr before it runs; what
is damaged is refused.

  center     the center, from center.pt (what is measured unless another is named)
  average    the average of the center, from average.pt
  worker_00  a worker, from the newest checkpoint

Settings are dataset=, dataset.*, eval.train_images and eval.device; the others are those of the run. RUN/config.yaml
holds all of them, so configurations of your own that RUN was started with are not needed again. Code of your own
(my_module:MyNet) is: it is looked for in the working directory and among the installed packages, as when RUN was
started.

  --config-dir DIR  where dataset=NAME is looked for, too
  --json FILE       the figures, the classes' names and the confusion counts (row: the class, column: what it is taken
                    for), as JSON
  --export FILE     the parameters and buffers as a .safetensors file (needs the package safetensors)

  easgd eval runs/my_run
  easgd eval runs/my_run average
  easgd eval runs/my_run worker_02 dataset.root=/data --json worker_02.json
"""

_CHANGEABLE = ("dataset", "eval.train_images", "eval.device")
_WHOLE = 12  # the most classes of which all confusion counts are shown
_PAIRS = 10  # with more classes: how many pairs of confused ones are shown


@dataclass(frozen=True)
class _Asked:
    run: Path
    what: str
    overrides: list[str]
    config_dir: str | None
    json: Path | None
    export: Path | None


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; returns the exit status. Raises UsageError and RunError."""
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(_HELP), end="")
        return 0
    asked = _parse(argv)
    doubts: list[str] = []
    settings = _settings(asked, doubts)
    foreign_code.announce(asked.run, settings)
    single_run.checked(settings)
    needed = build.asked_by_problem(settings)
    if "model" not in needed:
        name = settings.problem["name"]
        raise UsageError(
            f"eval {asked.run}: problem={name} has no net to measure; what its run measured last is in "
            f"{asked.run / 'summary.json'}."
        )

    import torch  # only now: a mistake is answered in a moment

    if settings.init is not None and not asked.what.startswith("worker_"):
        _check(asked, Path(settings.init), doubts)

    from easgd_cli.system.devices import cores, deal_devices

    torch.set_num_threads(cores())
    data = build.data(settings) if build.asks_for_data(settings, needed) else None
    [device] = deal_devices(settings.eval.device, 1, "eval.device")
    problem = _problem(asked, settings, data, device)
    x = _saved(asked, problem.start()).to(device)
    for sentence in doubts:
        tell(sentence)
    figures: dict[str, Any] = problem.evaluate(x)
    # a user's own problem may have no classes
    counts = problem.confusion(x) if hasattr(problem, "confusion") else None
    said = {"run": str(asked.run), "what": asked.what, "dataset": settings.dataset["name"]} | figures
    if asked.export is not None:
        _export(asked.export, problem.state_dict(x), said)
    classes = data.classes if data is not None else None
    if asked.json is not None:
        content = said | ({"classes": list(classes or ()), "confusion": counts.tolist()} if counts is not None else {})
        output.put(asked.json, lambda path: path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))
    console = Screen()
    console.print(_figures(said, metrics_of(problem)))
    if counts is not None:
        console.print(_confusion(counts, classes, console))
    return 0


def _problem(asked: _Asked, settings: Settings, data: Any, device: str) -> Any:
    """Builds the problem. Raises UsageError where the file of parameters does not fit the data."""
    import torch

    try:
        return build.problem(settings, data, torch.device(device))
    except UsageError as e:
        if asked.what.startswith("worker_") or not str(e).startswith(given := f"init={settings.init}"):
            raise
        # only the fact is taken from this sentence: its advice is for a run that starts from the file
        fact = str(e).removeprefix(given).partition("; ")[0].removesuffix(".")
        raise UsageError(
            f"eval {asked.run} dataset={settings.dataset['name']}: {asked.what}.pt does not fit these "
            f"data{fact}; use the data set of the run."
        ) from e


def _parse(argv: Sequence[str]) -> _Asked:
    given, words = taken(argv, ("--config-dir", "--json", "--export"))
    config_dir = given.pop("--config-dir", None)
    for option, value in given.items():
        if not value or not Path(value).absolute().parent.is_dir():
            raise UsageError(f"{option} {value}: names a file in a directory that is there.")
    if strange := next((word for word in words if word.startswith("-")), None):
        raise UsageError(f"{strange}: there is no such option; see easgd eval --help.")
    files = {option: Path(value) for option, value in given.items()}
    if not words:
        raise UsageError("eval: name the directory of a run; see easgd eval --help.")
    run = Path(words.pop(0))
    if not run.is_dir():
        raise UsageError(f"eval {run}: there is no such directory.")
    what = words.pop(0) if words and "=" not in words[0] else "center"
    if what not in ("center", "average") and not (what.startswith("worker_") and what[7:].isdigit()):
        raise UsageError(
            f"eval {run} {what}: is center, average or a worker such as worker_00; settings are written key=value."
        )
    export = files.get("--export")
    if export is not None and export.suffix != ".safetensors":
        raise UsageError(f"--export {export}: is a file that ends in .safetensors.")
    return _Asked(run, what, words, config_dir, files.get("--json"), export)


def _settings(asked: _Asked, doubts: list[str]) -> Settings:
    """Returns the run's settings with the data set asked for, and the file to measure as init. Raises UsageError."""
    parsed = arguments.parse(
        [*asked.overrides, *([] if asked.config_dir is None else ["--config-dir", asked.config_dir])]
    )
    words = parsed.overrides
    given = {o.key_or_group: o for o in arguments.parse_overrides(words)}
    for key, o in given.items():
        if key not in _CHANGEABLE and not key.startswith("dataset."):
            raise UsageError(
                f"{o.input_line}: a run is measured with the settings it had; only dataset=, dataset.*, "
                "eval.train_images and eval.device may be given."
            )
    if not (asked.run / "config.yaml").exists():
        raise UsageError(f"eval {asked.run}: holds no config.yaml, so this is not the directory of a run.")
    path = str(asked.run / "config.yaml")
    other = given.get("dataset")
    changes = {key: o.value() for key, o in given.items() if other is None or key.startswith("eval.")}
    settings = compose.resumed(path, words, changes, doubts)
    if other is not None:
        of_data = [str(o.input_line) for key, o in given.items() if key.startswith("dataset")]
        with compose.composing("config") as composed:
            searched = arguments.with_search_path(replace(parsed, overrides=of_data)).overrides
            settings = replace(settings, dataset=composed([*searched, "eta=0", "steps=1"]).settings.dataset)
    file = asked.run / f"{asked.what}.pt"
    if asked.what.startswith("worker_"):
        return settings
    try:
        reader.open_file(file).close()
    except reader.MissingFile:
        reason = f"its status is {reader.status_of(asked.run) or 'not known'}"
        if asked.what == "average" and settings.average["name"] == "none":
            reason = "this run keeps no average"
        raise UsageError(
            f"eval {asked.run} {asked.what}: there is no {file.name} ({reason}); a worker of its newest "
            "checkpoint can be measured as worker_00."
        ) from None
    return replace(settings, init=str(file), init_prefix=None, init_without=[])


def _saved(asked: _Asked, start: Tensor) -> Tensor:
    """Returns the vector [d] to measure: a worker's from the newest checkpoint, else `start`, the parameters that were
    read from init. Raises UsageError.
    """
    if not asked.what.startswith("worker_"):
        return start
    workers = reader.newest_checkpoint(asked.run).workers
    number = int(asked.what[7:])
    if number not in workers:
        raise UsageError(
            f"eval {asked.run} {asked.what}: the newest checkpoint has no such worker; it has "
            f"{', '.join(f'worker_{i:02d}' for i in workers)}."
        )
    x = workers[number].vectors["x"]
    if x.numel() != start.numel():
        raise UsageError(
            f"eval {asked.run} {asked.what}: has {x.numel():,} parameters and the net for this data set "
            f"{start.numel():,}; use the data set of the run."
        )
    if not bool(x.isfinite().all()):
        raise UsageError(f"eval {asked.run} {asked.what}: {_not_finite(asked)}")
    return x


def _check(asked: _Asked, file: Path, doubts: list[str]) -> None:
    """Raises UsageError for a file of parameters that is damaged, or holds numbers that are not finite."""
    import torch

    wrong = reader.wrong_at_the_end(file, reader.held_at_the_end(asked.run, doubts).get(file.name))
    with reader.open_file(file) as f:
        wrong = wrong or checksum.wrong_archive(f)
        if wrong is not None:
            raise reader.BadFile(file, wrong)
        try:
            state = torch.load(f, map_location="cpu", weights_only=True)
            finite = all(bool(v.isfinite().all()) for v in state.values() if isinstance(v, torch.Tensor))
        except Exception as e:  # which error torch raises depends on what the damaged file holds
            raise reader.BadFile(file, f"cannot be read as parameters ({type(e).__name__})") from e
    if not finite:
        raise UsageError(f"eval {asked.run} {asked.what}: {_not_finite(asked)}")


def _not_finite(asked: _Asked) -> str:
    summary = reader.summary_of(asked.run)
    because = f" ({summary['reason']})" if summary.get("reason") else ""
    run = f"this run diverged{because}, and " if summary.get("status") == "diverged" else ""
    return f"{run}its {asked.what} is not finite, so there is nothing to measure."


def _export(path: Path, state: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise UsageError(
            f"--export {path}: needs the package safetensors; install it with pip install safetensors."
        ) from None
    metadata = {key: str(value) for key, value in said.items()}
    output.put(path, lambda beside: save_file(dict(state), str(beside), metadata=metadata))


def _figures(said: Mapping[str, Any], metrics: Metrics) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in said.items():
        shown = metrics[key].with_unit(f"{value:.4g}") if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), shown)
    return table


def _confusion(counts: Tensor, classes: Sequence[str] | None, console: Console) -> Table:
    """Returns a table of how many test samples of each class (row) are taken for each class (column); with many
    classes, of the pairs that are confused most often.
    """
    numbers = [str(c) for c in range(len(counts))]
    # a class may be named by a folder, whose name may hold any bytes
    names = [escape(name.encode(errors="replace").decode()) for name in classes] if classes is not None else numbers
    if len(names) <= _WHOLE:
        table = _whole(counts, names, names)
        unbounded = console.options.update(width=10_000)  # else measure() returns the console's width at most
        # too wide: columns are headed by numbers, which the rows explain
        if console.measure(table, options=unbounded).minimum > console.width:
            table = _whole(counts, [f"{number} {name}" for number, name in zip(numbers, names, strict=True)], numbers)
        return table
    table = Table(title="the classes most often confused", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("class", "taken for", "test samples"):
        table.add_column(heading, justify="right" if heading == "test samples" else "left")
    for i, j, n in _most_confused(counts):
        table.add_row(names[i], names[j], str(n))
    return table


def _whole(counts: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Table:
    title = "test samples of a class (row) by what they are taken for"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("", overflow="fold")  # in a narrow terminal class names are folded, and counts are not
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for i, (name, row) in enumerate(zip(rows, counts.tolist(), strict=True)):
        total = sum(row)
        cells = [f"[bold]{n}[/bold]" if i == j else str(n) if n else "." for j, n in enumerate(row)]
        table.add_row(name, *cells, f"{100 * (total - row[i]) / total:.3g} %" if total else "")
    return table


def _most_confused(counts: Tensor) -> Iterator[tuple[int, int, int]]:
    others = counts.clone()
    others.fill_diagonal_(0)
    for at in others.flatten().argsort(descending=True, stable=True)[:_PAIRS].tolist():
        i, j = divmod(at, len(counts))
        if n := int(others[i, j]):
            yield i, j, n
