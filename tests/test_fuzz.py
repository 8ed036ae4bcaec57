"""Hostile input: files of a run, data sets and command lines, changed in every way that hypothesis thinks of. Whatever
they hold, easgd does its work or refuses in a sentence: no traceback, no hang, nothing imported to look at a file,
nothing written outside the run's directory.

EASGD_FUZZ=1000 scripts/test -n 0 --timeout 0 tests/test_fuzz.py takes a thousand examples of each, others each time.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from fuzzing import (
    FUZZED,
    STRANGER,
    Change,
    Edit,
    as_json,
    as_yaml,
    changed,
    changes,
    command,
    edits,
    examples,
    mangled,
)
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from easgd_cli import picture
from easgd_cli.__main__ import main
from easgd_cli.record import checksum, reader
from easgd_cli.record.checksum import Held, Summing
from easgd_cli.settings import targets

RESUME, REPLAY = ["train", "resume=run", "steps=9"], ["train", "replay=run", "hydra.run.dir=again"]
REPORT, CALIBRATE, CENTER = ["report", "run"], ["bench", "calibrate", "run"], ["eval", "run", "center"]
TREES = {"config.yaml": yaml.safe_load, "overrides.yaml": yaml.safe_load, "summary.json": json.loads}
COMMANDS = {
    "config.yaml": [REPORT, CALIBRATE, RESUME, REPLAY, CENTER],
    "overrides.yaml": [REPORT, RESUME],
    "summary.json": [REPORT, CALIBRATE, RESUME, REPLAY, CENTER],
    "metrics.jsonl": [REPORT, CALIBRATE, RESUME, REPLAY],
    "exchanges.bin": [REPLAY, RESUME, REPORT],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with two checkpoints and an average, of which its files say that it was of processes."""
    path = tmp_path_factory.mktemp("finished") / "run"
    words = ["algo=easgd", "average=moving", "workers=2", "launcher=simulated", "steps=6", "tau=2", "problem=quadratic"]
    words += ["problem.dimension=5", "checkpoint.every=3 steps", "checkpoint.keep=2"]
    with redirect_stdout(io.StringIO()):
        assert main(["train", *words, f"hydra.run.dir={path}"]) == 0
        # once, since matplotlib makes directories of its own
        assert main(["report", str(path), "--out", str(path.parent / "report")]) == 0
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a stranger's module, which raises when it is imported."""
    place = tmp_path_factory.mktemp("fuzzed")
    (place / f"{STRANGER}.py").write_text("raise SystemExit('imported')")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        if not FUZZED:  # where everything in a picture lies takes longer than to draw it
            patch.setattr(picture, "new", lambda width, height: Figure(figsize=(width, height)))
        yield place


def anew(place: Path, finished: Path) -> Path:
    for name in ("run", "again"):
        shutil.rmtree(place / name, ignore_errors=True)
    return Path(shutil.copytree(finished, place / "run"))


def sealed(run: Path) -> None:
    """Gives the files of a run the checksums of what they hold now, as somebody does who wants them to be believed."""
    names = ("metrics.jsonl", "exchanges.bin", "center.pt", "average.pt")
    held = {name: Held.of((run / name).read_bytes()) for name in names if (run / name).exists()}
    for path in sorted((run / "checkpoint").glob("*.pt")):
        with suppress(Exception):
            content = torch.load(path, weights_only=True)
            content["record"] = {name: vars(held[name]) for name in ("metrics.jsonl", "exchanges.bin")}
            save(content, path)
    with suppress(Exception):
        summary = json.loads((run / "summary.json").read_text())
        summary["files"] = {name: vars(h) for name, h in held.items()}
        summary.pop("crc32", None)
        (run / "summary.json").write_text(checksum.with_entry(json.dumps(summary, indent=2) + "\n"))
    with suppress(Exception):
        below = (run / "config.yaml").read_text().split("\n", 1)[1]
        (run / "config.yaml").write_text(checksum.with_line(below))


def save(content: Any, path: Path) -> None:
    """A checkpoint with its checksum."""
    with open(path, "wb") as f:
        summing = Summing(f)
        torch.save(content, cast(Any, summing))
        summing.seal()


@pytest.mark.parametrize("name", COMMANDS)
@given(data=st.data(), edits=edits, forged=st.booleans())
@examples(2)
def test_a_mangled_file_of_a_run(
    name: str, finished: Path, place: Path, data: st.DataObject, edits: list[Edit], forged: bool
) -> None:
    run = anew(place, finished)
    (run / name).write_bytes(mangled((run / name).read_bytes(), edits))
    if forged:
        sealed(run)
    command(data.draw(st.sampled_from(COMMANDS[name])), place)


@pytest.mark.parametrize("name", TREES)
@given(data=st.data(), changes=changes, forged=st.booleans())
@examples(5)
def test_other_values_in_a_file_of_a_run(
    name: str, finished: Path, place: Path, data: st.DataObject, changes: list[Change], forged: bool
) -> None:
    run = anew(place, finished)
    tree = changed(TREES[name]((run / name).read_text()), changes)
    (run / name).write_bytes(as_json(tree) if name.endswith("json") else as_yaml(tree))
    if forged:
        sealed(run)
    command(data.draw(st.sampled_from(COMMANDS[name])), place)


@given(data=st.data(), at=st.integers(0, 1000), changes=changes)
@examples(5)
def test_other_values_in_a_row(
    finished: Path, place: Path, data: st.DataObject, at: int, changes: list[Change]
) -> None:
    run = anew(place, finished)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[at % len(rows)] = changed(rows[at % len(rows)], changes)
    lines = (as_json(row).replace(b"\n", b" ") for row in rows)
    (run / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    sealed(run)
    command(data.draw(st.sampled_from(COMMANDS["metrics.jsonl"])), place)


_ZEROS = torch.zeros(5)
TENSORS = (
    torch.zeros(0), _ZEROS, _ZEROS.log(), _ZEROS.double(), _ZEROS.long(), _ZEROS.bool(), _ZEROS.bfloat16(),
    torch.zeros(7), _ZEROS.to(torch.complex64), torch.zeros(1, 5), torch.tensor(1.0), torch.zeros(1).expand(5),
    torch.zeros(10)[::2], _ZEROS.to_sparse(), torch.zeros(5, device="meta"),
)  # fmt: skip
tensors = st.tuples(st.sampled_from(("set", "add")), st.integers(0, 1 << 30), st.sampled_from(TENSORS))
of_tensors = changes | st.lists(tensors, min_size=1, max_size=2)


@given(data=st.data(), changes=of_tensors)
@examples(6)
def test_other_values_in_a_checkpoint(finished: Path, place: Path, data: st.DataObject, changes: list[Change]) -> None:
    run = anew(place, finished)
    path = reader.checkpoints(run / "checkpoint")[-1]
    content = torch.load(path, weights_only=True)
    try:
        save(changed(content, changes), path)
    except Exception:
        return  # torch does not write it
    command(RESUME, place)


@given(edits=edits)
@examples(3)
def test_a_mangled_checkpoint_with_a_right_checksum(finished: Path, place: Path, edits: list[Edit]) -> None:
    run = anew(place, finished)
    path = reader.checkpoints(run / "checkpoint")[-1]
    end = len("easgd crc32 00000000") + 2
    with open(path, "r+b") as f:
        content = mangled(f.read()[:-end] + b"\0\0", edits)
        f.seek(0)
        f.truncate()
        summing = Summing(f)
        summing.write(content)
        with suppress(OSError):
            summing.seal()
    command(RESUME, place)


# --- a net's parameters ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small net."""
    path = tmp_path_factory.mktemp("net") / "run"
    words = ["algo=easgd", "workers=2", "launcher=simulated", "steps=1", "tau=1", "model=mlp", "model.hidden=[2]"]
    with redirect_stdout(io.StringIO()):
        assert main(["train", *words, "eval.train_images=8", f"hydra.run.dir={path}"]) == 0
    return path


@given(edits=edits, changes=of_tensors, forged=st.booleans(), form=st.sampled_from(["bytes", "values"]))
@examples(5)
def test_a_center_with_other_bytes_or_values(
    net: Path, place: Path, edits: list[Edit], changes: list[Change], forged: bool, form: str
) -> None:
    run = anew(place, net)
    path = run / "center.pt"
    if form == "bytes":
        path.write_bytes(mangled(path.read_bytes(), edits))
    else:
        with suppress(Exception):
            torch.save(changed(torch.load(path, weights_only=True), changes), path)
    if forged:
        sealed(run)
    command(["eval", "run", "center", "eval.train_images=8"], place)


# --- what has failed before ------------------------------------------------------------------------------------------


def text(name: str, old: str, new: str) -> Callable[[Path], None]:
    """A file of a run in which a text is another."""

    def spoil(run: Path) -> None:
        content = (run / name).read_text()
        assert old in content
        (run / name).write_text(content.replace(old, new, 1))

    return spoil


def raw(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_bytes(content)


def row(**more: Any) -> Callable[[Path], None]:
    """One more row of the record."""
    line = {"seconds": 1.0, "step": 1, "exchanges": 1, "party": "center"} | more

    def spoil(run: Path) -> None:
        with open(run / "metrics.jsonl", "ab") as f:
            f.write(as_json(line).replace(b"\n", b"") + b"\n")

    return spoil


def checkpointed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """The newest checkpoint with other values, and their checksum."""

    def spoil(run: Path) -> None:
        path = reader.checkpoints(run / "checkpoint")[-1]
        content = torch.load(path, weights_only=True)
        change(content)
        save(content, path)

    return spoil


CORPUS: dict[str, tuple[Callable[[Path], Any], list[list[str]]]] = {
    "a class of a stranger": (text("config.yaml", "easgd_cli.algorithms:EASGD", f"{STRANGER}:M"), [REPORT, CALIBRATE]),
    "a module that one of easgd's holds": (
        text("config.yaml", "easgd_cli.algorithms:EASGD", "easgd_cli.data.preparation:os.system"), [REPORT, CALIBRATE],
    ),
    "a target that is a number": (text("config.yaml", "easgd_cli.algorithms:EASGD", "3"), COMMANDS["config.yaml"]),
    "an interpolation": (text("config.yaml", "seed: 0", "seed: ${oc.env:HOME}"), COMMANDS["config.yaml"]),
    "no UTF-8": (raw("config.yaml", b"ab: \xff\n"), COMMANDS["config.yaml"]),
    "aliases of aliases": (raw("config.yaml", b"a: &a [1]\nb: &b [*a,*a]\nc: [*b,*b]\n"), COMMANDS["config.yaml"]),
    "a tag that calls": (raw("config.yaml", b"a: !!python/object/apply:os.system ['ls']\n"), COMMANDS["config.yaml"]),
    "lists in lists": (raw("config.yaml", b"a: " + b"[" * 5000), COMMANDS["config.yaml"]),
    "another number of workers": (text("config.yaml", "workers: 2", "workers: 5"), COMMANDS["config.yaml"]),
    "more than a number can be": (text("config.yaml", "eta: ", f"eta: {10**400} #"), COMMANDS["config.yaml"]),
    "overrides that are none": (raw("overrides.yaml", b"- {a: [\x1b]}\n"), COMMANDS["overrides.yaml"]),
    "a summary of nothing": (raw("summary.json", b"{}"), COMMANDS["summary.json"]),
    "objects in objects": (raw("summary.json", b'{"a":' * 20_000), COMMANDS["summary.json"]),
    "half of a character": (
        text("summary.json", '"reason": null', '"reason": "\\ud800 \\u001b[2J"'), COMMANDS["summary.json"],
    ),
    "steps that are none": (
        text("summary.json", '"steps": {', '"steps": {"worker_00": "all", '), COMMANDS["summary.json"],
    ),
    "a number without an end": (
        text("summary.json", '"exchanges": ', '"exchanges": 1' + "0" * 5000), COMMANDS["summary.json"],
    ),
    "an error that is a text": (row(test_loss="low"), COMMANDS["metrics.jsonl"]),
    "an error that is an object": (row(test_loss={"a": 1}), COMMANDS["metrics.jsonl"]),
    "an infinite second": (row(seconds=float("inf")), COMMANDS["metrics.jsonl"]),
    "a party that is not there": (row(party="worker_99999"), COMMANDS["metrics.jsonl"]),
    "a name that commands a terminal": (row(**{"\x1b]0;owned\x07": 1.0}), COMMANDS["metrics.jsonl"]),
    "the last row twice": (row(party="worker_00", step=6, seconds=0.5), COMMANDS["metrics.jsonl"]),
    "an exchange of nobody": (raw("exchanges.bin", b"\0\0\7\0\xff\xff\1"), COMMANDS["exchanges.bin"]),
    "a sum that is none": (checkpointed(lambda c: c["workers"][0]["tally"].update(more=1)), [RESUME]),
    "a sum that is a vector": (checkpointed(lambda c: c["workers"][0]["tally"].update(loss=_ZEROS)), [RESUME]),
    "a clock that is a vector": (checkpointed(lambda c: c["workers"][0].update(t=_ZEROS)), [RESUME]),
    "a clock below zero": (checkpointed(lambda c: c["owner"].update(clock=-5)), [RESUME]),
    "a worker below zero": (checkpointed(lambda c: c["workers"].update({-1: c["workers"][0]})), [RESUME]),
    "whole vectors only": (checkpointed(lambda c: c["owner"]["vectors"].update(x=_ZEROS.to_sparse())), [RESUME]),
    "a vector that is nowhere": (
        checkpointed(lambda c: c["owner"]["vectors"].update(x=torch.zeros(5, device="meta"))), [RESUME],
    ),
    "no virtual clock": (checkpointed(lambda c: c["simulated"].pop("system")), [RESUME]),
    "messages of another form": (checkpointed(lambda c: c["simulated"]["masters"][0].update(waiting=[[1]])), [RESUME]),
    "what is counted by texts": (
        checkpointed(lambda c: c["simulated"]["masters"][0]["queueing"].update({"": "x"})), [RESUME],
    ),
    "where somebody stood, a text": (checkpointed(lambda c: c["simulated"]["supervisor"].update(step="far")), [RESUME]),
}  # fmt: skip


@pytest.mark.parametrize("which", CORPUS)
def test_what_has_failed_before(which: str, finished: Path, place: Path) -> None:
    """With right checksums, which would hide what lies behind them."""
    spoil, commands = CORPUS[which]
    run = anew(place, finished)
    spoil(run)
    sealed(run)
    shutil.copytree(run, place / "spoilt", dirs_exist_ok=True)
    for words in commands:
        anew(place, place / "spoilt")
        command(words, place)
    shutil.rmtree(place / "spoilt")


def test_nothing_of_the_package_but_what_it_offers_is_its_own() -> None:
    """Else a configuration could call whatever its modules hold, and nobody would say so."""
    for target in ("easgd_cli.algorithms:EASGD", "easgd_cli.schedule:Cosine", "easgd_cli.data.photos:imagenet", None):
        assert targets.own(target)
    for target in (
        "easgd_cli.data.preparation:os.system",
        "easgd_cli.data.preparation:_finish",
        "easgd_cli.data:x",
        "a:b",
    ):
        assert not targets.own(target)
