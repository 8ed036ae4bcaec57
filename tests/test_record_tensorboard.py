"""TensorBoard's file, read back by TensorBoard's own loaders."""

from __future__ import annotations

import errno
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata
from test_record import ENDED, FACTS, center, recorder, worker

from easgd_cli.problems.classification import METRICS
from easgd_cli.problems.metric import Metrics
from easgd_cli.problems.noisy import NoisyFunction
from easgd_cli.record import tensorboard
from easgd_cli.record.points import Points
from easgd_cli.record.recorder import Recorder
from easgd_cli.record.tensorboard import write_sweep

HPARAMS: dict[str, Any] = {"algo": "easgd", "tau": 4, "eta": 0.1, "delta": None, "nesterov": True}


def read(directory: Path) -> EventAccumulator:
    found = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(e.step, round(e.value, 4)) for e in found.Scalars(tag)]  # they are float32


def event_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*tfevents*"))


def system(step: float, **values: Any) -> dict[str, Any]:
    return {"seconds": step / 10, "step": step, "exchanges": 0, "party": "system", **values}


def test_each_metric_is_a_curve_under_its_tag_and_begins_at_step_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    r = recorder(tmp_path)
    r.row(center(0, 90.0))
    for t in (4, 8):
        for i in range(2):
            r.row(worker(i, t, train_loss=3.0 + i - t / 10, distance_to_center=t + i, staleness=1.5))
        r.row(center(t, 50.0 - t))
    r.row(system(8, workers_alive=2, exchanges_per_second=25.0, master_cpu_seconds=0.5))
    r.close(ENDED)
    found = read(tmp_path)
    assert scalars(found, "center/test_error") == [(0, 90.0), (4, 46.0), (8, 42.0)]
    assert scalars(found, "center/best_test_error") == [(0, 90.0), (4, 46.0), (8, 42.0)]
    assert scalars(found, "center/seconds_to_best") == [(0, 0.0), (4, 0.4), (8, 0.8)]
    assert scalars(found, "train_loss/worker_01") == [(0, 3.6), (4, 3.6), (8, 3.2)]  # begins with its first value
    assert scalars(found, "distance_to_center/worker_00") == [(0, 0.0), (4, 4.0), (8, 8.0)]  # begins with 0
    assert scalars(found, "samples_per_second/worker_00") == [(0, 0.0), (4, 100.0), (8, 100.0)]
    for kind, value in (("mean", 3.1), ("min", 2.6), ("max", 3.6)):
        assert scalars(found, f"workers/train_loss_{kind}")[:2] == [(0, value), (4, value)]
    assert scalars(found, "workers/staleness_mean") == [(0, 0.0), (4, 1.5), (8, 1.5)]
    assert scalars(found, "system/workers_alive") == [(0, 2.0), (8, 2.0)]
    assert scalars(found, "system/exchanges_per_second") == [(0, 0.0), (8, 25.0)]
    for tag in found.Tags()["scalars"]:
        assert found.Scalars(tag)[0].step == 0, tag
        # relative time is training seconds
        assert found.Scalars(tag)[-1].wall_time - found.Scalars(tag)[0].wall_time == pytest.approx(0.8)
        assert found.SummaryMetadata(tag).summary_description.endswith(".")
    assert not caplog.records  # nothing in it that TensorBoard finds odd


def test_values_that_are_not_finite_and_texts(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    r.row(center(0, 90.0))
    r.row(center(1, 90.0) | {"test_loss": math.inf, "remark": "a text"})
    r.close(ENDED)
    found = read(tmp_path)
    assert math.isnan(scalars(found, "center/test_loss")[1][1])
    assert "center/remark" not in found.Tags()["scalars"]


def test_each_link_to_a_host_has_curves_of_its_own(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    for step, share in ((4, 20.0), (8, 90.0)):
        of_run = {"seconds": step / 10, "step": step, "exchanges": step, "party": "system"}
        for host, much in (("a (10.0.0.1)", share), ("b (10.0.0.2)", 1.0)):
            r.row({**of_run, "host": host, "link_share_up": much, "link_silent": 0.1})
    r.close(ENDED)
    found = read(tmp_path)
    assert scalars(found, "link_share_up/a 10.0.0.1") == [(0, 0.0), (4, 20.0), (8, 90.0)]
    assert scalars(found, "link_share_up/b 10.0.0.2") == [(0, 0.0), (4, 1.0), (8, 1.0)]
    assert found.SummaryMetadata("link_silent/a 10.0.0.1").summary_description.startswith("Seconds since")
    assert [c.title for c in charts(tmp_path)["The links to hosts"]] == [
        "share of the link used, from the host (%)",
        "seconds since anything was heard of the host",
    ]


def test_hyperparameters_and_texts(tmp_path: Path) -> None:
    r = Recorder(tmp_path, 2, HPARAMS, {"command": "    easgd train", "config": "    eta: 0.1"}, FACTS)
    r.close(ENDED)
    found = read(tmp_path)
    start = metadata.parse_session_start_info_plugin_data(
        found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert (
        start.hparams["algo"].string_value == "easgd"
        and start.hparams["tau"].number_value == 4
        and start.hparams["nesterov"].bool_value
    )
    assert "delta" not in start.hparams  # this method has none
    experiment = metadata.parse_experiment_plugin_data(
        found.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    )
    assert {i.name for i in experiment.hparam_infos} == set(HPARAMS)  # others beside it may have
    assert not any(i.HasField("domain_discrete") for i in experiment.hparam_infos)
    assert {i.name for i in experiment.hparam_infos if i.differs} == {"algo", "tau", "eta"}  # the table opens with them
    text = found.Tensors("command")[0].tensor_proto
    assert text.string_val == [b"    easgd train"] and [d.size for d in text.tensor_shape.dim] == [1]


def charts(directory: Path) -> dict[str, list[Any]]:
    """The Custom Scalars page of one run, as TensorBoard reads it: the last layout."""
    layout = layout_pb2.Layout.FromString(
        read(directory).Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    )
    return {category.title: list(category.chart) for category in layout.category}


def test_every_chart_of_the_layout_has_curves_as_soon_as_they_come(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    r.row(center(0, 90.0))
    r.flush()
    assert [c.title for c in charts(tmp_path)["The center"]] == [
        "test error (%)",
        "best test error (%)",
        "training loss",
        "test loss",
    ]
    assert charts(tmp_path).keys() == {"The center", "Speed"}
    for t in (4, 8):
        for i in range(2):
            r.row(worker(i, t, distance_to_center=1.0))
        r.row({**center(t, 50.0 - t), "validation_error": 40.0})
        r.row({**center(t, 60.0 - t), "party": "average"})
    r.close(ENDED)
    found, curves = charts(tmp_path), read(tmp_path).Tags()["scalars"]
    assert [c.title for c in found["The center"]][2] == "held-out error (%)"
    assert found["The center and its average"][0].multiline.tag == ["^center/test_error$", "^average/test_error$"]
    assert [c.title for c in found["The workers"]] == [
        "training loss of every worker", "distance to the center: mean and range", "training loss: mean and range",
    ]  # fmt: skip
    margin = found["The workers"][2].margin.series[0]
    assert (margin.value, margin.lower, margin.upper) == (
        "workers/train_loss_mean",
        "workers/train_loss_min",
        "workers/train_loss_max",
    )
    for chart in (chart for category in found.values() for chart in category):
        for tag in chart.multiline.tag:
            assert any(re.match(tag, curve) for curve in curves), chart.title
        for series in chart.margin.series:
            assert {series.value, series.lower, series.upper} <= set(curves), chart.title


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("completed", api_pb2.STATUS_SUCCESS),
        ("diverged", api_pb2.STATUS_SUCCESS),
        ("failed", api_pb2.STATUS_FAILURE),
        ("interrupted", None),
    ],
)
def test_only_a_final_end_is_told(tmp_path: Path, status: str, told: int | None) -> None:
    recorder(tmp_path).close({**ENDED, "status": status})
    found = read(tmp_path)
    assert (metadata.SESSION_END_INFO_TAG in found.Tags()["tensors"]) == (told is not None)
    if told is not None:
        end = metadata.parse_session_end_info_plugin_data(
            found.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
        )
        assert end.status == told


def test_a_run_that_goes_on_shows_each_step_once_from_the_same_beginning(tmp_path: Path) -> None:
    """Also on a page that has been open all the while, and in one opened afterwards."""
    r = recorder(tmp_path)
    for t in range(1, 11):
        r.row(worker(0, t))
        r.row(worker(1, t))
        r.row(center(t, 50.0 - t))
    r.flush()
    page = plugin_event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    page.Reload()
    began = page.Tensors("train_loss/worker_00")[0].wall_time
    with open(event_files(tmp_path)[0], "ab") as f:
        f.write(b"\x18\x00\x00")  # killed in the middle of an event
    again = Recorder.reopen(tmp_path, 2, HPARAMS, {}, FACTS, keep=lambda row: row["step"] <= 6, exchanges=0)
    for t in range(7, 13):
        again.row(worker(0, t, train_loss=2.0))
        again.row(worker(1, t))
        again.row(center(t, 60.0 - t))
    again.close(ENDED)
    page.Reload()
    fresh = plugin_event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    fresh.Reload()
    for found in (page, fresh):
        for tag in ("train_loss/worker_00", "center/test_error", "workers/train_loss_mean"):
            events = found.Tensors(tag)
            steps = [e.step for e in events]
            assert steps == list(range(1 if tag.startswith("center") else 0, 13))
            assert [e.wall_time - began for e in events] == pytest.approx([s / 10 for s in steps], abs=1e-6)
        assert found.Tensors("train_loss/worker_00")[7].tensor_proto.float_val[0] == 2.0
    old, new = event_files(tmp_path)
    assert old.stat().st_size == 0 < new.stat().st_size


def test_a_full_disk_does_not_end_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(tensorboard.log, "warning", lambda text, *_: told.append(text))
    r = recorder(tmp_path)
    events = os.stat(event_files(tmp_path)[0]).st_ino
    pwrite, full = os.pwrite, True

    def full_for_events(fd: int, data: Any, offset: int) -> int:
        if full and os.fstat(fd).st_ino == events:
            if len(data) < 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(fd, data[: len(data) // 2], offset)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full_for_events)
    for t in range(1, 5):
        r.row(worker(0, t))
        r.row(worker(1, t))
        r.flush()
    assert scalars_or_none(tmp_path, "train_loss/worker_00") is None
    assert len(told) == 1 and "TensorBoard's file could not be written" in told[0]
    full = False
    r.row(worker(0, 5))
    r.close(ENDED)
    assert [step for step, _ in scalars(read(tmp_path), "train_loss/worker_00")] == [0, 1, 2, 3, 4, 5]


def scalars_or_none(directory: Path, tag: str) -> list[tuple[int, float]] | None:
    found = read(directory)
    return scalars(found, tag) if tag in found.Tags()["scalars"] else None


def test_a_sweep_tells_what_differs_and_what_is_compared(tmp_path: Path) -> None:
    runs = [
        {"algo": a, "tau": t, "eta": 0.1, "gamma": None, "delta": 0.9 if a == "eamsgd" else None}
        for a in ("easgd", "eamsgd")
        for t in (1, 16)
    ]
    write_sweep(tmp_path, runs[:2], {}, [METRICS])
    write_sweep(tmp_path, runs, {"command": "    easgd train -m"}, [METRICS])
    (tmp_path / "a run").mkdir()
    recorder(tmp_path / "a run").close(ENDED)
    found = read(tmp_path)
    experiment = metadata.parse_experiment_plugin_data(
        found.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    )
    infos = {i.name: i for i in experiment.hparam_infos}
    assert list(infos) == ["algo", "tau"]  # neither what all have alike, nor what only some methods use, with one value
    assert all(i.differs for i in infos.values())
    assert [v.number_value for v in infos["tau"].domain_discrete.values] == [1, 16]
    assert [v.string_value for v in infos["algo"].domain_discrete.values] == ["eamsgd", "easgd"]
    assert infos["tau"].type == api_pb2.DATA_TYPE_FLOAT64
    assert experiment.metric_infos[0].name.tag == "center/best_test_error"
    # A run within a sweep has no experiment of its own: the page would read one of them instead of the sweep's.
    assert metadata.EXPERIMENT_TAG not in read(tmp_path / "a run").Tags()["tensors"]
    assert found.Tensors("command")[0].tensor_proto.string_val == [b"    easgd train -m"]


def test_runs_on_functions_are_compared_by_their_distance_to_the_optimum(tmp_path: Path) -> None:
    def compared(*datasets: str) -> list[str]:
        metrics = [METRICS if d == "digits" else Metrics(NoisyFunction.metrics) for d in datasets]
        write_sweep(tmp_path, [{"dataset": d, "seed": i} for i, d in enumerate(datasets)], {}, metrics)
        experiment = metadata.parse_experiment_plugin_data(
            read(tmp_path).SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
        )
        return [info.name.tag for info in experiment.metric_infos if info.name.tag.startswith("center/")]

    assert compared("none", "none") == ["center/distance_to_optimum", "center/train_loss"]
    assert compared("digits") == [
        "center/best_test_error",
        "center/test_error",
        "center/seconds_to_best",
        "center/train_loss",
    ]
    assert set(compared("digits", "none")) == {*compared("digits"), *compared("none")}


def test_whatever_a_problem_measures_of_the_center_is_plotted_under_its_name(tmp_path: Path) -> None:
    r = Recorder(tmp_path, 2, {"algo": "easgd"}, {}, {**FACTS, "metrics": Metrics(NoisyFunction.metrics).told()})
    for step, loss in ((0, 3.0), (10, math.nan)):
        r.row(
            {
                "seconds": step / 10,
                "step": step,
                "exchanges": 0,
                "party": "center",
                "train_loss": loss,
                "distance_to_optimum": 2.0,
                "roundness": 0.5,
            }
        )
    r.close(ENDED)
    found = read(tmp_path)
    assert {tag for tag in found.Tags()["scalars"] if tag.startswith("center/")} == {
        f"center/{m}" for m in ("train_loss", "distance_to_optimum", "roundness")
    }
    assert scalars(found, "center/roundness") == [(0, 0.5), (10, 0.5)]
    assert "Euclidean" in found.SummaryMetadata("center/distance_to_optimum").summary_description
    assert "own evaluation" in found.SummaryMetadata("center/roundness").summary_description


def test_mean_and_range_wait_for_the_live_workers_and_need_most_of_them() -> None:
    points = Points(3)

    def means(*rows: dict[str, Any]) -> list[tuple[int, float]]:
        found = [
            (p.step, p.values["workers/train_loss_mean"])
            for row in rows
            for p in points.of(row)
            if "workers/train_loss_mean" in p.values
        ]
        return [f for f in found if f[0] > 0]

    assert means(worker(0, 5, train_loss=1.0), worker(1, 5, train_loss=2.0)) == []
    assert means(worker(2, 5, train_loss=6.0)) == [(5, 3.0)]
    assert means(worker(0, 10, train_loss=1.0), worker(1, 10, train_loss=2.0)) == []
    assert means(system(10, workers_alive=2, lost=2)) == [(10, 1.5)]
    assert means(worker(0, 12), worker(1, 14, train_loss=4.0)) == []  # never the two together
    assert means(worker(0, 15, train_loss=2.0), worker(1, 15, train_loss=3.0)) == [(15, 2.5)]
    points.all_live()
    assert means(worker(0, 20, train_loss=2.0), worker(1, 20, train_loss=3.0)) == []
    assert [p.step for p in points.rest()] == [20]


def test_a_step_never_goes_back() -> None:
    """Losing the slowest worker or its late row must not: TensorBoard would drop what it has from there on."""
    points = Points(2)
    steps = [
        p.step
        for row in (system(20, workers_alive=2), system(12.5, workers_alive=1), system(21, workers_alive=1))
        for p in points.of(row)
    ]
    assert steps == [0, 20, 20, 21]
