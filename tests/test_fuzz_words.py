"""Command lines of words that hypothesis thinks of: refused in a sentence, with nothing written, or they would begin;
see fuzzing.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fuzzing import STRANGER, command, examples, texts, values
from hypothesis import given
from hypothesis import strategies as st

from easgd_cli.bench import data as bench_data
from easgd_cli.bench import exchange as bench_exchange
from easgd_cli.bench import scaling as bench_scaling
from easgd_cli.bench import startup as bench_startup
from easgd_cli.bench import step as bench_step
from easgd_cli.bench import table4 as bench_table4
from easgd_cli.commands import output, single_run, sweep
from easgd_cli.data import preparation
from easgd_cli.settings.schema import GROUPS, Settings
from easgd_cli.theory.studies import doublewell, family, figure1, figure5, moments, roundrobin

KEYS = sorted(
    {f.name for f in fields(Settings)} - {"default_steps"}
    | {f"{g}.{key}" for g in ("eval", "checkpoint") for key in ("every", "when", "keep", "device", "train_images")}
    | {f"{g}.{key}" for g in GROUPS for key in ("name", "target", "x")}
    | {"until.test_error", "model.hidden", "launcher.latency", "launcher.compute", "problem.noise", "problem.dimension"}
    | {"hydra.run.dir", "hydra.sweep.dir", "hydra.verbose", "hydra", "hydra/launcher", "hydra.searchpath", "experiment"}
    | {"dataset.root", "dataset.validation", "dataset.targets", "task.top5", "faults.0.step", "", "+x", "~tau", "a@b"}
)  # fmt: skip
WORDS = (
    "-m", "-c", "job", "hydra", "--cfg", "--info", "--resolve", "-p", "-cn", "-cd", "--config-dir", ".", "-sc",
    "install=bash", "query=tau", "--hydra-help", "--help", "--json", "--levels", "20,x", "--out", "--x", "bytes",
    "--rows", "tau", "run", "average", "worker_00", "worker_9", "center", "all", "moments", "step", "prepare",
    "verify", "--windows", "0", "--yaml", "a.yaml", "=", "~", "", "tau=1,2", "tau=range(1,3)", "eta=interval(0,1)",
    "seed=choice(1,2)", "algo=glob(*)", "tau=1,1", "eta=tag(a,1)", "faults=[{a: 1}]",
    "faults=[{worker: 1, step: 0, kind: kill}]", "faults=[1]", "until={}", "model={a: 1}", "device=[]",
    "algo=[easgd]", "algo={a: b}",
)  # fmt: skip
settings_of = st.tuples(st.sampled_from(KEYS), values.map(str) | texts).map(lambda pair: f"{pair[0]}={pair[1]}")
words = (settings_of | settings_of | st.sampled_from(WORDS) | texts).map(lambda word: word.replace("\0", "0"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a stranger's module, and a directory in which nothing is."""
    place = tmp_path_factory.mktemp("words")
    (place / "run").mkdir()
    (place / f"{STRANGER}.py").write_text("raise SystemExit('imported')")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


@pytest.mark.parametrize("of", ["train", "eval", "report", "data", "bench", "theory", ""])
@given(words=st.lists(words, min_size=1, max_size=4))
@examples(5)
def test_whatever_words(of: str, place: Path, words: list[str]) -> None:
    """What would compute is not begun: it is what leads there that is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        for where, name in BEGINS:
            patch.setattr(where, name, begun)
        with suppress(Begun):
            command([*([of] if of else []), *words], place / "run")
    assert sorted(path.name for path in place.iterdir()) == ["run", f"{STRANGER}.py"]


class Begun(Exception):
    """The command would begin now."""


def begun(*_: Any, **__: Any) -> Any:
    raise Begun


BEGINS = [
    (single_run, "launch"), (single_run, "go_on"), (sweep, "run"), (output, "directory"), (preparation, "prepare"),
    *((study, "study") for study in (moments, doublewell, family, figure1, figure5, roundrobin)),
    *((of, "run") for of in (bench_step, bench_exchange, bench_startup, bench_data)), (bench_table4, "spent"),
    (bench_scaling, "against_plain"),
]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["report", "x" * 5000], ["eval", "x" * 300], ["train", "resume=" + "x" * 300],
        ["train", "--config-dir", "x" * 300],
        ["train", "dataset.name=" + "[" * 400 + "]" * 400], ["train", "--hydra-help", "schedule=[1]"],
        ["train", "--hydra-help", "tau=\x0c"], ["train", "task.target=1e-320"], ["train", "algo.target=[a]"],
        ["train", "algo.target=3"], ["train", "tau=\x1b[2J"], ["train", "seed=\ud800"],
    ],
)  # fmt: skip
def test_words_that_have_failed_before(words: list[str], place: Path) -> None:
    assert command(words, place / "run") == 2
