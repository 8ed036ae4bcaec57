"""`easgd eval`: what it measures is what the run measured, and an independent count of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said
from safetensors.torch import load_file

from easgd_cli.__main__ import main
from easgd_cli.data.digits import digits
from easgd_cli.models.convnet_digits import ConvNetDigits

Eval = Callable[..., Said]
RUN = "trained"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run on digits that keeps an average."""
    path = tmp_path_factory.mktemp("eval") / RUN
    words = [
        "launcher=simulated",
        "algo=downpour",
        "average=moving",
        "workers=2",
        "steps=60",
        "threads=1",
        f"hydra.run.dir={path}",
    ]
    assert main(["train", *words]) == 0
    return path


@pytest.fixture
def measured(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Eval:
    def run(*words: str) -> Said:
        status = main(["eval", str(trained), *words])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


@pytest.mark.parametrize("what", ["center", "average"])
def test_the_figures_are_those_of_the_run(what: str, trained: Path, measured: Eval, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    said = measured(what, "--json", str(out))
    assert said.status == 0, said.err
    summary, found = json.loads((trained / "summary.json").read_text()), json.loads(out.read_text())
    for name in ("train_loss", "test_loss", "test_error"):
        assert found[name] == pytest.approx(summary[what][name], rel=1e-5)


def test_the_confusion_counts_are_those_of_the_saved_net(trained: Path, measured: Eval, tmp_path: Path) -> None:
    assert (
        measured("--json", str(tmp_path / "figures.json"), "--export", str(tmp_path / "center.safetensors")).status == 0
    )
    found = json.loads((tmp_path / "figures.json").read_text())
    state = torch.load(trained / "center.pt", weights_only=True)
    exported = load_file(tmp_path / "center.safetensors")
    assert exported.keys() == state.keys() and all(torch.equal(exported[k], v) for k, v in state.items())
    net, data = ConvNetDigits(), digits()
    net.load_state_dict(state)
    with torch.no_grad():
        taken_for = net.eval()(data.test / 16).argmax(1)
    counts = [[0] * 10 for _ in range(10)]
    for label, guess in zip(data.test_labels.tolist(), taken_for.tolist(), strict=True):
        counts[label][guess] += 1
    assert found["confusion"] == counts
    assert found["test_error"] == pytest.approx(100 * (1 - sum(counts[i][i] for i in range(10)) / len(taken_for)))


RENAMED = """
from dataclasses import replace
from easgd_cli.data.digits import digits

def renamed(more: str = ""):
    return replace(digits(), classes=(*(f"[r]{i}{more}" for i in range(9)), f"nin\\udce9{more}"))
"""


@pytest.mark.parametrize(
    ("more", "columns", "last"),
    [("", [*(f"[r]{i}" for i in range(9)), "nin?"], ["nin?"]), ("long", [*"0123456789"], ["9", "nin?long"])],
)
def test_classes_are_called_what_the_data_set_calls_them(
    more: str, columns: list[str], last: list[str], measured: Eval, here: Path
) -> None:
    """Names stand above the columns where there is room. The data set is one of the user's, by its name in a directory
    of configurations.
    """
    (here / "mine.py").write_text(RENAMED)
    (here / "own" / "dataset").mkdir(parents=True)
    (here / "own" / "dataset" / "renamed.yaml").write_text("name: renamed\ntarget: mine:renamed\nmore: ''\n")
    said = measured("dataset=renamed", f"dataset.more={more}", "--config-dir", "own", "--json", "figures.json")
    assert said.status == 0, said.err
    rows = [line.split() for line in said.out.splitlines()]
    assert [*columns, "error"] in rows
    row = next(row for row in rows if row[: len(last)] == last)
    counts = [0 if cell == "." else int(cell) for cell in row[len(last) : len(last) + 10]]
    assert counts == json.loads(Path("figures.json").read_text())["confusion"][9]


def test_a_worker_is_measured_from_the_newest_checkpoint(trained: Path, measured: Eval, tmp_path: Path) -> None:
    [file] = (trained / "checkpoint").iterdir()
    x = torch.load(file, weights_only=True)["workers"][1]["vectors"]["x"]
    assert measured("worker_01", "--export", str(tmp_path / "worker.safetensors")).status == 0
    state = load_file(tmp_path / "worker.safetensors")
    assert torch.equal(torch.cat([state[name].flatten() for name, _ in ConvNetDigits().named_parameters()]), x)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tau=3"], "tau=3: a run is measured with the settings it had"),
        (["worker_07"], "has no such worker; it has worker_00, worker_01"),
        (["best"], "best: is center, average or a worker"),
        (["dataset=synthetic"], "dataset=synthetic: center.pt does not fit these data: features.0.weight is"),
        (["dataset.validation=-1"], "dataset.validation=-1: must be from 0"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: names a file in a directory that is there"),
        (["--export", "x.pt"], "--export x.pt: is a file that ends in .safetensors"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such directory"),
        (["--quick"], "--quick: there is no such option"),
    ],
)
def test_a_mistake_has_its_sentence(words: list[str], sentence: str, measured: Eval) -> None:
    said = measured(*words)
    assert said.status == 2
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1


def test_what_is_not_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        ([], "usage: easgd eval RUN"),
        (["nowhere"], "there is no such directory"),
        ([str(tmp_path)], "holds no config.yaml"),
    ):
        assert main(["eval", *words]) == (0 if not words else 2)
        captured = capsys.readouterr()
        assert sentence in captured.out + captured.err


def test_code_of_ones_own_is_looked_for_where_the_command_is_given(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "run").mkdir()
    (here / "run" / "center.pt").write_bytes((trained / "center.pt").read_bytes())
    config = (trained / "config.yaml").read_text()
    assert "easgd_cli.algorithms:DOWNPOUR" in config
    (here / "run" / "config.yaml").write_text(config.replace("easgd_cli.algorithms:DOWNPOUR", "of_mine:Method"))
    assert main(["eval", "run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (
        f"algo=of_mine:Method: there is no module of_mine in {here} or among the installed packages; go to the "
        "directory that holds it." in line
    )


def test_a_function_has_no_net_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "train",
                "launcher=simulated",
                "problem=quadratic",
                "workers=2",
                "steps=5",
                f"hydra.run.dir={tmp_path / 'run'}",
            ]
        )
        == 0
    )
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "problem=quadratic has no net to measure" in capsys.readouterr().err
