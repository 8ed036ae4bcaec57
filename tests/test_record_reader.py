"""The one reader of a run's directory: every faulty file is one sentence that names it, and nothing hangs or is
imported.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
import yaml

from easgd_cli.__main__ import main
from easgd_cli.record import reader
from easgd_cli.record.reader import BadFile, MissingFile, NewRows

ROW = {"seconds": 1.0, "step": 4, "exchanges": 2, "party": "worker_01", "train_loss": 0.5, "samples_per_second": 10.0}
WORKERS = 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with a checkpoint."""
    path = tmp_path_factory.mktemp("finished") / "run"
    words = [
        "algo=easgd",
        f"workers={WORKERS}",
        "launcher=simulated",
        "steps=6",
        "tau=2",
        "checkpoint.every=3 steps",
        "eval.train_images=16",
    ]
    with redirect_stdout(io.StringIO()):
        assert main(["train", *words, f"hydra.run.dir={path}"]) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def checkpoint(run: Path) -> Path:
    return reader.checkpoints(run / "checkpoint")[-1]


def test_what_the_recorder_writes_is_read_back(run: Path) -> None:
    rows = list(reader.read_rows(run / "metrics.jsonl", WORKERS))
    assert rows == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert reader.config_of(run) == yaml.safe_load((run / "config.yaml").read_text())
    assert (
        reader.summary_of(run) | {"crc32": ANY} == json.loads((run / "summary.json").read_text())
        and reader.status_of(run) == "completed"
    )
    assert "steps=6" in reader.overrides_of(run)
    data = (run / "exchanges.bin").read_bytes()
    assert reader.read_order(run / "exchanges.bin", reader.Entries(WORKERS)) == [
        data[i] + 256 * data[i + 1] for i in range(0, len(data), 2)
    ]
    assert reader.newest_checkpoint(run).workers.keys() == {0, 1}


def test_what_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert (reader.config_of(tmp_path), reader.summary_of(tmp_path), reader.overrides_of(tmp_path)) == (None, {}, [])
    assert reader.status_of(tmp_path) is None and reader.checkpoints(tmp_path / "checkpoint") == []
    with pytest.raises(MissingFile, match=r"metrics\.jsonl: cannot be read \(No such file"):
        list(reader.read_rows(tmp_path / "metrics.jsonl"))
    with pytest.raises(MissingFile, match="holds no checkpoint"):
        reader.newest_checkpoint(tmp_path)


def test_a_directory_of_before_is_read_by_todays_names(tmp_path: Path) -> None:
    old = {key.replace("samples", "images"): value for key, value in ROW.items()}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    (tmp_path / "summary.json").write_text('{"status": "completed", "images_per_second": 20.5}')
    assert list(reader.read_rows(tmp_path / "metrics.jsonl")) == [ROW]
    assert reader.summary_of(tmp_path)["samples_per_second"] == 20.5


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"seconds": "soon"}, 'its seconds is "soon"'),
        ({"step": True}, "its step is true"),
        ({"exchanges": None}, "its exchanges is null"),
        ({"seconds": float("inf")}, "its seconds is Infinity"),
        ({"step": -1}, "its step is -1"),
        ({"party": 3}, "it has no party"),
        ({"party": "worker_02"}, 'there is no party "worker_02" in a run of 2 workers'),
        ({"party": "teacher"}, 'there is no party "teacher"'),
        ({"train_loss": "low"}, 'its train_loss is "low"'),
        ({"train_loss": [1.0]}, r"its train_loss is \[1.0\]"),
        ({"party": "center", "test_error": "none"}, 'its test_error is "none"'),
        ({"party": "system", "lost": 2}, "its lost is 2"),
        ({"train_loss": 10**40}, "its train_loss is 1000"),
    ],
)
def test_a_row_that_the_recorder_never_writes_is_named_with_its_line(
    change: dict[str, object], wrong: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROW, ROW | change, ROW)))
    with pytest.raises(BadFile, match=rf"metrics\.jsonl: line 2 is not a row of the record \({wrong}") as raised:
        list(reader.read_rows(path, WORKERS))
    assert (raised.value.path, raised.value.line) == (path, 2)
    damaged: list[int] = []
    assert list(reader.read_rows(path, WORKERS, damaged)) == [ROW, ROW] and damaged == [2]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 100_000, b"[1]", b"null", b"{", b'{"a": 1}', b""])
def test_a_line_that_is_no_object_is_no_row(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(BadFile, match="line 1 is not a row of the record"):
        list(reader.read_rows(path))


def test_new_rows_are_those_since_the_last_look(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    new = NewRows(path)
    assert new.take() == ([], False)
    os.mkfifo(path)
    assert new.take() == ([], False)  # and does not wait for a writer
    path.unlink()
    line = json.dumps(ROW)
    path.write_text(f"{line}\nnot a row\n{line[:20]}")
    assert new.take() == ([ROW], True)
    with open(path, "a") as f:
        f.write(line[20:] + "\n")
    assert new.take() == ([ROW], False)


def broken(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def made_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


RESUME, REPLAY, REPORT, EVAL = (
    ["train", "resume=run", "steps=9"],
    ["train", "replay=run"],
    ["report", "run"],
    ["eval", "run"],
)
WORKER = ["eval", "run", "worker_00"]


@pytest.mark.parametrize(
    ("name", "spoil", "wrong"),
    [(name, spoil, wrong) for name in ("config.yaml", "summary.json", "metrics.jsonl", "exchanges.bin",
    "checkpoint") for spoil, wrong in (
        (piped, "is a named pipe"), (made_a_directory, "is a directory"),
    )] + [(name, broken(b"ab: \xff\n"), "UTF-8") for name in ("config.yaml", "summary.json", "metrics.jsonl")] + [
        ("config.yaml", broken(b"workers: four\n"), "config.yaml: "),
        ("config.yaml", broken(b"a: [\n"), "config.yaml: "),
        ("config.yaml", broken(b"- 1\n"), "config.yaml: "),
        ("config.yaml", broken(b"workers: 2\nproblem: 3\n"), "config.yaml: "),
        ("summary.json", broken(b"[1]"), "summary.json: "),
        ("summary.json", broken(b'{"status": 3}'), "summary.json: "),
        ("summary.json", broken(b'{"status": "completed", "steps": {"worker_00": "all"}}'), "summary.json: "),
        ("exchanges.bin", broken(b"\x00\x00\x07\x00"), "exchange 2 was of worker 7"),
        ("checkpoint", broken(b"torn"), ".pt: is damaged"),
        ("overrides.yaml", broken(b"\xff"), "UTF-8"), ("overrides.yaml", broken(b"a: b"), "is not a list"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_one_sentence_of_every_command_that_reads_it(
    name: str, spoil: Callable[[Path], object], wrong: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    path = checkpoint(run) if name == "checkpoint" else run / name
    spoil(path)
    reading = {
        "config.yaml": [RESUME, REPLAY, REPORT, EVAL], "summary.json": [RESUME, REPLAY, REPORT],
        "metrics.jsonl": [RESUME],
        "exchanges.bin": [RESUME, REPLAY], "checkpoint": [RESUME, WORKER], "overrides.yaml": [RESUME, REPORT],
    }[name]  # fmt: skip
    if name == "metrics.jsonl" and wrong != "UTF-8":
        reading.append(REPORT)
    for words in reading:
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            status = main(words)
        assert (status, said.getvalue().count("\n")) == (2, 1), (words, said.getvalue())
        assert wrong in said.getvalue() and path.name in said.getvalue(), words


def test_reading_imports_nothing_that_a_run_names(run: Path) -> None:
    """Not the user's module, and of the heavy packages only what a checkpoint takes."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for group in ("algo", "problem", "dataset", "model"):
        config[group] = {"name": "mine", "target": "mine:Mine"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run.parent / "mine.py").write_text("raise SystemExit('imported')")
    program = (
        "import sys; from pathlib import Path; from easgd_cli.record import reader; run = Path('run'); "
        "reader.config_of(run), reader.summary_of(run), list(reader.read_rows(run / 'metrics.jsonl')); "
        "from easgd_cli.__main__ import main; before = 'torch' in sys.modules; main(['report', 'run', "
        "'--out', 'out']); "
        "print(before, 'mine' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=run.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_a_checkpoint_of_another_form_is_named(run: Path) -> None:
    torch.save({"owner": 3}, checkpoint(run))
    with pytest.raises(BadFile, match=r"\.pt: cannot be read"):
        reader.newest_checkpoint(run)
