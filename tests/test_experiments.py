"""configs/experiment/: each says what it reproduces and how; each composes, what it sweeps can run, and what it reports
is swept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from conftest import Launcher, Said
from hydra.core.override_parser.types import IntervalSweep, Override

from easgd_cli.commands import arguments, compose, configs, report, single_run
from easgd_cli.errors import UsageError

EXPERIMENTS = sorted((configs.directory() / "experiment").glob("*.yaml"))
REPRODUCE = Path(__file__).parents[1] / "scripts" / "reproduce"
pytestmark = pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])


def axes(path: Path) -> dict[str, list[str]]:
    """The swept keys with their values, of an interval its ends, as overrides."""
    if "/hydra/sweeper: optuna" in path.read_text():
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    params = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    overrides = arguments.parse_overrides([f"{key}={value}" for key, value in params.items()])
    return {o.key_or_group: [f"{o.key_or_group}={value}" for value in _values(o)] for o in overrides}


def _values(o: Override) -> Iterable[str]:
    interval = o.value()
    return (
        (str(interval.start), str(interval.end)) if isinstance(interval, IntervalSweep) else o.sweep_string_iterator()
    )


def test_its_header_says_what_a_reader_needs(path: Path) -> None:
    header = path.read_text().partition("\ndefaults:")[0].partition("\nsteps:")[0]
    assert header.startswith("# @package _global_\n")
    for label in ("Reproduces:", "Command:", "Hardware:", "Expected:"):
        assert re.search(rf"^# {label} +\S", header, re.MULTILINE), f"{path.name} lacks {label}"
    assert f"experiment={path.stem}" in header or f"scripts/reproduce/{path.stem}" in header
    for script in re.findall(r"scripts/reproduce/([\w.]+)", header):
        assert (REPRODUCE / script).exists(), script


def test_its_report_is_one_of_what_it_sweeps(path: Path) -> None:
    options = yaml.safe_load(path.read_text())["report"]
    report.check(options)
    rows = re.search(r"--rows (\S+)", options)
    assert set(rows[1].split(",") if rows else []) <= set(axes(path))


def test_what_it_sweeps_can_run(path: Path) -> None:
    """Each method with one of the periods, and the last value of every other key, in a job with the first values of the
    others.
    """
    swept = axes(path)
    fixed = [values[0] for key, values in swept.items() if key not in ("algo", "seed")]
    with compose.composing("config") as composed:

        def check(*words: str) -> None:
            single_run.checked(composed([f"experiment={path.stem}", *words]).settings)

        for key in swept:
            others = [v for v in fixed if not v.startswith(f"{key}=")]
            if key != "algo":
                check(*swept.get("algo", [])[:1], *others, swept[key][-1])
                continue
            for method in swept[key]:
                try:
                    check(*others, method)
                except UsageError:  # it is left out with that period
                    check(*(v for v in others if not v.startswith("tau=")), method, swept["tau"][-1])


@pytest.mark.usefixtures("straight")
def test_its_first_job_is_checked_as_a_command(
    path: Path, easgd: Callable[..., Said], launcher: Launcher, unprepared: None
) -> None:
    alone = ["hydra.mode=RUN"] if "/hydra/sweeper:" in path.read_text() else []  # a search's jobs are Hydra's to start
    said = easgd("train", f"experiment={path.stem}", *alone, *(values[0] for values in axes(path).values()))
    assert said.status == 0, said.err
    assert len(launcher.jobs) == 1
    if path.stem.endswith("_small"):
        assert (
            launcher.jobs[0].settings.dataset["name"] == "digits"
            and launcher.jobs[0].settings.launcher["name"] != "local"
        )
