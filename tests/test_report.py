"""`easgd report`: records made by hand give the numbers computed here by hand; groups, levels, speed-ups, figures, the
page, mistakes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import shutil
import statistics
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.colors import to_hex
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from easgd_cli import picture
from easgd_cli.__main__ import main
from easgd_cli.problems.metric import Metric, Metrics
from easgd_cli.record import run_directory
from easgd_cli.reports import curves, figures, findings, grid, notes, reading, run_paths, table
from easgd_cli.reports.comparison import compare
from easgd_cli.sweeps.objective import Objective

PARAMETERS = 1000
SECONDS = {"compute": 6.0, "data": 1.0, "communication": 2.0, "other": 1.0}


def make(
    path: Path,
    errors: list[float | None],
    *,
    summary: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    **settings: Any,
) -> Path:
    """A run evaluated every second, at `errors` percent."""
    path.mkdir(parents=True)
    config: dict[str, Any] = {
        "algo": {"name": "easgd", "target": "m:A"}, "problem": {"name": "dataset"}, "dataset": {"name": "digits"},
        "average": {"name": "none"},
        "launcher": {"name": "local"}, "tau": 10, "workers": 4, "eta": 0.1, "seed": 0, "steps": 100, "epochs": None,
        "minutes": None,
        "default_steps": 500, "checkpoint": {"every": None, "keep": 1},
    }  # fmt: skip
    for key, value in settings.items():
        config[key] = (
            {"name": value, "target": f"m:{value}"}
            if key in ("algo", "average", "launcher", "dataset", "problem")
            else value
        )
    exchanging = config["algo"]["name"] != "msgd"
    rows = []
    for second, error in enumerate(errors):
        moment = {"seconds": float(second), "step": 20 * second, "exchanges": 8 * second if exchanging else 0}
        loss = None if error is None else error / 50
        for party in ("center", *(["average"] if config["average"]["name"] != "none" else [])):
            shift = 0.0 if party == "center" or error is None else 1.0
            rows.append(
                moment
                | {
                    "party": party,
                    "train_loss": loss,
                    "test_loss": loss,
                    "test_error": None if error is None else error - shift,
                }
            )
        for w in range(config["workers"]):
            spent = {f"seconds_{part}": value * second for part, value in SECONDS.items()}
            rows.append(
                moment
                | {
                    "party": f"worker_{w:02d}",
                    "train_loss": loss,
                    "staleness": float(w),
                    "distance_to_center": 0.5,
                    **spent,
                }
            )
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "overrides.yaml").write_text(yaml.safe_dump(overrides or [f"seed={config['seed']}"]))
    exchanges = rows[-1]["exchanges"] if rows else 0
    said = {"status": "completed", "reason": None, "exchanges": exchanges,
    "bytes_exchanged": 2 * exchanges * 4 * PARAMETERS, "samples_per_second": 800.0,
            "seconds": SECONDS, "parameters": PARAMETERS, "batch_size": 32, "workers": config["workers"]}  # fmt: skip
    (path / "summary.json").write_text(json.dumps(said if summary is None else summary))
    return path


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "sweep"
    make(root / "e0", [90, 40, 18, 9, 12], seed=0)
    make(root / "e1", [88, 30, 22, 19, 8], seed=1)
    make(root / "d0", [90, 60, 50, 45, None], seed=0, algo="downpour", eta=0.2, summary=None)
    make(root / "m0", [90, 70, 50, 30, 20, 10], seed=0, algo="msgd", workers=1)
    return root


def compared(root: Path, **options: Any) -> Any:
    return compare([reading.read(path) for path in run_paths.find([str(root)])], **options)


def by(c: Any, **values: Any) -> Any:
    return next(of for of in c.configurations if all(of.setting(k) == v for k, v in values.items()))


def test_the_table_holds_what_the_records_say(sweep: Path) -> None:
    rows = {row["settings"]["algo"]: row for row in table.numbers(compared(sweep, levels=[20, 10]))["configurations"]}
    easgd = rows["easgd"]
    assert (easgd["final"]["mean"], easgd["final"]["std"]) == (10.0, pytest.approx(statistics.stdev([12, 8])))
    assert (easgd["best"]["mean"], easgd["seconds_to_best"]["mean"]) == (8.5, 3.5)
    assert (easgd["best"]["least"], easgd["best"]["most"], easgd["best"]["n"]) == (8, 9, 2)
    assert easgd["final"]["values"] == [12, 8] and easgd["counted_seeds"] == [0, 1]
    assert easgd["seconds_to"]["20"]["mean"] == 2.5 and easgd["seconds_to"]["10"]["mean"] == 3.5
    assert easgd["speed_up"] == {"20": 4 / 2.5, "10": 5 / 3.5}
    assert easgd["bytes_exchanged"]["mean"] == 32 * 8 * PARAMETERS
    assert easgd["staleness"]["mean"] == statistics.fmean([0, 1, 2, 3])
    assert {part: share["mean"] for part, share in easgd["percent"].items()} == {
        "compute": 60,
        "data": 10,
        "communication": 20,
        "other": 10,
    }
    assert rows["downpour"]["final"] is None and rows["downpour"]["best"]["mean"] == 45  # the last loss was not finite
    assert rows["downpour"]["seconds_to"] == {"20": None, "10": None} and rows["downpour"]["speed_up"] == {
        "20": None,
        "10": None,
    }
    assert (
        rows["msgd"]["baseline"]
        and rows["msgd"]["speed_up"] == {"20": 1.0, "10": 1.0}
        and rows["msgd"]["bytes_exchanged"]["mean"] == 0
    )


def test_links_to_hosts_are_a_table_with_the_share_of_what_each_carries(tmp_path: Path) -> None:
    link = {
        "workers": [1, 2], "bytes_up": 40_000_000, "bytes_down": 10_000_000, "seconds_up": 3.0, "seconds_down": None,
        "measured_up": 1e7, "measured_down": None, "longest_silence": 5.5, "stranger": "text",
    }  # fmt: skip
    ended = {"wall_seconds": 8.0, "exchanges": 4, "status": "completed"}
    make(tmp_path / "far", [90.0, 10.0], summary={**ended, "links": {"b (10.0.0.2)": link}})
    make(tmp_path / "near", [90.0, 10.0], summary=ended, tau=4)
    found = {one.title: one for one in table.tables(compared(tmp_path))}["Links to hosts"]
    assert dict(zip(found.headings, found.rows[0], strict=True)) == {
        "run": "far", "host": "b (10.0.0.2)", "workers": "2", "bytes up (MB)": "40", "bytes down (MB)": "10",
        "seconds up": "3", "seconds down": "-", "up (% of the link)": "50", "down (% of the link)": "-",
        "longest silence (s)": "5.5",
    }  # fmt: skip
    assert len(found.rows) == 1


def test_only_what_tells_configurations_apart_is_a_column(sweep: Path) -> None:
    c = compared(sweep)
    assert c.told_apart == ["algo"]
    assert set(c.also_differ) == {"tau", "workers", "eta"}  # all follow from the method here; msgd has no tau
    assert [len(of.runs) for of in c.configurations] == [1, 2, 1]


def test_runs_of_one_configuration_are_one_row_whatever_their_checkpoints(tmp_path: Path) -> None:
    make(tmp_path / "a", [90, 10], seed=3)
    make(tmp_path / "b", [90, 20], seed=4, checkpoint={"every": "60 s", "keep": 2})
    make(tmp_path / "c", [90, 30], seed=5, steps=None, default_steps=100)  # as long by another word
    (of,) = compared(tmp_path).configurations
    assert [run.settings["seed"] for run in of.runs] == [3, 4, 5] and of.values == {}


def test_levels_are_those_that_half_of_the_configurations_reached(sweep: Path) -> None:
    assert compared(sweep).levels == [50, 20, 10]  # bests 8, 10, 45
    make(sweep / "worse", [90, 80], algo="mdownpour", seed=0)
    assert compared(sweep).levels == [50, 20, 10]
    make(sweep / "worst", [90, 89], algo="sgd", seed=0)
    assert compared(sweep).levels == [50]  # of 8, 10, 45, 80, 89 three reach 50, two 20


def test_a_speed_up_needs_every_run_at_the_level(sweep: Path) -> None:
    make(sweep / "e2", [90, 60, 40, 30, 30], seed=2)
    c = compared(sweep, levels=[20.0])
    assert c.seconds_to(by(c, algo="easgd"), 20).n == 2 and c.seconds_to(by(c, algo="easgd"), 20).of == 3
    assert c.speed_up(by(c, algo="easgd"), 20) is None
    assert "2.50 ± 0.71 (2 of 3)" in {cell for row in table.tables(c)[1].rows for cell in row}


def test_the_baseline_is_the_sequential_run_or_the_one_asked_for(sweep: Path) -> None:
    assert compared(sweep).baseline.setting("algo") == "msgd"
    c = compared(sweep, baseline="algo=easgd,workers=4", levels=[10.0])
    assert c.speed_up(by(c, algo="msgd"), 10) == 3.5 / 5


def test_an_average_that_is_kept_is_what_counts(tmp_path: Path) -> None:
    make(tmp_path / "a", [90, 20, 10], average="polyak")
    (of,) = compared(tmp_path).configurations
    assert of.runs[0].party == "average" and of.runs[0].last("test_error") == 9


def test_a_failed_run_does_not_count_beside_a_completed_one(tmp_path: Path) -> None:
    make(tmp_path / "a", [90, 80], summary={"status": "failed", "reason": "no space"})
    make(tmp_path / "a.2", [90, 10])
    (of,) = compared(tmp_path).configurations
    assert (
        len(of.runs) == 2
        and [run.path.name for run in of.counted] == ["a.2"]
        and of.statuses == "1 failed, 1 completed"
    )


def test_a_running_run_is_read_as_it_stands(tmp_path: Path) -> None:
    run = make(
        tmp_path / "a",
        [90, 20],
        summary={"status": "running", "reason": None, "parameters": PARAMETERS, "batch_size": 32},
    )
    with open(run / "metrics.jsonl", "a") as f:
        f.write('{"seconds": 2.0, "step": 40, "exchanges": 16, "party": "center", "test_er')  # being written
    read = reading.read(run)
    assert read.status == "killed" and len(read.curve["seconds"]) == 2  # nobody holds it
    assert read.seconds == SECONDS and read.samples_per_second == 4 * 20 * 32 / 1.0
    assert read.bytes_exchanged == 8 * 2 * 4 * PARAMETERS


def damage(path: Path, number: int) -> None:
    """Breaks a line off in its middle, counted from 1, where the next one goes on."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:60]
    path.write_bytes(b"".join(lines))


def test_a_damaged_line_is_told_of_and_the_rest_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(
        tmp_path / "a", [90, 40, 20, 10], summary={"status": "running", "parameters": PARAMETERS, "batch_size": 32}
    )
    whole = reading.read(run)
    damage(run / "metrics.jsonl", 8)  # worker_01 at one second takes worker_02 with it
    read = reading.read(run)
    assert (whole.damaged, read.damaged) == ([], [8])
    assert read.curve["test_error"].tolist() == [90, 40, 20, 10] and read.seconds == whole.seconds == {
        part: 3 * s for part, s in SECONDS.items()
    }
    assert whole.staleness == 1.5 and read.staleness == statistics.fmean([0, 1, 2, 3] * 3 + [0, 3])
    damage(run / "metrics.jsonl", 10)  # the center at two seconds, and worker_00
    with open(run / "metrics.jsonl", "ab") as f:
        f.write(b"\xff\x00\n[1]\n")
    read = reading.read(run)
    assert read.curve["test_error"].tolist() == [90, 40, 10] and read.damaged == [8, 10, 19, 20]
    assert main(["report", str(run)]) == 0
    assert "a: lines 8, 10, 19, 20 of metrics.jsonl are damaged and left out." in capsys.readouterr().out


def test_rows_that_the_recorder_could_write_are_none_damaged(tmp_path: Path) -> None:
    run = make(tmp_path / "a", [90])
    moment = '{"seconds": 1e-05, "step": 2.5, "exchanges": 3, "party": "center", '
    rows = [
        '"test_error": -1.5E+3}',
        '"a \\"b\\" {c}": 1, "test_error": null}',
        '"said": "\\u00e9\\n", "test_error": 7}',
        '"test_error": 8, "f": true}',
    ]
    texts = rows.pop(2)  # the recorder has none of the center
    rows.insert(2, '"test_error": 7}')
    (run / "metrics.jsonl").write_text(
        "".join(f"{moment}{row}\n" for row in rows) + f"{moment}{texts}\n".replace("center", "system")
    )
    read = reading.read(run)
    assert read.damaged == []
    assert np.array_equal(read.curve["test_error"], [-1500, math.nan, 7, 8], equal_nan=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.yaml", b"a: [1"), ("config.yaml", b"\xff\xfe\x00"), ("summary.json", b'{"status": "comp')],
)
def test_a_run_that_cannot_be_read_is_left_out_unless_it_is_named(
    name: str, content: bytes, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "e1" / name).write_bytes(content)
    assert main(["report", str(sweep), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert f"Left out: {sweep / 'e1' / name}: " in told and f"e1/{name}: " in (tmp_path / "out/report.html").read_text()
    runs, _ = run_paths.read_all([str(sweep)])
    assert sorted(run.path.name for run in runs) == ["d0", "e0", "m0"]
    assert main(["report", str(sweep / "e1"), str(sweep / "e0")]) == 2
    assert f"e1/{name}: " in capsys.readouterr().err


def said(root: Path, **options: Any) -> list[str]:
    return findings.findings(compared(root, **options))


def test_sentences_say_which_is_best_and_which_are_not_told_apart(tmp_path: Path) -> None:
    for tau, ends in ((1, (12, 14)), (4, (10, 12)), (16, (12.7, 12.7)), (32, (16, 16.5)), (64, (90, None))):
        for seed, end in enumerate(ends):
            make(tmp_path / f"{tau}{seed}", [90, 40, end], tau=tau, seed=seed)
    # deviations: 1.41, 1.41, 0, which counts as 1.41, 0.35; of tau = 64 not every end is a number
    assert said(tmp_path, levels=[40]) == [
        "Lowest final test error: tau=4, 11.0 ± 1.4 % (n = 2). Not told apart from it by mean ± deviation: "
        "tau=1; tau=16.",
        "Soonest at 40 % test error: tau=1; tau=4; tau=16; tau=32 and 1 more alike, 1 ± 0 seconds (n = 2).",
        "Share of communication in a worker's time: 20.0 %. Exchanged: 0.128 MB.",
    ]
    for seed, end in enumerate((1, 1.1)):
        make(tmp_path / f"e{seed}", [90, 5, end], algo="eamsgd", tau=4, seed=seed)
        make(tmp_path / f"e1{seed}", [90, 90, 3 * end], algo="eamsgd", tau=1, seed=seed)
    make(
        tmp_path / "waiting",
        [90, 70],
        algo="downpour",
        tau=1,
        summary={"status": "completed", "seconds": {"compute": 3, "communication": 1}},
    )
    make(
        tmp_path / "less",
        [90, 71],
        algo="downpour",
        tau=4,
        summary={"status": "completed", "seconds": {"compute": 39, "communication": 1}},
    )
    assert said(tmp_path)[-1].startswith(
        "Share of communication in a worker's time: algo=downpour 2.5 % (tau=4) to 25.0 % (tau=1); "
        "algo=eamsgd 20.0 %; algo=easgd 20.0 %. Exchanged: 0"
    )
    lowest = [sentence for sentence in said(tmp_path) if sentence.startswith("Lowest")]
    assert lowest == [
        "Lowest final test error: algo=eamsgd tau=4, 1.050 ± 0.071 % (n = 2). No other overlaps with it in "
        "mean ± deviation.",
        "Lowest with algo=downpour: tau=1, 70 % (n = 1). It may be chance: of a single run no deviation is known.",
        "Lowest with algo=eamsgd: tau=4, 1.050 ± 0.071 % (n = 2). No other overlaps with it in mean ± deviation.",
        "Lowest with algo=easgd: tau=4, 11.0 ± 1.4 % (n = 2). Not told apart from it by mean ± deviation: "
        "tau=1; tau=16.",
    ]


def test_a_sentence_says_how_much_sooner_more_workers_are(tmp_path: Path) -> None:
    for p, seconds in ((1, (6, 8)), (2, (4, 3)), (4, (9, 10))):
        for seed, at in enumerate(seconds):
            errors = [90.0] * at + [10.0, 9.0] if p > 1 or seed else [90.0] * at + [10.0, 4.0]
            make(tmp_path / f"{p}{seed}", errors, workers=p, seed=seed, **{"until": {"test_error": 5.0}})
    assert said(tmp_path, levels=[10, 5])[:2] == [  # nothing of where they ended: they were told to stop at 5 %
        "Soonest at 10 % test error: workers=2, 3.50 ± 0.71 seconds (n = 2). No other overlaps with it in "
        "mean ± deviation.",
        "To 10 % test error workers=1 takes 7.0 ± 1.4 seconds (n = 2); "
        "workers=2 is there 2.0 times as soon (1.5 to 2.7 between single runs), after 3.50 ± 0.71; "
        "workers=4 is there 1.4 times as late (1.1 to 1.7 between single runs), after 9.50 ± 0.71.",
    ]
    assert "How much sooner more workers are than workers=1 is not known" in said(tmp_path, levels=[5])[0]
    for algo in ("sgd", "msgd", "asgd", "mvasgd"):
        make(tmp_path / algo, [90, 0.5], algo=algo, workers=1)
    assert compared(tmp_path).levels == [2, 1, 0.5]  # which no easgd reached: it is told of at the lowest that it did
    assert [s for s in said(tmp_path) if s.startswith("To 10 % test error algo=easgd workers=1 takes 7.0")]


def test_a_single_run_is_no_evidence_and_a_diverged_one_is_named(tmp_path: Path) -> None:
    make(tmp_path / "a", [90, 20])
    make(tmp_path / "b", [90, 10], tau=1)
    make(tmp_path / "c", [90, None], tau=4, summary={"status": "diverged", "reason": "not finite"})
    assert said(tmp_path, levels=[1])[:2] == [
        "Diverged: tau=4 (1 of 1).",
        "Lowest final test error: tau=1, 10 % (n = 1). It may be chance: of a single run no deviation is known.",
    ]


def test_all_that_share_the_lowest_number_are_named(tmp_path: Path) -> None:
    make(
        tmp_path / "a",
        [90, 10],
        tau=1,
        summary={"status": "completed", "seconds": {"compute": 3, "communication": 0.001}},
    )
    make(tmp_path / "b", [90, 20], tau=4)
    make(tmp_path / "c", [90, 10], tau=16)
    lowest, *_, share = said(tmp_path, levels=[1])
    assert (
        lowest == "Lowest final test error: tau=1; tau=16 alike, 10 % (n = 1). It may be chance: of a single run no "
        "deviation is known."
    )
    assert "0.0 % (tau=1) to 20.0 %" in share and share.endswith(
        "At 0.0 % no worker waits for an exchange: it is hidden behind the gradient, or costs nothing."
    )
    assert "hidden" not in said(make(tmp_path / "b2", [90, 20], tau=4), levels=[1])[-1]
    for seed, ends in ((1, (8, 19, 12)), (2, (12, 21, 8))):
        for tau, end in zip((1, 4, 16), ends, strict=True):
            make(tmp_path / f"{tau}{seed}", [90, end], tau=tau, seed=seed)
    assert said(tmp_path, levels=[1])[0] == (
        "Lowest final test error: tau=1; tau=16 alike, 10.0 ± 2.0 % (n = 3). No other overlaps with them in "
        "mean ± deviation."
    )


def test_a_directory_of_before_a_setting_existed_has_what_it_is_unless_given(tmp_path: Path) -> None:
    old, new, other = (make(tmp_path / name, [90, 10], seed=i) for i, name in enumerate(("old", "new", "other")))
    for run, accumulate in ((new, 1), (other, 4)):
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"accumulate": accumulate}))
    assert "accumulate" not in yaml.safe_load((old / "config.yaml").read_text())
    assert len(compare([reading.read(run) for run in (old, new)]).configurations) == 1
    told = compare([reading.read(run) for run in (old, new, other)])
    assert [of.values.get("accumulate") for of in told.configurations] == [1, 4]


def test_a_setting_that_a_method_does_not_use_tells_nothing_apart(tmp_path: Path) -> None:
    for algo, place, delta, seed in (
        ("easgd", "easgd_cli.algorithms:EASGD", 0.9, 0), ("easgd", "easgd_cli.algorithms:EASGD", 0.99, 1),
        ("eamsgd", "easgd_cli.algorithms:EAMSGD", 0.9, 0),
        ("eamsgd", "easgd_cli.algorithms:EAMSGD", 0.99, 1),
        ("mine", "nowhere:Mine", 0.9, 0), ("mine", "nowhere:Mine", 0.99, 1),
    ):  # fmt: skip
        run = make(tmp_path / f"{algo}{delta}", [90, 10], algo=algo, delta=delta, seed=seed)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config |= {
            "algo": {"name": algo, "target": place},
            "schedule": {"name": "constant", "target": "easgd_cli.algorithms.schedule:Constant"},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [(of.values["algo"], of.values["delta"], len(of.runs)) for of in compared(tmp_path).configurations]
    assert rows == [("eamsgd", 0.9, 1), ("eamsgd", 0.99, 1), ("easgd", None, 2), ("mine", 0.9, 1), ("mine", 0.99, 1)]
    both = [reading.read(tmp_path / name) for name in ("easgd0.9", "eamsgd0.99")]
    assert compare(both).also_differ == []  # of delta there is one value where it is used
    assert compare([*both, reading.read(tmp_path / "mine0.9")]).also_differ == ["delta"]


def test_notes_tell_which_workers_were_lost_and_when_a_run_that_ended_early_was_last_measured(tmp_path: Path) -> None:
    ended = {
        "status": "interrupted",
        "reason": "SIGINT received",
        "lost": {"worker_02": "killed by SIGKILL"},
        "lost_before": {"worker_01": [25.5]},
    }
    said = notes.notes(compared(make(tmp_path / "a", [90, 50, 10], summary=ended)))
    assert "a: interrupted: SIGINT received. Its last evaluation was at step 40." in said
    assert {
        "a: lost worker_01: at step 26, until the run was resumed.",
        "a: lost worker_02: killed by SIGKILL.",
    } <= set(said)


def test_notes_tell_the_cores_of_the_run_and_how_far_apart_evaluations_are(tmp_path: Path) -> None:
    cores = {"status": "completed", "hardware": {"cores": 1}}
    said = notes.notes(compared(make(tmp_path / "a", [90, 50, 10], summary=cores), levels=[20]))
    assert (
        "More workers than the 1 core that a run had, which they shared: a. With a core for each they would be "
        "sooner." in said
    )
    assert "Seconds to a level are as fine as the evaluations, which are 1 s apart (eval.every)." in said


def test_bytes_have_an_axis_in_each_row(tmp_path: Path) -> None:
    for tau, algo in ((1, "easgd"), (16, "easgd"), (1, "eamsgd"), (16, "eamsgd")):
        make(tmp_path / f"{algo}{tau}", [90, 50] if tau == 16 else [90, 50, 40, 30, 20, 10], tau=tau, algo=algo)
    with picture.style():
        for x, same in (("bytes", False), ("steps", True)):
            first, *_, last = figures.figures(compared(tmp_path), x)["curves"].axes
            assert (first.get_xlim() == last.get_xlim()) is same


def test_jobs_of_a_sweep_that_are_to_come_or_never_began_are_told_of(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {
        "a": {"status": "completed"},
        "b": {"status": "running", "pid": 1},
        "c": {"status": "queued"},
        "d": {"status": "failed", "reason": "no data"},
    }
    (sweep / "sweep.json").write_text(json.dumps({"command": "easgd train -m seed=0,1", "jobs": jobs}))
    with run_directory.held(sweep, shared=True), run_directory.held(sweep, shared=True):  # two sweeps share the jobs
        assert (
            next(iter(run_paths.unfinished([str(sweep)]))) == "sweep: of 4 jobs 1 completed, 1 failed, 1 queued, "
            "1 running."
        )
    assert main(["report", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert (
        "sweep: of 4 jobs 1 completed, 1 failed, 1 killed, 1 queued, and no process is at them. To go on: easgd "
        "train -m seed=0,1\n" in out
    )
    assert "d: failed before it began: no data" in out
    make(sweep / "c", [90, 40])  # a launcher's job that has begun and ended since
    make(sweep / "b", [90, 40], summary={"status": "running"})
    gone = (
        "sweep: of 4 jobs 2 completed, 1 failed, 1 running, and the command that began them is gone. To go on: "
        "easgd train -m seed=0,1"
    )
    with run_directory.held(sweep / "b"):
        assert next(iter(run_paths.unfinished([str(sweep)]))) == gone
    assert next(iter(run_paths.unfinished([str(sweep)]))) == gone.replace(
        "running, and the command that began them is gone", "killed, and no process is at them"
    )
    (tmp_path / "begun").mkdir()
    shutil.copy(sweep / "sweep.json", tmp_path / "begun")
    assert main(["report", str(tmp_path / "begun")]) == 2
    assert "no run has begun yet. begun: of 4 jobs 1 completed" in capsys.readouterr().err


def test_the_held_out_images_choose_and_the_test_images_judge(tmp_path: Path) -> None:
    run = make(tmp_path / "a", [])
    # the least test error is not where the least held-out error is
    moments = [(90.0, 80.0), (10.0, 30.0), (20.0, 15.0)]
    rows = [
        {"seconds": s, "step": s, "exchanges": 0, "party": "center", "test_error": t, "validation_error": v}
        for s, (t, v) in enumerate(moments)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = table.numbers(compared(tmp_path))["configurations"]
    assert (
        row["held_out"]["mean"] == 15
        and row["test_error_at_lowest_held_out"]["mean"] == 20
        and row["best"]["mean"] == 10
    )


def test_a_function_is_judged_by_its_loss(tmp_path: Path) -> None:
    run = make(tmp_path / "a", [], dataset="none", problem="quadratic")
    rows = [
        {"seconds": s, "step": s, "exchanges": 0, "party": "center", "train_loss": loss, "coordinate_0": 1.0}
        for s, loss in enumerate([4.0, 0.3, None, 0.6])
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = compared(tmp_path)
    assert c.metric.name == "train_loss" and c.levels == [2, 1, 0.5]
    assert table.numbers(c)["configurations"][0]["final"]["mean"] == 0.6
    assert compared(tmp_path, metric="coordinate_0").metric.name == "coordinate_0"


@pytest.mark.usefixtures("undrawn")
def test_numbers_are_those_that_tensorboard_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each run of a sweep; where one keeps an average of the center, that is what is judged."""
    root = tmp_path / "sweep"
    words = [
        "algo=downpour",
        "launcher=simulated",
        "workers=2",
        "steps=60",
        "threads=1",
        "eval.every=15 steps",
        f"hydra.sweep.dir={root}",
    ]
    assert main(["train", "-m", *words, "average=none,polyak", "tau=1"]) == 0
    found = {}
    for metric in ("test_error", "train_loss"):
        assert (
            main(
                [
                    "report",
                    str(root),
                    "--metric",
                    metric,
                    "--levels",
                    "85,2.28",
                    "--json",
                    str(tmp_path / "numbers.json"),
                ]
            )
            == 0
        )
        found[metric] = json.loads((tmp_path / "numbers.json").read_text())["configurations"]
    judged = 0
    for by_error, by_loss in zip(found["test_error"], found["train_loss"], strict=True):
        assert by_error["runs"] == by_loss["runs"]
        for i, run in enumerate(by_error["runs"]):
            events = EventAccumulator(run, size_guidance={"scalars": 0}).Reload()
            party = "average" if "average=polyak" in run else "center"
            curves = {
                name: events.Scalars(f"{party}/{name}")
                for name in ("test_error", "train_loss", "best_test_error", "seconds_to_best")
            }
            last = {name: curve[-1].value for name, curve in curves.items()}

            def first_at(level: float, name: str, curves: dict[str, Any] = curves) -> float:
                return next(e.wall_time - curves[name][0].wall_time for e in curves[name] if e.value <= level)

            assert by_error["final"]["values"][i] == pytest.approx(last["test_error"], rel=1e-6)
            assert by_error["best"]["values"][i] == pytest.approx(last["best_test_error"], rel=1e-6)
            assert by_error["seconds_to_best"]["values"][i] == pytest.approx(last["seconds_to_best"], rel=1e-6)
            assert by_error["seconds_to"]["85"]["values"][i] == pytest.approx(first_at(85, "test_error"), abs=1e-6)
            assert by_loss["final"]["values"][i] == pytest.approx(last["train_loss"], rel=1e-6)
            assert by_loss["seconds_to"]["2.28"]["values"][i] == pytest.approx(first_at(2.28, "train_loss"), abs=1e-6)
            judged += 1
    assert judged == 2
    assert (root / "report" / "report.html").is_file() and "virtual" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_numbers_are_those_of_the_record_and_of_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = [
        "algo=downpour",
        "launcher=simulated",
        "launcher.latency=0.01",
        "workers=2",
        "steps=30",
        "eval.every=10 steps",
    ]
    assert main(["train", *words, f"hydra.run.dir={run}"]) == 0
    assert main(["report", str(run), "--levels", "88,0.1", "--json", str(tmp_path / "numbers.json")]) == 0
    (row,) = json.loads((tmp_path / "numbers.json").read_text())["configurations"]
    events = EventAccumulator(str(run)).Reload()

    def shown(tag: str) -> float:
        return (
            events.Tensors(tag)[-1].tensor_proto.float_val[0]
            if tag in events.Tags()["tensors"]
            else events.Scalars(tag)[-1].value
        )

    for name, tag in (
        ("final", "center/test_error"),
        ("best", "center/best_test_error"),
        ("seconds_to_best", "center/seconds_to_best"),
    ):
        assert row[name]["mean"] == pytest.approx(shown(tag), rel=1e-6)
    assert (run / "report" / "report.html").is_file() and "virtual" in capsys.readouterr().out
    # The rest by plain Python from the record.
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    center = [r for r in rows if r["party"] == "center"]
    for level, said in row["seconds_to"].items():
        reached = [r["seconds"] for r in center if r["test_error"] <= float(level)]
        assert (said and said["mean"]) == (reached[0] if reached else None)
    assert row["seconds_to"]["88"] and not row["seconds_to"]["0.1"]
    workers = [[r for r in rows if r["party"] == f"worker_{i:02d}"][-1] for i in (0, 1)]
    spent = {part: sum(w[f"seconds_{part}"] for w in workers) for part in SECONDS}
    assert {part: p["mean"] for part, p in row["percent"].items()} == pytest.approx(
        {part: 100 * s / sum(spent.values()) for part, s in spent.items()}
    )
    assert row["bytes_exchanged"]["mean"] == 2 * 4 * 13706 * (run / "exchanges.bin").stat().st_size // 2
    assert row["train_seconds"]["mean"] == center[-1]["seconds"]


def test_a_metric_of_which_more_is_better_is_judged_by_the_highest(tmp_path: Path) -> None:
    declared = [asdict(Metric("test_accuracy", unit="%", direction="higher", primary=True))]
    for algo, values in (("easgd", [10, 60, 92, 85]), ("downpour", [8, 30, 55, 70])):
        run = make(tmp_path / algo, [float(value) for value in values], algo=algo)
        text = (run / "metrics.jsonl").read_text().replace("test_error", "test_accuracy")
        (run / "metrics.jsonl").write_text(text)
        (run / "summary.json").write_text(
            json.dumps({**json.loads((run / "summary.json").read_text()), "metrics": declared})
        )
    c = compared(tmp_path)
    # above both starts, the easiest first, reached by half or more
    assert c.metric.name == "test_accuracy" and c.levels == [20, 50]
    rows = {row["settings"]["algo"]: row for row in table.numbers(c)["configurations"]}
    assert rows["easgd"]["best"]["mean"] == 92 and rows["easgd"]["seconds_to_best"]["mean"] == 2
    assert rows["easgd"]["seconds_to"]["50"]["mean"] == 1 and rows["downpour"]["seconds_to"]["50"]["mean"] == 2
    assert any("Highest final test accuracy: algo=easgd, 85 %" in sentence for sentence in findings.findings(c))
    search = Objective("best", Metrics.read(declared).primary, "test")
    assert search.value(tmp_path / "easgd") == -92 and search.shown(-92) == "highest test accuracy 92 %"


def test_reading_a_run_asks_no_method_of_a_users_own(tmp_path: Path) -> None:
    """Which symbols it uses stands in its summary."""
    for seed, delta in enumerate((0.9, 0.99)):
        run = make(tmp_path / f"run{seed}", [90, 10], algo="mine", delta=delta, seed=seed)
        (run / "summary.json").write_text(
            json.dumps({**json.loads((run / "summary.json").read_text()), "symbols": ["alpha", "tau"]})
        )
    assert [len(of.runs) for of in compared(tmp_path).configurations] == [2]


def test_different_problems_stand_side_by_side_and_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "digits", [90, 20, 10])
    make(tmp_path / "cifar", [90, 20, 20, 10], dataset="cifar10", workers=1)
    make(tmp_path / "new", [], seed=1)  # not evaluated yet
    function = make(tmp_path / "function", [], dataset="none", problem="quadratic")
    (function / "metrics.jsonl").write_text(
        '{"seconds": 0.0, "step": 0, "exchanges": 0, "party": "center", "train_loss": 4.0}\n'
    )
    c = compared(tmp_path, levels=[10.0])
    # another task is no baseline
    assert c.baseline is by(c, dataset="cifar10") and c.speed_up(by(c, dataset="digits"), 10) is None
    assert main(["report", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert (
        "Runs of different problems are here (problem=dataset dataset=cifar10; problem=dataset dataset=digits; "
        "problem=quadratic dataset=none)" in told
    )
    assert "No test error was measured in: problem=quadratic dataset=none; --metric train_loss is in all." in told
    assert "1 of 4 runs have not been evaluated yet." in told


# --- figures ---------------------------------------------------------------------------------------------------------


def test_rows_of_panels_and_legends_name_what_differs(tmp_path: Path) -> None:
    for algo in ("easgd", "downpour"):
        for tau in (1, 16):
            for seed in (0, 1):
                make(tmp_path / f"{algo}{tau}{seed}", [90, 20 + seed, 5], algo=algo, tau=tau, seed=seed)
    make(tmp_path / "m", [90, 30, 6], algo="msgd", workers=1)
    c = compared(tmp_path)
    with picture.style():
        drawn = figures.figures(c)["curves"]
    assert len(drawn.axes) == 2 * 3
    assert [axes.get_title(loc="left") for axes in drawn.axes[::3]] == ["τ = 1", "τ = 16"]
    assert [axes.get_ylabel() for axes in drawn.axes[:3]] == ["training loss", "test loss", "test error (%)"]
    assert {axes.get_xlabel() for axes in drawn.axes[3:]} == {"seconds of training"}
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["algo=downpour", "algo=easgd", "algo=msgd"]
    error = drawn.axes[2]
    # the sequential run is in every row; one run has no range
    assert len(error.get_lines()) == 3 and len(error.collections) == 2
    middle = np.interp(1.0, *(np.asarray(d, float) for d in error.get_lines()[1].get_data()))
    assert middle == pytest.approx(20.5, rel=1e-3)


def test_curves_that_differ_in_one_setting_share_a_panel(tmp_path: Path) -> None:
    for tau in (1, 4):
        make(tmp_path / f"{tau}", [90, 20, 5], tau=tau)
    with picture.style():
        (panels, rows) = (
            len(figures.figures(compared(tmp_path), rows=keys)["curves"].axes) // 3 for keys in ([], ["tau"])
        )
    assert (panels, rows) == (1, 2)


def test_rows_can_be_asked_for(tmp_path: Path) -> None:
    for algo in ("easgd", "eamsgd"):
        for eta in (0.1, 0.2):
            make(tmp_path / f"{algo}{eta}", [90, 20, 5], algo=algo, eta=eta)
    with picture.style():
        drawn = figures.figures(compared(tmp_path), rows=["algo"])["curves"]
    assert [axes.get_title(loc="left") for axes in drawn.axes[::3]] == ["algo = eamsgd", "algo = easgd"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["eta=0.1", "eta=0.2"]


def of_a_grid(root: Path) -> None:
    """easgd is first at 10 % with 2 workers, by its tau = 4; with 4 nobody but downpour comes there in both runs."""
    for workers, algo, tau, of_seeds in (
        (2, "easgd", 4, ([90, 9], [90, 40, 9])),
        (2, "easgd", 16, ([90, 40, 9], [90, 40, 9])),
        (2, "downpour", 4, ([90, 60, 50, 9], [90, 60, 50, 9])),
        (4, "easgd", 4, ([90, 9], [90, 40])),
        (4, "downpour", 4, ([90, 60, 50, 9], [90, 60, 50, 9])),
    ):
        for seed, errors in enumerate(of_seeds):
            name = f"{workers}_{algo}_{tau}_{seed}"
            make(root / name, list(errors), workers=workers, algo=algo, tau=tau, seed=seed, delta=0.5)


def test_who_is_first_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each method the best of its configurations; its rival is the best of another method."""
    root = tmp_path / "runs"
    of_a_grid(root)
    c = compared(root, levels=[50.0, 10.0])
    two, four = grid.cells(c, ["workers", "delta"], "seconds")
    assert (two.at, two.name(0), two.name(1)) == ((2, 0.5), "easgd tau=4", "downpour tau=4")
    assert [took.mean for _, took in two.ranking] == [1.5, 3.0] and two.margin == 1 and two.apart
    assert (four.name(0), four.name(1)) == ("downpour", "nobody")
    steps = grid.cells(c, ["workers", "delta"], "steps")
    assert [took.mean for _, took in steps[0].ranking] == [30.0, 60.0]
    told = grid.result(c, ["workers", "delta"], "seconds")
    assert told.rows[0] == [
        "2",
        "0.5",
        "easgd tau=4",
        "1.50 ± 0.71",
        "downpour tau=4",
        "3 ± 0",
        "100 %",
        "yes",
    ]
    assert told.rows[1] == ["4", "0.5", "downpour", "3 ± 0", "nobody", "-", "-", "-"]
    assert main(["report", str(root), "--levels", "10", "--grid", "workers,delta"]) == 0
    assert "First at 10 % test error, by seconds" in capsys.readouterr().out
    drawn = (root / "report" / "grid.svg").read_text()
    assert "easgd tau=4" in drawn and "100 % before" in drawn
    assert main(["report", str(root), "--levels", "10"]) == 0 and not (root / "report" / "grid.svg").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--grid", "workers"), "--grid workers: is two settings"),
        (("--grid", "workers,wrkers"), "--grid workers,wrkers: there is no setting wrkers in these runs"),
    ],
)
def test_a_grid_is_of_two_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    of_a_grid(tmp_path / "runs")
    assert main(["report", str(tmp_path / "runs"), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_bars_stand_at_the_seconds_to_a_level(tmp_path: Path) -> None:
    for p, seconds in ((2, 4), (4, 2), (8, 1)):
        make(tmp_path / f"p{p}", [90.0] * seconds + [5.0], workers=p)
    make(tmp_path / "late", [90.0, 80.0], workers=4, seed=1)
    c = compared(tmp_path, levels=[10.0])
    with picture.style():
        bars = figures.figures(c)["seconds_to_level"]
    assert [bar.get_height() for bar in bars.axes[0].patches] == [4, 2, 1]
    assert [text.get_text() for text in bars.axes[0].texts] == ["1/2"]
    assert [tick.get_text() for tick in bars.axes[0].get_xticklabels()] == ["2", "4", "8"]
    assert (
        bars.axes[0].get_title(loc="left") == "to 10 % test error"
        and bars.axes[0].get_ylabel() == "seconds of training"
    )


def test_bars_are_centred_over_their_workers_whoever_does_not_reach_the_level(tmp_path: Path) -> None:
    for algo, p, least in (
        ("easgd", 2, 5.0),
        ("eamsgd", 2, 50.0),
        ("downpour", 2, 5.0),
        ("easgd", 4, 50.0),
        ("eamsgd", 8, 5.0),
    ):
        make(tmp_path / f"{algo}{p}", [90.0, least], workers=p, algo=algo)
    with picture.style():
        panel = figures.figures(compared(tmp_path, levels=[10.0]))["seconds_to_level"].axes[0]
    bars = panel.patches
    assert [(bar.get_x() + bar.get_width() / 2) for bar in bars] == pytest.approx([-0.2, 0.2, 2])
    assert [(text.get_text(), text.xy) for text in panel.texts] == [("none", (1, 0))]


def test_a_method_has_one_colour_in_all_figures(tmp_path: Path) -> None:
    """Curves are named by algo and workers, bars by algo and tau; rows of panels are values of tau."""
    colours: dict[str, set[Any]] = {}
    for algo in ("easgd", "downpour"):
        for tau in (1, 4, 16):
            for p in (2, 4):
                make(tmp_path / f"{algo}{tau}{p}", [90.0, 5.0], workers=p, algo=algo, tau=tau)
    with picture.style():
        for figure in figures.figures(compared(tmp_path)).values():
            [legend] = figure.legends
            looks = []
            for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
                line = hasattr(handle, "get_linestyle") and hasattr(handle, "get_color")
                colour = to_hex(handle.get_color() if line else handle.get_facecolor())
                colours.setdefault(text.get_text().split()[0], set()).add(colour)
                looks.append((colour, handle.get_linestyle() if line else handle.get_hatch()))
            assert len(set(looks)) == len(looks)
    assert set(colours) == {"algo=easgd", "algo=downpour"} and all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 2


def test_many_curves_of_a_method_are_told_apart_by_dashes_and_by_how_pale_they_are(tmp_path: Path) -> None:
    for i in range(9):
        make(tmp_path / f"{i}", [90.0, 5.0 + i], algo="easgd" if i else "msgd", eta=0.1 * (i + 1))
    with picture.style():
        [legend] = figures.figures(compared(tmp_path))["curves"].legends
    looks = [(to_hex(handle.get_color()), handle.get_linestyle()) for handle in legend.legend_handles]
    assert len(set(looks)) == 9 and len({colour for colour, _ in looks}) == 3


def test_ranges_are_drawn_where_they_do_not_hide_each_other(tmp_path: Path) -> None:
    def drawn() -> list[int]:
        with picture.style():
            found = figures.figures(compared(tmp_path, levels=[20.0]), rows=["tau"])
        panel, bars = found["curves"].axes[0], found["seconds_to_level"].axes[0]
        return [
            len(panel.collections),
            sum(container.errorbar is not None for container in bars.containers if hasattr(container, "errorbar")),
        ]

    for i in range(4):
        for p in (2, 4):
            for seed in (0, 1):
                make(tmp_path / f"{i}{p}{seed}", [90.0, 5.0 + i], workers=p, eta=0.1 * (i + 1), seed=seed)
    assert drawn() == [8, 8]
    for seed in (0, 1):
        make(tmp_path / f"more{seed}", [90.0, 5.0], workers=4, eta=0.9, seed=seed)
    assert drawn() == [0, 9]  # nine curves in a panel, five bars at most over a number of workers
    for i in range(4):
        for seed in (0, 1):
            make(tmp_path / f"most{i}{seed}", [90.0, 5.0], workers=4, eta=1.0 + i, seed=seed)
    assert drawn() == [0, 0]


def test_virtual_seconds_are_called_so(tmp_path: Path) -> None:
    make(tmp_path / "a", [90, 20], launcher="simulated")
    c = compared(tmp_path)
    with picture.style():
        assert figures.figures(c)["curves"].axes[0].get_xlabel() == "virtual seconds of training"
        by_bytes = figures.figures(c, "bytes")["curves"].axes[2]
    assert by_bytes.get_xlabel() == "exchanged (MB)"
    assert list(by_bytes.get_lines()[0].get_xdata()) == [0, 8 * 2 * 4 * PARAMETERS / 1e6]


def test_a_mean_of_curves_is_of_all_its_runs() -> None:
    at, values = curves.on_a_common_axis(
        [(np.linspace(0, 1, 5000), np.zeros(5000)), (np.array([0.0, 2.0]), np.zeros(2))]
    )
    assert 150 < len(at) <= 201 and np.all(np.diff(at) > 0) and at[-1] == 1
    at, values = curves.on_a_common_axis(
        [(np.array([0.0, 4.0]), np.array([0.0, 8.0])), (np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0, math.nan]))]
    )
    assert at[-1] == 2.0 and np.allclose(values[0], 2 * at)
    assert np.isfinite(values[1][at < 1]).all() and np.isnan(values[1][at > 1]).all()


# --- the page and the command ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_a_figure_of_an_earlier_report_goes_but_nobody_elses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "sweep", tmp_path / "sweep/report"
    for p in (2, 4):
        make(root / f"p{p}", [90.0, 5.0], workers=p)
    bars = [out / f"seconds_to_level.{suffix}" for suffix in ("png", "svg")]

    def reported() -> list[bool]:
        assert main(["report", str(root)]) == 0
        return [path.exists() for path in bars]

    assert reported() == [True, True]
    kept = [path.read_bytes() for path in bars]
    shutil.move(root / "p4", tmp_path / "p4")
    assert reported() == [False, False]  # one number of workers is left
    for path, content in zip(bars, kept, strict=True):
        path.write_bytes(content)
    assert reported() == [True, True]  # which the page before does not have: somebody has put them there
    shutil.move(tmp_path / "p4", root / "p4")
    assert reported() == [True, True]
    bars[1].write_text("<svg>mine</svg>")
    shutil.rmtree(root / "p4")
    assert reported() == [True, True]  # it has been changed since
    assert "seconds_to_level" not in (out / "report.html").read_text()


class Page(HTMLParser):
    """A page as a browser reads it: the attributes of every element, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem == "style":
            self.styles.append(data)


EVIL = "<script>alert('&\"$x$')</script>\x1b[31m\u202e\u2028"
SEEN = "<script>alert('&\"$x$')</script>\\x1b[31m\\u202e\\u2028"


def test_the_page_is_well_formed_and_escapes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a <b> & c"
    make(root / "one", [90, 20], algo=EVIL, overrides=[f"algo={EVIL}"], summary={"status": "failed", "reason": EVIL})
    make(root / "two", [90, 30])
    unwritable = os.path.join(os.fsencode(root), b"\xff<i>")  # no text in any encoding of names
    os.rename(make(root / "three", [90, 40], tau=4), unwritable)
    assert main(["report", str(root)]) == 0
    text = (root / "report" / "report.html").read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", text)
    html = ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    cells = [cell.text for cell in html.iter("td")]
    assert SEEN in cells and f"failed: {SEEN}" in cells and "\\udcff<i>" in cells
    command = SEEN.replace("'", "'\"'\"'")
    assert f"easgd train 'algo={command}'" in [code.text for code in html.iter("code")]
    assert [image.get("src", "")[:26] for image in html.iter("img")] == ["data:image/svg+xml;base64,"]
    assert {path.name for path in (root / "report").iterdir()} == {"report.html", "curves.png", "curves.svg"}
    svg = ET.parse(root / "report/curves.svg")
    assert any(SEEN in (text.text or "") for text in svg.iter("{http://www.w3.org/2000/svg}text"))
    paths = [path.get("d", "") for path in svg.iter("{http://www.w3.org/2000/svg}path")]
    # no finer than it can be seen
    assert any("." in path for path in paths) and not any(re.search(r"\.\d{3}", path) for path in paths)
    assert "one: failed" in capsys.readouterr().out
    numbers, code = Page(text).scripts
    assert not set("<>&") & set(numbers) and numbers.isascii()
    assert any(SEEN in line["name"] for line in json.loads(numbers)["lines"])
    assert "alert" not in code


def test_the_page_loads_nothing_and_runs_its_own_script_only(sweep: Path) -> None:
    assert main(["report", str(sweep)]) == 0
    text = (sweep / "report/report.html").read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "iframe", "object", "embed", "base", "form", "a", "noscript"}
    attributes = [(name, value or "") for _, found in page.elements for name, value in found.items()]
    assert all(value.startswith("data:image/svg+xml;base64,") for name, value in attributes if name in ("src", "href"))
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    [style], [_, code] = page.styles, page.scripts
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts)\b|\bimport\(", code)
    assert re.findall(r"https?://\S+", text) == ["https://github.com/leeoniya/uPlot"]  # in a comment
    assert "Permission is hereby granted, free of charge" in code
    [policy] = [found["content"] for _, found in page.elements if "http-equiv" in found]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in (style, code)]
    assert rules == {"default-src": "'none'", "img-src": "data:", "style-src": hashes[0], "script-src": hashes[1]}


def test_the_curves_of_the_page_are_those_of_the_figure(sweep: Path) -> None:
    make(sweep / "s0", [90, 1], algo="sgd", workers=1)
    assert main(["report", str(sweep)]) == 0
    data = json.loads(Page((sweep / "report/report.html").read_text()).scripts[0])
    assert data["x"] == "seconds of training" and [row["title"] for row in data["rows"]] == [""]
    names = ["training loss", "test loss", "test error (%)"]
    assert data["metrics"] == [{"name": name, "logarithmic": True} for name in names]  # from 90 to 1 %
    assert [line["name"] for line in data["lines"]] == ["algo=downpour", "algo=easgd", "algo=msgd", "algo=sgd"]
    downpour, easgd, msgd, _ = data["rows"][0]["panels"][2]
    assert easgd["x"] == [0, 1, 2, 3, 4] and easgd["mean"] == [89, 35, 20, 14, 10]
    assert easgd["range"] == [[88, 30, 18, 9, 8], [90, 40, 22, 19, 12]]
    assert downpour["mean"] == [90, 60, 50, 45, None] and msgd["range"] is None
    with picture.style():
        drawn = figures.figures(compared(sweep))["curves"]
    for panel, those in zip(drawn.axes, data["rows"][0]["panels"], strict=True):
        for line, curve in zip(panel.get_lines(), those, strict=True):
            assert np.allclose(np.asarray(line.get_xdata(), float), curve["x"], rtol=1e-8)
            mean = np.array(curve["mean"], float)  # None is NaN
            assert np.allclose(np.asarray(line.get_ydata(), float), mean, rtol=1e-8, equal_nan=True)
            assert to_hex(line.get_color()) == data["lines"][curve["line"]]["colour"]
            assert line.get_linestyle() == data["lines"][curve["line"]]["dash"]


@pytest.mark.usefixtures("undrawn")
def test_several_paths_and_patterns(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(sweep / "e[01]"), str(sweep / "m0"), "--x=steps"]) == 0
    assert (tmp_path / "report" / "report.html").is_file()
    printed = capsys.readouterr().out
    assert "10.0 ± 2.8" in printed and "downpour" not in printed
    assert main(["report", str(sweep), "--levels", "20"]) == 0  # a report within a sweep is no run of it
    assert main(["report", str(sweep), "--levels", "20"]) == 0


def test_no_run_counts_twice_and_circles_and_hidden_directories_are_left_alone(sweep: Path) -> None:
    (sweep / "again").symlink_to(sweep)
    (sweep / "same").symlink_to(sweep / "m0")
    make(sweep / ".trash" / "e0", [90])
    assert [path.name for path in run_paths.find([str(sweep), str(sweep / "e0")])] == ["d0", "e0", "e1", "m0"]


@pytest.mark.usefixtures("undrawn")
def test_a_narrow_terminal_loses_no_column_and_breaks_no_cell(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["report", str(sweep), "--levels", "20"]) == 0
    lines = terminal.getvalue().splitlines()
    (easgd,) = [line for line in lines if line.startswith("easgd") and "60.0" in line]
    assert easgd.split() == [
        "easgd",
        "800",
        "±",
        "0",
        "60.0",
        "10.0",
        "20.0",
        "10.0",
        "0.256",
        "±",
        "0",
        "1.5",
        "±",
        "0",
        "4",
        "±",
        "0",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{0}/nowhere"], "there is no such path"),
        (["{0}/nowhere*"], "nothing matches this pattern"),
        (["{0}/empty"], "is no run and holds none"),
        (["{0}/sweep/e0/config.yaml"], "is a file"),
        (["{0}/new"], "nothing has been evaluated yet"),
        (["{0}/queued"], "no run has begun yet. queued: of 2 jobs 2 queued, and no process is at them."),
        (["{0}/all bare"], "config.yaml: is missing"),
        (["{0}/bare"], "config.yaml: is missing"),
        (["{0}/sweep", "--level", "3"], "did you mean --levels?"),
        (["{0}/sweep", "--levels", "3,x"], "--levels 3,x: x is no number; levels are numbers with commas between"),
        (
            ["{0}/sweep", "--levels", "20%"],
            "--levels 20%: 20% is no number; levels are numbers with commas between, without a unit, such as",
        ),
        (["{0}/sweep", "--levels", "20,"], "--levels 20,: a number is missing"),
        (["{0}/sweep", "--levels"], "a value is missing"),
        (["{0}/sweep", "--x", "epochs"], "one of seconds, steps, bytes"),
        (["{0}/sweep", "--metric", "accuracy"], "was not measured in these runs; there are: train_loss"),
        (["{0}/sweep", "--baseline", "algo"], "is written as settings"),
        (
            ["{0}/sweep", "--baseline", "algo=sgd"],
            "no configuration is like that; there are: algo=downpour; algo=easgd",
        ),
        (["{0}/sweep", "--baseline", "workers=4"], "2 configurations are like that"),
        (["{0}/sweep", "--baseline", "tua=4"], "there is no setting tua"),
        (["{0}/sweep", "--rows", "gamma"], "there is no setting gamma in these runs; those that differ are: algo"),
        (["{0}/sweep", "--json", "{0}/nowhere/x"], "there is no directory"),
        (["{0}/sweep", "--out", "{0}/sweep/e0/config.yaml"], "nothing can be written there"),
        (["--x", "steps"], "name a run"),
    ],
)
def test_a_mistake_has_its_sentence(
    words: list[str], sentence: str, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "new", [])
    (make(tmp_path / "bare", [90]) / "config.yaml").unlink()
    (make(tmp_path / "all bare" / "one", [90]) / "config.yaml").unlink()
    (tmp_path / "queued").mkdir()
    (tmp_path / "queued/sweep.json").write_text(
        json.dumps({"jobs": {"a": {"status": "queued"}, "b": {"status": "queued"}}})
    )
    assert main(["report", *(word.format(tmp_path) for word in words)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
    assert not list(tmp_path.rglob("report"))  # nothing is left behind


def test_one_evaluation_gives_a_table_and_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a", [90])
    assert main(["report", str(tmp_path)]) == 0
    assert "There is no figure" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.html"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--levels", "--baseline", "--metric", "--x", "--rows", "--out", "--json"))
