"""One run as a job of Hydra's, with the callbacks, environment and run-time values that Hydra's users expect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO

import hydra
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from easgd_cli.commands import configs
from easgd_cli.commands.compose import Composed
from easgd_cli.launcher.job import Outcome
from easgd_cli.system.unchanged import unchanged_process


def said_by_hydra(config_name: str, words: Sequence[str], said: IO[str], errors: IO[str]) -> object:
    """Runs Hydra's own program on `words`, printing into `said` and `errors`. Returns its exit status, None for 0."""
    program = hydra.main(config_path=str(configs.directory()), config_name=config_name, version_base="1.3")
    before = sys.argv
    try:
        with unchanged_process(), redirect_stdout(said), redirect_stderr(errors):
            sys.argv = ["easgd", *words]
            program(lambda _: None)()
    except SystemExit as e:
        return e.code
    finally:
        sys.argv = before
    return None


def run(job: Composed, path: Path, task: Callable[[], Outcome]) -> Outcome:
    """Runs `task` as a job of Hydra's in the directory `path`, and leaves this process as it was."""
    ended: list[Outcome | Exception] = []

    def task_function(_: DictConfig) -> None:
        try:
            ended.append(task())
        except Exception as e:  # Hydra would not raise it
            ended.append(e)

    config, name = job.config, job.config.hydra.job.config_name
    with open_dict(config):
        config.hydra.run.dir, config.hydra.mode = str(path), RunMode.RUN
    # A run may log, change directory, seed generators and set threads.
    with unchanged_process(), initialize_config_dir(str(configs.directory()), job_name="train", version_base="1.3"):
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=name)
        context = HydraContext(GlobalHydra.instance().config_loader(), callbacks)
        done = run_job(task_function, config, "hydra.run.dir", None, context)
        callbacks.on_run_end(config=config, config_name=name, job_return=done)
    if isinstance(ended[0], Exception):
        raise ended[0]
    return ended[0]
