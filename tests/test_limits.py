"""What a shell, a scheduler or a file system may deny the program is answered by a sentence, never by a traceback."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from warm import Limited

from easgd_cli.launcher.kinds import Local
from easgd_cli.system import limits

SHORT = ("train", "steps=20", "threads=1", "eval.train_images=10")


def easgd(*words: str, environment: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own. Nothing it says is a traceback."""
    return python("-m", "easgd_cli", *words, environment=environment, **more)


def python(*words: str, environment: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    said = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **(environment or {})},
        **{
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "errors": "replace",
            "timeout": 100,
            **more,
        },
    )
    assert "Traceback" not in f"{said.stdout}{said.stderr}" and "ignored" not in f"{said.stderr}", said.stderr
    return said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["train", "--help"], ["theory", "--help"], ["report", "RUN"]]
)
def test_output_that_cannot_be_written_is_said_and_fails(
    words: list[str], unbuffered: str, finished: Path, tmp_path: Path
) -> None:
    words = [word.replace("RUN", str(finished)) for word in words]
    words += ["--out", str(tmp_path)] if words[0] == "report" else []
    with open("/dev/full", "w") as full:
        said = easgd(*words, stdout=full, environment={"PYTHONUNBUFFERED": unbuffered})
    assert (
        said.returncode == 1 and said.stderr == "easgd: standard output cannot be written: No space left on device.\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_left_is_no_error_to_speak_of(unbuffered: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    said = easgd("train", "--help", stdout=writes, environment={"PYTHONUNBUFFERED": unbuffered})
    os.close(writes)
    assert (said.returncode, said.stderr) == (1, "")


def test_closed_streams_are_no_files_of_a_run(tmp_path: Path) -> None:
    def close() -> None:
        for descriptor in range(3):
            os.close(descriptor)

    run = tmp_path / "run"
    said = easgd(*SHORT, f"hydra.run.dir={run}", preexec_fn=close, stdout=None, stderr=None, cwd=tmp_path)
    assert said.returncode == 0
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
ONE_AFTER_ANOTHER = """
import sys
from easgd_cli.__main__ import main
from easgd_cli.system import streams
streams.prepare()
words = sys.argv[1:]
while words:
    end = words.index(";")
    print("status", main(words[:end]), file=sys.stderr, flush=True)
    del words[: end + 1]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a directory with letters beyond ASCII, made and looked at where the locale does not know them."""
    made = tmp_path_factory.mktemp("größe")
    run = made / "ü→x"
    commands = [
        [*SHORT, f"hydra.run.dir={run}"], ["report", str(run), "--out", str(made / "ä")], ["eval", str(run)],
        ["train", f"resume={run}", "steps=30"],
    ]  # fmt: skip
    words = [word for command in commands for word in (*command, ";")]
    said = python("-c", ONE_AFTER_ANOTHER, *words, environment=NO_UTF8)
    assert re.findall(r"^status (\d+)$", said.stderr, re.MULTILINE) == ["0"] * 4, said.stderr
    assert ascii("ü→x")[1:-1] in str(said.stdout)
    assert f"{said.stdout}{said.stderr}".isascii()
    return run


@pytest.mark.usefixtures("finished")
def test_a_locale_without_utf8_and_a_directory_beyond_ascii() -> None:
    """A run, its report, its measures and its going on, and a command by itself."""
    said = easgd("train", "tüa=1", environment=NO_UTF8)
    assert said.returncode == 2 and f"{said.stdout}{said.stderr}".isascii(), said.stderr


def test_a_name_that_is_no_text_is_refused() -> None:
    said = easgd("report", os.fsdecode(b"r\xff"))
    assert said.returncode == 2 and "is not UTF-8 text" in said.stderr


@pytest.mark.parametrize("words", [["train", "steps=1"], ["report", "runs"], ["eval", "runs"], ["data", "verify"]])
def test_a_working_directory_that_has_been_removed_is_said(words: list[str], tmp_path: Path) -> None:
    def remove() -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    said = easgd(*words, preexec_fn=remove)
    assert (said.returncode, said.stderr) == (
        2,
        "easgd: the working directory has been removed; go to another with cd.\n",
    )


def test_a_path_for_temporary_files_may_be_longer_than_a_sockets_and_nothing_stays_there(tmp_path: Path) -> None:
    temporary = tmp_path / ("x" * 120)
    temporary.mkdir()
    said = easgd(*SHORT, f"hydra.run.dir={tmp_path / 'run'}", environment={"TMPDIR": str(temporary)})
    assert said.returncode == 0, said.stderr
    assert list(temporary.iterdir()) == []


def test_too_few_files_are_counted_before_anything_is_made_and_as_many_as_are_asked_for_suffice(tmp_path: Path) -> None:
    words = [*SHORT, "workers=6", f"hydra.run.dir={tmp_path / 'run'}"]
    said = easgd(*words, preexec_fn=Limited(resource.RLIMIT_NOFILE, 91))
    assert said.returncode == 2 and not (tmp_path / "run").exists()
    assert said.stderr == (
        "easgd: workers=6: the run opens up to 92 files, and this shell allows 91; allow more with ulimit -n 92, or "
        "use fewer workers.\n"
    )
    cold = Limited(resource.RLIMIT_NOFILE, 92).__call__  # whose files are an interpreter's, and no fork's
    assert easgd(*words, preexec_fn=cold).returncode == 0


@pytest.mark.parametrize("blocks", [4, 64, 400])
def test_a_file_size_limit_is_called_that_and_not_a_full_disk(blocks: int, tmp_path: Path) -> None:
    """Met by the configuration, by shared memory, and by the checkpoint at the end."""
    said = easgd(*SHORT, f"hydra.run.dir={tmp_path / 'run'}", preexec_fn=Limited(resource.RLIMIT_FSIZE, blocks * 1024))
    assert "than this shell's file-size limit, which ulimit -f shows" in f"{said.stdout}{said.stderr}"
    assert "disk" not in f"{said.stdout}{said.stderr}"


def test_processes_are_counted_where_the_limit_is_low(monkeypatch: pytest.MonkeyPatch) -> None:
    most = {resource.RLIMIT_NOFILE: 10_000, resource.RLIMIT_NPROC: 200}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (most[number], most[number]))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(limits, "threads_of_user", lambda user: 190)
    Local(workers=5)
    with pytest.raises(ValueError, match=r"workers=6: the run has 11 processes, and of the 200 .* 190 run; .*-u 212"):
        Local(workers=6)
    most[resource.RLIMIT_NPROC] = 100_000
    Local(workers=6)


def test_threads_of_a_user_are_those_of_its_processes(tmp_path: Path) -> None:
    for pid, threads in (("1", 2), ("23", 3), ("self", 4)):
        for thread in range(threads):
            (tmp_path / pid / "task" / str(thread)).mkdir(parents=True)
    assert limits.threads_of_user(os.getuid(), tmp_path) == 5
    assert limits.threads_of_user(os.getuid() + 1, tmp_path) is None


def test_a_run_goes_on_when_the_working_directory_is_removed(tmp_path: Path) -> None:
    here, run = tmp_path / "here", tmp_path / "run"
    here.mkdir()
    words = [sys.executable, "-m", "easgd_cli", "train", "workers=2", "threads=1", "steps=40", f"hydra.run.dir={run}"]
    words += ["model=nets:Unhurried", f"+model.gate={tmp_path}/gate", "+model.at=20"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        words, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = [next(line for line in process.stdout if "training begins" in line)]
        here.rmdir()
        (tmp_path / "gate").touch()
        said += list(process.stdout)
    assert process.returncode == 0 and "Traceback" not in "".join(said)
    assert f"The run is in {run}" in said[-1]
