"""What easgd makes of a run's directory that is damaged, hostile or of somebody else: no flipped bit is accepted,
nothing hangs, nothing that a run names is run to look at it, nothing that a file says commands a terminal.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from fuzzing import FUZZED

from easgd_cli.__main__ import main
from easgd_cli.record import checksum, reader, resumption
from easgd_cli.record.initial_record import up_to
from easgd_cli.record.reader import BadFile, NewRows
from easgd_cli.record.recorder import Recorder
from easgd_cli.system.terminal import printable

RESUME = ["train", "resume=run", "steps=9"]
REPLAY = ["train", "replay=run", "hydra.run.dir=again"]
CENTER, AVERAGE, WORKER = (["eval", "run", what, "eval.train_images=16"] for what in ("center", "average", "worker_00"))
REPORT, CALIBRATE = ["report", "run"], ["bench", "calibrate", "run"]
NEWEST = "the newest checkpoint"
READERS = {
    "config.yaml": [RESUME, REPLAY, CENTER, REPORT, CALIBRATE],
    "overrides.yaml": [RESUME, REPORT],
    "summary.json": [RESUME, REPLAY, CENTER, REPORT, CALIBRATE],
    "metrics.jsonl": [RESUME],
    "exchanges.bin": [RESUME, REPLAY],
    NEWEST: [WORKER],
    "center.pt": [CENTER],
    "average.pt": [AVERAGE],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with two checkpoints and an average."""
    path = tmp_path_factory.mktemp("finished") / "run"
    words = ["algo=easgd", "average=moving", "workers=2", "launcher=simulated", "steps=6", "tau=2"]
    words += ["checkpoint.every=3 steps", "checkpoint.keep=2", "eval.train_images=16"]
    with redirect_stdout(io.StringIO()):
        assert main(["train", *words, f"hydra.run.dir={path}"]) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def said(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    return status, out.getvalue(), err.getvalue()


def place(run: Path, name: str) -> Path:
    return reader.checkpoints(run / "checkpoint")[-1] if name == NEWEST else run / name


def refused(words: list[str], *named: str) -> str:
    """The one sentence of a command that refuses a file, with status 2."""
    status, _, err = said(words)
    assert (status, err.count("\n")) == (2, 1), (words, err)
    assert all(word in err for word in named), (words, named, err)
    return err


def again(run: Path, finished: Path) -> None:
    shutil.rmtree(run)
    shutil.rmtree(run.parent / "again", ignore_errors=True)
    shutil.copytree(finished, run)


# --- a flipped bit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_noticed_by_every_command_that_reads_the_file(name: str, run: Path, finished: Path) -> None:
    content = bytearray(place(run, name).read_bytes())
    for bit in range(5, 8 * len(content), 8 * len(content) // (FUZZED or 7)):
        for words in READERS[name]:
            if words is CALIBRATE or (words is REPORT and name == "metrics.jsonl"):
                continue
            path = place(run, name)
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            refused(words, path.name)
    place(run, name).write_bytes(content)


@pytest.mark.usefixtures("undrawn")
def test_a_sound_run_is_read_without_a_word(run: Path, finished: Path) -> None:
    for words in (CENTER, AVERAGE, WORKER, REPLAY, RESUME):
        assert said(words)[::2] == (0, ""), words
    again(run, finished)
    status, out, err = said(REPORT)
    assert (status, err) == (0, "") and "damaged" not in out


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_every_bit_of_a_text_is_told_from_an_edit(name: str, run: Path) -> None:
    """The line is named, and what it was."""
    path = run / name
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 61):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(BadFile) as raised:
            reader.config_of(run) if name == "config.yaml" else reader.summary_of(run)
        if "flipped" not in (fact := raised.value.fact) and " was " in fact:
            was = content.split(b"\n")[(raised.value.line or 0) - 1].strip().decode()
            assert repr(was)[1:-1] in fact


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(run: Path) -> None:
    before, newest = reader.checkpoints(run / "checkpoint")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    refused(WORKER, newest.name, "is damaged")
    status, _, err = said(RESUME)
    assert (status, err.count("\n")) == (0, 1), err
    assert newest.name in err and f"going on from {before.name}, the one before it" in err
    assert reader.summary_of(run)["steps"] == {"worker_00": 9, "worker_01": 9}


def test_without_one_before_it_a_damaged_checkpoint_ends_the_run(run: Path) -> None:
    before, newest = reader.checkpoints(run / "checkpoint")
    before.unlink()
    newest.write_bytes(newest.read_bytes()[:-1])
    refused(RESUME, newest.name, "is damaged")


@pytest.mark.parametrize("name", ["metrics.jsonl", "exchanges.bin"])
def test_a_damaged_record_is_refused_and_the_run_can_go_on_without_it(name: str, run: Path) -> None:
    path = run / name
    content = path.read_bytes()
    if name == "metrics.jsonl":
        damaged = content.replace(b'"seconds": 0.0', b'"seconds": 1.0', 1)  # a row as any other
    else:
        damaged = bytes([content[0] ^ 1]) + content[1:]  # the other worker
    path.write_bytes(damaged)
    kept = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    err = refused(RESUME, name, "is damaged: it does not hold what it held when", "new_record=true")
    assert kept == {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}, err
    status, out, err = said([*RESUME, "new_record=true"])
    assert status == 0, err
    assert f"{name} begins anew" in out and (run / f"{name}.damaged").read_bytes() == damaged
    summary = reader.summary_of(run)
    assert summary["status"] == "completed" and summary["steps"]["worker_00"] == 9
    if name == "exchanges.bin":
        order = path.read_bytes()
        assert len(order) == 2 * summary["exchanges"] and order[:2] == b"\xff\xff"
        refused(REPLAY, name, "does not say whose exchange 1 was")
    assert said(["train", "resume=run", "steps=12"])[0] == 0  # and goes on again as any other
    assert "new_record: false" in (run / "config.yaml").read_text()


def test_new_record_is_for_a_run_that_goes_on(run: Path) -> None:
    refused(["train", "new_record=true"], "new_record=true: is for a run that goes on")


def test_wherever_a_run_is_killed_while_its_record_is_taken_back_it_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """summary.json tells what the record will be before it is: either is known."""
    found = reader.newest_checkpoint(run)
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reopened(run, found)
    resumption.check(run, found, 2, found.owner.vectors["x"].numel(), False)
    recorder = reopened(run, found)
    resumption.check(run, found, 2, found.owner.vectors["x"].numel(), False)
    recorder.row({"seconds": 9.0, "step": 9, "exchanges": 9, "party": "system"})
    recorder.order([1, 1, 1])
    recorder.flush()
    resumption.check(run, found, 2, found.owner.vectors["x"].numel(), False)
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content.replace(b"0.", b"1.", 1))
    with pytest.raises(Exception, match=r"metrics\.jsonl: is damaged"):
        resumption.check(run, found, 2, found.owner.vectors["x"].numel(), False)


def reopened(run: Path, found: object) -> Recorder:
    """With the first row left out, as if it came again, so that another record follows."""
    facts = {"algo": "easgd", "workers": 2, "batch_size": 8}
    keep, rows = up_to(found), iter([False])  # type: ignore[arg-type]
    return Recorder.reopen(
        run, 2, {}, {}, facts, lambda row: next(rows, True) and keep(row), found.owner.moment.exchanges, found.name
    )  # type: ignore[attr-defined]


def without_checksums(run: Path) -> None:
    """The directory as it was written before there were any."""
    for name in ("config.yaml", "overrides.yaml"):
        (run / name).write_text((run / name).read_text().partition("\n")[2])
    summary = {
        key: value for key, value in reader.summary_of(run).items() if key not in ("files", "exchange", "hparams")
    }
    (run / "summary.json").write_text(json.dumps(summary))
    for path in reader.checkpoints(run / "checkpoint"):
        content = torch.load(path, weights_only=True)
        del content["record"]
        torch.save(content, path)


@pytest.mark.usefixtures("undrawn")
def test_directories_of_before_are_read_without_a_word(run: Path) -> None:
    without_checksums(run)
    for words in (CENTER, AVERAGE, WORKER, REPLAY, RESUME, REPORT):
        assert said(words)[::2] == (0, ""), words


@pytest.mark.usefixtures("undrawn")
def test_an_edited_configuration_is_told_and_counts(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("train_images: 16", "train_images: 200"))
    status, _, err = said(["eval", "run"])
    assert (status, err.count("\n")) == (0, 1) and "config.yaml: is not as easgd wrote it" in err
    assert "config.yaml: is not as easgd wrote it" in said(REPORT)[1]
    config.write_text(config.read_text().partition("\n")[2])
    assert said(["eval", "run"])[::2] == (0, "")


# --- files that are something else -----------------------------------------------------------------------------------


def removed(path: Path) -> Path:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return path


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(removed(path)))


def of_ten_gigabytes(path: Path) -> None:
    with open(removed(path), "wb") as f:
        f.truncate(10 << 30)


SPOILS: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda path: os.mkfifo(removed(path)),
    "a socket": a_socket,
    "a device": lambda path: removed(path).symlink_to("/dev/zero"),
    "a directory": lambda path: removed(path).mkdir(),
    "a link to nowhere": lambda path: removed(path).symlink_to("nowhere"),
    "a loop": lambda path: removed(path).symlink_to(path.name),
    "ten gigabytes": of_ten_gigabytes,
    "no UTF-8": lambda path: removed(path).write_bytes(b"a: \xff\n"),
    "nothing": lambda path: removed(path).write_bytes(b""),
}


SPOILS_OF_CONTENT = ("no UTF-8", "nothing", "ten gigabytes")


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", [*READERS, "checkpoint", "logs", "logs/launcher.log"])
def test_a_file_that_is_something_else_is_one_sentence(name: str, spoil: str, run: Path) -> None:
    if name == "checkpoint" and spoil == "a directory":
        pytest.skip("it is one")
    if (
        name.startswith("logs")
        and spoil in ("no UTF-8", "nothing", "ten gigabytes", "a directory")[: 3 + ("/" not in name)]
    ):
        pytest.skip("nobody reads it")
    if name == "overrides.yaml" and spoil == "nothing":
        pytest.skip("says that there are none")
    path = place(run, name)
    SPOILS[spoil](path)
    for words in READERS.get(name, [RESUME, WORKER] if name == "checkpoint" else [RESUME]):
        if words is RESUME and name == "metrics.jsonl" and spoil == "nothing":
            refused(words, "does not hold what it held")
        else:
            refused(words, path.name)


@pytest.mark.parametrize("name", ["checkpoint", "logs", "exchanges.bin", "logs/launcher.log"])
def test_nothing_is_written_outside_the_runs_directory(name: str, run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = list(outside.iterdir()) if outside.is_dir() else outside.read_bytes()
    refused(RESUME, Path(name).name, "is a link")
    assert before == (list(outside.iterdir()) if outside.is_dir() else outside.read_bytes())


def test_a_file_that_may_not_be_read_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to root, who may read everything."""
    opened = os.open

    def refuse(path: object, *rest: object, **named: object) -> int:
        if str(path).endswith("summary.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    for words in (RESUME, REPLAY, CENTER, REPORT):
        refused(words, "summary.json: cannot be read (Permission denied)")


def test_a_live_view_is_not_filled_by_a_file_without_an_end(tmp_path: Path) -> None:
    of_ten_gigabytes(tmp_path / "metrics.jsonl")
    new = NewRows(tmp_path / "metrics.jsonl")
    assert new.take() == ([], True) and new.take() == ([], False)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a: &x [1]\nb: [*x, *x]\n", "line 2 is not YAML \\(a reference, \\*x"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than"),
        ("a: " + "[" * 200_000, "is not YAML"),
        ("workers: " + "9" * 10_000, "is not"),
        ("2026-01-01: 1\n", "is not a dictionary of settings"),
        ("tau: 2026-01-01\n", "must be a whole number"),
    ],
)
def test_a_configuration_that_stands_for_any_size_is_refused(text: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadFile, match=wrong):
        reader.config_of(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "{", "3", '{"status": 3}', '{"steps": {"worker_00": null}}',
    '{"files": {"center.pt": {"size": -1}}}',
    '{"communication": 3}', '{"metrics": [3]}', '{"center": {"test_error": "low"}}', '{"exchanges": 1e999}'],
)  # fmt: skip
def test_a_summary_of_another_form_is_named(content: str, run: Path) -> None:
    (run / "summary.json").write_text(content)
    for words in (
        (CENTER,) if "files" in content else (REPORT,) if "metrics" in content else (RESUME, REPORT, CALIBRATE)
    ):
        refused(words, "summary.json")


def test_a_checkpoint_of_another_run_is_refused(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().partition("\n")[2].replace("workers: 2", "workers: 5"))
    refused(RESUME, "config.yaml: says workers=5, and", "is of 2 workers")


@pytest.mark.parametrize("group", [{"name": "mine", "target": 3}, {"name": "mine"}, {"target": None}, 3, {}])
def test_a_group_of_settings_of_another_form_is_named(group: object, run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"algo": group}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for words in (RESUME, REPLAY, CENTER, CALIBRATE):
        refused(words, "config.yaml", "algo")


@pytest.mark.parametrize("key", ["seconds_other", "seconds_compute", "train_loss", "eta"])
@pytest.mark.usefixtures("undrawn")
def test_a_row_may_lack_a_figure(key: str, run: Path) -> None:
    """Of an earlier version, or edited."""
    without_checksums(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({name: value for name, value in row.items() if name != key}) for row in rows]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert said(RESUME)[::2] == (0, "") and said(REPORT)[::2] == (0, "")


def test_what_is_packed_in_a_checkpoint_is_not_unpacked(run: Path) -> None:
    """A file of a few kilobytes could hold any number of gigabytes."""
    path = place(run, NEWEST)
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    refused(WORKER, path.name, "packed")


@pytest.mark.parametrize("content", [{"owner": 3}, [1], {"owner": {"moment": {}}, "workers": {}, "pending": []}])
def test_a_sound_file_of_another_form_is_no_checkpoint(content: object, run: Path) -> None:
    torch.save(content, place(run, NEWEST))
    refused(WORKER, place(run, NEWEST).name, "cannot be read")


# --- code and texts that a run brings along --------------------------------------------------------------------------

PWN = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass M: pass\n"


def hostile(run: Path) -> None:
    """Names code of its own and the environment in every group, and has no checksum."""
    without_checksums(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    for group in ("algo", "problem", "dataset", "model", "schedule", "average", "launcher", "local"):
        config[group] = {"name": config[group]["name"], "target": "pwn:M", "x": "${oc.env:SECRET}"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run.parent / "pwn.py").write_text(PWN)


def test_to_look_at_a_run_runs_none_of_its_code(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    hostile(run)
    shutil.copytree(run, run.parent / "other")
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"delta": 0.5}
    (run.parent / "other" / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(run, run.parent / "sweep" / "old")
    commands = [["report", "run", "other"], ["bench", "calibrate", "run"], ["report", "sweep"]]
    sweep = ["train", "-m", "hydra.sweep.dir=sweep", "algo=easgd,eamsgd", "workers=1", "steps=1", "launcher=simulated"]
    said = ""
    for words in (*commands, sweep):
        done = subprocess.run(
            [sys.executable, "-m", "easgd_cli", *words], cwd=run.parent, capture_output=True, text=True, timeout=110
        )
        assert "Traceback" not in done.stderr and not (run.parent / "ran").exists(), done.stderr
        said += done.stdout + done.stderr
    page = (run.parent / "report" / "report.html").read_text()
    assert "swordfish" not in said + page
    assert reader.config_of(run)["algo"]["x"] == "${oc.env:SECRET}"  # type: ignore[index]


def test_what_a_run_has_in_braces_is_a_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    config = run / "config.yaml"
    text = config.read_text().partition("\n")[2].replace("name: digits", "name: '${oc.env:SECRET}'")
    config.write_text(text)
    status, out, err = said(["eval", "run"])
    assert status == 0 and "${oc.env:SECRET}" in out and "swordfish" not in out + err


def test_code_of_its_own_is_announced_before_it_runs(run: Path) -> None:
    config = run / "config.yaml"
    text = config.read_text().partition("\n")[2]
    config.write_text(text.replace("easgd_cli.models.convnet_digits:ConvNetDigits", "mine.nets:Net"))
    (run.parent / "mine").mkdir()
    (run.parent / "mine" / "nets.py").write_text(
        "import sys\nprint('running', file=sys.stderr)\n"
        "from easgd_cli.models.convnet_digits import ConvNetDigits as Net\n"
    )
    for words in (CENTER, REPLAY, RESUME):
        sys.modules.pop("mine.nets", None)
        status, _, err = said(words)
        assert status == 0, err
        announced, ran = err.splitlines()[:2]
        assert f"importing mine.nets from {run.parent / 'mine' / 'nets.py'}, which " in announced
        assert announced.endswith("run/config.yaml names as model.") and ran == "running"
    sys.modules.pop("mine.nets", None)
    assert "Code of your own that RUN/config.yaml names is imported" in said(["eval", "-h"])[1]


ESCAPES = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202egnp\u2066\r\x00\x7f\u2028"


def hidden(text: str) -> bool:
    return not any(c in text for c in ESCAPES if not c.isprintable())


def test_nothing_that_a_file_says_commands_a_terminal_or_a_page(run: Path) -> None:
    without_checksums(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    for group in ("algo", "problem", "dataset", "model", "schedule", "launcher"):
        config[group]["name"] = f"a{ESCAPES}"
    config["launcher"]["name"] = f"simulated{ESCAPES}"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "overrides.yaml").write_text(yaml.safe_dump([f"algo={ESCAPES}"]))
    metrics = [
        {"name": "test_error", "title": f"error{ESCAPES}", "short": ESCAPES, "unit": ESCAPES, "primary": True},
        {"name": f"m{ESCAPES}"},
    ]
    facts = {"status": "interrupted", "reason": ESCAPES, "algo": ESCAPES, "metrics": metrics, "symbols": [ESCAPES]}
    summary = reader.summary_of(run) | facts | {"lost": {f"worker_00{ESCAPES}": ESCAPES}}
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [json.loads(line) | {f"m{ESCAPES}": 1.0} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = run.parent / f"b{ESCAPES.replace(chr(0), '').replace('/', '')}"
    shutil.copytree(run, named)
    (named / "config.yaml").write_text(yaml.safe_dump(config | {"delta": 0.5}))
    for words in (
        ["report", "run", named.name],
        ["report", "run", "--metric", f"m{ESCAPES}"],
        CALIBRATE,
        CENTER,
        RESUME,
    ):
        _, out, err = said(words)
        assert hidden(out) and hidden(err), (words, out, err)
        assert "Traceback" not in err
    for page in run.parent.rglob("report.html"):
        assert hidden(page.read_text().partition("<body>")[2].partition("<script>")[0].replace("\n", ""))
    (run / "summary.json").write_text(json.dumps(summary | {"status": [ESCAPES]}))
    assert hidden(refused(CENTER, "summary.json"))


def test_printable_leaves_what_has_a_shape() -> None:
    assert printable("naïve café, 字, τ = 2") == "naïve café, 字, τ = 2"
    assert printable("a\x1b[31m\x9b\u202e\r\n\udcff") == r"a\x1b[31m\x9b\u202e\r\n\udcff"


# --- a run that has no finite center ---------------------------------------------------------------------------------


def test_a_diverged_center_is_said_to_be_none(run: Path) -> None:
    without_checksums(run)
    summary = reader.summary_of(run) | {"status": "diverged", "reason": "the center's loss is not finite at step 4"}
    (run / "summary.json").write_text(json.dumps(summary))
    state = torch.load(run / "center.pt", weights_only=True)
    next(iter(state.values()))[0] = float("inf")
    torch.save(state, run / "center.pt")
    because = "this run diverged (the center's loss is not finite at step 4), and its center is not finite"
    refused(CENTER, f"eval run center: {because}, so there is nothing to measure.")
    assert said(AVERAGE)[0] == 0


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "pwn")]:
        del sys.modules[name]


def test_a_checksum_is_of_every_byte() -> None:
    text = "a: 1\nb: two\n"
    assert checksum.wrong_line(checksum.with_line(text)) is None and checksum.wrong_line(text) is None
    edited = checksum.with_line(text).replace("two", "three and more")
    wrong = checksum.wrong_line(edited)
    assert wrong is not None and wrong.line is None
    flipped = checksum.wrong_line(checksum.with_line(text).replace("two", "tso"))
    assert flipped is not None and flipped.line == 3 and "'b: tso', and was 'b: two'" in flipped.sentence
