"""What a run or sweep shows: redrawn in a terminal, lines elsewhere, nothing too wide, and no run ends because nobody
looks.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_record import ENDED, FACTS, center, recorder, worker

from easgd_cli.problems.classification import METRICS
from easgd_cli.problems.metric import Metrics
from easgd_cli.problems.noisy import NoisyFunction
from easgd_cli.record import run_view
from easgd_cli.record.display import Screen
from easgd_cli.record.recorder import Recorder
from easgd_cli.record.run_view import RunView
from easgd_cli.record.table import show_run, show_sweep
from easgd_cli.sweeps.view import SweepView


class Clock:
    """Stands for time.monotonic."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(run_view.time, "monotonic", found)
    return found


class Terminal(io.StringIO):
    """A terminal that remembers what was sent to it."""

    def isatty(self) -> bool:
        return True

    def lines(self, since: int = 0) -> list[str]:
        """Everything that was shown since so many characters, line by line, without colours and movements."""
        return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()[since:]))


def plain() -> Screen:
    return Screen(file=io.StringIO(), highlight=False, soft_wrap=True, width=80)


def said(console: Console) -> list[str]:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def train(view: RunView, clock: Clock, seconds: int) -> None:
    view.begin(0.0)
    for tenth in range(1, seconds * 10):
        clock.now = 100 + tenth / 10
        view.update(seconds=tenth / 10, step=tenth, exchanges=4 * tenth, evaluations_pending=0)
        for i in range(4):
            view.worker(worker(i, tenth))


def test_lines_where_there_is_no_terminal_are_few_and_tell_what_is_known(clock: Clock) -> None:
    console = plain()
    view = RunView(steps=1000, minutes=None, workers=4, metrics=METRICS, console=console)
    train(view, clock, 60)
    view.center(center(500, 12.34) | {"best_test_error": 11.0})
    lines = said(console)
    assert lines[:2] == ["starting 4 workers", "training begins: 4 workers, 1,000 steps each"]
    assert lines[2] == "0:00:10  step 100/1,000  400 samples/s  400 exchanges  0:01:30 left"
    assert len(lines) == 2 + 5 + 1
    assert lines[-1] == "0:00:50  step 500: center: train loss 0.2468, test error 12.34 % (best 11.00 %)"
    assert not any("\x1b" in line for line in lines)


def test_a_run_by_the_clock_and_one_that_goes_on(clock: Clock) -> None:
    console = plain()
    view = RunView(steps=None, minutes=2.0, workers=1, metrics=METRICS, console=console)
    view.begin(30.0)
    clock.now += 11
    view.update(seconds=41.0, step=900, exchanges=0, evaluations_pending=3)
    assert said(console)[1:] == [
        "training begins: 1 worker, 2 minutes, going on after 0:00:30",
        "0:00:41  step 900  0 samples/s  3 evaluations waiting  0:01:19 left",
    ]


def test_a_worker_that_says_nothing_does_not_count_for_speed(clock: Clock) -> None:
    console = plain()
    view = RunView(steps=1000, minutes=None, workers=2, metrics=METRICS, console=console)
    view.begin(0.0)
    for t in range(1, 400):
        view.worker(worker(0, t))
        if t < 20:
            view.worker(worker(1, t))
    clock.now += 40
    view.update(seconds=40.0, step=400, exchanges=100, evaluations_pending=0)
    assert "  100 samples/s  " in said(console)[-1]


def test_a_terminal_shows_a_line_for_each_link_and_lines_of_text_do_not(clock: Clock) -> None:
    terminal = Terminal()
    for console in (Screen(file=terminal, force_terminal=True, width=80), plain()):
        view = RunView(steps=1000, minutes=None, workers=2, metrics=METRICS, console=console)
        view.begin(0.0)
        view.links(["b (10.0.0.2): 2 workers, nothing heard of it for 5 s"])
        clock.now += 11
        view.update(seconds=11.0, step=100, exchanges=10, evaluations_pending=0)
        view.close()
    assert any("nothing heard of it for 5 s" in line for line in terminal.lines())
    assert not any("b (10.0.0.2)" in line for line in said(console))


def test_who_stands_still_is_shown_instead_of_a_time_left_that_grows(clock: Clock) -> None:
    console = plain()
    view = RunView(steps=1000, minutes=None, workers=4, metrics=METRICS, console=console)
    train(view, clock, 60)
    for silent in (["worker 2 has said nothing for 6 s"], []):
        view.silent(silent)
        clock.now += 11
        view.update(seconds=71.0, step=600, exchanges=400, evaluations_pending=0)
    stands, goes = said(console)[-2:]
    assert stands.endswith("400 exchanges  worker 2 has said nothing for 6 s")
    assert goes.endswith(" left")


def test_the_view_in_a_terminal_is_never_wider_and_is_gone_at_the_end(clock: Clock, tmp_path: Path) -> None:
    terminal = Terminal()
    view = RunView(
        steps=123_456_789,
        minutes=None,
        workers=4,
        metrics=METRICS,
        console=Screen(file=terminal, force_terminal=True, width=80, highlight=False),
    )
    view.begin(0.0)
    for n in range(1, 30):
        clock.now += 1
        view.update(seconds=40_000.0 * n, step=4e6 * n, exchanges=400_000_000 * n, evaluations_pending=123_456)
        view.worker(worker(0, 400_000 * n, samples_per_second=123_456_789.0))
        view.center(center(4e6 * n, 12.34) | {"best_test_error": 11.0, "train_loss": None})
    view.note("worker 2 died (killed by SIGKILL); the run goes on with 3 of 4 [not markup]")
    view.finishing(2)
    r = recorder(tmp_path)
    r.row(center(1, 5.0))
    r.row(worker(0, 1))
    view.end(r.close(ENDED))
    shown = terminal.lines()
    assert max(len(line) for line in shown) <= 80
    assert any("center: train loss not finite, test error 12.34 % (best 11.00 %)" in line for line in shown)
    assert any(line == "worker 2 died (killed by SIGKILL); the run goes on with 3 of 4 [not markup]" for line in shown)
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back
    assert shown[-2].startswith("a worker's time")


def test_redrawing_is_a_few_times_a_second(clock: Clock) -> None:
    terminal = Terminal()
    view = RunView(
        steps=1000,
        minutes=None,
        workers=4,
        metrics=METRICS,
        console=Screen(file=terminal, force_terminal=True, width=80),
    )
    view.begin(0.0)
    before = len(terminal.getvalue())
    for _ in range(1000):
        clock.now += 0.001
        view.update(seconds=clock.now - 100, step=(clock.now - 100) * 100, exchanges=0, evaluations_pending=0)
    assert terminal.getvalue()[before:].count("/1,000") <= 6
    view.close()
    view.close()


def test_a_terminal_that_is_gone_does_not_end_the_run(clock: Clock) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    view = RunView(steps=1000, minutes=None, workers=4, metrics=METRICS, console=Screen(file=Gone()))
    train(view, clock, 20)
    view.note("something")
    view.center(center(1, 5.0))
    view.finishing(1)
    view.end({})
    view.close()


def append(record: Path, *rows: dict[str, Any], rest: str = "") -> None:
    with open(record, "a") as f:
        f.write("".join(json.dumps(row) + "\n" for row in rows) + rest)


def test_jobs_of_a_sweep_are_a_line_each_by_what_their_records_have_gained(clock: Clock, tmp_path: Path) -> None:
    terminal, record = Terminal(), tmp_path / "a" / "metrics.jsonl"
    view = SweepView(4, Screen(file=terminal, force_terminal=True, width=72, highlight=False))

    def frame() -> list[str]:
        clock.now += 10
        before = len(terminal.getvalue())
        view.look()
        return [line.rstrip() for line in terminal.lines(before) if line.strip()]

    view.begun("[1/4] algo=easgd,seed=0", record.parent, steps=100, minutes=None)
    view.begun("[2/4] algo=easgd,eta=0.0625,seed=1,tau=16,workers=2", tmp_path / "b", steps=None, minutes=2.0)
    heading, first, second, counts = frame()
    assert heading.split() == ["running", "step", "left", "train", "loss", "test", "error"]
    assert first.split() == ["[1/4]", "algo=easgd,seed=0", "starting"]
    assert second.startswith("[2/4] algo=easgd,eta=0.0625") and second.endswith("…  starting")
    assert counts == "2 running, 2 queued"
    record.parent.mkdir()
    append(record, worker(0, 10), worker(1, 20), center(15, 12.34), rest='{"seconds": 4.0, "step": 99, "exch')
    # how fast it is is not known yet
    assert frame()[1].split() == ["[1/4]", "algo=easgd,seed=0", "15/100", "0.2468", "12.34", "%"]
    # the line that was being written is damaged, and so is the next
    append(record, {"party": "worker_01"}, worker(0, 20), worker(1, 30))
    assert frame()[1].split()[2:4] == ["25/100", "0:01:15"]  # 10 steps in 10 s
    assert max(len(line) for line in terminal.lines()) <= 72
    append(tmp_path / "beside", worker(0, 5), {**center(5, 50.0), "train_loss": None})
    (tmp_path / "beside").replace(record)  # taken back to a checkpoint
    assert frame()[1].split() == ["[1/4]", "algo=easgd,seed=0", "5/100", "not", "finite", "50.00", "%"]
    append(record, worker(0, 100))
    assert "100/100  ending" in frame()[1]
    view.ended("[1/4] algo=easgd,seed=0", "failed", "failed: the day is wrong")
    assert "[1/4] algo=easgd,seed=0: failed: the day is wrong" in terminal.lines()
    assert "1 running, 2 queued, 1 failed" in frame()[-1]
    view.close()


def test_jobs_of_a_sweep_without_a_terminal_are_a_line_when_they_begin_and_one_when_they_end(
    clock: Clock, tmp_path: Path
) -> None:
    console = plain()
    view = SweepView(2, console)
    view.begun("[1/2] a", tmp_path, steps=100, minutes=None)
    for _ in range(100):
        clock.now += 1
        view.look()
    view.ended("[1/2] a", "completed", "completed, test error 2.00 %")
    view.ended("[2/2] b", "failed", "failed: [why]")
    view.close()
    assert said(console) == ["[1/2] a: begun", "[1/2] a: completed, test error 2.00 %", "[2/2] b: failed: [why]"]


def summary(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    r = recorder(tmp_path)
    r.row(center(30, 4.0))
    r.row(center(60, 5.0))
    r.row(worker(0, 40))
    return r.close({**ENDED, **changes})


def test_the_end_of_a_run(tmp_path: Path) -> None:
    console = plain()
    show_run(summary(tmp_path), console)
    assert said(console) == [
        "status           completed",
        "method           easgd, 2 workers, tau=4",
        "test error       5.00 %, at best 4.00 % after 3.0 s",
        "loss             train 0.1, test 0.125",
        "steps            40 to 60",
        "exchanges        7 (14.0 kB)",
        "speed            250 samples/s for 4.0 s",
        "a worker's time  compute 76.9 %, data 3.8 %, communication 7.7 %, other 11.5 %",
    ]


def test_an_early_end_says_when_its_figures_were_measured_and_which_workers_had_been_lost(tmp_path: Path) -> None:
    """The last evaluation is at step 30 with 3 exchanges; the run goes on to 7."""
    console, stopped = plain(), {**ENDED, "status": "interrupted", "lost": {"worker_01": "killed by SIGKILL"}}
    r = recorder(tmp_path)
    r.row(center(20, 6.0, exchanges=2))
    r.row({"seconds": 2.5, "step": 25, "exchanges": 2, "party": "system", "workers_alive": 1, "lost": 1})
    r.row(center(30, 5.0, exchanges=3))
    show_run(r.close(stopped), console)
    assert {
        "measured         at step 30, 4 exchanges before the end",
        "lost             worker_01: killed by SIGKILL",
    } <= set(said(console))

    r, console = Recorder.reopen(tmp_path, 2, {}, {}, FACTS, keep=lambda row: True, exchanges=0), plain()
    r.row({"seconds": 3.5, "step": 35, "exchanges": 4, "party": "system", "workers_alive": 1, "lost": 0})
    ended = r.close({**stopped, "status": "completed", "lost": {"worker_00": "out of memory"}})
    assert ended["lost_before"] == {"worker_01": [25]}
    show_run(ended, console)
    assert said(console)[-2:] == [
        "lost             worker_01: at step 25, until the run was resumed",
        "lost             worker_00: out of memory",
    ]
    assert not any(line.startswith("measured") for line in said(console))  # one that completed has measured its end

    alone, console = (
        {"exchanges": 0, "steps": {"worker_00": 31}, "evaluated": {"seconds": 3.0, "step": 30, "exchanges": 0}},
        plain(),
    )
    show_run({**ended, "status": "failed", **alone}, console)  # a method without exchange
    assert "measured         at step 30, 1 step before the end" in said(console)


def test_top5_errors_are_told_beside_the_others(tmp_path: Path) -> None:
    console, top5 = plain(), {"test_error_top5": 1.25, "validation_error": 7.0, "validation_error_top5": 2.5}
    ended = {**summary(tmp_path), "center": {**summary(tmp_path)["center"], **top5}}
    show_run(ended, console)
    assert said(console)[2:7] == [
        "test error       5.00 %, at best 4.00 % after 3.0 s",
        "top-5 error      1.25 %",
        "held-out error   7.00 %",
        "held-out top-5   2.50 %",
        "loss             train 0.1, test 0.125",
    ]
    console = plain()
    show_sweep(
        [
            ("tau=1", "completed", ended, None),
            ("tau=2", "completed", {"center": {"test_error": 6.0}, "wall_seconds": 1.0}, None),
        ],
        console,
    )
    lines = [line.split() for line in said(console)]
    assert lines[0] == ["run", "status", "test", "error", "best", "top-5", "held-out", "held-out", "top-5", "seconds"]
    assert lines[1][-7:] == ["1.25", "%", "7.00", "%", "2.50", "%", "4.0"]
    assert lines[2].count("-") == 4


ON_FUNCTIONS = Metrics(NoisyFunction.metrics)
ON_FUNCTION = {
    "seconds": 1.0,
    "step": 10,
    "exchanges": 7,
    "party": "center",
    "train_loss": 0.123456,
    "distance_to_optimum": 2.0,
    "coordinate_0": -2.0,
}


def test_a_run_without_test_error_shows_what_its_problem_measures(tmp_path: Path, clock: Clock) -> None:
    console = plain()
    view = RunView(steps=100, minutes=None, workers=2, metrics=ON_FUNCTIONS, console=console)
    view.begin(0.0)
    view.center(ON_FUNCTION)
    assert said(console)[-1] == "0:00:01  step 10: center: train loss 0.1235, distance to optimum 2, coordinate 0 -2"
    view.center({**ON_FUNCTION, "train_loss": None})
    assert said(console)[-1].endswith("center: train loss not finite, distance to optimum 2, coordinate 0 -2")
    clock.now += 20
    view.worker(worker(0, 10))
    view.update(seconds=1.0, step=10, exchanges=7, evaluations_pending=0)
    assert "  100 samples/s  " in said(console)[-1]

    r = recorder(tmp_path)
    r.row(ON_FUNCTION)
    ended = r.close({**ENDED, "metrics": ON_FUNCTIONS.told()})
    assert ended["center"] == {"train_loss": 0.123456, "distance_to_optimum": 2.0, "coordinate_0": -2.0}
    console = plain()
    show_run(ended, console)
    assert said(console)[2:5] == [
        "loss                 train 0.1235",
        "distance to optimum  2",
        "coordinate 0         -2",
    ]
    assert any("250 samples/s" in line for line in said(console))


def test_a_sweep_over_functions_shows_their_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = recorder(tmp_path)
    r.row(ON_FUNCTION)
    on_function = r.close({**ENDED, "metrics": ON_FUNCTIONS.told()})
    show_sweep([("a", "completed", on_function, None), ("b", "failed", {}, None)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "status", "train", "loss", "distance", "to", "optimum", "seconds"]
    assert [line.split() for line in lines[1:3]] == [
        ["a", "completed", "0.1235", "2", "4.0"],
        ["b", "failed", "-", "-", "-"],
    ]


def test_a_sweep_shows_averages_and_levels_where_there_are_any(tmp_path: Path) -> None:
    ended = {**summary(tmp_path), "until": {"test_error": 4.5}}
    rows: list[tuple[str, str, dict[str, Any], str | None]] = [
        ("both", "completed", {**ended, "average": {"test_error": 4.5}}, None),  # which counts, not the center's 5 %
        ("stopped", "interrupted", {**ended, "status": "interrupted", "average": {"test_error": 4.0}}, None),
        ("center", "completed", ended, None),
        ("plain", "completed", summary(tmp_path), None),
    ]
    console = plain()
    show_sweep(rows, console)
    lines = [line.split() for line in said(console)]
    assert lines[0] == ["run", "status", "test", "error", "best", "average", "until", "seconds"]
    assert [" ".join(line[6:]) for line in lines[1:5]] == [
        "4.50 % 4.5 % reached 4.0",
        "4.00 % 4.5 % not reached 4.0",
        "- 4.5 % not reached 4.0",
        "- - 4.0",
    ]


def test_the_end_of_a_run_that_had_hardly_begun(tmp_path: Path) -> None:
    console = plain()
    ended = {
        **ENDED,
        "status": "failed",
        "reason": "the master died",
        "wall_seconds": 0.0,
        "exchanges": 0,
        "steps": {"worker_00": 0},
    }
    show_run(recorder(tmp_path).close(ended), console)
    lines = said(console)
    assert lines[0].endswith("failed: the master died")
    assert any(line.startswith("test error") and line.endswith("-") for line in lines)


def test_the_end_of_a_sweep_names_every_run_and_every_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "algo=eamsgd,batch_size=128,dataset.validation=100,eta=0.005,seed=12345,tau=16,workers=16"
    rows = [
        ("algo=easgd", "completed", summary(tmp_path), None),
        (long, "failed", {}, "the master died (killed by SIGKILL); there is no checkpoint to go on from"),
        (
            "algo=downpour",
            "diverged",
            {**FACTS, "center": {"test_error": 90.0}, "wall_seconds": 1234.5},
            "the center's loss is not finite",
        ),
        ("algo=sgd", "not started", {}, None),
    ]
    show_sweep(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["algo=easgd", "completed", "5.00", "%", "4.00", "%", "4.0"]
    assert lines[2].startswith(long)  # whole, for whoever reads a file
    assert lines[3].split() == ["algo=downpour", "diverged", "90.00", "%", "-", "1,234.5"]
    assert lines[5:] == [
        f"{long}: failed: the master died (killed by SIGKILL); there is no checkpoint to go on from",
        "algo=downpour: diverged: the center's loss is not finite",
    ]
    terminal = Terminal()
    show_sweep(rows, Console(file=terminal, force_terminal=True, width=80))
    assert all(len(line) <= 80 for line in terminal.lines()[:7])
