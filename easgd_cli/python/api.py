"""Runs from Python: `train`, `load`, `report`, `stop`, with the command line's settings, checks and directories."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easgd_cli.commands import auto_tau, foreign_code, going_on, single_run
from easgd_cli.errors import UsageError
from easgd_cli.launcher import signals
from easgd_cli.python import keywords
from easgd_cli.python.run import Run
from easgd_cli.record import reader, run_directory
from easgd_cli.settings.schema import Group
from easgd_cli.settings.targets import Handed
from easgd_cli.system.terminal import tell
from easgd_cli.system.unchanged import unchanged_process

if TYPE_CHECKING:
    from torch import Tensor, nn


def train(
    model: nn.Module | Callable[..., nn.Module] | str | None = None,
    train: Any = None,
    test: Any = None,
    *,
    loss: Callable[[Any, Any], Tensor] | str | None = None,
    resume: Run | str | Path | None = None,
    directory: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Trains a model with many workers around a center, and returns the run when it has ended: completed, or diverged,
    which is a result.

    `model`: a net, with whose weights all workers begin and which stays as it is; a callable that makes one, which may
    ask for `num_classes` and `input_shape`; or a name, as in `easgd train model=`. None: the default for the data.
    `train`, `test`: Datasets (`__len__` and `__getitem__`), or pairs (inputs [N, ...], targets [N, ...]) of tensors or
    arrays. Without `test` give the share to test on, `**{"dataset.test": 0.2}`; without both a set's name, `dataset=`.
    `loss`: a callable of outputs and targets [B, ...] that returns the batch's mean, or the name of a task; None: the
    default for the data. `resume`: a run, or its directory, to go on with bit for bit as far as its method allows; only
    the length, until, eval and checkpoint may change. `directory`: where the run is kept; by default a dated one in
    runs/. `progress`: whether the run is shown. `settings`: those of `easgd train`, by the same names, times in
    seconds; dotted ones as `eval={"every": "100 steps"}` or `**{"eval.every": "100 steps"}`.

    Raises UsageError for what cannot run, before anything is started or written; Failed (a RunError) for a run that
    failed; Interrupted (a KeyboardInterrupt) after Ctrl-C, with a checkpoint. The last two have the `run`.
    """
    asked = keywords.flat({**settings, "model": model} if isinstance(model, Mapping) else settings)
    if isinstance(loss, str):
        _refuse_twice("loss", "task", asked)
        asked["task"] = loss
    if isinstance(model, str):
        asked["model"] = model

    try:
        with unchanged_process():  # the imports here change nothing either
            from easgd_cli.python import here

            with here.alone():
                if resume is not None:
                    return _go_on(resume, asked, _handed(model, train, test, loss, asked), directory, progress)
                return _begin(asked, _handed(model, train, test, loss, asked), directory, progress)
    except UsageError as e:  # on the command line `directory` has another name
        if "hydra.run.dir=" not in str(e):
            raise
        raise UsageError(str(e).replace("hydra.run.dir=", "directory=")) from e


def load(directory: str | Path) -> Run:
    """Returns the run in a directory, ended or not, without importing its code. Raises UsageError if there is none."""
    path = Path(directory)
    if not path.is_dir() or reader.config_of(path) is None:
        raise UsageError(f"{path}: holds no config.yaml, so this is not the directory of a run.")
    return Run(path.absolute())


def report(runs: Run | str | Path | Iterable[Run | str | Path], out: str | Path | None = None, **options: Any) -> Path:
    """Writes report.html and its figures on these runs, side by side, and returns the path of the page.

    `runs`: runs, directories of runs, or of a sweep. `out`: the directory to write into; by default that of `easgd
    report`. `options`: its levels=[20, 10], baseline="algo=msgd", metric=, x= and rows=[...]. Raises UsageError.
    """
    from easgd_cli.commands import report as command

    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    words = [str(run.directory if isinstance(run, Run) else run) for run in given]
    if out is not None:
        options["out"] = out
    for key, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        words.append(f"--{key}={','.join(map(str, values))}")
    return command.write(words)


def stop() -> bool:
    """Ends the run in another thread as Ctrl-C would, with a checkpoint. Returns whether there was a run."""
    return signals.interrupt()


def _refuse_twice(given: str, key: str, asked: Mapping[str, Any]) -> None:
    if key in asked:
        raise UsageError(f"{given}, {key}={asked[key]}: both say the same thing; give one of the two.")


def _handed(model: Any, train: Any, test: Any, loss: Any, asked: dict[str, Any]) -> dict[str, Group]:
    """Returns, by group, an option for each object that was handed over. Raises UsageError."""
    from easgd_cli.python import handed

    found: dict[str, Group] = {}
    if model is not None and not isinstance(model, str | Mapping):
        found["model"] = handed.model(model)
    if train is None and test is not None:
        raise UsageError("test: is given without train.")
    if train is not None:
        _refuse_twice("train", "dataset", asked)
        found["dataset"] = handed.data(train, test)
    if loss is not None and not isinstance(loss, str):
        _refuse_twice("loss", "task", asked)
        found["task"] = handed.loss(loss)
    if callable(collate := asked.get("dataset.collate")):
        asked["dataset.collate"] = handed.function(collate)
    return found


def _begin(asked: dict[str, Any], handed: dict[str, Group], directory: str | Path | None, progress: bool) -> Run:
    from easgd_cli.python.here import Here, ended

    settings = keywords.composed(asked, handed)
    written = [f"{group}={node['name']}" for group, node in handed.items()] + keywords.lines(asked)
    outline, launcher = single_run.checked(settings)
    here = Here.of(settings, launcher, progress)
    for line in single_run.said_before(outline, written):
        warnings.warn(line, stacklevel=3)
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}{run_directory.named_by(written, '_')}"
    path = Path("runs", name) if directory is None else Path(directory)
    say: Any = tell if progress else lambda _: None
    outcome, path = single_run.launch(outline, here, path, written, _command(written), say=say)
    return ended(outcome, Run(path, auto_tau.as_chosen(path, settings)))


def _go_on(
    resume: Run | str | Path, asked: dict[str, Any], handed: dict[str, Group], directory: Any, progress: bool
) -> Run:
    from easgd_cli.python.here import Here, ended

    if directory is not None:
        raise UsageError(f"resume={resume} directory={directory}: a run goes on in the directory that it has.")
    path, of_this_process = (resume.directory, resume.settings) if isinstance(resume, Run) else (Path(resume), None)
    if str(path) == "auto":
        raise UsageError("resume=auto: is for the command line; give the run, or its directory.")
    for group in ("model", "dataset", "task"):
        node = getattr(of_this_process, group, {})
        if group not in handed and any(isinstance(value, Handed) for value in node.values()):
            handed[group] = node
    if asked.get("task") == ((reader.config_of(path) or {}).get("task") or {}).get("name"):
        asked.pop("task", None)  # the run's own task, given once more as `loss`
    lines = dict(zip(asked, keywords.lines(asked), strict=True))
    path, doubts = going_on.checked(path, lines), list[str]()
    changes = going_on.changes(asked)
    settings = keywords.resumed(path, changes, handed, doubts)
    if of_this_process is None:
        foreign_code.announce(path, settings)
    given = going_on.Asked(f"resume={path}", lines, changes, _command([f"resume={path}", *lines.values()]))
    here = partial(Here.of, progress=progress)
    outcome = going_on.run(path, settings, keywords.resumed(path, {}, handed), given, doubts, here)
    return Run(path, settings) if isinstance(outcome, str) else ended(outcome, Run(path, settings))


def _command(lines: Iterable[str]) -> str:
    return f"easgd_cli.train({', '.join(lines)})"
