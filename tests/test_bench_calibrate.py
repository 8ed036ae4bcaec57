"""A measured run becomes a virtual cluster: hand-made records whose settings are known, and simulated runs that come
back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Said
from test_simulated import on_a_function, virtual

from easgd_cli.bench import calibrate
from easgd_cli.record.reader import read_rows
from easgd_cli.settings.schema import Settings

LOCAL = {"name": "local", "target": "easgd_cli.launcher.kinds:Local"}


def never() -> float:
    raise AssertionError("the record tells")


def recorded(directory: Path, s: Settings, steps: list[list[float]], waiting: list[float], **facts: Any) -> Path:
    """The record of a local run: `steps`, seconds of each step of each worker; `waiting`, of each in all; 3 ms of
    master a message.
    """
    s.launcher, directory = LOCAL, directory / "run"
    directory.mkdir()
    exchanges = sum(-(-len(of) // s.tau) for of in steps)
    rows: list[dict[str, Any]] = [
        {"seconds": 1.0, "step": 1, "exchanges": exchanges, "party": "system", "master_cpu_seconds": 0.003 * exchanges}
    ]
    for i, of in enumerate(steps):
        for t in range(1, len(of) + 1):
            spent = sum(of[:t])
            parts = {"seconds_compute": 0.7 * spent, "seconds_data": 0.2 * spent, "seconds_other": 0.1 * spent}
            rows.append(
                {
                    "seconds": spent,
                    "step": t,
                    "exchanges": -(-t // s.tau),
                    "party": f"worker_{i:02d}",
                    **parts,
                    "seconds_communication": waiting[i] * t / len(of),
                }
            )
    summary = {
        "status": "completed",
        "exchanges": exchanges,
        "wall_seconds": 50.0,
        "bytes_exchanged": 2 * exchanges * 1000,
        "lost": {},
    } | facts
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "config.yaml").write_text(yaml.safe_dump(asdict(s)))
    return directory


def test_a_record_made_by_hand_has_the_settings_it_was_made_from(tmp_path: Path) -> None:
    """Steps of 1 to 20 s, and a second worker twice as fast; a message takes 0.5 s of waiting, the master's 3 ms and 6
    ms behind nobody else's.
    """
    s = on_a_function("downpour", workers=2, tau=2, steps=20)
    run = recorded(
        tmp_path, s, [[float(t) for t in range(20, 0, -1)], [t / 2 for t in range(1, 21)]], waiting=[5.0, 5.0]
    )
    m = calibrate.read(run, s)
    assert (m.exchanging, m.service, m.exchanges, m.nbytes, m.waits) == (
        pytest.approx(0.5),
        pytest.approx(0.003),
        20,
        1000,
        True,
    )
    found = calibrate.calibrate(m, never)
    assert found.speeds == pytest.approx([0.75, 1.5])  # means of 10.5 and 5.25 s, 7.875 together
    assert found.compute == pytest.approx([0.75 * t for t in range(1, 21)])  # at speed 1 both are the same
    rho = 0.003 / (2 * 7.875 + 0.5)
    assert found.queueing == pytest.approx(rho * 0.003 / (2 * (1 - rho)))
    assert 2 * found.latency + found.service + found.queueing == pytest.approx(0.5)
    assert found.overhead == 0.0


def test_values_are_equally_likely_whatever_the_number_of_steps(tmp_path: Path) -> None:
    """Seven steps of 1 s and one of 9 are 20 values of 0.4 steps each: 17 of 1 s, half a value more, and 9; the mean is
    the run's.
    """
    s = on_a_function("downpour", workers=1, tau=1, steps=8)
    found = calibrate.calibrate(
        calibrate.read(recorded(tmp_path, s, [[1.0] * 4 + [9.0] + [1.0] * 3], waiting=[0.8]), s), never
    )
    assert found.compute == pytest.approx([1.0] * 17 + [5.0] + [9.0] * 2)
    assert sum(found.compute) / 20 == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("algo", "overhead", "beyond"), [("easgd", 0.5, 0.2), ("eamsgd", 0.5, 0.2), ("sync_easgd", 0.0, 0.0)]
)
def test_an_exchange_that_overlaps_or_gathers_is_measured(
    algo: str, overhead: float, beyond: float, tmp_path: Path
) -> None:
    """3 s of exchange: less the master's 3 ms, half of it each way. The loop's 0.5 s are overhead where steps are
    longer than that, except in rounds, where they are the wait for the slowest.
    """
    s = on_a_function(algo, workers=2, tau=2, steps=20)
    found = calibrate.calibrate(
        calibrate.read(recorded(tmp_path, s, [[4.0] * 20] * 2, waiting=[5.0, 5.0]), s), lambda: 3.0
    )
    assert (found.exchange, found.latency, found.overhead) == (3.0, pytest.approx(1.4985), pytest.approx(overhead))
    # a step hides 4 s of it, so 0.3 of the 0.5 are simulated
    found = calibrate.calibrate(calibrate.read(tmp_path / "run", s), lambda: 4.3)
    assert found.overhead == pytest.approx(beyond)


def test_a_busy_masters_queue_is_not_taken_for_latency(tmp_path: Path) -> None:
    s = on_a_function("downpour", workers=2, tau=1, steps=20)
    run = recorded(tmp_path, s, [[0.001] * 20] * 2, waiting=[0.1, 0.1], wall_seconds=0.13)  # 40 x 3 ms of it in service
    assert calibrate.calibrate(calibrate.read(run, s), lambda: 0.005).latency == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("algo", "tau"), [("downpour", 1), ("downpour", 5), ("mdownpour", 1), ("pull_then_step", 1), ("easgd", 1)]
)
def test_a_simulation_of_a_calibrated_run_takes_its_time(algo: str, tau: int, tmp_path: Path) -> None:
    """A simulated run told as a local one: what is derived from its rows gives its wall-clock back, and that of a run
    twice as long.
    """
    cluster: dict[str, Any] = {
        "compute": 0.01,
        "spread": 0.3,
        "speeds": [1.0, 0.7, 1.3],
        "latency": 0.001,
        "service": 0.0005,
    }
    s = on_a_function(algo, workers=3, tau=tau, steps=200)
    virtual(s, tmp_path / "told", **cluster)
    twice = virtual(on_a_function(algo, workers=3, tau=tau, steps=400), tmp_path / "twice", **cluster).summary[
        "wall_seconds"
    ]
    told = tmp_path / "told"
    rows = list(read_rows(told / "metrics.jsonl"))
    exchanges = json.loads((told / "summary.json").read_text())["exchanges"]
    cpu = {
        "seconds": 0.0,
        "step": 200,
        "exchanges": exchanges,
        "party": "system",
        "master_cpu_seconds": 0.0005 * exchanges,
    }
    (told / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, cpu]))
    s.launcher = LOCAL
    found = calibrate.calibrate(calibrate.read(told, s), lambda: 0.0025)
    assert found.service == pytest.approx(0.0005) and found.latency == pytest.approx(0.001, rel=0.1)
    wall = json.loads((told / "summary.json").read_text())["wall_seconds"]
    again = virtual(on_a_function(algo, workers=3, tau=tau, steps=200), tmp_path / "again", **found.settings())
    longer = virtual(on_a_function(algo, workers=3, tau=tau, steps=400), tmp_path / "longer", **found.settings())
    assert again.summary["wall_seconds"] == pytest.approx(wall, rel=0.03)
    assert longer.summary["wall_seconds"] == pytest.approx(twice, rel=0.03)


def test_what_is_printed_and_written_is_what_a_run_takes(
    here: Path, easgd: Callable[..., Said], launcher: Any, unprepared: None
) -> None:
    run = recorded(
        here, on_a_function("downpour", workers=2, tau=1, steps=20), [[1e-5] * 10 + [0.5] * 10] * 2, waiting=[0.1, 0.1]
    )
    said = easgd("bench", "calibrate", str(run), "--yaml", "mine/launcher/measured.yaml")
    assert said.status == 0, said.err
    line = said.out.splitlines()[-1].replace("'", "").split()
    for words in (line, ["--config-dir", "mine", "launcher=measured"]):
        assert easgd("train", *words).status == 0
    pasted, from_file = (job.settings.launcher for job in launcher.jobs)
    assert pasted == from_file
    assert pasted["compute"] == [0.00001] * 10 + [0.5] * 10 and pasted["speeds"] == [1.0, 1.0]
    assert pasted["service"] == 0.003 and pasted["latency"] == pytest.approx(0.001, rel=0.01)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "name the directory"),
        (["nowhere"], "nowhere: there is no such directory"),
        (["."], "there is no such file, so this is not the directory of a run"),
        (["run", "other"], "other: takes one run directory"),
        (["run", "--windows", "3"], "--windows"),
        (["run", "--yaml", "mine.txt"], "--yaml mine.txt"),
    ],
)
def test_a_wrong_command_is_a_sentence(words: list[str], part: str, here: Path, easgd: Callable[..., Said]) -> None:
    recorded(here, on_a_function("downpour", workers=1, tau=1, steps=2), [[1.0] * 2], waiting=[0.1])
    said = easgd("bench", "calibrate", *words)
    assert (said.status, said.err.count("\n")) == (2, 1) and part in said.err


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        ({"launcher": "simulated"}, "is a run of launcher=simulated"),
        ({"status": "running"}, "has not ended (its status is running)"),
        ({"exchanges": 0}, "nothing was exchanged"),
        ({"lost": {"worker_01": "killed by SIGKILL"}}, "worker_01 died"),
        ({"rows": ["system"]}, "no rows of every worker"),
        ({"rows": ["worker_00"]}, "no rows of the master"),
        ({"rows": []}, "cannot be read"),
    ],
)
def test_a_run_that_does_not_tell_enough_is_refused(
    facts: dict[str, Any], part: str, here: Path, easgd: Callable[..., Said]
) -> None:
    name, kept = facts.pop("launcher", None), facts.pop("rows", None)
    run = recorded(here, on_a_function("downpour", workers=1, tau=1, steps=2), [[1.0] * 2], waiting=[0.1], **facts)
    if name is not None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["launcher"] = {"name": name, "target": "easgd_cli.launcher.kinds:Simulated"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    if kept is not None:
        rows = [row for row in read_rows(run / "metrics.jsonl") if row["party"] in kept]
        (run / "metrics.jsonl").unlink()
        if rows:
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = easgd("bench", "calibrate", str(run))
    assert (said.status, said.err.count("\n")) == (2, 1) and part in said.err
